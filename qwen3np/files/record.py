"""An output with what is beside it, as a whole: OUT, OUT.json, and OUT.ids.jsonl and others where needed.

OUT.json, the record, says what was embedded how and which bytes the other files have. By it a later command
knows that files are of one run, and that it may replace them: a file of such a name that the record does not
describe is someone else's, and is never overwritten.
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
# it does not describe the older files, so that they are not taken for the new ones. OUT itself is last.
RECORD, ERRORS, IDS, HASHES, RANGES, VECTORS = SUFFIXES = (
    *(".json", ".errors.jsonl", ".ids.jsonl", ".hashes.npy", ".ranges.npy"),
    "",
)

SAMPLES, SAMPLE_BYTES = 64, 4096

State = list[int]


def beside(output: Path, suffix: str) -> Path:
    """Return the path of a file beside the output."""
    return output.with_name(output.name + suffix)


def fingerprint(path: Path) -> dict[str, Any]:
    """Return a file's size, the digest of all its bytes, and that of a sample of them.

    The sample takes no time even of a large file.
    """
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest(), "sample": sample(path)}


def sample(path: Path) -> str:
    """Return a digest of the size and of 64 pieces of 4 KiB: outputs of two runs differ in all of them."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def state(path: Path) -> State | None:
    """Return what changes when a file is written or replaced, and not when its folder is copied.

    None where there is no file.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]


def states(output: Path) -> dict[str, State | None]:
    """Return the states of an output and of what is beside it."""
    return {suffix: state(beside(output, suffix)) for suffix in SUFFIXES}


def read_record(output: Path) -> dict[str, Any] | None:
    """Return the record of an output, or None where there is none of ours."""
    path = beside(output, RECORD)
    try:
        found = parse_json(path.read_bytes()) if path.is_file() else None  # reading a pipe would wait
    except OSError:
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    kinds = {"run": dict, "info": dict, "sums": dict, "files": dict, "dim": int, "first_bad_rows": list}
    return found if all(isinstance(found.get(name), kind) for name, kind in kinds.items()) else None


def as_recorded(output: Path, record: Mapping[str, Any], suffixes: Iterable[str] = SUFFIXES) -> bool:
    """Return whether these files have, byte for byte, what the record says.

    Those that it does not name must not exist.
    """
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
    """Raise FileExistsError for a file beside the output that no run of this program wrote.

    Args:
        output: The output.
        known: States of files that have been found good before.
    """
    record = read_record(output)
    for suffix in SUFFIXES[:-1]:
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
