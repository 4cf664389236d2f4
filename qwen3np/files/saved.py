"""Outputs read back: vectors in blocks, and the ids and texts of a few of them.

An output whose record (record.py) is beside it must be the one that the record describes, and so must its
ids. One without a record may be any file of that kind.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from . import outputs
from .cells import Bad, parse_json
from .identity import file_digest
from .parquet import pyarrow_parquet, reading, type_of
from .record import IDS, RECORD, VECTORS, beside, fingerprint, read_record, sample
from .rows import Row, read_rows

BLOCK = 4096  # vectors read at a time

Found = tuple["int | str", "str | None"]  # id and text


def open_saved(path: Path) -> Saved:
    """Open an output of `embed`.

    Raises ValueError for a file that is not one, OSError for one that cannot be read.
    """
    kinds = {".npy": Npy, ".jsonl": Jsonl, ".parquet": Parquet, ".safetensors": Safetensors}
    if path.suffix.lower() not in kinds:
        raise ValueError(
            f"{path}: the name must end in {', '.join(outputs.SUFFIXES[:-1])} or {outputs.SUFFIXES[-1]}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: {'is not a regular file' if path.exists() else 'there is no such file'}")
    saved = kinds[path.suffix.lower()](path)
    if saved.record is not None:
        if sample(path) != saved.record["files"].get(VECTORS, {}).get("sample"):
            raise ValueError(saved.mixed(path))
        saved.info = saved.record["info"]
    return saved


class Saved:
    """A file of vectors.

    Attributes:
        count: Number of vectors.
        dim: Their dimensions.
        info: What the output, or the record beside it, says of the model.
        record: The record, or None.
    """

    count: int
    dim: int
    info: dict[str, str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = {}
        self.record = read_record(path)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield all vectors, in order, in blocks [<= 4096, dim]."""
        raise NotImplementedError

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        """Return the ids and texts of the vectors with these numbers."""
        raise NotImplementedError

    def made_of(self, source: Path) -> bool | None:
        """Return whether the file has the bytes that were embedded; None if nothing says so."""
        digest = self.record["run"].get("input") if self.record is not None else None
        return None if digest is None or not source.is_file() else file_digest(source) == digest

    def error(self, reason: object) -> ValueError:
        """Return an error about this file."""
        return ValueError(f"{self.path}: {reason}; search reads what `qwen3np embed --output` wrote")

    def _check(self, shape: tuple[int, ...], dtype: str) -> None:
        """Take the number of vectors and dimensions; ValueError for what is not a matrix of floats."""
        if len(shape) != 2 or 0 in shape or dtype not in ("float16", "float32", "float64"):
            raise self.error(f"holds {dtype} {list(shape)}, not vectors of floats")
        self.count, self.dim = shape

    def _found(self, row: int, id: Any, text: Any) -> Found:
        """Return an id and a text from values that another program may have written."""
        if id is None:
            id = row
        elif not isinstance(id, (int, str)):
            id = str(id)
        return id, text if text is None else str(text)

    def mixed(self, path: Path) -> str:
        """Return what is wrong with a file that is of another run than the record."""
        return (
            f"{path}: is of another run than {beside(self.path, RECORD).name} beside it; if a run was "
            "stopped in its last step, the same command with --resume completes it"
        )

    def _ids(self, rows: Collection[int]) -> dict[int, Found]:
        """Return ids from OUT.ids.jsonl, or the row numbers."""
        path = beside(self.path, IDS)
        if self.record is not None:
            written = self.record["files"].get(IDS)
            if written is not None and not (path.is_file() and fingerprint(path) == written):
                raise ValueError(self.mixed(path))
        if not path.exists() or (self.record is not None and written is None):
            return {row: (row, None) for row in rows}
        found: dict[int, Found] = {}
        number = -1
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                if number in rows:
                    id = parse_json(line)
                    if isinstance(id, Bad):
                        raise ValueError(f"{path}, line {number + 1}: {id}")
                    if isinstance(id, dict):  # with where its text is from
                        id = id.get("id")
                    found[number] = self._found(number, id, None)
        if number + 1 != self.count:
            raise self.error(
                f"holds {self.count} vectors, but {path.name} {number + 1} ids: it is of another run"
            )
        return found


class Npy(Saved):
    """A .npy file of vectors."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._vectors = np.lib.format.open_memmap(path, mode="r")
        except ValueError as error:
            raise self.error(error) from error
        self._check(self._vectors.shape, self._vectors.dtype.name)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self._vectors), BLOCK):
            yield np.asarray(self._vectors[start : start + BLOCK], np.float32)

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        return self._ids(rows)


class Safetensors(Saved):
    """A .safetensors file of vectors."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._file = safe_open(path, "numpy")
            self._vectors = self._file.get_slice("embeddings")
        except SafetensorError as error:
            raise self.error(error) from error
        self.info = self._file.metadata() or {}
        shape = tuple(self._vectors.get_shape())
        names = {"F16": "float16", "F32": "float32", "F64": "float64"}
        dtype = self._vectors.get_dtype()
        self._check(shape, names.get(dtype, dtype))

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, self.count, BLOCK):
            end = min(start + BLOCK, self.count)  # beyond it, a slice is an error
            yield np.asarray(self._vectors[start:end], np.float32)

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        if "ids" not in self._file.keys():  # noqa: SIM118 (a safe_open is not a dict)
            return self._ids(rows)
        ids = self._file.get_slice("ids")
        if ids.get_shape() != [self.count] or ids.get_dtype() != "I64":
            raise self.error(f"holds {self.count} vectors, but ids {ids.get_dtype()} {ids.get_shape()}")
        return {row: (int(ids[row : row + 1][0]), None) for row in rows}


