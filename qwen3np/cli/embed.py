"""qwen3np embed: texts, or whole files of them, to vectors."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..files import outputs
from ..files.cells import Template
from ..files.chunking import Chunks
from ..files.estimate import Estimate, estimate
from ..files.names import TXT, named
from ..files.preflight import bad_rows_message
from ..files.record import ERRORS, beside
from ..files.run import Job, Report, check_free, embed_file, save
from ..files.sources import Source, find
from ..files.work import Totals, kept
from ..quantization import VECTOR_PRECISIONS
from ..runtime.progress import bar, ticking, worth_showing
from . import options
from .inputs import STDIN, is_read, looks_like_file, names_file, positive, refusal, stdin_lines, texts
from .streams import escaped, say

EXAMPLES = (
    'qwen3np embed "The capital of China is Beijing."',
    "qwen3np embed articles.csv --column body --output articles.parquet",
    "qwen3np embed notes/ manual.md --chunk-tokens 512 --overlap 64 --output notes.parquet",
    "zcat texts.gz | qwen3np embed - --output vectors.npy",
)
OF_FILES = (
    *("column", "template", "id_column", "delimiter", "txt", "chunk_tokens", "overlap"),
    *("limit", "dry_run", "resume", "update"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn texts into vectors, printed as JSON lines; or whole files of texts into a file of vectors."
    )
    options.model_options(parser, options.EMBEDDER)
    parser.add_argument(
        "texts",
        nargs="*",
        default=[],
        metavar="INPUT",
        help="texts; or files, folders and patterns: .txt (one text per line), .md (one text), .jsonl, "
        ".json, .csv, .tsv (each also with .gz or .zst), or .parquet; - or nothing: one text per line from "
        "stdin",
    )
    parser.add_argument(
        "--text", action="append", default=[], help="a text, never taken for a file name (repeatable)"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="FILE",
        help="a file, folder or pattern, never taken for a text; or - for stdin (repeatable)",
    )
    options.prompt_options(parser)
    parser.add_argument("--dim", type=int, help="keep this many leading dimensions (32 to hidden_size)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="write the vectors to this .npy, .jsonl, .parquet or .safetensors file; required for files "
        "of texts",
    )
    files = parser.add_argument_group("for files of texts")
    options.column_options(files, template=True)
    files.add_argument(
        "--txt",
        choices=TXT,
        help="a .txt is one text per line, or whole one text (default: lines; in a folder: whole)",
    )
    files.add_argument(
        "--chunk-tokens",
        type=int,
        metavar="N",
        help="cut texts into chunks of at most N tokens, a vector each",
    )
    files.add_argument(
        "--overlap", type=int, metavar="M", help="tokens that a chunk repeats of the one before (default: 0)"
    )
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
    files.add_argument("--limit", type=positive, metavar="N", help="read the first N rows only")
    files.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: check the files, count their tokens, and say how long it would take",
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
    if args.input == [STDIN]:
        args.texts, args.input = [*args.texts, STDIN], []
    names = input_names(args)
    if names:
        embed_whole_files(args, names)
        return
    for option in OF_FILES:
        if getattr(args, option) not in (None, False):
            raise ValueError(f"--{option.replace('_', '-')} is for an input file")
    if args.output is not None:
        check_free(args.output, args.overwrite)
    found = [*texts(args.texts, as_text="--text"), *args.text] or stdin_lines()
    model = options.load_embedder(args)
    prompt = options.prompt_of(model, args)
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


def input_names(args: argparse.Namespace) -> list[str]:
    """Return the files, folders and patterns to embed; none if the arguments are texts.

    An argument that ends in .txt, .jsonl and so on is a file name, whether there is such a file or not; the
    names of other files are refused.
    """
    named = [text for text in args.texts if looks_like_file(text) or names_file(text) or is_read(text)]
    names = [*args.input, *named]
    if not names:
        return []
    for name in named:
        if not is_read(name):
            raise refusal(name, f"--text {name!r}")
    if len(named) < len(args.texts) or args.text or STDIN in names:
        raise ValueError(
            f"{names[0]} is taken for a file, which does not go with texts or stdin: embed one after the "
            "other; --text is never a file"
        )
    if args.output is None:
        raise ValueError(
            f"{names[0]}: say with --output where the vectors are to go; if the name itself is the text: "
            f"--text {names[0]!r}"
        )
    return names


def source_of(args: argparse.Namespace, names: list[str]) -> Source:
    """Return what the options say is to be read of these files, folders and patterns."""
    if args.overlap is not None and args.chunk_tokens is None:
        raise ValueError("--overlap is for chunks: give --chunk-tokens, too")
    chunks = None if args.chunk_tokens is None else Chunks(args.chunk_tokens, args.overlap or 0)
    column = args.column if args.template is None else Template(args.template)
    options = {name: getattr(args, name) for name in ("id_column", "delimiter", "limit")}
    return find(names, args.output, args.txt, column=column, chunks=chunks, **options)


def embed_whole_files(args: argparse.Namespace, names: list[str]) -> None:
    source = source_of(args, names)
    for note in source.notes:
        say(note)
    settings = ("on_error", "resume", "overwrite", "precision", "update")
    job = Job(source, args.output, **{name: getattr(args, name) for name in settings})
    if args.dry_run:
        model = options.load_embedder(args)
        found = estimate(job, model, options.prompt_of(model, args), args.dim)
        print(_estimated(job, found, model.max_seq_length))
        return
    shown = _Bar(source.name)
    try:
        report = embed_file(
            job,
            lambda: options.load_embedder(args),
            lambda model: options.prompt_of(model, args),
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


def _estimated(job: Job, found: Estimate, limit: int) -> str:
    seconds = round(found.seconds)
    time = f"{timedelta(seconds=seconds)}" if seconds > 99 else f"{seconds} s"
    lines = [
        f"{job.output}: would hold {found.texts:,} vectors, of {found.tokens:,} tokens",
        f"time, by a sample of the texts: about {time}",
        f"longest text: {found.longest:,} tokens; {found.cut:,} texts would be cut to {limit:,}",
    ]
    if found.bad:
        lines.append(f"{found.bad:,} bad rows would be left out")
    return "\n".join(lines)


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
    if job.source.empty:
        lines.append(f"files without texts: {named(job.source.empty)}")
    if job.source.repeated:
        lines.append(
            f"{job.source.repeated:,} texts have an id that another has, as {job.source.first_repeated!r}; "
            'the column "file" tells them apart'
        )
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
