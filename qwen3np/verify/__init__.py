"""Verification of a model against the reference, transformers and the published scores."""

from .report import verify

__all__ = ["verify"]
