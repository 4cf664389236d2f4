"""The commands `embed`, for a whole file, and `search`: what they say while and after they work."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import saved
from ..files.lines import format_of
from ..files.record import ERRORS, beside
from ..files.rows import SUFFIXES
from ..files.run import Job, Report, bad_rows_message, embed_file
from ..files.work import Sums, kept
from ..runtime.progress import bar, ticking
from ..search import Nearest, as_matrix, positive
from ..table import table, terminal_columns
from .arguments import looks_like_file, names_file, refusal, texts
from .streams import escaped, say

if TYPE_CHECKING:
    from ..embedder import Embedder


def input_file(args: argparse.Namespace) -> Path | None:
    """The file that is to be embedded, or None if texts are.

    An argument that ends in .txt, .jsonl and so on is a file's name, whether there is such a file or not; of
    other files the name is refused.
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
    """What the options put before each text."""
    return model._prompt_text("query" if args.query else None, args.prompt, args.instruction)


def embed(args: argparse.Namespace, source: Path, load: Callable[[], Embedder]) -> None:
    names = ("column", "id_column", "on_error", "resume", "overwrite", "delimiter")
    job = Job(source, args.output, **{name: getattr(args, name) for name in names})
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
            say(
                f"qwen3np: {left[1]:,} of {bar.rows:,} rows are done and kept in {left[0]}: "
                "go on with the same command and --resume"
            )
        raise
    bar.close()
    for line in _summary(job, report):
        say(line)


def model_name(model: str) -> str:
    """As it can be found from anywhere."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _summary(job: Job, report: Report) -> list[str]:
    sums = report.sums
    lines = [f"{job.output}: {sums.texts:,} x {report.dim} float32, {sums.tokens:,} tokens"]
    if report.complete:
        lines[0] += ": is complete"
    elif report.resumed:
        lines[0] += f" ({report.resumed:,} rows were done before)"
    if sums.cut:
        limit = f"{report.max_seq_length:,} tokens"
        lines.append(f"{sums.cut:,} texts were cut to {limit}; the longest had {sums.longest:,}")
    if sums.empty:
        lines.append(f"{sums.empty:,} empty texts, which have one and the same vector")
    if sums.rows > sums.texts:
        bad = sums.rows - sums.texts
        lines.append(
            f"{bad:,} bad rows were left out ({beside(job.output, ERRORS)}): "
            + bad_rows_message(job.source, bad, report.first_bad_rows)
        )
    return lines


class _Bar:
    """Rows, time left and tokens a second of this run, on a terminal."""

    def __init__(self, name: str) -> None:
        self._name = escaped(name)
        self._stack = ExitStack()
        self._bar: Any = None
        self._tokens = 0
        self.rows = 0

    @property
    def begun(self) -> bool:
        """There is something that a run could go on with."""
        return self._bar is not None

    def show(self, sums: Sums, rows: int) -> None:
        if self._bar is None:
            options = {"total": rows, "initial": sums.rows, "desc": self._name, "unit": "row"}
            self._bar = self._stack.enter_context(bar(**options))
            self._stack.enter_context(ticking(self._bar))
            self._tokens, self.rows = sums.tokens, rows
        self._bar.update(sums.rows - self._bar.n)
        elapsed = self._bar.format_dict["elapsed"] if not self._bar.disable else 0
        if elapsed:
            self._bar.set_postfix_str(
                f"{(sums.tokens - self._tokens) / elapsed:,.0f} tokens/s", refresh=False
            )

    def close(self) -> None:
        self._stack.close()


def search(args: argparse.Namespace, load: Callable[[], Embedder]) -> None:
    """`args.model` is None where the corpus is to say."""
    asked = texts(args.queries, args.literal)
    corpus = saved.open_saved(args.corpus)
    made_by = corpus.info.get("model")
    if args.model is None:
        args.model = made_by or args.default_model
        if made_by is None:
            say(f"{args.corpus} does not say which model made it: assuming {args.model}, else give --model")
    elif made_by not in (None, model_name(args.model)):
        say(f"{args.corpus} says it was made by {made_by}, not by {args.model}")
    model = load()
    width = model.config.hidden_size
    if not min(32, width) <= corpus.dim <= width:
        raise ValueError(
            f"{args.corpus}: holds vectors of {corpus.dim} channels, and {args.model} gives {width} or, cut, "
            "at least 32: name the model that made them with --model"
        )
    queries = model.encode_query(
        asked, prompt=args.prompt, instruction=args.instruction, truncate_dim=corpus.dim
    )
    hits = _nearest(queries, corpus, args.top_k, model.similarity_fn_name)
    rows = {hit["corpus_id"] for found in hits for hit in found}
    found = _with_texts(args, corpus, rows)
    for query, best in zip(asked, hits, strict=True):
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
    for block in corpus.blocks():
        try:
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
        if corpus.made_of(args.texts) is False:
            say(f"{args.texts} is not the file that was embedded, byte for byte: its texts may be others")
        return saved.texts_of(args.texts, args.column, args.id_column, args.delimiter, found, count)
    if any(text is not None for _, text in found.values()):
        return found
    source = corpus.info.get("input")
    if source is None:
        say(f"{args.corpus} holds no texts; --texts names the file that was embedded")
    else:
        columns = (corpus.info.get("column"), corpus.info.get("id_column"), corpus.info.get("delimiter"))
        try:
            if corpus.made_of(Path(source)) is False:
                raise ValueError(f"{source}: has changed since it was embedded")
            return saved.texts_of(Path(source), *columns, found, count)
        except (ValueError, OSError) as error:
            say(f"no texts: {error}; --texts names the file")
    return found


def _table(query: str, results: list[dict[str, Any]]) -> str:
    rows = [[f"{r['score']:.4f}", str(r["id"]), r["text"] or ""] for r in results]
    return table(["score", "id", query], rows, terminal_columns(110))
