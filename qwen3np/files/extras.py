"""Libraries of optional extras, imported when a file needs them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any


def library(name: str, path: Path, extra: str, what: str = "") -> Any:
    """Return a module, or raise ImportError that says what of which file needs it and how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"{path}: {what}needs {package}: pip install 'qwen3np[{extra}]'") from error
