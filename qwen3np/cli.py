"""The command line: qwen3np embed | search | similarity | rerank | verify | info | synth | demo."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__

if TYPE_CHECKING:
    from .embedder import Embedder
    from .reranker import Reranker

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other error; argparse would print the usage too."""
        print(f"{self.prog}: error: {message} ({self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0, or 2 with one line on stderr that says what was wrong and what to do;
    `verify` has 1 for a model that fell short."""
    args = _parser().parse_args(argv)
    code = 0
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("qwen3np: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        print(f"qwen3np: error: {'; '.join(lines)}", file=sys.stderr)
        return 2
    return code


def embed(args: argparse.Namespace) -> None:
    from .files import commands, outputs

    if args.output is not None:
        outputs.check_name(args.output)
    source = commands.input_file(args)
    if source is not None:
        commands.embed(args, source, lambda: _load(args))
        return
    for option in ("column", "id_column", "resume"):
        if getattr(args, option):
            raise ValueError(f"--{option.replace('_', '-')} is for an input file")
    from .files.run import check_free, save

    if args.output is not None:
        check_free(args.output, args.overwrite)
    texts = [*args.texts, *args.text] or _stdin_lines()
    model = _load(args)
    prompt = commands.prompt_of(model, args)
    vectors = model.encode(texts, prompt=prompt, truncate_dim=args.dim)
    if args.output is None:
        for text, vector in zip(texts, vectors, strict=True):
            print(outputs.json_line({"text": text}, vector))
        return
    info = {"model": commands.model_name(args.model), "dim": str(vectors.shape[1]), "prompt": prompt}
    save(args.output, texts, vectors, info, args.overwrite)
    print(f"{args.output}: {vectors.shape[0]} x {vectors.shape[1]} {vectors.dtype}", file=sys.stderr)


def search(args: argparse.Namespace) -> None:
    from .files import commands

    commands.search(args, lambda: _load(args))


def similarity(args: argparse.Namespace) -> None:
    from .table import table

    model = _load(args)
    scores = model.similarity(
        model.encode_query(args.query, prompt=args.prompt, truncate_dim=args.dim),
        model.encode_document(args.document, truncate_dim=args.dim),
    )
    documents = [f"[{i}]" for i in range(1, len(args.document) + 1)]
    print(
        table(
            ["query", *documents],
            [[q, *(f"{s:.4f}" for s in row)] for q, row in zip(args.query, scores, strict=True)],
        )
    )
    print()
    for name, document in zip(documents, args.document, strict=True):
        print(name, document)


def rerank(args: argparse.Namespace) -> None:
    from .rerank_command import run

    run(args, lambda: _load_reranker(args), _stdin_lines)


def verify(args: argparse.Namespace) -> int:
    from .parity import require_transformers
    from .verify import verify

    if args.against == "transformers":  # before the model is loaded
        require_transformers()
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(_json_file(args.json)) if args.json is not None else None
        claimed = True if args.published else None
        result = verify(_load_either(args), against=args.against, published=claimed, show_progress_bar=True)
        if write is not None:
            write(result.as_dict())
    print(result.report())
    return 0 if result.held else 1


@contextlib.contextmanager
def _json_file(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that writes a value to the file, complete or not at all. That it can be written is tried at
    once: what is to be written may take minutes to come."""
    if path.is_dir():
        raise ValueError(f"--json {path}: is a folder")
    from .files.atomic import write_file

    tried = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tried.touch(exist_ok=False)
        tried.unlink()
    except OSError as error:
        raise ValueError(f"--json {path}: cannot be written ({error.strerror})") from error
    yield lambda value: write_file(path, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")


def info(args: argparse.Namespace) -> None:
    from .info import machine, model_rows

    rows = machine()
    if args.model is not None:
        name = str(args.model)
        rows |= model_rows(name, _load_either(args))
    for key, value in rows.items():
        print(f"{key:13} {value}")


def synth(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .synth import synthesize

    bar = tqdm(unit="B", unit_scale=True, desc=str(args.folder), delay=0.5)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        synthesize(
            args.folder,
            args.like,
            seed=args.seed,
            layers=args.layers,
            tokenizer=args.tokenizer,
            progress=progress,
        )
    finally:
        bar.close()


def demo(args: argparse.Namespace) -> None:
    from .demo import run

    run()


def _load(args: argparse.Namespace) -> Embedder:
    from .embedder import Embedder

    return Embedder(args.model, **_model_arguments(args))


def _load_reranker(args: argparse.Namespace) -> Reranker:
    from .reranker import Reranker

    return Reranker(args.model, **_model_arguments(args))


def _model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "revision": args.revision,
        "backend": args.backend,
        "matmul_precision": args.matmul_precision,
        "num_threads": args.threads,
    }


def _load_either(args: argparse.Namespace) -> Embedder | Reranker:
    """Whichever the model's files are."""
    from .hub import locate
    from .modules import is_reranker

    args.model = locate(args.model, revision=args.revision)
    return _load_reranker(args) if is_reranker(args.model) else _load(args)


def _stdin_lines() -> list[str]:
    """One text a line. Lines are split at newlines only: str.splitlines would also split at U+2028 and
    others."""
    data = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    if not data:
        raise ValueError("no text given: pass texts as arguments, or one a line on stdin")
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"stdin, line {number}: is not UTF-8 ({error.reason} at byte {error.start})"
            ) from error
    return texts


def _parser() -> Parser:
    parser = Parser(prog="qwen3np", description="Qwen3-Embedding and Qwen3-Reranker in NumPy and Numba.")
    parser.add_argument("--version", action="version", version=f"qwen3np {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    p = commands.add_parser(
        "embed",
        parents=[_model_options(DEFAULT_MODEL)],
        help="texts, or a whole file of them -> vectors",
        description="Texts -> vectors, as JSON lines; or a whole file of texts -> a file of vectors.",
    )
    p.add_argument(
        "texts",
        nargs="*",
        metavar="INPUT",
        help="texts, or one file: what ends in .txt (a text a line), .jsonl, .csv or .parquet is a file's "
        "name; none: a text a line from stdin",
    )
    p.add_argument(
        "--text", action="append", default=[], help="a text, whatever it ends in (repeat for more)"
    )
    p.add_argument("--input", metavar="FILE", help="a file")
    prompt = p.add_mutually_exclusive_group()
    prompt.add_argument(
        "--query", action="store_true", help='put the model\'s "query" prompt before each text'
    )
    prompt.add_argument("--prompt", help="put this prompt before each text")
    prompt.add_argument("--instruction", help='put "Instruct: INSTRUCTION\\nQuery:" before each text')
    p.add_argument("--dim", type=int, help="keep this many leading channels (32 to hidden_size)")
    p.add_argument(
        "--output",
        type=Path,
        metavar="OUT",
        help="write float32 vectors to .npy, .jsonl, .parquet or .safetensors; a file of texts needs it",
    )
    files = p.add_argument_group("for a file of texts")
    _column_options(files)
    files.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="bad rows: fail before anything is computed, or leave them out, listed in OUT.errors.jsonl "
        "(default: %(default)s)",
    )
    files.add_argument(
        "--resume", action="store_true", help="go on where an interrupted run stopped, if one did"
    )
    p.add_argument("--overwrite", action="store_true", help="replace OUT, or what is left of a run")
    p.set_defaults(run=embed)

    p = commands.add_parser(
        "search", parents=[_model_options(None)], help="the best texts of a file that embed wrote"
    )
    p.add_argument("corpus", type=Path, metavar="FILE", help="what `embed --output` wrote, in any format")
    p.add_argument("queries", nargs="+", metavar="QUERY")
    p.add_argument("--top-k", type=int, default=10, help="texts a query (default: %(default)s)")
    prompt = p.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", help="put before each query (default: the model's query prompt)")
    prompt.add_argument("--instruction", help='put "Instruct: INSTRUCTION\\nQuery:" before each query')
    p.add_argument("--json", action="store_true", help="a JSON object a query instead of tables")
    p.add_argument(
        "--texts", type=Path, metavar="FILE", help="the file that was embedded, if FILE holds no texts"
    )
    _column_options(p)
    p.set_defaults(run=search, default_model=DEFAULT_MODEL)

    p = commands.add_parser(
        "similarity", parents=[_model_options(DEFAULT_MODEL)], help="queries against documents, as a table"
    )
    p.add_argument("-q", "--query", action="append", required=True, help="a query (repeat for more)")
    p.add_argument("-d", "--document", action="append", required=True, help="a document (repeat for more)")
    p.add_argument("--prompt", help="prompt of the queries (default: the model's)")
    p.add_argument("--dim", type=int, help="keep this many leading channels (32 to hidden_size)")
    p.set_defaults(run=similarity)

    from .rerank_command import DEFAULT_MODEL as RERANKER
    from .rerank_command import add_arguments

    p = commands.add_parser(
        "rerank",
        parents=[_model_options(RERANKER)],
        help="documents for a query, best first, as a table or JSON lines",
    )
    add_arguments(p)
    p.set_defaults(run=rerank)

    p = commands.add_parser(
        "verify",
        parents=[_model_options(DEFAULT_MODEL, "--precision")],
        help="compare the model with the reading copy or transformers, and with the published scores",
        description="Exit code 0: everything compared held. 1: something fell short. 2: it could not run.",
    )
    p.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help="Hub id or folder, as --model"
    )
    p.add_argument(
        "--against",
        default="numpy",
        choices=("numpy", "transformers"),
        help="stage by stage against the reading copy, or transformers (default: %(default)s)",
    )
    p.add_argument(
        "--published",
        action="store_true",
        help="the folder holds the published weights: compare the scores (a Hub id implies it)",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write every row, with all digits")
    p.set_defaults(run=verify)

    p = commands.add_parser(
        "info", parents=[_model_options(None)], help="this machine; with --model, also the model"
    )
    p.set_defaults(run=info)

    p = commands.add_parser("synth", help="write a generated checkpoint (random weights of true shapes)")
    p.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    p.add_argument(
        "--like", default="tiny", help="0.6B, 4B, 8B, reranker-0.6B, reranker-4B, reranker-8B or tiny"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--layers", type=int, help="num_hidden_layers, if not the model's")
    p.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to copy (default: a small one)"
    )
    p.set_defaults(run=synth)

    p = commands.add_parser("demo", help="the model card's example")
    p.set_defaults(run=demo)
    return parser


def _column_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--column", help='what holds the texts (default: "text", or the only column)')
    parser.add_argument(
        "--id-column", help="what holds ids (default: \"id\", if there is one; '': the rows' numbers)"
    )


def _model_options(default: str | None, *precision: str) -> Parser:
    """`precision`: further names of --matmul-precision."""
    options = Parser(add_help=False)
    options.add_argument("--model", default=default, help=f"Hub id or folder (default: {default or 'none'})")
    options.add_argument("--revision", help="revision of the Hub repository")
    options.add_argument(
        "--backend", default="auto", help='"numba", or "numpy": the reading copy (default: %(default)s)'
    )
    options.add_argument(
        "--matmul-precision",
        *precision,
        default="high",
        help="highest, high or medium (default: %(default)s)",
    )
    options.add_argument("--threads", type=int, help="default: the cores this process may use")
    return options
