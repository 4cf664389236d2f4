"""The last step of a run: from a work folder whose chunks are all there to an output in its place.

`stage` writes the output and what is beside it into the work folder and records that in its manifest;
`finish` moves them. A process that is killed before the record has changed nothing outside its folder; one
that is killed after it can be finished by another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quantization import quantization_ranges, quantize_embeddings
from . import atomic, indexes, outputs, record
from .record import ERRORS, HASHES, IDS, RANGES, RECORD, VECTORS, beside, state, states
from .rows import BadRow
from .work import Chunk, Totals, WorkFolder, npy_header

SHOWN = 5  # bad rows that a message names


def check_leftovers(
    output: Path, work: WorkFolder, resume: bool | None = None, overwrite: bool = False
) -> None:
    """Raise FileExistsError for what may not be replaced.

    That is an output without `overwrite`, what is left of a run without `overwrite` or `resume` (None where
    a command has no such option), and, in any case, files beside the output that do not belong to one.
    """
    manifest = work.manifest or {}
    if manifest and not (resume or overwrite):
        raise FileExistsError(
            f"{work.path}: is left of an interrupted run; "
            f"{'' if resume is None else '--resume goes on with it, '}--overwrite begins anew"
        )
    if is_staged(work):  # its files are moving there: `finish` checks
        return
    agreed = manifest.get("replaces", {})
    record.check_beside(output, agreed)
    found = {suffix: now for suffix, now in states(output).items() if now is not None}
    may_be_finished = bool(resume) and not manifest and {VECTORS, RECORD} <= found.keys()
    if overwrite or may_be_finished or all(agreed.get(suffix) == now for suffix, now in found.items()):
        return
    first = beside(output, VECTORS if VECTORS in found else next(iter(found)))
    raise FileExistsError(f"{first}: exists; --overwrite replaces it")


def is_staged(work: WorkFolder) -> bool:
    """Return whether the output is written, and only has to be moved."""
    return "files" in (work.manifest or {})


def stage(work: WorkFolder, chunks: Callable[[], Iterable[Chunk]], totals: Totals) -> None:
    """Write the output and what is beside it, whole, into the work folder."""
    manifest = work.manifest
    assert manifest is not None
    made = {suffix: work.staged(suffix) for suffix in record.SUFFIXES}
    first_bad_rows = list(islice(_bad_rows(chunks()), SHOWN)) if totals.rows > totals.texts else []
    kind = outputs.Kind(manifest["info"].get("precision", "float32"), manifest["dim"])
    names = [VECTORS]
    try:
        ranges = manifest.get("ranges")
        if kind.precision.endswith("int8"):
            ranges = np.array(ranges, np.float32) if ranges is not None else _ranges(chunks())
            atomic.write_file(made[RANGES], npy_header(ranges.shape), ranges)
            names.append(RANGES)
        stored = (_stored(chunk, kind, ranges) for chunk in chunks())
        suffix = work.output.suffix.lower()
        if suffix in indexes.SUFFIXES:
            indexes.write_index(made[VECTORS], stored, kind, manifest["info"])
        else:
            outputs.write_output(made[VECTORS], stored, totals, kind, manifest["info"])
        if suffix in outputs.WITHOUT_TEXTS:
            outputs.write_hashes(made[HASHES], chunks(), totals)
            names.append(HASHES)
        if outputs.needs_ids_file(work.output, totals):
            outputs.write_ids(made[IDS], chunks())
            names.append(IDS)
        if first_bad_rows:
            outputs.write_bad_rows(made[ERRORS], _bad_rows(chunks()))
            names.append(ERRORS)
        done = {
            **{name: manifest[name] for name in ("info", "run", "rows", "bad", "dim")},
            "sums": asdict(totals),
            "first_bad_rows": [asdict(bad) for bad in first_bad_rows],
            "files": {suffix: record.fingerprint(made[suffix]) for suffix in names},
        }
        text = json.dumps({"format": record.FORMAT} | done, indent=1, ensure_ascii=False)
        atomic.write_file(made[RECORD], text.encode() + b"\n")
        work.update(**done)
    except BaseException:
        if not is_staged(work):
            for path in made.values():
                path.unlink(missing_ok=True)  # a full disk needs the room
        raise


def finish(work: WorkFolder, overwrite: bool = False) -> dict[str, Any]:
    """Move what is staged into the place of an older output, and remove the work folder.

    After a kill at any moment it can be done again. With `overwrite`, an output that came there while the run
    worked is replaced too.

    Returns:
        The manifest.

    Raises:
        FileExistsError: A file came there while the run worked; nothing was moved.
        ValueError: A file is neither staged nor in its place.
    """
    manifest = work.manifest
    assert manifest is not None
    output, files, replaces = work.output, manifest["files"], manifest["replaces"]
    waiting = [suffix for suffix in record.SUFFIXES if work.staged(suffix).exists()]
    for suffix in record.SUFFIXES:
        path = beside(output, suffix)
        if suffix in waiting:
            agreed = state(path) in (None, replaces[suffix]) or (overwrite and suffix == VECTORS)
            if not agreed:
                raise FileExistsError(
                    f"{path}: was written by another program while this run worked; move it away, and go on "
                    "with --resume"
                )
        elif not _moved(output, suffix, files):
            raise ValueError(f"{path}: is not as the run wrote it; --overwrite begins anew")
    for suffix in record.SUFFIXES:
        path = beside(output, suffix)
        if suffix in waiting:
            atomic.replace(work.staged(suffix), path)
        elif suffix not in (RECORD, *files) and state(path) == replaces[suffix]:
            path.unlink(missing_ok=True)  # of the older output
    atomic.sync_folder(output.parent)
    work.remove()
    return manifest


def _ranges(chunks: Iterable[Chunk]) -> NDArray[np.float32]:
    """Return the smallest and the largest value of each dimension of all vectors."""
    found = [[x.min(axis=0), x.max(axis=0)] for chunk in chunks if len(x := chunk.vectors)]
    return quantization_ranges(np.concatenate(found))


def _stored(chunk: Chunk, kind: outputs.Kind, ranges: NDArray[np.float32] | None) -> Chunk:
    """Return the chunk with its vectors as the output stores them."""
    if kind.precision == "float32" or chunk.vectors.dtype != np.float32:
        return chunk
    return replace(chunk, vectors=quantize_embeddings(chunk.vectors, kind.precision, ranges))


def _moved(output: Path, suffix: str, files: Mapping[str, Any]) -> bool:
    """Return whether a file of the output, if it has this one, is in its place already."""
    if suffix == RECORD:
        found = record.read_record(output)
        return found is not None and found["files"] == files
    if suffix not in files:
        return True
    path = beside(output, suffix)
    return path.is_file() and record.sample(path) == files[suffix]["sample"]


def _bad_rows(chunks: Iterable[Chunk]) -> Iterator[BadRow]:
    return (bad for chunk in chunks for bad in chunk.bad)
