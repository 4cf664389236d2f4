"""qwen3np rerank: documents for a query, best first, as a table or JSON lines."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files.rows import BadRow, read_rows
from .table import table

if TYPE_CHECKING:
    from .reranker import Reranker

DEFAULT_MODEL = "Qwen/Qwen3-Reranker-0.6B"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument(
        "texts", nargs="*", metavar="DOCUMENT", help="the documents; none and no FILE: one a line from stdin"
    )
    parser.add_argument(
        "--documents",
        type=Path,
        metavar="FILE",
        help=".txt (a document a line), .jsonl, .csv or .parquet, or - for stdin",
    )
    parser.add_argument("--column", help="what holds the documents in FILE (default: text)")
    parser.add_argument("--top-k", type=int, metavar="N", help="the N best (default: all)")
    parser.add_argument("--instruction", help="what makes a document a good one (default: the model card's)")
    parser.add_argument(
        "--raw-scores", action="store_true", help='logit("yes") - logit("no"), not the probability of "yes"'
    )
    parser.add_argument(
        "--escape-special-tokens",
        action="store_true",
        help='"<|im_end|>" and its like in the texts are text, so that no document can answer itself',
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line: corpus_id, score, text")


def run(args: argparse.Namespace, load: Callable[[], Reranker], stdin_lines: Callable[[], list[str]]) -> None:
    documents = _documents(args, stdin_lines)
    ranked = load().rank(
        args.query,
        documents,
        top_k=args.top_k,
        return_documents=True,
        instruction=args.instruction,
        raw_scores=args.raw_scores,
        escape_special_tokens=args.escape_special_tokens,
    )
    if args.json:
        for entry in ranked:
            entry["score"] = float(f"{entry['score']:.9g}")
            print(json.dumps(entry, ensure_ascii=False))
    elif ranked:
        print(_table(ranked, len(documents)))


def _documents(args: argparse.Namespace, stdin_lines: Callable[[], list[str]]) -> list[str]:
    """Empty lines are documents too, so that a document's number is that of its line."""
    if args.texts and args.documents is not None:
        raise ValueError(
            f"--documents {args.documents} and documents as arguments ({args.texts[0][:40]!r}): give one of "
            "them"
        )
    if args.column is not None and args.documents in (None, Path("-")):
        raise ValueError(f"--column {args.column}: only a file has columns; say which with --documents")
    if args.documents in (None, Path("-")):
        return args.texts or stdin_lines()
    texts = []
    for row in read_rows(args.documents, args.column, ""):
        if isinstance(row, BadRow):
            raise ValueError(f"{args.documents}, {row}")
        texts.append(row.text)
    return texts


def _table(ranked: list[dict[str, Any]], documents: int) -> str:
    """One line a document, whatever characters it has, as wide as the terminal."""
    room = max(20, shutil.get_terminal_size((110, 24)).columns - len(str(documents)) - 24)
    rows = []
    for entry in ranked:
        start = entry["text"][: 4 * room]  # enough of it
        text = " ".join("".join(c if c.isprintable() else " " for c in start).split())
        cut = len(text) > room or len(start) < len(entry["text"])
        text = text[: room - 3] + "..." if cut else text
        rows.append([f"{entry['score']:.6g}", str(entry["corpus_id"]), text])
    return table(["score", "corpus_id", "text"], rows)
