"""A whole file of texts -> a file of vectors, in bounded memory; an interrupted run can continue."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..loading.tokenizer import TRUNCATED
from ..quantization import quantize_embeddings
from . import identity, outputs, record
from .preflight import check, survey
from .publish import SHOWN, check_leftovers, finish, is_staged, stage
from .rows import BadRow, Row
from .saved import open_saved
from .sources import Source
from .update import Older
from .work import Chunk, Totals, WorkFolder

if TYPE_CHECKING:
    from ..embedder import Embedder

logger = logging.getLogger("qwen3np")

# A chunk of rows is what an interrupted run may lose, and what is in memory at a time.
CHUNK_ROWS = 2048
CHUNK_BYTES = 1 << 18  # of text: some 64,000 tokens
CHUNK_SECONDS = 15.0
# Bytes of text in one call of encode, which is one step of the progress bar: as many as make a call take a
# third of CHUNK_SECONDS, but at most CALL_BYTES.
CALL_BYTES = 1 << 15
FIRST_CALL_BYTES = 1 << 13


@dataclass(frozen=True)
class Job:
    """What to embed into what.

    Args:
        source: The texts.
        output: The file of vectors.
        on_error: "fail" refuses a file with bad rows before anything is computed; "skip" leaves them out and
            lists them in OUT.errors.jsonl.
        resume: Continue with what an interrupted run left in OUT.partial.
        overwrite: Replace an output that exists and, unless `resume`, what is left of a run.
        precision: How the output stores vectors, one of VECTOR_PRECISIONS.
        update: Replace an output of another input, taking from it the vectors of texts that are in both. What
            is left of a run is continued as far as its rows are the same.
    """

    source: Source
    output: Path
    on_error: str = "fail"
    resume: bool = False
    overwrite: bool = False
    precision: str = "float32"
    update: bool = False

    def rows(self) -> Iterator[Row | BadRow]:
        """Yield the rows of the source."""
        return self.source.rows()


@dataclass(frozen=True)
class Report:
    """What came of a job.

    Attributes:
        kind: What the vectors are.
        totals: Totals of all runs that the job took.
        resumed: Number of rows that were done before this run.
        first_bad_rows: The first rows that were left out.
        max_seq_length: The length in tokens at which texts were truncated.
        complete: Whether there was nothing left to compute.
        older: What was taken from the output that was updated, if one was.
        outside: How much of the new values is outside the ranges of that output, from 0 to 1.
    """

    kind: outputs.Kind
    totals: Totals
    resumed: int
    first_bad_rows: Sequence[BadRow]
    max_seq_length: int
    complete: bool = False
    older: Older | None = None
    outside: float = 0.0


def embed_file(
    job: Job,
    load: Callable[[], Embedder],
    prompt_of: Callable[[Embedder], str],
    *,
    model_name: str,
    dim: int | None = None,
    progress: Callable[[Totals, int], None] | None = None,
) -> Report:
    """Embed every text of a file into an output that appears complete or not at all.

    Its bytes do not depend on interruptions. Nothing is replaced or deleted before the files, the model and
    the options are found good, and an older output stays until the new one is complete. With job.resume or
    job.update, an output that the same run has finished is reported as complete. An update gives the bytes
    that a new run would give, but for int8 and uint8, which keep the ranges of the older output.

    Args:
        job: What to embed into what.
        load: Returns the model; called when the files have been found good.
        prompt_of: Returns the prompt to use with the model.
        model_name: Kept in the output, if its format has room, and beside it, for whoever searches it.
        dim: Keep this many leading dimensions.
        progress: Called with the totals so far and the number of rows in all.

    Raises:
        ValueError: Files, options or leftovers do not fit.
        FileExistsError: A file would be replaced.
        BlockingIOError: Another run writes the same output.
        OSError: The disk is full, for one; `resume` continues afterwards.
    """
    check(job)
    again = job.resume or job.update
    with WorkFolder(job.output) as work:
        work.check_writable()
        check_leftovers(job.output, work, again, job.overwrite)
        replaces = record.states(job.output)
        digest = job.source.digest
        kept = work.manifest if again else None
        finished = _finished(job, work)
        known = kept or (None if job.overwrite else finished)
        if known is None or job.update:
            rows, bad = survey(job)
        else:
            _check_same(job, work, {"input": known["run"].get("input")}, {"input": digest})
            rows, bad = known["rows"], known["bad"]
            if bad and job.on_error == "fail":
                raise ValueError(f"{job.output}: {bad} bad rows were to be left out; add --on-error skip")
        model = load()
        prompt = prompt_of(model)
        # A wrong dimension or unsound weights are an error now. (Some tokenizers refuse an empty text.)
        dim = len(model.encode("a", prompt=prompt, truncate_dim=dim))
        if job.source.prepare(model, prompt) and (known is None or job.update):
            rows, bad = survey(job)  # of chunks
        run = _run(job) | identity.of_model(model, prompt, dim)
        if known is not None:
            means = identity.of_vectors if job.update else dict
            _check_same(job, work, means(known["run"]), means(run))
        if finished is not None and finished["run"] == run:
            return _report(finished, model, rows, complete=True)
        if is_staged(work):
            if kept is not None and kept["run"] == run:
                return _report(finish(work, job.overwrite), model, rows, complete=True)
            replaces, kept = _make_way(work), None
        older = _older(job, run, finished) if job.update else None
        info = _info(job, model_name, prompt, dim)
        if also := identity.others(run, [kept, older.record if older else None]):
            info["also_by"] = also
        manifest = {"run": run, "info": info, "rows": rows, "bad": bad, "dim": dim}
        if older is not None and older.ranges is not None:
            manifest["ranges"] = older.ranges.tolist()
        if job.update and kept is not None and kept.get("ranges") != manifest.get("ranges"):
            kept = None  # its vectors cannot be quantised as the older ones are
        if kept is None:
            work.begin(manifest | {"replaces": replaces})
        elif job.update or job.overwrite:
            work.update(
                **(manifest if job.update else {}), **({"replaces": replaces} if job.overwrite else {})
            )
        resumed, number = _verified(job, work)
        encoder = _Encoder(model, prompt, dim, job.precision, older)
        with without_warnings():
            _compute(job, work, encoder, resumed, number, lambda s: progress and progress(s, rows))
        totals, _ = _verified(job, work, whole=True)
        found = totals.rows, totals.rows - totals.texts
        if found != (rows, bad) or job.source.changed():
            raise _changed(job)
        stage(work, work.chunks, totals)
        return _report(finish(work), model, resumed.rows, encoder=encoder)


def save(
    output: Path,
    texts: Sequence[str],
    vectors: NDArray[np.float32],
    info: Mapping[str, str],
    overwrite: bool = False,
) -> None:
    """Write vectors to an output, as info["precision"] says; the ids are the texts' numbers.

    Raises FileExistsError for files that would be replaced; with `overwrite`, only for those beside the
    output that do not belong to it.
    """
    count, dim = vectors.shape
    with WorkFolder(output) as work:
        check_leftovers(output, work, overwrite=overwrite)
        replaces = _make_way(work) if is_staged(work) else record.states(output)
        run = {**info, "texts": hashlib.sha256(json.dumps([*texts]).encode()).hexdigest()}
        work.begin({"run": run, "info": {**info}, "rows": count, "bad": 0, "dim": dim, "replaces": replaces})
        try:
            chunk = Chunk(range(count), texts, vectors)
            stage(work, lambda: [chunk], Totals(rows=count, texts=count))
        except BaseException:
            if not is_staged(work):
                work.remove()
            raise
        finish(work)


def check_free(output: Path, overwrite: bool) -> None:
    """Raise what `save` would, before anything is computed."""
    with WorkFolder(output) as work:
        work.check_writable()
        check_leftovers(output, work, overwrite=overwrite)


def _finished(job: Job, work: WorkFolder) -> dict[str, Any] | None:
    """Return the record of an output that is whole, with --resume or --update and no run left to continue."""
    found = record.read_record(job.output)
    again = job.resume or job.update
    if not again or work.manifest is not None or found is None or not job.output.exists():
        return None
    if record.as_recorded(job.output, found):
        return found
    if job.overwrite:
        return None
    raise FileExistsError(f"{job.output}: exists, and is not as its run wrote it; --overwrite replaces it")


def _older(job: Job, run: Mapping[str, Any], finished: Mapping[str, Any] | None) -> Older | None:
    """Return the vectors of the output that is there, if it is whole and they mean what this run's would."""
    found = finished or record.read_record(job.output)
    if (
        found is None
        or not job.output.exists()
        or identity.of_vectors(found["run"]) != identity.of_vectors(run)
    ):
        return None
    if finished is None and not record.as_recorded(job.output, found):
        return None
    limit, before = run.get("limit"), found["run"].get("limit")
    more = limit is not None and (before is None or before > limit) and found["rows"] > limit
    if more and not job.overwrite:
        raise FileExistsError(
            f"{job.output}: exists, of more than {limit:,} rows, and --update would remove the others; "
            "--overwrite replaces it"
        )
    older = Older(open_saved(job.output))
    rows = (entry.text for entry in job.rows() if isinstance(entry, Row))
    while texts := [*islice(rows, CHUNK_ROWS)]:
        older.count(texts)
    return older


