"""Generated checkpoints, true in all but the values."""

from .checkpoints import synthesize

__all__ = ["synthesize"]
