"""qwen3np similarity: compare queries with documents, as a table."""

from __future__ import annotations

import argparse

from ..table import cut, one_line, table, terminal_columns
from . import options
from .inputs import STDIN, texts

EXAMPLES = ('qwen3np similarity -q "Explain gravity" -d "It is a force." -d "Bread rises."',)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.model_options(parser, options.EMBEDDER)
    parser.add_argument(
        "-q", "--query", action="append", required=True, help="a query (repeatable; -: from stdin)"
    )
    parser.add_argument(
        "-d", "--document", action="append", required=True, help="a document (repeatable; -: from stdin)"
    )
    options.literal(parser)
    parser.add_argument("--prompt", help="what is put before each query (default: the model's query prompt)")
    parser.add_argument("--dim", type=int, help="keep this many leading dimensions (32 to hidden_size)")


def run(args: argparse.Namespace) -> None:
    if STDIN in args.query and STDIN in args.document:
        raise ValueError("- is stdin, which can be read once")
    queries, documents = (texts(given, args.literal) for given in (args.query, args.document))
    model = options.load_embedder(args)
    scores = model.similarity(
        model.encode_query(queries, prompt=args.prompt, truncate_dim=args.dim),
        model.encode_document(documents, truncate_dim=args.dim),
    )
    columns = terminal_columns()
    names = [f"[{i}]" for i in range(1, len(documents) + 1)]
    rows = [[q, *(f"{s:.4f}" for s in row)] for q, row in zip(queries, scores, strict=True)]
    print(table(["query", *names], rows, columns), end="\n\n")
    for name, document in zip(names, documents, strict=True):
        print(cut(f"{name} {one_line(document, columns)}", columns))
