"""The folder OUT.partial: what an unfinished run has computed, so that another can go on.

manifest.json says what the run is. Of every chunk of rows there are 00000000.json (ids, texts, bad rows,
sums so far) and then 00000000.npy (vectors): a chunk counts if its .npy is there, and each appears at once
by a rename. The file `lock` is locked while a run works, and its lock ends with the process, however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from .rows import BadRow


@dataclass
class Sums:
    """Over all chunks so far."""

    rows: int = 0  # read, bad ones included
    texts: int = 0  # embedded
    tokens: int = 0
    cut: int = 0  # texts longer than max_seq_length
    longest: int = 0  # tokens of the longest text, before it was cut
    int_ids: bool = True  # all ids are integers of 64 bits
    numbered: bool = True  # all ids are the numbers of their vectors
    empty: int = 0  # texts of no character


@dataclass(frozen=True)
class Chunk:
    """`texts` is None where the output does not hold them."""

    ids: Sequence[int | str]
    texts: Sequence[str] | None
    vectors: NDArray[np.float32]
    bad: Sequence[BadRow] = field(default=())


class WorkFolder:
    """Use with `with`. Raises BlockingIOError if another run holds the folder. Without a manifest it is
    removed in the end."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self._manifest = self.path / "manifest.json"

    def __enter__(self) -> WorkFolder:
        self.path.mkdir(exist_ok=True)
        self._lock = FileLock(self.path / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise BlockingIOError(f"{self.output}: another run is writing it ({self.path})") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.begun:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()

    @property
    def begun(self) -> bool:
        return self._manifest.exists()

    def manifest(self) -> dict[str, Any] | None:
        """What `begin` was given, or None."""
        if not self.begun:
            return None
        try:
            found = json.loads(self._manifest.read_bytes())
            kinds = {"run": dict, "info": dict, "rows": int, "bad": int}
            return {name: kind(found[name]) for name, kind in kinds.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise self.damaged(self._manifest, error) from error

    def begin(self, manifest: dict[str, Any]) -> None:
        write_file(self._manifest, json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")

    def clear(self) -> None:
        """The manifest goes first: what is left of a folder without one is nothing."""
        self._manifest.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.name != "lock":
                path.unlink()

    def count(self) -> int:
        """Chunks computed so far."""
        number = 0
        while self._file(number, ".npy").exists():
            number += 1
        return number

    def add(self, number: int, chunk: Chunk, sums: Sums) -> None:
        """Store chunk `number`; `sums` include it."""
        entry = {
            "sums": asdict(sums),
            "ids": list(chunk.ids),
            "texts": None if chunk.texts is None else list(chunk.texts),
            "bad": [asdict(bad) for bad in chunk.bad],
        }
        write_file(self._file(number, ".json"), json.dumps(entry, ensure_ascii=False).encode())
        write_file(self._file(number, ".npy"), npy_header(chunk.vectors.shape), chunk.vectors)

    def sums(self, number: int) -> Sums:
        """Those after the first `number` chunks."""
        return Sums(**self._entry(number - 1)["sums"]) if number else Sums()

    def chunks(self, count: int) -> Iterator[Chunk]:
        for number in range(count):
            entry, path = self._entry(number), self._file(number, ".npy")
            try:
                vectors = np.load(path)
            except (ValueError, EOFError) as error:
                raise self.damaged(path, error) from error
            if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(entry["ids"]):
                raise self.damaged(path, f"{vectors.dtype} {list(vectors.shape)}, {len(entry['ids'])} ids")
            yield Chunk(entry["ids"], entry["texts"], vectors, [BadRow(**bad) for bad in entry["bad"]])

    def bad_rows(self, count: int) -> Iterator[BadRow]:
        for number in range(count):
            yield from (BadRow(**bad) for bad in self._entry(number)["bad"])

    def damaged(self, path: Path, found: object) -> ValueError:
        return ValueError(f"{path}: is damaged ({found}); begin anew with --overwrite")

    def _file(self, number: int, suffix: str) -> Path:
        return self.path / f"{number:08}{suffix}"

    def _entry(self, number: int) -> dict[str, Any]:
        path = self._file(number, ".json")
        try:
            return dict(json.loads(path.read_bytes()))
        except ValueError as error:
            raise self.damaged(path, error) from error


def write_file(path: Path, *parts: bytes | NDArray[Any]) -> None:
    """The file appears complete or not at all. An OSError names it."""
    partial = path.with_name(path.name + ".tmp")
    try:
        with open(partial, "wb") as file:
            for part in parts:
                write(file, part)
            flush(file)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise


def write(file: BinaryIO, data: bytes | NDArray[Any]) -> None:
    """As file.write, whose OSError does not say which file. (ndarray.tofile does not even say that the disk
    is full.)"""
    try:
        file.write(data if isinstance(data, bytes) else np.ascontiguousarray(data).data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def flush(file: BinaryIO) -> None:
    """To the disk itself: a file that is renamed afterwards is whole even if the power fails."""
    try:
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def npy_header(shape: Sequence[int]) -> bytes:
    """Of a float32 array, as numpy.save writes it (numpy.lib.format)."""
    from io import BytesIO

    header = BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