def _make_way(work: WorkFolder) -> dict[str, record.State | None]:
    """Complete the output of a run that was stopped in its last step and is not to be continued.

    An older output may be half replaced. Returns the states of what is there afterwards.
    """
    with suppress(ValueError):  # its files were changed
        finish(work, overwrite=True)
    record.check_beside(work.output, {})
    return record.states(work.output)


def _check_same(job: Job, work: WorkFolder, found: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Raise an error if two runs differ."""
    differences = identity.differences(found, run)
    if differences and work.manifest is None:
        raise FileExistsError(
            f"{job.output}: exists, of another run ({differences}); --overwrite replaces it"
        )
    if differences:
        raise ValueError(
            f"{work.path}: is left of another run ({differences}); --resume goes on with the same command "
            "only, --overwrite begins anew"
        )


def _changed(job: Job) -> ValueError:
    """Return the error for an input that changed while it was read."""
    found = ", ".join(map(str, job.source.changed()[:SHOWN])) or job.source
    return ValueError(
        f"{found}: changed while it was read; give the same command with --resume if it is as it was "
        "before, else with --overwrite"
    )


def _run(job: Job) -> dict[str, Any]:
    """Return the part of a run's identity that is not the model's."""
    found = {**job.source.part_of_run(), "output": job.output.suffix.lower()}
    return found | {"precision": job.precision}


def _info(job: Job, model_name: str, prompt: str, dim: int) -> dict[str, str]:
    stored = {} if job.precision == "float32" else {"precision": job.precision}
    return {"model": model_name, "dim": str(dim), "prompt": prompt, **job.source.info(), **stored}


def _report(
    done: Mapping[str, Any],
    model: Embedder,
    resumed: int,
    complete: bool = False,
    encoder: _Encoder | None = None,
) -> Report:
    bad = [BadRow(**bad) for bad in done["first_bad_rows"]]
    kind = outputs.Kind(done["run"].get("precision", "float32"), done["dim"])
    older, outside = (None, 0.0) if encoder is None else (encoder.older, encoder.outside)
    totals = Totals(**done["sums"])
    return Report(kind, totals, resumed, bad, model.max_seq_length, complete, older, outside)


def _verified(job: Job, work: WorkFolder, whole: bool = False) -> tuple[Totals, int]:
    """Return the totals and the number of the chunks made of the rows that the input has now.

    The chunks from the first other one on are deleted: the input may have been another for a while, and be
    the same again. With `whole`, raises ValueError unless those are all chunks and all rows.
    """
    number, totals = 0, Totals()
    entries = job.rows()
    for chunk in work.chunks():
        if identity.rows_digest(islice(entries, chunk.rows)) != chunk.source:
            break
        number, totals = number + 1, chunk.totals
    given_up = work.keep_first(number)
    if whole and (given_up or next(entries, None) is not None):
        raise _changed(job)
    if given_up:
        logger.warning("%s: %d chunks are damaged or of other rows: computed anew", work.path, given_up)
    return totals, number


class _Encoder:
    """Texts -> vectors and tokens, the vectors of known texts from an older output."""

    def __init__(self, model: Embedder, prompt: str, dim: int, precision: str, older: Older | None) -> None:
        self.model, self.older = model, older
        self._prompt, self.dim, self._precision = prompt, dim, precision
        self._values = self._outside = 0

    @property
    def outside(self) -> float:
        """How much of the values computed is outside the older ranges."""
        return self._outside / max(1, self._values)

    def lengths(self, texts: list[str]) -> list[int]:
        """Return how many tokens each text has, without a limit."""
        # Tokenised once more: next to computing the vectors that takes no time.
        return [*map(len, self.model.tokenizer.encode(texts, 1 << 62, self._prompt))]

    def vectors(self, texts: list[str]) -> NDArray[Any]:
        """Return the vectors, float32, or as the older output stores them."""
        if self.older is None:
            return self._computed(texts)
        rows = self.older.rows(texts)
        vectors = np.array(self.older.vectors[rows])  # of new texts, some other's for now
        if new := np.flatnonzero(rows < 0).tolist():
            computed, ranges = self._computed([texts[i] for i in new]), self.older.ranges
            if ranges is not None:
                self._values += computed.size
                self._outside += int(((computed < ranges[0]) | (computed > ranges[1])).sum())
            vectors[new] = quantize_embeddings(computed, self._precision, ranges)
        return vectors

    def _computed(self, texts: list[str]) -> NDArray[np.float32]:
        return self.model.encode(texts, prompt=self._prompt, truncate_dim=self.dim, show_progress_bar=False)


def _compute(
    job: Job,
    work: WorkFolder,
    encoder: _Encoder,
    totals: Totals,
    number: int,
    progress: Callable[[Totals], object],
) -> None:
    """Compute the rows after those in `totals`, as the chunks from `number` on."""
    progress(totals)
    entries = islice(job.rows(), totals.rows, None)
    call_bytes = min(FIRST_CALL_BYTES, CALL_BYTES)
    more = True
    while more:
        chunk: list[Row | BadRow] = []
        vectors: list[NDArray[Any]] = []
        size, begun = 0, time.monotonic()
        # At least one call, however long it takes.
        while not chunk or (
            size < CHUNK_BYTES and len(chunk) < CHUNK_ROWS and time.monotonic() - begun < CHUNK_SECONDS
        ):
            started = time.monotonic()
            call, read = _call(entries, call_bytes, CHUNK_ROWS - len(chunk))
            more = bool(call)
            if not more:
                break
            rows = [entry for entry in call if isinstance(entry, Row)]
            totals = replace(totals, rows=totals.rows + len(call) - len(rows))
            if rows:
                texts = [row.text for row in rows]
                vectors.append(encoder.vectors(texts))
                lengths = encoder.lengths(texts)
                totals = _add(totals, rows, lengths, encoder.model.max_seq_length, texts.count(""))
            chunk += call
            size += read
            progress(totals)
            speed = read / max(time.monotonic() - started, 1e-6)
            call_bytes = max(1, min(CALL_BYTES, int(speed * CHUNK_SECONDS / 3)))
        if chunk:
            work.add(number, _chunk(chunk, vectors or [np.empty((0, encoder.dim), np.float32)], totals))
            number += 1


def _call(entries: Iterator[Row | BadRow], most_bytes: int, most_rows: int) -> tuple[list[Row | BadRow], int]:
    """Return the next rows, at least one, and the bytes of their texts."""
    call: list[Row | BadRow] = []
    size = 0
    for entry in entries:
        call.append(entry)
        size += len(entry.text.encode()) if isinstance(entry, Row) else 0
        if size >= most_bytes or len(call) >= most_rows:
            break
    return call, size


def _chunk(entries: Sequence[Row | BadRow], vectors: Sequence[NDArray[Any]], totals: Totals) -> Chunk:
    """Return the chunk that these rows and their vectors make."""
    rows = [entry for entry in entries if isinstance(entry, Row)]
    return Chunk(
        [row.id for row in rows],
        [row.text for row in rows],
        np.concatenate(vectors),
        [entry for entry in entries if isinstance(entry, BadRow)],
        identity.rows_digest(entries),
        totals,
        [row.where for row in rows if row.where is not None] or None,
    )


def _add(totals: Totals, rows: Sequence[Row], lengths: Sequence[int], limit: int, empty: int) -> Totals:
    """Return the totals after these texts."""
    ids = [row.id for row in rows]
    return Totals(
        rows=totals.rows + len(ids),
        texts=totals.texts + len(ids),
        tokens=totals.tokens + sum(min(length, limit) for length in lengths),
        cut=totals.cut + sum(length > limit for length in lengths),
        longest=max(totals.longest, *lengths),
        int_ids=totals.int_ids and all(isinstance(i, int) and -(2**63) <= i < 2**63 for i in ids),
        numbered=totals.numbered and list(ids) == list(range(totals.texts, totals.texts + len(ids))),
        empty=totals.empty + empty,
        placed=totals.placed or rows[0].where is not None,
    )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress the warnings of each call that texts were truncated; the report says it once."""

    def keep(record: logging.LogRecord) -> bool:
        return record.msg != TRUNCATED

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
