"""The exception that says what is wrong with a model's files."""


class CheckpointError(ValueError):
    """The files of a model are missing, damaged, or describe a model that this package does not compute.

    The message names the file and what was found in it, and says what to do.
    """
