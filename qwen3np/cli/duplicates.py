"""qwen3np duplicates: find equal and nearly equal texts in what embed wrote."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..files.duplicates import Duplicate, duplicates
from ..files.saved import Saved, open_saved
from ..runtime.progress import bar
from ..table import table, terminal_columns
from .streams import say

EXAMPLES = (
    "qwen3np duplicates articles.parquet --threshold 0.9",
    "qwen3np duplicates articles.npy --json > duplicates.jsonl",
)
SHOWN = 20  # rows of the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find texts that repeat an earlier one, word for word or nearly: of those that are left no two are "
        "as near as THRESHOLD. Each is compared with all before it: twice as many take four times as long."
    )
    parser.add_argument("saved", type=Path, metavar="FILE", help="what embed --output wrote, in any format")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.95,
        help="cosine from which texts are nearly the same (default: %(default)s)",
    )
    parser.add_argument("--exact", action="store_true", help="find equal texts only, which takes no time")
    parser.add_argument("--json", action="store_true", help="print every one of them as a JSON object")


def run(args: argparse.Namespace) -> None:
    if not 0 < args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold}: a cosine above 0, at most 1")
    saved = open_saved(args.saved)
    hashes = saved.hashes()
    with bar(total=len(hashes), desc=args.saved.name, unit="row") as shown:
        threshold = 2 if args.exact else args.threshold
        found = [*duplicates(saved, hashes, threshold, lambda rows: shown.update(rows - shown.n))]
    _print(saved, found, args.json)
    exact = sum(one.exact for one in found)
    near = "" if args.exact else f", {len(found) - exact:,} nearly (cosine {args.threshold} or more)"
    say(
        f"{args.saved}: of {len(hashes):,} texts {exact:,} repeat an earlier one word for word{near}; "
        f"{len(hashes) - len(found):,} are left without them"
    )


def _print(saved: Saved, found: list[Duplicate], as_json: bool) -> None:
    if as_json:
        wanted = {row for one in found for row in (one.row, one.of)}
        ids = {row: one.id for row, one in enumerate(saved.named()) if row in wanted}
        for one in found:
            print(json.dumps(one._asdict() | {"id": ids[one.row], "of_id": ids[one.of]}, ensure_ascii=False))
    elif found:
        named = saved.find({row for one in found[:SHOWN] for row in (one.row, one.of)})
        rows = [
            [str(named[one.row].id), str(named[one.of].id), f"{one.cosine:.4f}", named[one.row].text or ""]
            for one in found[:SHOWN]
        ]
        print(table(["id", "of", "cosine", "text"], rows, terminal_columns(110)))
        if len(found) > SHOWN:
            print(f"and {len(found) - SHOWN:,} more: --json prints them all")
