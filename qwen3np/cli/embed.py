"""qwen3np embed: texts, or a whole file of them, to vectors."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import outputs
from ..files.lines import format_of
from ..files.record import ERRORS, beside
from ..files.rows import SUFFIXES
from ..files.run import Job, Report, bad_rows_message, check_free, embed_file, save
from ..files.work import Totals, kept
from ..quantization import VECTOR_PRECISIONS
from ..runtime.progress import bar, ticking, worth_showing
from . import options
from .inputs import STDIN, looks_like_file, names_file, refusal, stdin_lines, texts
from .streams import escaped, say

if TYPE_CHECKING:
    from ..embedder import Embedder

EXAMPLES = (
    'qwen3np embed "The capital of China is Beijing."',
    "qwen3np embed articles.csv --column body --output articles.parquet",
    "zcat texts.gz | qwen3np embed - --output vectors.npy",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn texts into vectors, printed as JSON lines; or a whole file of texts into a file of vectors."
    )
    options.model_options(parser, options.EMBEDDER)
    parser.add_argument(
        "texts",
        nargs="*",
        default=[],
        metavar="INPUT",
        help="texts, or one file: .txt (one text per line), .jsonl, .json, .csv, .tsv (each also with .gz), "
        "or .parquet; - or nothing: one text per line from stdin",
    )
    parser.add_argument(
        "--text", action="append", default=[], help="a text, never taken for a file name (repeatable)"
    )
    parser.add_argument("--input", metavar="FILE", help="the file of texts, or - for stdin")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--query", action="store_true", help='put the model\'s "query" prompt before each text'
    )
    prompt.add_argument("--prompt", help="put this prompt before each text")
    prompt.add_argument("--instruction", help='put "Instruct: INSTRUCTION\\nQuery:" before each text')
    parser.add_argument("--dim", type=int, help="keep this many leading dimensions (32 to hidden_size)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="write the vectors to this .npy, .jsonl, .parquet or .safetensors file; required for a file "
        "of texts",
    )
    files = parser.add_argument_group("for a file of texts")
    options.column_options(files)
    files.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="bad rows: fail before anything is computed, or skip them and list them in OUT.errors.jsonl "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=VECTOR_PRECISIONS,
        default="float32",
        help="how OUT holds vectors: int8 and uint8 with their ranges beside, in OUT.ranges.npy; binary and "
        "ubinary with one bit per dimension (default: %(default)s)",
    )
    files.add_argument(
        "--update",
        action="store_true",
        help="bring OUT up to date with a file that has changed: only new texts are computed; rows that are "
        "gone from the file go from OUT",
    )
    files.add_argument(
        "--resume", action="store_true", help="continue where an interrupted run stopped, if one did"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT, or what an interrupted run left"
    )


def run(args: argparse.Namespace) -> None:
    if args.output is not None:
        outputs.check_name(args.output)
    if args.input == STDIN:
        args.texts, args.input = [*args.texts, STDIN], None
    source = input_file(args)
    if source is not None:
        embed_whole_file(args, source)
        return
    for option in ("column", "id_column", "delimiter", "resume", "update"):
        if getattr(args, option):
            raise ValueError(f"--{option.replace('_', '-')} is for an input file")
    if args.output is not None:
        check_free(args.output, args.overwrite)
    found = [*texts(args.texts, as_text="--text"), *args.text] or stdin_lines()
    model = options.load_embedder(args)
    prompt = prompt_of(model, args)
    vectors = model.encode(
        found, prompt=prompt, truncate_dim=args.dim, show_progress_bar=worth_showing(found)
    )
    if args.output is None:
        for text, vector in zip(found, vectors, strict=True):
            print(outputs.json_line({"text": text}, vector))
        return
    info = {"model": options.model_name(args.model), "dim": str(vectors.shape[1]), "prompt": prompt}
    if args.precision != "float32":
        info["precision"] = args.precision
    save(args.output, found, vectors, info, args.overwrite)
    say(f"{args.output}: {len(vectors)} x {outputs.Kind(args.precision, vectors.shape[1])}")


def input_file(args: argparse.Namespace) -> Path | None:
    """Return the file to embed, or None if the arguments are texts.

    An argument that ends in .txt, .jsonl and so on is a file name, whether there is such a file or not; the
    names of other files are refused.
    """
    named = [text for text in args.texts if looks_like_file(text) or names_file(text)]
    if args.input is None and not named:
        return None
    given = [*([args.input] if args.input else []), *args.texts, *args.text]
    if len(given) > 1:
        name = args.input or named[0]
        raise ValueError(
            f"{name} is taken for a file, which must be the only input; embed one after the other, or join "
            "them: cat A B | qwen3np embed -; --text is never a file"
        )
    source = Path(given[0])
    if args.input is None and (not os.path.exists(source) or format_of(source) not in SUFFIXES):
        raise refusal(given[0], f"--text {given[0]!r}")
    if args.output is None:
        raise ValueError(f"{source}: say with --output where the vectors are to go")
    return source


def prompt_of(model: Embedder, args: argparse.Namespace) -> str:
    """Return what the options put before each text."""
    return model.prompt_text("query" if args.query else None, args.prompt, args.instruction)


def embed_whole_file(args: argparse.Namespace, source: Path) -> None:
    names = ("column", "id_column", "on_error", "resume", "overwrite", "delimiter", "precision", "update")
    job = Job(source, args.output, **{name: getattr(args, name) for name in names})
    shown = _Bar(source.name)
    try:
        report = embed_file(
            job,
            lambda: options.load_embedder(args),
            lambda model: prompt_of(model, args),
            model_name=options.model_name(args.model),
            dim=args.dim,
            progress=shown.show,
        )
    except BaseException as error:
        shown.close()
        left = kept(args.output) if shown.begun and not isinstance(error, ValueError) else None
        if left is not None:
            say(
                f"qwen3np: {left[1]:,} of {shown.rows:,} rows are done and kept in {left[0]}: "
                "go on with the same command and --resume"
            )
        raise
    shown.close()
    for line in _summary(job, report):
        say(line)


def _summary(job: Job, report: Report) -> list[str]:
    totals = report.totals
    lines = [f"{job.output}: {totals.texts:,} x {report.kind}, {totals.tokens:,} tokens"]
    if report.complete:
        lines[0] += ": is complete"
    elif report.resumed:
        lines[0] += f" ({report.resumed:,} rows were done before)"
    if report.older is not None:
        kept, gone = report.older.kept, report.older.gone
        lines[0] += f"; {kept:,} rows kept, {totals.texts - kept:,} new or changed, {gone:,} gone and removed"
    if report.outside > 0:
        lines.append(
            f"{report.outside:.2%} of the new values are outside the ranges of the older rows and were "
            "clipped; --overwrite takes ranges anew"
        )
    if totals.cut:
        limit = f"{report.max_seq_length:,} tokens"
        lines.append(f"{totals.cut:,} texts were cut to {limit}; the longest had {totals.longest:,}")
    if totals.empty:
        lines.append(f"{totals.empty:,} empty texts, which have one and the same vector")
    if totals.rows > totals.texts:
        bad = totals.rows - totals.texts
        lines.append(
            f"{bad:,} bad rows were left out ({beside(job.output, ERRORS)}): "
            + bad_rows_message(job.source, bad, report.first_bad_rows)
        )
    return lines


class _Bar:
    """A progress bar on a terminal: rows, time left, and tokens per second of this run."""

    def __init__(self, name: str) -> None:
        self._name = escaped(name)
        self._stack = ExitStack()
        self._bar: Any = None
        self._tokens = 0
        self.rows = 0

    @property
    def begun(self) -> bool:
        """Whether there is something that a run could go on with."""
        return self._bar is not None

    def show(self, totals: Totals, rows: int) -> None:
        if self._bar is None:
            options = {"total": rows, "initial": totals.rows, "desc": self._name, "unit": "row"}
            self._bar = self._stack.enter_context(bar(**options))
            self._stack.enter_context(ticking(self._bar))
            self._tokens, self.rows = totals.tokens, rows
        self._bar.update(totals.rows - self._bar.n)
        elapsed = self._bar.format_dict["elapsed"] if not self._bar.disable else 0
        if elapsed:
            self._bar.set_postfix_str(
                f"{(totals.tokens - self._tokens) / elapsed:,.0f} tokens/s", refresh=False
            )

    def close(self) -> None:
        self._stack.close()
