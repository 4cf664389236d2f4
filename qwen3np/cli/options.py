"""Options that several commands have, and the models they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .inputs import delimiter

if TYPE_CHECKING:
    from ..embedder import Embedder
    from ..reranker import Reranker

EMBEDDER = "Qwen/Qwen3-Embedding-0.6B"
RERANKER = "Qwen/Qwen3-Reranker-0.6B"
PRECISIONS = ("highest", "high", "medium")


def load_embedder(args: argparse.Namespace) -> Embedder:
    from ..embedder import Embedder

    return Embedder(args.model, **model_arguments(args))


def load_reranker(args: argparse.Namespace) -> Reranker:
    from ..reranker import Reranker

    return Reranker(args.model, **model_arguments(args))


def load_either(args: argparse.Namespace) -> Embedder | Reranker:
    """Whichever the model's files are."""
    from ..loading.hub import locate
    from ..loading.st_config import is_reranker

    args.model = locate(args.model, **_where(args))
    return load_reranker(args) if is_reranker(args.model) else load_embedder(args)


def model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    return {
        **_where(args),
        "backend": args.backend,
        "matmul_precision": args.matmul_precision,
        "num_threads": args.threads,
        "reproducible": args.reproducible,
    }


def _where(args: argparse.Namespace) -> dict[str, Any]:
    """How the model's files are found."""
    names = ("revision", "cache_folder", "token", "local_files_only")
    return {name: getattr(args, name) for name in names}


def model_name(model: str) -> str:
    """As it can be found from anywhere."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def model_options(parser: argparse.ArgumentParser, default: str | None, *precision: str) -> None:
    """`precision`: further names of --matmul-precision."""
    parser.add_argument(
        "-m", "--model", default=default, help=f"Hub id or folder (default: {default or 'none'})"
    )
    parser.add_argument("--revision", help="revision of the Hub repository")
    parser.add_argument("--cache-folder", metavar="FOLDER", help="the Hub cache (default: that of HF_HOME)")
    parser.add_argument("--local-files-only", action="store_true", help="take the model from the cache only")
    parser.add_argument("--token", help="for private models (default: HF_TOKEN, or the login's)")
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "numba", "numpy"),
        help="the kernels (numba), or the reading copy (numpy) (default: %(default)s)",
    )
    parser.add_argument(
        "--matmul-precision",
        *precision,
        default="high",
        choices=PRECISIONS,
        help="(default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    parser.add_argument("--reproducible", action="store_true", help="the same bits on every CPU")


def model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help="Hub id or folder, as --model"
    )


def literal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--literal", action="store_true", help="arguments are texts, even - and the names of files"
    )


def column_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--column", help='what holds the texts (default: "text", or the only column)')
    parser.add_argument(
        "--id-column", help="what holds ids (default: \"id\", if there is one; '': the rows' numbers)"
    )
    delimiter_option(parser)


def delimiter_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--delimiter",
        type=delimiter,
        metavar="CHARACTER",
        help='between the columns of .csv and .tsv: one character, or "tab" (default: what the header has)',
    )
