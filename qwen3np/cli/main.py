"""The command line: qwen3np embed | search | similarity | rerank | verify | info | compile | synth |
demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from . import streams
from .arguments import delimiter, refuse_file_names
from .rerank_command import DEFAULT_MODEL as RERANKER
from .rerank_command import add_arguments

if TYPE_CHECKING:
    from ..embedder import Embedder
    from ..reranker import Reranker

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"
PRECISIONS = ("highest", "high", "medium")
SHAPES = ("0.6B", "4B", "8B", "reranker-0.6B", "reranker-4B", "reranker-8B", "tiny", "reranker-tiny")
PRINTING = ("embed", "search", "similarity", "rerank", "verify", "info", "compile", "demo")  # on stdout


class Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **options: Any) -> None:
        # Examples keep their lines.
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """One line, as for every other error; argparse would print the usage too."""
        if message.startswith("unrecognized arguments: -") or message.endswith("expected one argument"):
            message += '; what begins with "-" and is no option: --OPTION=-VALUE, or after -- at the end'
        streams.say(f"{self.prog}: error: {message} ({self.prog} --help)")
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0, or 2 with one line on stderr that says what was wrong and what to do;
    `verify` has 1 for a model that fell short."""
    streams.prepare()
    try:
        code = _run(argv)
        streams.flush_stdout()
        return code
    except KeyboardInterrupt:
        streams.say("qwen3np: interrupted")
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        return 0
    except OSError as error:
        return _failed(f"{streams.STDOUT}: {error.strerror}" if error.filename == streams.STDOUT else error)
    except (ValueError, TypeError, MemoryError, ImportError) as error:
        return _failed(str(error) or type(error).__name__)
    finally:
        with suppress(OSError):
            streams.flush_stdout()


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # help, the version, or an error that it has printed
        return int(end.code or 0)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    if sys.stdout is None and args.command in PRINTING and not getattr(args, "output", None):
        raise ValueError("stdout is closed: there is nowhere to print to")
    refuse_file_names(args)
    return args.run(args) or 0


def _failed(reason: object) -> int:
    streams.say(f"qwen3np: error: {reason}")
    return 2


def embed(args: argparse.Namespace) -> None:
    from .text_commands import embed

    embed(args, lambda: _load(args))


def search(args: argparse.Namespace) -> None:
    from . import file_commands as commands

    commands.search(args, lambda: _load(args))


def similarity(args: argparse.Namespace) -> None:
    from .text_commands import similarity

    similarity(args, lambda: _load(args))


def rerank(args: argparse.Namespace) -> None:
    from .rerank_command import run

    run(args, lambda: _load_reranker(args))


def verify(args: argparse.Namespace) -> int:
    from .verify_command import run

    return run(args, lambda: _load_either(args))


def info(args: argparse.Namespace) -> None:
    from .info import machine, model_rows

    rows = machine()
    if args.model is not None:
        name = str(args.model)
        rows |= model_rows(name, _load_either(args))
    for key, value in rows.items():
        print(f"{key:13} {streams.escaped(value)}")


def compile_kernels(args: argparse.Namespace) -> None:
    from .compile_command import run

    run(args)


def synth(args: argparse.Namespace) -> None:
    from ..runtime.progress import bar
    from ..synth.checkpoints import synthesize

    shown = bar(unit="B", unit_scale=True, desc=streams.escaped(str(args.folder)), delay=0.5)

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
            progress=progress,
        )
    finally:
        shown.close()


def demo(args: argparse.Namespace) -> None:
    from .demo import run

    run()


def _load(args: argparse.Namespace) -> Embedder:
    from ..embedder import Embedder

    return Embedder(args.model, **_model_arguments(args))


def _load_reranker(args: argparse.Namespace) -> Reranker:
    from ..reranker import Reranker

    return Reranker(args.model, **_model_arguments(args))


def _model_arguments(args: argparse.Namespace) -> dict[str, Any]:
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


def _load_either(args: argparse.Namespace) -> Embedder | Reranker:
    """Whichever the model's files are."""
    from ..loading.hub import locate
    from ..loading.st_config import is_reranker

    args.model = locate(args.model, **_where(args))
    return _load_reranker(args) if is_reranker(args.model) else _load(args)