class Jsonl(Saved):
    """A .jsonl file of vectors."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        first = next(self._records(), None)
        if first is None:
            raise self.error("is empty")
        self.dim = len(first["embedding"])
        if self.dim == 0:
            raise self.error("line 1 has an embedding of no dimensions")

    def _records(self) -> Iterator[dict[str, Any]]:
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                record = parse_json(line)
                if isinstance(record, Bad):
                    raise self.error(f"line {number} {record}")
                if not isinstance(record, dict) or not isinstance(record.get("embedding"), list):
                    raise self.error(f"line {number} has no embedding: expected an object with such an array")
                yield record

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        waiting: list[list[float]] = []
        for number, record in enumerate(self._records(), 1):
            if len(record["embedding"]) != self.dim:
                found = len(record["embedding"])
                raise self.error(f"line {number} has {found} dimensions, line 1 {self.dim}")
            if not {int, float}.issuperset(map(type, record["embedding"])):
                raise self.error(f"line {number} has an embedding that is not all numbers")
            waiting.append(record["embedding"])
            if len(waiting) == BLOCK:
                yield self._matrix(waiting)
                waiting = []
        if waiting:
            yield self._matrix(waiting)
        self.count = number

    def _matrix(self, rows: list[list[float]]) -> NDArray[np.float32]:
        try:
            return np.array(rows, np.float32)
        except OverflowError as error:  # an integer of hundreds of digits
            raise self.error(f"holds a number that is too large ({error})") from error

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        found: dict[int, Found] = {}
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                if number in rows:
                    record = json.loads(line)
                    found[number] = self._found(number, record.get("id"), record.get("text"))
        return found


class Parquet(Saved):
    """A .parquet file of vectors."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        pq = pyarrow_parquet(path)
        with reading(path):
            # Opened here: pyarrow takes no name that is not UTF-8.
            self._file = pq.ParquetFile(open(path, "rb"), pre_buffer=False)  # noqa: SIM115 (used until the end)
            schema = self._file.schema_arrow
            if "embedding" not in schema.names:
                raise self.error(f"has no column 'embedding'; there are {', '.join(map(repr, schema.names))}")
            self._columns = [name for name in ("id", "text") if name in schema.names]
            kind, *_ = (type_of(path, schema, name) for name in ("embedding", *self._columns))
            first = next(self._file.iter_batches(batch_size=1, columns=["embedding"]), None)
        length = 0 if first is None or kind.num_fields != 1 else len(first.column(0)[0].as_py() or ())
        names = {"float": "float32", "double": "float64", "halffloat": "float16"}
        value = str(kind.value_type) if kind.num_fields == 1 else str(kind)
        self._check((self._file.metadata.num_rows, length), names.get(value, value))
        self.info = {k.decode(): v.decode(errors="replace") for k, v in (schema.metadata or {}).items()}

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        for batch in self._batches(["embedding"]):
            flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            if len(flat) != len(batch) * self.dim:
                raise self.error(f"has embeddings of other lengths than {self.dim}, the first one's")
            yield flat.reshape(-1, self.dim).astype(np.float32, copy=False)

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        found: dict[int, Found] = {}
        first = 0
        for batch in self._batches(self._columns):
            for row in rows:
                if first <= row < first + len(batch):
                    cells = {name: batch.column(name)[row - first].as_py() for name in self._columns}
                    found[row] = self._found(row, cells.get("id"), cells.get("text"))
            first += len(batch)
        return found

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        with reading(self.path):
            yield from self._file.iter_batches(batch_size=BLOCK, columns=columns)


def texts_of(
    source: Path,
    column: str | None,
    id_column: str | None,
    delimiter: str | None,
    found: dict[int, Found],
    count: int,
) -> dict[int, Found]:
    """Add texts to the ids `found` in an output without texts, from the file that was embedded.

    Raises ValueError if the file has other rows than the output's `count` vectors.
    """
    with_texts: dict[int, Found] = {}
    number = -1
    good = (entry for entry in read_rows(source, column, id_column, delimiter) if isinstance(entry, Row))
    for number, row in enumerate(good):
        if number in found:
            if row.id != found[number][0]:
                raise ValueError(
                    f"{source}: its text {number} has the id {row.id!r}, the vector {found[number][0]!r}: "
                    "not the file that was embedded"
                )
            with_texts[number] = (row.id, row.text)
    if number + 1 != count:
        raise ValueError(
            f"{source}: has {number + 1} texts for {count} vectors: not the file that was embedded"
        )
    return with_texts
