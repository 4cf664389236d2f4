"""A text's way to its vector, in pictures: the numbers, the pictures of them, and a page that holds both."""

from .numbers import Explanation, Reading, explain
from .page import page

__all__ = ["Explanation", "Reading", "explain", "page"]
