"""qwen3np verify: the report on stdout, and with --json all of it in a file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.atomic import write_file
from ..table import terminal_columns
from ..verify.report import verify
from ..verify.transformers import require_transformers

if TYPE_CHECKING:
    from ..embedder import Embedder
    from ..reranker import Reranker


def run(args: argparse.Namespace, load: Callable[[], Embedder | Reranker]) -> int:
    if args.against == "transformers":  # before the model is loaded
        require_transformers()
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(_json_file(args.json)) if args.json is not None else None
        claimed = True if args.published else None
        progress = sys.stderr.isatty()
        result = verify(load(), against=args.against, published=claimed, show_progress_bar=progress)
        if write is not None:
            write(result.as_dict())
    print(result.report(terminal_columns()))
    return 0 if result.held else 1


@contextlib.contextmanager
def _json_file(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that writes a value to the file, complete or not at all. That it can be written is tried at
    once: what is to be written may take minutes to come."""
    if path.is_dir():
        raise ValueError(f"--json {path}: is a folder")
    tried = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tried.touch(exist_ok=False)
        tried.unlink()
    except OSError as error:
        raise ValueError(f"--json {path}: cannot be written ({error.strerror})") from error
    yield lambda value: write_file(path, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")
