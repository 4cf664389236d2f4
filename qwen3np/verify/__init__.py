"""Comparison with the reading copy, with transformers, and with the published scores."""

from .report import verify

__all__ = ["verify"]
