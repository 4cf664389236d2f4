"""A whole file of texts -> a file of vectors, in bounded memory, by a run that may be interrupted and go
on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..tokenizer import CUT
from . import outputs
from .lines import format_of
from .rows import BadRow, Row, read_rows
from .work import Chunk, Sums, WorkFolder

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..embedder import Embedder

logger = logging.getLogger("qwen3np")

# A chunk of rows is what an interrupted run may lose, and what is in the memory at a time.
CHUNK_ROWS = 2048
CHUNK_BYTES = 1 << 18  # of text: some 64,000 tokens
CALL_BYTES = 1 << 15  # of text in one call of encode, which is one step of the progress bar
SHOWN = 5  # bad rows that a message names


@dataclass(frozen=True)
class Job:
    """What to embed into what.

    column, id_column, delimiter: as read_rows takes them. on_error: "fail" refuses a file with bad rows
    before anything is computed; "skip" leaves them out and lists them in OUT.errors.jsonl. resume: go on with
    what an interrupted run left in OUT.partial. overwrite: replace an output that exists and, unless
    `resume`, what is left of a run.
    """

    source: Path
    output: Path
    column: str | None = None
    id_column: str | None = None
    on_error: str = "fail"
    resume: bool = False
    overwrite: bool = False
    delimiter: str | None = None

    @property
    def with_texts(self) -> bool:
        return self.output.suffix.lower() in outputs.WITH_TEXTS

    def rows(self) -> Iterator[Row | BadRow]:
        return read_rows(self.source, self.column, self.id_column, self.delimiter)


@dataclass(frozen=True)
class Report:
    """What came of a job. The sums are those of all runs it took; `resumed` rows were done before this
    one."""

    dim: int
    sums: Sums
    resumed: int
    first_bad_rows: Sequence[BadRow]
    max_seq_length: int


def embed_file(
    job: Job,
    load: Callable[[], Embedder],
    prompt_of: Callable[[Embedder], str],
    *,
    model_name: str,
    dim: int | None = None,
    progress: Callable[[Sums, int], None] | None = None,
) -> Report:
    """Embed every text of the input; the output appears complete or not at all, and its bytes do not depend
    on interruptions.

    Args:
        load: returns the model; called when the files have been found good. prompt_of: the prompt to use.
        model_name: kept in the output, if its format has room, for whoever searches it.
        dim: keep this many leading channels.
        progress: called with the sums so far and the number of rows in all.

    Raises ValueError for files, options and leftovers that do not fit, FileExistsError, BlockingIOError if
    another run writes the same output, and OSError, a full disk among them, after which `resume` goes on.
    """
    _check(job)
    with WorkFolder(job.output) as work:
        _check_leftovers(job, work)
        if job.overwrite and not job.resume:
            work.clear()
        before, digest = _state(job.source), _digest(job.source)
        manifest = work.manifest()
        if manifest is None:
            rows, bad = _survey(job)
        else:
            rows, bad = manifest["rows"], manifest["bad"]
            _check_same(work, {"input": manifest["run"].get("input")}, {"input": digest})
            if bad and job.on_error == "fail":
                raise ValueError(f"{work.path}: {bad} bad rows were to be left out; add --on-error skip")
        model = load()
        prompt = prompt_of(model)
        dim = len(model.encode("", prompt=prompt, truncate_dim=dim))  # and a wrong one is an error now
        run = _identity(job, digest, model, prompt, dim)
        if manifest is None:
            manifest = {"run": run, "info": _info(job, model_name, prompt, dim), "rows": rows, "bad": bad}
            work.begin(manifest)
        _check_same(work, manifest["run"], run)
        resumed = work.sums(work.count()).rows
        with _without_warnings():
            _compute(job, work, model, prompt, dim, lambda sums: progress and progress(sums, rows))
        count = work.count()
        sums = work.sums(count)
        if _state(job.source) != before or (sums.rows, sums.rows - sums.texts) != (rows, bad):
            raise ValueError(f"{job.source}: changed while it was read; begin anew with --overwrite")
        first_bad_rows = list(islice(work.bad_rows(count), SHOWN))
        _publish(work, count, sums, dim, manifest["info"])
        work.clear()
        return Report(dim, sums, resumed, first_bad_rows, model.max_seq_length)


def save(output: Path, texts: Sequence[str], vectors: NDArray[np.float32], info: Mapping[str, str]) -> None:
    """Vectors that are all there -> an output, in place of an older one. The ids are the texts' numbers."""
    sums = Sums(rows=len(texts), texts=len(texts))
    partial = output.with_name(f".{output.name}.{os.getpid()}{output.suffix}")
    try:
        outputs.write_output(
            partial, [Chunk(range(len(texts)), texts, vectors)], sums, vectors.shape[1], info
        )
        for beside in (outputs.ids_file(output), errors_file(output)):  # of an older one
            beside.unlink(missing_ok=True)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def errors_file(output: Path) -> Path:
    return output.with_name(output.name + ".errors.jsonl")


