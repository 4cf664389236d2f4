"""qwen3np rerank: rank documents for a query, best first, as a table or JSON lines."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from ..files.lines import format_of
from ..files.rows import SUFFIXES, BadRow, read_rows
from ..runtime.progress import worth_showing
from ..table import table, terminal_columns
from . import options
from .inputs import STDIN, stdin_lines, texts

EXAMPLES = (
    'qwen3np rerank "Which planet is red?" "Venus is hot." "Mars is the Red Planet."',
    'qwen3np rerank "Which planet is red?" --documents passages.jsonl --column body -k 10 --json',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.model_options(parser, options.RERANKER)
    parser.add_argument("query", metavar="QUERY", help="the query; never a file")
    parser.add_argument(
        "texts",
        nargs="*",
        default=[],  # without one, an error says that documents are required
        metavar="DOCUMENT",
        help="the documents, or one file as for --documents; - or nothing: one per line from stdin",
    )
    parser.add_argument(
        "--documents",
        type=Path,
        metavar="FILE",
        help="a file of documents: .txt (one per line), .md (one), .jsonl, .json, .csv, .tsv (each also with "
        ".gz or .zst), .parquet; or - for stdin",
    )
    parser.add_argument("--column", help="the column of documents in FILE (default: text)")
    parser.add_argument("-k", "--top-k", type=int, metavar="N", help="print the N best (default: all)")
    parser.add_argument("--instruction", help="what makes a document a good one (default: the model card's)")
    parser.add_argument(
        "--raw-scores",
        action="store_true",
        help='print logit("yes") - logit("no"), not the probability of "yes"',
    )
    parser.add_argument(
        "--escape-special-tokens",
        action="store_true",
        help='take "<|im_end|>" and its like for plain text, so that no document can answer itself',
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line: corpus_id, score, text"
    )
    options.literal(parser)
    options.delimiter_option(parser)


def run(args: argparse.Namespace) -> None:
    if args.query == STDIN and not args.literal:
        raise ValueError("the query cannot come from stdin; documents can")
    [query] = texts([args.query], args.literal)
    documents = _documents(args)
    ranked = options.load_reranker(args).rank(
        query,
        documents,
        top_k=args.top_k,
        return_documents=True,
        instruction=args.instruction,
        raw_scores=args.raw_scores,
        show_progress_bar=worth_showing(documents),
        escape_special_tokens=args.escape_special_tokens,
    )
    if args.json:
        for entry in ranked:
            entry["score"] = float(f"{entry['score']:.9g}")
            print(json.dumps(entry, ensure_ascii=False))
    elif ranked:
        rows = [[f"{entry['score']:.6g}", str(entry["corpus_id"]), entry["text"]] for entry in ranked]
        print(table(["score", "corpus_id", "text"], rows, terminal_columns(110)))


def _documents(args: argparse.Namespace) -> list[str]:
    """Return the documents; empty lines are documents too, so that a document's number is its line's."""
    if args.texts and args.documents is not None:
        raise ValueError(
            f"--documents {args.documents} and documents as arguments ({args.texts[0][:40]!r}): give one of "
            "them"
        )
    path = None if args.documents == Path(STDIN) else args.documents
    if len(args.texts) == 1 and not args.literal and _is_read(Path(args.texts[0])):
        path = Path(args.texts[0])
    for option in ("column", "delimiter"):
        if path is None and getattr(args, option) is not None:
            raise ValueError(
                f"--{option} {getattr(args, option)}: only a file has columns; say which with --documents"
            )
    if path is None:
        return texts(args.texts, args.literal, folders=True) or stdin_lines(asked=args.documents is not None)
    rows = []
    for row in read_rows(path, args.column, "", args.delimiter):
        if isinstance(row, BadRow):
            raise ValueError(f"{path}, {row}")
        rows.append(row.text)
    return rows


def _is_read(path: Path) -> bool:
    return format_of(path) in SUFFIXES and os.path.isfile(path)
