"""Vectors -> output files, one chunk at a time: .npy, .jsonl, .parquet and .safetensors.

What an output holds besides its vectors:

    .jsonl        id, where, text and embedding, one object per line
    .parquet      the columns id, where, text and embedding; `info` in the schema's metadata
    .safetensors  the tensor embeddings, and ids if they are integers; `info` in the metadata
    .npy          nothing

"where" is some of file, chunk, start and end (Row.where), or nothing. What finds no room there is beside it:
in OUT.ids.jsonl, one per line, ids, unless they are just the numbers of the vectors, or objects with the id
and "where"; in OUT.hashes.npy the texts' hashes, by which `--update` knows them again; in OUT.ranges.npy the
ranges of int8 and uint8. `info` is a mapping of strings: the model and how it was used. It is also in the
record beside every output (record.py). The bytes do not depend on how the vectors are divided into chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..quantization import STORED_AS
from . import atomic
from .parquet import pyarrow_parquet
from .rows import BadRow
from .update import hashes_of
from .work import Chunk, Totals, npy_header

SUFFIXES = (".npy", ".jsonl", ".parquet", ".safetensors")
WITH_TEXTS, WITHOUT_TEXTS = (".jsonl", ".parquet"), (".npy", ".safetensors")
ROW_GROUP = 4096  # rows
DTYPES = {"float32": "F32", "int8": "I8", "uint8": "U8"}  # as .safetensors names them


@dataclass(frozen=True)
class Kind:
    """What the vectors of an output are: their precision, and their dimensions before they are packed."""

    precision: str
    dim: int

    @property
    def bits(self) -> bool:
        """Whether there is one bit per dimension."""
        return self.precision.endswith("binary")

    @property
    def dtype(self) -> str:
        """The type of the array that holds them."""
        return STORED_AS[self.precision]

    @property
    def columns(self) -> int:
        """The columns of that array: 8 dimensions each where they are bits."""
        return -(-self.dim // 8) if self.bits else self.dim

    def __str__(self) -> str:
        packed = f" ({self.dim} dimensions)" if self.columns != self.dim else ""
        return f"{self.columns} {self.precision}{packed}"


def check_name(output: Path) -> None:
    """Raise ValueError, or ImportError, for an output that could not be written in the end."""
    if any(ord(c) < 32 or ord(c) == 127 for c in str(output)):
        raise ValueError(f"--output {str(output)!r}: the name holds a control character")
    if output.suffix.lower() not in SUFFIXES:
        more = "; `qwen3np export` makes databases and indexes of such a file"
        raise ValueError(
            f"--output {output}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}{more}"
        )
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise ValueError(f"--output {output}: is a folder")
    if output.suffix.lower() == ".parquet":
        pyarrow_parquet(output)


def needs_ids_file(output: Path, totals: Totals) -> bool:
    """Return whether the ids find no room in the output itself."""
    suffix = output.suffix.lower()
    if suffix in WITH_TEXTS:
        return False
    return totals.placed or not (totals.int_ids if suffix == ".safetensors" else totals.numbered)


def write_output(
    path: Path, chunks: Iterable[Chunk], totals: Totals, kind: Kind, info: Mapping[str, str]
) -> None:
    """Write the chunks, `totals.texts` vectors in all, to `path`, and flush them to the disk."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        _write_parquet(path, chunks, totals, kind, info)
        return
    with atomic.create(path) as file:
        {".npy": _write_npy, ".jsonl": _write_jsonl, ".safetensors": _write_safetensors}[suffix](
            file, chunks, totals, kind, info
        )


def json_line(record: dict[str, Any], vector: NDArray[Any]) -> str:
    """Return one line of JSON; nine significant digits tell all float32 apart."""
    values = vector.tolist() if vector.dtype.kind != "f" else [float(f"{x:.9g}") for x in vector]
    return json.dumps(record | {"embedding": values}, ensure_ascii=False)


def write_ids(path: Path, chunks: Iterable[Chunk]) -> None:
    """Write the ids, one per line."""
    with atomic.create(path) as file:
        for chunk in chunks:
            entries = chunk.ids if chunk.where is None else list(_records(chunk))
            lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            atomic.write(file, lines.encode())


def _records(chunk: Chunk) -> Iterator[dict[str, Any]]:
    """Yield the ids of a chunk, each with where its text is from."""
    where = chunk.where or [{}] * len(chunk.ids)
    yield from ({"id": id, **place} for id, place in zip(chunk.ids, where, strict=True))


