"""qwen3np synth: write a generated checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.progress import bar
from ..synth.checkpoints import LIKE, synthesize
from .streams import escaped

EXAMPLES = ("qwen3np synth tiny && qwen3np embed --model tiny 'a text'",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument(
        "--like", default="tiny", choices=LIKE, help="the model whose shapes it has (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="number of layers (default: that model's)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="the tokenizer.json to copy (default: a small one)"
    )
    parser.add_argument(
        "--outliers",
        action="store_true",
        help="with outlier channels, which make real weights hard to quantise",
    )


def run(args: argparse.Namespace) -> None:
    shown = bar(unit="B", unit_scale=True, desc=escaped(str(args.folder)), delay=0.5)

    def progress(done: int, total: int) -> None:
        shown.total = total
        shown.update(done - shown.n)

    try:
        synthesize(
            args.folder,
            args.like,
            seed=args.seed,
            layers=args.layers,
            tokenizer=args.tokenizer,
            outliers=args.outliers,
            progress=progress,
        )
    finally:
        shown.close()
