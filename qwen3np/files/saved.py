"""Outputs read back: vectors in blocks, and the ids and texts of a few of them.

An output whose record (record.py) is beside it must be the one that the record describes, and so must its
ids. One without a record may be any file of that kind.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..quantization import STORED_AS, values_of
from . import atomic, outputs
from .cells import Bad, parse_json
from .identity import file_digest
from .parquet import pyarrow_parquet, reading, type_of
from .record import HASHES, IDS, RANGES, RECORD, VECTORS, beside, fingerprint, read_record, sample
from .rows import Row, read_rows
from .update import Hashes, hashes_of

BLOCK = 4096  # vectors read at a time

# The columns that say where a text is from, and their types.
WHERE: dict[str, type] = {"file": str, "chunk": int, "start": int, "end": int}


class Found(NamedTuple):
    """What an output says of a vector: its id, its text if it holds it, and where the text is from."""

    id: int | str
    text: str | None
    where: Mapping[str, int | str] = {}


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
    if saved.record is not None and sample(path) != saved.record["files"].get(VECTORS, {}).get("sample"):
        raise ValueError(saved.mixed(path))
    return saved


class Saved:
    """A file of vectors.

    Attributes:
        count: Number of vectors.
        dim: Their dimensions.
        columns: Those of the arrays that hold them: fewer where they are bits.
        precision: How they are stored, one of VECTOR_PRECISIONS.
        info: What the output, or the record beside it, says of the model.
        record: The record, or None.
    """

    count: int
    dim: int
    columns: int
    again = "--resume"  # the option of the command that makes such a file

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = read_record(path)
        self.info: dict[str, str] = {} if self.record is None else self.record["info"]

    @property
    def precision(self) -> str:
        return self.info.get("precision", "float32")

    @cached_property
    def ranges(self) -> NDArray[np.float32] | None:
        """The ranges of int8 and uint8; None for what needs none."""
        if not self.precision.endswith("int8"):
            return None
        path = self._beside(RANGES)
        if path is None:
            raise self.error(f"holds {self.precision}, and there is no {beside(self.path, RANGES).name}")
        return np.load(path)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield all vectors, in order, in blocks [<= 4096, columns], float32 or as they are quantised."""
        raise NotImplementedError

    @cached_property
    def vectors(self) -> NDArray[Any]:
        """All vectors [count, columns], in a file: one without a name where the output's cannot be mapped."""
        with tempfile.TemporaryFile(dir=self.path.parent) as file:
            for block in self.blocks():
                atomic.write(file, block)
            file.flush()
            dtype = STORED_AS[self.precision]
            return np.memmap(file, dtype, "r", shape=(self.count, self.columns))

    def floats(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Return the float vectors that quantised ones stand for."""
        return values_of(stored, self.precision, self.ranges, self.dim)

    def named(self) -> Iterator[Found]:
        """Yield what the output says of every vector."""
        path = self._beside(IDS)
        if path is None:
            yield from (Found(row, None) for row in range(self.count))
        else:
            yield from (self._id(number, line) for number, line in self._lines(path))

    def hashes(self) -> Hashes:
        """Return the hash of every text: from the texts, or from OUT.hashes.npy."""
        path = self._beside(HASHES)
        if path is not None:
            return np.load(path)
        texts = (found.text for found in self.named())
        found = [np.empty((0, 2), np.uint64)]
        while some := [*islice(texts, BLOCK)]:
            if None in some:
                missing = beside(self.path, HASHES).name
                raise ValueError(
                    f"{self.path}: nothing says of which texts its vectors are (there is no {missing}): "
                    "embed them anew"
                )
            found.append(hashes_of(some))  # type: ignore[arg-type]
        return np.concatenate(found)

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        """Return what the output says of the vectors with these numbers."""
        raise NotImplementedError

    def made_of(self, source: Path) -> bool | None:
        """Return whether the file has the bytes that were embedded; None if nothing says so."""
        digest = self.record["run"].get("input") if self.record is not None else None
        return None if digest is None or not source.is_file() else file_digest(source) == digest

    def error(self, reason: object) -> ValueError:
        """Return an error about this file."""
        return ValueError(f"{self.path}: {reason}; search reads what `qwen3np embed --output` wrote")

    def _check(self, shape: tuple[int, ...], dtype: str) -> None:
        """Take the number of vectors and dimensions; ValueError for what is no matrix of the right type."""
        floats = ("float16", "float32", "float64")
        found = self.precision
        if found not in STORED_AS or len(shape) != 2 or 0 in shape:
            raise self.error(f"holds {dtype} {list(shape)}, not vectors")
        if dtype not in (floats if found == "float32" else [STORED_AS[found]]):
            unsaid = (
                "" if self.record else f", and no {beside(self.path, RECORD).name} says how they were made"
            )
            raise self.error(
                f"holds {dtype} {list(shape)}, not vectors of {found.replace('32', 's')}{unsaid}"
            )
        self.count, self.columns = shape
        self.dim = self.columns
        if found.endswith("binary"):
            said = self.info.get("dim", "")
            self.dim = int(said) if said.isdecimal() else 0
            if -(-self.dim // 8) != self.columns:
                raise self.error(f"holds {self.columns} bytes a vector, which are not {said or 'any'} bits")

    def _found(self, row: int, said: Mapping[str, Any]) -> Found:
        """Return what a record says, whose values another program may have written."""
        id, text = said.get("id"), said.get("text")
        if id is None:
            id = row
        elif not isinstance(id, (int, str)):
            id = str(id)
        where = {name: said[name] for name, kind in WHERE.items() if isinstance(said.get(name), kind)}
        return Found(id, text if text is None else str(text), where)

    def mixed(self, path: Path) -> str:
        """Return what is wrong with a file that is of another run than the record."""
        return (
            f"{path}: is of another run than {beside(self.path, RECORD).name} beside it; if a run was "
            f"stopped in its last step, the same command with {self.again} completes it"
        )

    def _beside(self, suffix: str) -> Path | None:
        """Return the file beside the output, which must be the one that the record names, if there is one."""
        path = beside(self.path, suffix)
        if self.record is None:
            return path if path.exists() else None
        written = self.record["files"].get(suffix)
        if written is not None and not (path.is_file() and fingerprint(path) == written):
            raise ValueError(self.mixed(path))
        return None if written is None else path

    def _ids(self, rows: Collection[int]) -> dict[int, Found]:
        """Return ids from OUT.ids.jsonl, or the row numbers."""
        path = self._beside(IDS)
        if path is None:
            return {row: Found(row, None) for row in rows}
        return {number: self._id(number, line) for number, line in self._lines(path) if number in rows}

    def _id(self, number: int, line: bytes) -> Found:
        id = parse_json(line)
        if isinstance(id, Bad):
            raise ValueError(f"{beside(self.path, IDS)}, line {number + 1}: {id}")
        return self._found(number, id if isinstance(id, dict) else {"id": id})

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of OUT.ids.jsonl and their numbers; ValueError unless each vector has one."""
        number = -1
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                yield number, line
        if number + 1 != self.count:
            raise self.error(
                f"holds {self.count} vectors, but {path.name} {number + 1} ids: it is of another run"
            )


class Npy(Saved):
    """A .npy file of vectors."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._vectors = np.lib.format.open_memmap(path, mode="r")
        except ValueError as error:
            raise self.error(error) from error
        self._check(self._vectors.shape, self._vectors.dtype.name)

    def blocks(self) -> Iterator[NDArray[Any]]:
        for start in range(0, len(self._vectors), BLOCK):
            yield np.asarray(self._vectors[start : start + BLOCK], STORED_AS[self.precision])

    @cached_property
    def vectors(self) -> NDArray[Any]:
        return self._vectors

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
        if self.record is None:
            self.info = self._file.metadata() or {}
        shape = tuple(self._vectors.get_shape())
        names = {"F16": "float16", "F32": "float32", "F64": "float64", "I8": "int8", "U8": "uint8"}
        dtype = self._vectors.get_dtype()
        self._check(shape, names.get(dtype, dtype))

    def blocks(self) -> Iterator[NDArray[Any]]:
        for start in range(0, self.count, BLOCK):
            end = min(start + BLOCK, self.count)  # beyond it, a slice is an error
            yield np.asarray(self._vectors[start:end], STORED_AS[self.precision])

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        if "ids" not in self._file.keys():  # noqa: SIM118 (a safe_open is not a dict)
            return self._ids(rows)
        ids = self._file.get_slice("ids")
        if ids.get_shape() != [self.count] or ids.get_dtype() != "I64":
            raise self.error(f"holds {self.count} vectors, but ids {ids.get_dtype()} {ids.get_shape()}")
        return {row: Found(int(ids[row : row + 1][0]), None) for row in rows}

    def named(self) -> Iterator[Found]:
        if "ids" not in self._file.keys():  # noqa: SIM118
            yield from super().named()
        else:
            for start in range(0, self.count, BLOCK):
                yield from self.find(range(start, min(start + BLOCK, self.count))).values()


class Jsonl(Saved):
    """A .jsonl file of vectors."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        first = next(self._records(), None)
        if first is None:
            raise self.error("is empty")
        if not first["embedding"]:
            raise self.error("line 1 has an embedding of no dimensions")
        self._check((1, len(first["embedding"])), STORED_AS.get(self.precision, ""))
        del self.count  # until all lines are read

    def _records(self) -> Iterator[dict[str, Any]]:
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                record = parse_json(line)
                if isinstance(record, Bad):
                    raise self.error(f"line {number} {record}")
                if not isinstance(record, dict) or not isinstance(record.get("embedding"), list):
                    raise self.error(f"line {number} has no embedding: expected an object with such an array")
                yield record

    def blocks(self) -> Iterator[NDArray[Any]]:
        waiting: list[list[float]] = []
        numbers = {int, float} if self.precision == "float32" else {int}
        for number, record in enumerate(self._records(), 1):
            if len(record["embedding"]) != self.columns:
                found = len(record["embedding"])
                raise self.error(f"line {number} has {found} dimensions, line 1 {self.columns}")
            if not numbers.issuperset(map(type, record["embedding"])):
                raise self.error(f"line {number} has an embedding that is not all numbers")
            waiting.append(record["embedding"])
            if len(waiting) == BLOCK:
                yield self._matrix(waiting)
                waiting = []
        if waiting:
            yield self._matrix(waiting)
        self.count = number

    def _matrix(self, rows: list[list[float]]) -> NDArray[Any]:
        try:
            return np.array(rows, STORED_AS[self.precision])
        except OverflowError as error:  # an integer of hundreds of digits
            raise self.error(f"holds a number that is too large ({error})") from error

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        found: dict[int, Found] = {}
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                if number in rows:
                    found[number] = self._found(number, json.loads(line))
        return found

    def named(self) -> Iterator[Found]:
        for number, record in enumerate(self._records()):
            yield self._found(number, record)


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
            self._columns = [name for name in ("id", "text", *WHERE) if name in schema.names]
            kind, *_ = (type_of(path, schema, name) for name in ("embedding", *self._columns))
            first = next(self._file.iter_batches(batch_size=1, columns=["embedding"]), None)
        length = 0 if first is None or kind.num_fields != 1 else len(first.column(0)[0].as_py() or ())
        names = {"float": "float32", "double": "float64", "halffloat": "float16"}
        value = str(kind.value_type) if kind.num_fields == 1 else str(kind)
        if self.record is None:
            self.info = metadata_of(schema)
        self._check((self._file.metadata.num_rows, length), names.get(value, value))

    def blocks(self) -> Iterator[NDArray[Any]]:
        for batch in self._batches(["embedding"]):
            flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            if len(flat) != len(batch) * self.columns:
                raise self.error(f"has embeddings of other lengths than {self.columns}, the first one's")
            yield flat.reshape(-1, self.columns).astype(STORED_AS[self.precision], copy=False)

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        found: dict[int, Found] = {}
        first = 0
        for batch in self._batches(self._columns):
            for row in rows:
                if first <= row < first + len(batch):
                    cells = {name: batch.column(name)[row - first].as_py() for name in self._columns}
                    found[row] = self._found(row, cells)
            first += len(batch)
        return found

    def named(self) -> Iterator[Found]:
        first = 0
        for batch in self._batches(self._columns):
            some = batch.select(self._columns).to_pylist() if self._columns else [{}] * len(batch)
            yield from (self._found(first + n, cells) for n, cells in enumerate(some))
            first += len(batch)

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        with reading(self.path):
            yield from self._file.iter_batches(batch_size=BLOCK, columns=columns)


def metadata_of(schema: Any) -> dict[str, str]:
    """Return the metadata of a schema of pyarrow, whatever its bytes."""
    found = (schema.metadata or {}).items()
    return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in found}


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
            if row.id != found[number].id:
                raise ValueError(
                    f"{source}: its text {number} has the id {row.id!r}, the vector {found[number].id!r}: "
                    "not the file that was embedded"
                )
            with_texts[number] = found[number]._replace(text=row.text)
    if number + 1 != count:
        raise ValueError(
            f"{source}: has {number + 1} texts for {count} vectors: not the file that was embedded"
        )
    return with_texts
