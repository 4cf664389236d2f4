"""qwen3np COMMAND: find the command's file, parse its arguments, turn errors into one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from .. import __version__
from . import streams
from .inputs import refuse_file_names

COMMANDS = {
    "embed": "turn texts, or a whole file of them, into vectors",
    "search": "find the best texts in a file that embed wrote",
    "export": "write what embed wrote to DuckDB, LanceDB, FAISS or usearch",
    "duplicates": "find equal and nearly equal texts in what embed wrote",
    "similarity": "compare queries with documents, as a table",
    "rerank": "rank documents for a query, as a table or JSON lines",
    "serve": "answer HTTP clients: text-embeddings-inference, OpenAI, rerank and Ollama routes",
    "tokenize": "print the tokens of texts, and how many they are",
    "verify": "compare a model with the reference or transformers, and with the published scores",
    "explain": "write a page of pictures: a text's way to its vector, beside the code that computes it",
    "info": "describe this machine and, with MODEL, a model",
    "compile": "compile all kernels ahead of time, for a container image",
    "convert": "write a model with weights of 8 bits: half the size, loaded without rounding anew",
    "synth": "write a generated checkpoint (random weights of real shapes)",
    "demo": "run the model card's example",
}
QUIET = ("synth", "serve")  # commands that need no stdout


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all errors of the program."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # Examples keep their lines.
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit; argparse would print the usage too."""
        if message.startswith("unrecognized arguments: -") or message.endswith("expected one argument"):
            message += '; what begins with "-" and is not an option: --OPTION=-VALUE, or after -- at the end'
        streams.say(f"{self.prog}: error: {message} ({self.prog} --help)")
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 after one line on stderr.

    That line says what was wrong and what to do. `verify` returns 1 for a model that fell short.
    """
    streams.prepare()
    try:
        code = _run(argv)
        streams.flush_stdout()
        return code
    except KeyboardInterrupt:
        streams.say("qwen3np: interrupted")
        return 130
    except BrokenPipeError:  # who reads stdout (head, less) has seen enough
        return 0
    except OSError as error:
        return _failed(f"{streams.STDOUT}: {error.strerror}" if error.filename == streams.STDOUT else error)
    except (ValueError, TypeError, MemoryError, ImportError) as error:
        return _failed(str(error) or type(error).__name__)
    finally:
        with suppress(OSError):
            streams.flush_stdout()


def _run(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(next((argument for argument in argv if not argument.startswith("-")), ""))
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # argparse has printed help, the version or an error
        return int(end.code or 0)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    if sys.stdout is None and args.command not in QUIET and not getattr(args, "output", None):
        raise ValueError("stdout is closed: there is nowhere to print to")
    refuse_file_names(args)
    return args.run(args) or 0


def _failed(reason: object) -> int:
    streams.say(f"qwen3np: error: {reason}")
    return 2


def _parser(command: str) -> Parser:
    """Return the parser of all commands, with the arguments of one; only that one's file is imported."""
    parser = Parser(prog="qwen3np", description="Qwen3-Embedding and Qwen3-Reranker in NumPy and Numba.")
    parser.add_argument("--version", action="version", version=f"qwen3np {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        p = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            module = import_module(f".{name}", __package__)
            p.epilog = "\n  ".join(["examples:", *module.EXAMPLES])
            module.add_arguments(p)
            p.set_defaults(run=module.run)
    return parser