def write_hashes(path: Path, chunks: Iterable[Chunk], totals: Totals) -> None:
    """Write the texts' hashes, uint64 [N, 2]."""
    with atomic.create(path) as file:
        atomic.write(file, npy_header((totals.texts, 2), "uint64"))
        for chunk in chunks:
            atomic.write(file, hashes_of(chunk.texts))


def write_bad_rows(path: Path, bad_rows: Iterable[BadRow]) -> None:
    """Write the bad rows, one JSON object per line."""
    with atomic.create(path) as file:
        for bad in bad_rows:
            atomic.write(file, json.dumps(asdict(bad), ensure_ascii=False).encode() + b"\n")


def _write_npy(
    file: BinaryIO, chunks: Iterable[Chunk], totals: Totals, kind: Kind, info: Mapping[str, str]
) -> None:
    atomic.write(file, npy_header((totals.texts, kind.columns), kind.dtype))
    for chunk in chunks:
        atomic.write(file, chunk.vectors)


def _write_jsonl(
    file: BinaryIO, chunks: Iterable[Chunk], totals: Totals, kind: Kind, info: Mapping[str, str]
) -> None:
    for chunk in chunks:
        for record, text, vector in zip(_records(chunk), chunk.texts, chunk.vectors, strict=True):
            atomic.write(file, json_line(record | {"text": text}, vector).encode() + b"\n")


def _write_safetensors(
    file: BinaryIO, chunks: Iterable[Chunk], totals: Totals, kind: Kind, info: Mapping[str, str]
) -> None:
    """Write a .safetensors file; the ids come first, where they are aligned.

    Format: https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, Any] = {"__metadata__": dict(info)}
    ids_end = 0
    if totals.int_ids:
        ids_end = 8 * totals.texts
        header["ids"] = {"dtype": "I64", "shape": [totals.texts], "data_offsets": [0, ids_end]}
    row_bytes = np.dtype(kind.dtype).itemsize * kind.columns
    shape, end = [totals.texts, kind.columns], ids_end + row_bytes * totals.texts
    header["embeddings"] = {"dtype": DTYPES[kind.dtype], "shape": shape, "data_offsets": [ids_end, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    atomic.write(file, len(text).to_bytes(8, "little") + text)
    data, done = file.tell(), 0
    for chunk in chunks:
        if totals.int_ids:
            file.seek(data + 8 * done)
            atomic.write(file, np.array(chunk.ids, "<i8"))
        file.seek(data + ids_end + row_bytes * done)
        atomic.write(file, chunk.vectors)
        done += len(chunk.ids)


def _write_parquet(
    path: Path, chunks: Iterable[Chunk], totals: Totals, kind: Kind, info: Mapping[str, str]
) -> None:
    pq = pyarrow_parquet(path)
    import pyarrow as pa

    groups = _regrouped(chunks, ROW_GROUP)
    first = next(groups)
    place = first.where[0] if first.where else {}
    fields = [
        ("id", pa.int64() if totals.int_ids else pa.string()),
        *((name, pa.int64() if isinstance(value, int) else pa.string()) for name, value in place.items()),
        ("text", pa.string()),
        ("embedding", pa.list_(pa.from_numpy_dtype(np.dtype(kind.dtype)), kind.columns)),
    ]
    schema = pa.schema(fields, metadata=dict(info))
    # Dictionary encoding would hold every vector once more before it gives up.
    with atomic.create(path) as file:  # pyarrow takes no name that is not UTF-8
        with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
            for chunk in chain([first], groups):
                ids = chunk.ids if totals.int_ids else [str(id) for id in chunk.ids]
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(chunk.vectors.ravel()), kind.columns)
                places = [pa.array([row[name] for row in chunk.where or ()]) for name in place]
                columns = [pa.array(ids, fields[0][1]), *places, pa.array(chunk.texts, pa.string()), vectors]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)


def _regrouped(chunks: Iterable[Chunk], rows: int) -> Iterator[Chunk]:
    """Yield the same ids, places, texts and vectors in chunks of `rows`; the last may be smaller."""
    ids: list[int | str] = []
    where: list[Mapping[str, int | str]] = []  # stays empty where no row says it
    texts: list[str] = []
    vectors: list[NDArray[Any]] = []
    for chunk in chunks:
        ids += chunk.ids
        where += chunk.where or ()
        texts += chunk.texts
        vectors.append(chunk.vectors)
        while len(ids) >= rows:
            joined = np.concatenate(vectors)
            yield Chunk(ids[:rows], texts[:rows], joined[:rows], where=where[:rows] or None)
            ids, where, texts, vectors = ids[rows:], where[rows:], texts[rows:], [joined[rows:]]
    if ids:
        yield Chunk(ids, texts, np.concatenate(vectors), where=where or None)
