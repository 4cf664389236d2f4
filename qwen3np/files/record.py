"""An output and what stands beside it, as one whole: OUT, OUT.ids.jsonl, OUT.errors.jsonl and OUT.json.

OUT.json, the record, says what was embedded how and which bytes the other files have. It is how a later
command knows that files are of one run, and that they are its to replace: a file of such a name that the
record does not describe is someone else's, and is never written over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .cells import parse_json

FORMAT = "qwen3np output 1"

# What the names of the files add to OUT, in the order in which they appear. The record is first: from then on
# it does not describe the older files, which are not taken for the new ones. OUT itself is last.
RECORD, ERRORS, IDS, VECTORS = SUFFIXES = (".json", ".errors.jsonl", ".ids.jsonl", "")

SAMPLES, SAMPLE_BYTES = 64, 4096

State = list[int]


def beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def fingerprint(path: Path) -> dict[str, Any]:
    """Size, digest of all bytes, and digest of a sample of them that takes no time even of a large file."""
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest(), "sample": sample(path)}


def sample(path: Path) -> str:
    """Digest of the size and of 64 pieces of 4 KiB: outputs of two runs differ in all of them."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def state(path: Path) -> State | None:
    """What is another when a file is written or replaced, and the same in a copy of the folder; None where
    there is no file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]


def states(output: Path) -> dict[str, State | None]:
    return {suffix: state(beside(output, suffix)) for suffix in SUFFIXES}


def read_record(output: Path) -> dict[str, Any] | None:
    """The record of an output, or None where there is none of ours."""
    path = beside(output, RECORD)
    try:
        found = parse_json(path.read_bytes()) if path.is_file() else None  # a pipe would be waited for
    except OSError:
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    kinds = {"run": dict, "info": dict, "sums": dict, "files": dict, "dim": int, "first_bad_rows": list}
    return found if all(isinstance(found.get(name), kind) for name, kind in kinds.items()) else None


def as_recorded(output: Path, record: Mapping[str, Any], suffixes: Iterable[str] = SUFFIXES) -> bool:
    """Whether these files have, byte for byte, what the record says; those it does not name must not be
    there."""
    for suffix in suffixes:
        path, written = beside(output, suffix), record["files"].get(suffix)
        if suffix == RECORD:
            continue
        if written is None:
            if os.path.lexists(path):
                return False
        elif not path.is_file() or path.stat().st_size != written["bytes"] or fingerprint(path) != written:
            return False
    return True


def check_beside(output: Path, known: Mapping[str, State | None]) -> None:
    """Raises FileExistsError for a file beside the output that no run of this program wrote.

    known: states of files that have been found good before.
    """
    record = read_record(output)
    for suffix in (RECORD, ERRORS, IDS):
        path = beside(output, suffix)
        found = state(path)
        if found is None or found == known.get(suffix):
            continue
        ours = record is not None and (
            suffix == RECORD or (suffix in record["files"] and as_recorded(output, record, [suffix]))
        )
        if not ours or path.is_symlink():
            why = "is not as qwen3np wrote it"
            if record is None and suffix != RECORD:
                why = f"no {beside(output, RECORD).name} says that qwen3np wrote it (older versions had none)"
            raise FileExistsError(
                f"{path}: would be replaced, and {why}; move it away, or name another --output"
            )
