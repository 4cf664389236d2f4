"""qwen3np export: a file that embed wrote, to a database or an index of another program."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files.exports import export
from ..files.saved import open_saved
from .streams import say

EXAMPLES = (
    "qwen3np export articles.parquet articles.duckdb",
    "qwen3np export articles.npy articles.usearch",
    "qwen3np export articles.npy articles.faiss --index HNSW32",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("saved", type=Path, metavar="FILE", help="what embed --output wrote, in any format")
    parser.add_argument(
        "target",
        type=Path,
        metavar="TARGET",
        help="a DuckDB database (.duckdb), the folder of a LanceDB table (.lance), or an index file of FAISS "
        "(.faiss) or usearch (.usearch)",
    )
    parser.add_argument(
        "--table", default="embeddings", help="the table in a .duckdb file (default: %(default)s)"
    )
    parser.add_argument(
        "--index",
        metavar="KIND",
        help="FAISS: what its index_factory makes (default: Flat, exact); usearch: f32, bf16, f16 or i8 "
        "(default: as FILE has it)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--append",
        action="store_true",
        help="add to a table of the same columns; its rows of the same ids and files are replaced",
    )
    mode.add_argument("--overwrite", action="store_true", help="replace a table or an index")


def run(args: argparse.Namespace) -> None:
    source = open_saved(args.saved)
    options = {name: getattr(args, name) for name in ("table", "index", "append", "overwrite")}
    say(f"{args.target}: {export(source, args.target, **options):,} rows x {source.dim}")
