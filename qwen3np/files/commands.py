"""The commands `embed`, for a whole file, and `search`: what they say while and after they work."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..search import Nearest, as_matrix, positive
from ..table import table
from . import saved
from .record import ERRORS, beside
from .rows import SUFFIXES
from .run import Job, Report, bad_rows_message, embed_file
from .work import Sums, kept

if TYPE_CHECKING:
    from ..embedder import Embedder


def input_file(args: argparse.Namespace) -> Path | None:
    """The file that is to be embedded, or None if texts are.

    An argument that ends in .txt, .jsonl, .csv or .parquet is a file's name, whether there is such a file or
    not: what a command means does not depend on what lies around.
    """
    named = [text for text in args.texts if Path(text).suffix.lower() in SUFFIXES]
    if args.input is None and not named:
        return None
    given = [*([args.input] if args.input else []), *args.texts, *args.text]
    if len(given) > 1:
        name = args.input or named[0]
        raise ValueError(f"{name} is taken for a file, which must be the only input; --text is never a file")
    source = Path(given[0])
    if args.input is None and not source.exists():
        raise ValueError(f"{source}: there is no such file; if it is a text: --text {str(source)!r}")
    if args.output is None:
        raise ValueError(f"{source}: say with --output where the vectors are to go")
    return source


def prompt_of(model: Embedder, args: argparse.Namespace) -> str:
    """What the options put before each text."""
    return model._prompt_text("query" if args.query else None, args.prompt, args.instruction)


def embed(args: argparse.Namespace, source: Path, load: Callable[[], Embedder]) -> None:
    job = Job(source, args.output, args.column, args.id_column, args.on_error, args.resume, args.overwrite)
    bar = _Bar(source.name)
    try:
        report = embed_file(
            job,
            load,
            lambda model: prompt_of(model, args),
            model_name=model_name(args.model),
            dim=args.dim,
            progress=bar.show,
        )
    except BaseException as error:
        bar.close()
        left = kept(args.output) if bar.begun and not isinstance(error, ValueError) else None
        if left is not None:
            print(
                f"qwen3np: {left[1]:,} of {bar.rows:,} rows are done and kept in {left[0]}: "
                "go on with the same command and --resume",
                file=sys.stderr,
            )
        raise
    bar.close()
    print(_summary(job, report), file=sys.stderr)


def model_name(model: str) -> str:
    """As it can be found from anywhere."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _summary(job: Job, report: Report) -> str:
    sums = report.sums
    lines = [f"{job.output}: {sums.texts:,} x {report.dim} float32, {sums.tokens:,} tokens"]
    if report.complete:
        lines[0] += ": is complete"
    elif report.resumed:
        lines[0] += f" ({report.resumed:,} rows were done before)"
    if sums.cut:
        limit = f"{report.max_seq_length:,} tokens"
        lines.append(f"{sums.cut:,} texts were cut to {limit}; the longest had {sums.longest:,}")
    if sums.rows > sums.texts:
        bad = sums.rows - sums.texts
        lines.append(
            f"{bad:,} bad rows were left out ({beside(job.output, ERRORS)}): "
            + bad_rows_message(job.source, bad, report.first_bad_rows)
        )
    return "\n".join(lines)


class _Bar:
    """Rows, time left and tokens a second of this run, on a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._tokens = 0
        self.rows = 0

    @property
    def begun(self) -> bool:
        """There is something that a run could go on with."""
        return self._bar is not None

    def show(self, sums: Sums, rows: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=rows, initial=sums.rows, desc=self._name, unit="row", disable=None)
            self._tokens, self.rows = sums.tokens, rows
        self._bar.update(sums.rows - self._bar.n)
        elapsed = self._bar.format_dict["elapsed"] if not self._bar.disable else 0
        if elapsed:
            self._bar.set_postfix_str(
                f"{(sums.tokens - self._tokens) / elapsed:,.0f} tokens/s", refresh=False
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def search(args: argparse.Namespace, load: Callable[[], Embedder]) -> None:
    """`args.model` is None where the corpus is to say."""
    corpus = saved.open_saved(args.corpus)
    made_by = corpus.info.get("model")
    if args.model is None:
        args.model = made_by or args.default_model
        if made_by is None:
            print(
                f"{args.corpus} does not say which model made it: assuming {args.model}, else give --model",
                file=sys.stderr,
            )
    elif made_by not in (None, model_name(args.model)):
        print(f"{args.corpus} says it was made by {made_by}, not by {args.model}", file=sys.stderr)
    model = load()
    width = model.config.hidden_size
    if not min(32, width) <= corpus.dim <= width:
        raise ValueError(
            f"{args.corpus}: holds vectors of {corpus.dim} channels, and {args.model} gives {width} or, cut, "
            "at least 32: name the model that made them with --model"
        )
    queries = model.encode_query(
        args.queries, prompt=args.prompt, instruction=args.instruction, truncate_dim=corpus.dim
    )
    hits = _nearest(queries, corpus, args.top_k, model.similarity_fn_name)
    rows = {hit["corpus_id"] for found in hits for hit in found}
    found = _with_texts(args, corpus, rows)
    for query, best in zip(args.queries, hits, strict=True):
        results = []
        for hit in best:
            id, text = found[hit["corpus_id"]]
            results.append({"row": hit["corpus_id"], "id": id, "score": hit["score"], "text": text})
        if args.json:
            print(json.dumps({"query": query, "results": results}, ensure_ascii=False))
        else:
            print(_table(query, results), end="\n\n")


def _nearest(
    queries: Any, corpus: saved.Saved, top_k: int, score_function: str
) -> list[list[dict[str, Any]]]:
    nearest = Nearest(as_matrix(queries, "queries"), positive("top_k", top_k), score_function)
    try:
        for block in corpus.blocks():
            nearest.add(block)
    except ValueError as error:
        raise corpus.error(error) from error
    return [
        [{"corpus_id": int(i), "score": float(s)} for i, s in zip(ids, scores, strict=True)]
        for ids, scores in nearest.found
    ]


def _with_texts(args: argparse.Namespace, corpus: saved.Saved, rows: set[int]) -> dict[int, saved.Found]:
    """Ids and texts; an output without texts has them from --texts, or from the input it was made of."""
    found = corpus.find(rows)
    count = corpus.count
    if args.texts is not None:
        return saved.texts_of(args.texts, args.column, args.id_column, found, count)
    if any(text is not None for _, text in found.values()):
        return found
    source = corpus.info.get("input")
    if source is None:
        print(f"{args.corpus} holds no texts; --texts names the file that was embedded", file=sys.stderr)
    else:
        columns = (corpus.info.get("column"), corpus.info.get("id_column"))
        try:
            return saved.texts_of(Path(source), *columns, found, count)
        except (ValueError, OSError) as error:
            print(f"no texts: {error}; --texts names the file", file=sys.stderr)
    return found


def _table(query: str, results: list[dict[str, Any]]) -> str:
    room = max(20, shutil.get_terminal_size((110, 24)).columns)
    rows = [[f"{r['score']:.4f}", str(r["id"]), " ".join((r["text"] or "").split())] for r in results]
    ids = max([2, *(len(row[1]) for row in rows)])
    for row in rows:
        row[2] = _shortened(row[2], max(20, room - ids - 10))
    header = ["score", "id", _shortened(" ".join(query.split()), max(20, room - ids - 10))]
    return table(header, rows)


def _shortened(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."
