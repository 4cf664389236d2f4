"""qwen3np convert: write a model with weights of 8 bits."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.progress import bar
from . import options
from .streams import escaped

EXAMPLES = ("qwen3np convert Qwen/Qwen3-Embedding-8B ./8B-int8 && qwen3np embed --model ./8B-int8 'a text'",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    options.where_options(parser)


def run(args: argparse.Namespace) -> None:
    from ..interface.convert import to_int8
    from ..loading.checkpoint import Checkpoint
    from ..loading.hub import locate
    from ..loading.st_config import is_reranker, load_modules, load_reranker_modules

    folder = locate(args.model, **options.where(args))
    modules = load_reranker_modules(folder) if is_reranker(folder) else load_modules(folder)
    checkpoint = Checkpoint(folder, modules.path)
    shown = bar(total=len(checkpoint.tensors), unit="tensor", desc=escaped(str(args.folder)), delay=0.5)
    try:
        to_int8(checkpoint, args.folder, shown.update)
    finally:
        shown.close()
    made = Checkpoint(args.folder, modules.path)
    print(
        f"{args.folder}: {made.num_bytes / 1e9:.2f} GB of weights, from {checkpoint.num_bytes / 1e9:.2f} GB"
    )
