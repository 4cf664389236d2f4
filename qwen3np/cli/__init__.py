"""The command line. Each command is a file: EXAMPLES, add_arguments(parser), run(args)."""

from .program import main

__all__ = ["main"]
