"""The package's own exception."""


class CheckpointError(ValueError):
    """The files of a model are missing, damaged, or describe a model that this package does not compute.

    The message names the file and what was found in it, and says what to do.
    """