def bad_rows_message(source: Path, count: int, first: Sequence[BadRow]) -> str:
    more = f"; and {count - len(first)} more" if count > len(first) else ""
    return f"{source}, " + "; ".join(map(str, first)) + more


def _check(job: Job) -> None:
    if job.on_error not in ("fail", "skip"):
        raise ValueError(f"on_error = {job.on_error!r} is neither 'fail' nor 'skip'")
    outputs.check_name(job.output)
    job.rows()
    for path in (job.output, outputs.ids_file(job.output), errors_file(job.output)):
        if path.exists() and path.samefile(job.source):
            raise ValueError(f"{job.source}: is the input, and this run would write over it")


def _check_leftovers(job: Job, work: WorkFolder) -> None:
    if job.output.exists() and not job.overwrite:
        raise FileExistsError(f"{job.output}: exists; --overwrite replaces it")
    if work.begun and not (job.resume or job.overwrite):
        raise FileExistsError(
            f"{work.path}: is left of an interrupted run; --resume goes on with it, --overwrite begins anew"
        )


def _check_same(work: WorkFolder, found: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    differences = [
        f"{name} was {_short(found.get(name))}, is {_short(run.get(name))}"
        for name in {**found, **run}
        if found.get(name) != run.get(name)
    ]
    if differences:
        raise ValueError(
            f"{work.path}: is left of another run ({'; '.join(differences)}); --resume goes on with the same "
            "command only, --overwrite begins anew"
        )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _survey(job: Job) -> tuple[int, int]:
    """Rows and bad rows among them. Reading is cheap: better now than after days of computing."""
    rows, bad, first = 0, 0, []
    for entry in job.rows():
        rows += 1
        if isinstance(entry, BadRow):
            bad += 1
            first += [entry] if bad <= SHOWN else []
    if rows == 0:
        raise ValueError(f"{job.source}: is empty: there is no text to embed")
    if bad and job.on_error == "fail":
        found = bad_rows_message(job.source, bad, first)
        raise ValueError(f"{found}; nothing was computed; --on-error skip leaves bad rows out")
    if bad == rows:
        raise ValueError(f"{bad_rows_message(job.source, bad, first)}; no row is good")
    return rows, bad


def _state(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _identity(job: Job, digest: str, model: Embedder, prompt: str, dim: int) -> dict[str, Any]:
    """All that the output's bytes depend on."""
    backend = model.backend
    return {
        "input": digest,
        "input format": format_of(job.source),
        "column": job.column,
        "id column": job.id_column,
        "delimiter": job.delimiter,
        "output": job.output.suffix.lower(),
        "model": _model_digest(model.checkpoint),
        "prompt": prompt,
        "dim": dim,
        "max_seq_length": model.max_seq_length,
        "backend": [backend.name, *(getattr(backend, name, None) for name in ("isa", "matmul_precision"))],
        "chunk": [CHUNK_ROWS, CHUNK_BYTES],
        "qwen3np": __version__,
    }


def _model_digest(checkpoint: Checkpoint) -> str:
    """Of config and tokenizer, and of the beginning and the end of every tensor: no two trainings agree in
    all of those, and 16 GB need not be read."""
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        digest.update((checkpoint.transformer_folder / name).read_bytes())
    for name, tensor in sorted(checkpoint.tensors.items()):
        values = tensor.data.reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(values[:4096].tobytes() + values[-4096:].tobytes())
    return digest.hexdigest()


def _info(job: Job, model_name: str, prompt: str, dim: int) -> dict[str, str]:
    source = os.fsencode(job.source.resolve()).decode(errors="replace")  # a file's name may be no Unicode
    info = {"model": model_name, "dim": str(dim), "prompt": prompt, "input": source}
    columns = {"column": job.column, "id_column": job.id_column, "delimiter": job.delimiter}
    return info | {name: value for name, value in columns.items() if value is not None}


def _compute(
    job: Job,
    work: WorkFolder,
    model: Embedder,
    prompt: str,
    dim: int,
    progress: Callable[[Sums], object],
) -> None:
    """All chunks that are not there yet."""
    count = work.count()
    sums = work.sums(count)
    progress(sums)
    for entries in _chunks(islice(job.rows(), sums.rows, None)):
        rows = [entry for entry in entries if isinstance(entry, Row)]
        sums = replace(sums, rows=sums.rows + len(entries) - len(rows))
        vectors = np.empty((len(rows), dim), np.float32)
        first = 0
        for call in _calls(rows):
            texts = [row.text for row in call]
            vectors[first : first + len(call)] = model.encode(
                texts, prompt=prompt, truncate_dim=dim, show_progress_bar=False
            )
            # Tokenised once more, uncut: next to computing the vectors that takes no time.
            lengths = list(map(len, model.tokenizer.encode(texts, 1 << 62, prompt)))
            sums = _add(sums, [row.id for row in call], lengths, model.max_seq_length, texts.count(""))
            first += len(call)
            progress(sums)
        bad = [entry for entry in entries if isinstance(entry, BadRow)]
        texts_kept = [row.text for row in rows] if job.with_texts else None
        work.add(count, Chunk([row.id for row in rows], texts_kept, vectors, bad), sums)
        count += 1


def _add(
    sums: Sums, ids: Sequence[int | str], lengths: Sequence[int], limit: int, empty: int
) -> Sums:
    return Sums(
        rows=sums.rows + len(ids),
        texts=sums.texts + len(ids),
        tokens=sums.tokens + sum(min(length, limit) for length in lengths),
        cut=sums.cut + sum(length > limit for length in lengths),
        longest=max(sums.longest, *lengths),
        int_ids=sums.int_ids and all(isinstance(i, int) and -(2**63) <= i < 2**63 for i in ids),
        numbered=sums.numbered and list(ids) == list(range(sums.texts, sums.texts + len(ids))),
        empty=sums.empty + empty,
    )


def _chunks(entries: Iterable[Row | BadRow]) -> Iterator[list[Row | BadRow]]:
    chunk: list[Row | BadRow] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += len(entry.text.encode()) if isinstance(entry, Row) else 0
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _calls(rows: Sequence[Row]) -> Iterator[list[Row]]:
    call: list[Row] = []
    size = 0
    for row in rows:
        call.append(row)
        size += len(row.text.encode())
        if size >= CALL_BYTES:
            yield call
            call, size = [], 0
    if call:
        yield call


@contextmanager
def _without_warnings() -> Iterator[None]:
    """No warning a call that texts were cut; the report says it once."""

    def keep(record: logging.LogRecord) -> bool:
        return record.msg != CUT

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _publish(work: WorkFolder, count: int, sums: Sums, dim: int, info: Mapping[str, str]) -> None:
    """Chunks -> the output and what is beside it. The output itself comes last: if it is there, all is."""
    output = work.output
    made = {path: work.path / path.name for path in (errors_file(output), outputs.ids_file(output), output)}
    try:
        outputs.write_output(made[output], work.chunks(count), sums, dim, info)
        if outputs.needs_ids_file(output, sums):
            outputs.write_ids(made[outputs.ids_file(output)], work.chunks(count))
        if sums.rows > sums.texts:
            outputs.write_bad_rows(made[errors_file(output)], work.bad_rows(count))
    except BaseException:
        for path in made.values():
            path.unlink(missing_ok=True)
        raise
    output.unlink(missing_ok=True)
    for path, new in made.items():
        if new.exists():
            new.replace(path)
        else:
            path.unlink(missing_ok=True)  # of an older output
    with suppress(OSError):  # not every system can
        folder = os.open(output.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
