"""qwen3np verify: print the report and, with --json, write all of it to a file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files.atomic import write_file
from ..table import terminal_columns
from ..verify.report import verify
from ..verify.transformers import require_transformers
from . import options

EXAMPLES = ("qwen3np verify Qwen/Qwen3-Embedding-0.6B --json report.json",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare a model with the reference or transformers, and with the published scores.\n"
        "Exit code 0: everything held. 1: something fell short. 2: it could not run."
    )
    options.model_options(parser, options.EMBEDDER, "--precision")
    options.model_argument(parser)
    parser.add_argument(
        "--against",
        default="numpy",
        choices=("numpy", "transformers"),
        help="compare the stages with the reference (numpy) or transformers (default: %(default)s)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="the folder holds the published weights: compare their scores (a Hub id implies it)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every row to FILE, with all digits"
    )


def run(args: argparse.Namespace) -> int:
    if args.against == "transformers":  # before the model is loaded
        require_transformers()
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(_json_file(args.json)) if args.json is not None else None
        claimed = True if args.published else None
        progress = sys.stderr.isatty()
        result = verify(
            options.load_either(args), against=args.against, published=claimed, show_progress_bar=progress
        )
        if write is not None:
            write(result.as_dict())
    print(result.report(terminal_columns()))
    return 0 if result.held else 1


@contextlib.contextmanager
def _json_file(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes a value to the file, complete or not at all.

    That the file can be written is tried at once: what is to be written may take minutes to come.
    """
    if path.is_dir():
        raise ValueError(f"--json {path}: is a folder")
    tried = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tried.touch(exist_ok=False)
        tried.unlink()
    except OSError as error:
        raise ValueError(f"--json {path}: cannot be written ({error.strerror})") from error
    yield lambda value: write_file(path, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")