def _parser() -> Parser:
    parser = Parser(prog="qwen3np", description="Qwen3-Embedding and Qwen3-Reranker in NumPy and Numba.")
    parser.add_argument("--version", action="version", version=f"qwen3np {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    p = commands.add_parser(
        "embed",
        parents=[_model_options(DEFAULT_MODEL)],
        help="texts, or a whole file of them -> vectors",
        description="Texts -> vectors, as JSON lines; or a whole file of texts -> a file of vectors.",
        epilog=_examples(
            'qwen3np embed "The capital of China is Beijing."',
            "qwen3np embed articles.csv --column body --output articles.parquet",
            "zcat texts.gz | qwen3np embed - --output vectors.npy",
        ),
    )
    p.add_argument(
        "texts",
        nargs="*",
        default=[],
        metavar="INPUT",
        help="texts, or one file: what ends in .txt (a text a line), .jsonl, .json, .csv, .tsv or .parquet, "
        "or in one of these and .gz, is a file's name; - or none: a text a line from stdin",
    )
    p.add_argument(
        "--text", action="append", default=[], help="a text, whatever it ends in (repeat for more)"
    )
    p.add_argument("--input", metavar="FILE", help="a file, or - for stdin")
    prompt = p.add_mutually_exclusive_group()
    prompt.add_argument(
        "--query", action="store_true", help='put the model\'s "query" prompt before each text'
    )
    prompt.add_argument("--prompt", help="put this prompt before each text")
    prompt.add_argument("--instruction", help='put "Instruct: INSTRUCTION\\nQuery:" before each text')
    p.add_argument("--dim", type=int, help="keep this many leading channels (32 to hidden_size)")
    p.add_argument(
        "-o",
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
        "search",
        parents=[_model_options(None)],
        help="the best texts of a file that embed wrote",
        epilog=_examples('qwen3np search articles.parquet "Why do things fall?" --top-k 5'),
    )
    p.add_argument("corpus", type=Path, metavar="FILE", help="what `embed --output` wrote, in any format")
    p.add_argument("queries", nargs="+", metavar="QUERY", help="queries; - for one a line from stdin")
    _literal(p)
    p.add_argument("-k", "--top-k", type=int, default=10, help="texts a query (default: %(default)s)")
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
        "similarity",
        parents=[_model_options(DEFAULT_MODEL)],
        help="queries against documents, as a table",
        epilog=_examples('qwen3np similarity -q "Explain gravity" -d "It is a force." -d "Bread rises."'),
    )
    p.add_argument(
        "-q", "--query", action="append", required=True, help="a query (repeat for more; - for stdin)"
    )
    p.add_argument(
        "-d", "--document", action="append", required=True, help="a document (repeat for more; - for stdin)"
    )
    _literal(p)
    p.add_argument("--prompt", help="prompt of the queries (default: the model's)")
    p.add_argument("--dim", type=int, help="keep this many leading channels (32 to hidden_size)")
    p.set_defaults(run=similarity)

    p = commands.add_parser(
        "rerank",
        parents=[_model_options(RERANKER)],
        help="documents for a query, best first, as a table or JSON lines",
        epilog=_examples(
            'qwen3np rerank "Which planet is red?" "Venus is hot." "Mars is the Red Planet."',
            'qwen3np rerank "Which planet is red?" --documents passages.jsonl --column body -k 10 --json',
        ),
    )
    add_arguments(p)
    _literal(p)
    _delimiter_option(p)
    p.set_defaults(run=rerank)

    p = commands.add_parser(
        "verify",
        parents=[_model_options(DEFAULT_MODEL, "--precision")],
        help="compare the model with the reading copy or transformers, and with the published scores",
        description="Exit code 0: everything compared held. 1: something fell short. 2: it could not run.",
        epilog=_examples("qwen3np verify Qwen/Qwen3-Embedding-0.6B --json report.json"),
    )
    _model_argument(p)
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
        "info",
        parents=[_model_options(None)],
        help="this machine; with MODEL, also the model",
        epilog=_examples("qwen3np info Qwen/Qwen3-Embedding-0.6B"),
    )
    _model_argument(p)
    p.set_defaults(run=info)

    p = commands.add_parser(
        "compile",
        help="compile all kernels ahead of time, for a container image",
        epilog=_examples("qwen3np compile"),
    )
    p.add_argument(
        "--matmul-precision", choices=PRECISIONS, help="those of one precision (default: of all three)"
    )
    p.add_argument("--reproducible", action="store_true", help="those that --reproducible uses")
    p.set_defaults(run=compile_kernels)

    p = commands.add_parser(
        "synth",
        help="write a generated checkpoint (random weights of true shapes)",
        epilog=_examples("qwen3np synth tiny && qwen3np embed --model tiny 'a text'"),
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    p.add_argument("--like", default="tiny", choices=SHAPES, help="whose shapes (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--layers", type=int, help="num_hidden_layers, if not the model's")
    p.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to copy (default: a small one)"
    )
    p.set_defaults(run=synth)

    p = commands.add_parser("demo", help="the model card's example", epilog=_examples("qwen3np demo"))
    p.set_defaults(run=demo)
    return parser


def _examples(*lines: str) -> str:
    return "\n  ".join(["examples:", *lines])


def _model_argument(parser: Parser) -> None:
    parser.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help="Hub id or folder, as --model"
    )


def _literal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--literal", action="store_true", help="arguments are texts, even - and the names of files"
    )


def _column_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--column", help='what holds the texts (default: "text", or the only column)')
    parser.add_argument(
        "--id-column", help="what holds ids (default: \"id\", if there is one; '': the rows' numbers)"
    )
    _delimiter_option(parser)


def _delimiter_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--delimiter",
        type=delimiter,
        metavar="CHARACTER",
        help='between the columns of .csv and .tsv: one character, or "tab" (default: what the header has)',
    )


def _model_options(default: str | None, *precision: str) -> Parser:
    """`precision`: further names of --matmul-precision."""
    options = Parser(add_help=False)
    options.add_argument(
        "-m", "--model", default=default, help=f"Hub id or folder (default: {default or 'none'})"
    )
    options.add_argument("--revision", help="revision of the Hub repository")
    options.add_argument("--cache-folder", metavar="FOLDER", help="the Hub cache (default: that of HF_HOME)")
    options.add_argument("--local-files-only", action="store_true", help="take the model from the cache only")
    options.add_argument("--token", help="for private models (default: HF_TOKEN, or the login's)")
    options.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "numba", "numpy"),
        help="the kernels (numba), or the reading copy (numpy) (default: %(default)s)",
    )
    options.add_argument(
        "--matmul-precision",
        *precision,
        default="high",
        choices=PRECISIONS,
        help="(default: %(default)s)",
    )
    options.add_argument("--threads", type=int, help="default: the cores this process may use")
    options.add_argument("--reproducible", action="store_true", help="the same bits on every CPU")
    return options
