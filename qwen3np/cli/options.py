"""Options that several commands share, and the models they name."""

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
MATMUL_PRECISIONS = ("highest", "high", "medium", "low")
WEIGHTS = ("stored", "lossless", "int8")


def load_embedder(args: argparse.Namespace) -> Embedder:
    from ..embedder import Embedder

    return Embedder(args.model, **model_arguments(args))


def load_reranker(args: argparse.Namespace) -> Reranker:
    from ..reranker import Reranker

    return Reranker(args.model, **model_arguments(args))


def load_either(args: argparse.Namespace) -> Embedder | Reranker:
    """Load the model as an Embedder or a Reranker, whichever its files are."""
    from ..loading.hub import locate
    from ..loading.st_config import is_reranker

    args.model = locate(args.model, **where(args))
    return load_reranker(args) if is_reranker(args.model) else load_embedder(args)


def model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of Embedder and Reranker that the options give."""
    return {
        **where(args),
        "backend": args.backend,
        "matmul_precision": args.matmul_precision,
        "num_threads": args.threads,
        "reproducible": args.reproducible,
        "weights": args.weights,
    }


def where(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that say where the model's files are."""
    names = ("revision", "cache_folder", "token", "local_files_only")
    return {name: getattr(args, name) for name in names}


def model_name(model: str) -> str:
    """Return the Hub id, or a folder's absolute path."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def model_options(
    parser: argparse.ArgumentParser, default: str | None, *precision: str, otherwise: str = "none"
) -> None:
    """Add the options that say which model computes, and how.

    Args:
        parser: The command's parser.
        default: The default model.
        *precision: Further names of --matmul-precision.
        otherwise: What the help says in place of the default, where there is none.
    """
    parser.add_argument(
        "-m", "--model", default=default, help=f"Hub id or folder (default: {default or otherwise})"
    )
    where_options(parser)
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "numba", "numpy"),
        help="numba: the kernels; numpy: the reference; auto: the faster one (default: %(default)s)",
    )
    parser.add_argument(
        "--matmul-precision",
        *precision,
        default="high",
        choices=MATMUL_PRECISIONS,
        help="high: float32 within 5e-6 of float64; medium: activations in bfloat16 where that is faster; "
        "highest: float32 always; low: weights in int8, and activations rounded to integers, the fastest "
        "without AMX (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, help="threads of the kernels (default: one per core this process may use)"
    )
    parser.add_argument("--reproducible", action="store_true", help="compute the same bits on every CPU")
    parser.add_argument(
        "--weights",
        default="stored",
        choices=WEIGHTS,
        help="lossless: the same bits in less memory; int8: half the memory of bfloat16, rounded to 8 bits "
        "(default: %(default)s)",
    )


def where_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a model's files are."""
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--cache-folder", metavar="FOLDER", help="the Hub cache (default: that of HF_HOME)")
    parser.add_argument(
        "--local-files-only", action="store_true", help="take the model from the cache, never download it"
    )
    parser.add_argument("--token", help="Hub token for private models (default: HF_TOKEN, or the login's)")


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument MODEL, which stands for --model."""
    parser.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help="Hub id or folder, as --model"
    )


def prompt_options(parser: argparse.ArgumentParser, what: str = "each text") -> None:
    """Add the options that say what stands before a text, which help calls `what`."""
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--query", action="store_true", help=f'put the model\'s "query" prompt before {what}')
    prompt.add_argument("--prompt", help=f"put this prompt before {what}")
    prompt.add_argument("--instruction", help=f'put "Instruct: INSTRUCTION\\nQuery:" before {what}')


def prompt_of(model: Embedder, args: argparse.Namespace) -> str:
    """Return what those options put before each text."""
    return model.prompt_text("query" if args.query else None, args.prompt, args.instruction)


def literal(parser: argparse.ArgumentParser) -> None:
    """Add the option --literal."""
    parser.add_argument(
        "--literal", action="store_true", help="take all arguments for texts, even - and file names"
    )


def column_options(parser: argparse._ActionsContainer, template: bool = False) -> None:
    """Add the options that say which columns of a file are read; with `template`, also --template."""
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--column", help='the column of texts (default: "text", or the only column)')
    if template:
        text.add_argument(
            "--template", metavar="TEXT", help='texts of several columns, as "{title}: {body}"; {{ is a brace'
        )
    parser.add_argument(
        "--id-column", help="the column of ids (default: \"id\", if there is one; '': number the rows)"
    )
    delimiter_option(parser)


def delimiter_option(parser: argparse._ActionsContainer) -> None:
    """Add the option --delimiter."""
    parser.add_argument(
        "--delimiter",
        type=delimiter,
        metavar="CHARACTER",
        help='what separates the columns of .csv and .tsv: one character, or "tab" (default: what the header '
        "has)",
    )
