"""Index files of other libraries: .usearch and .faiss, made of a saved output and searched in its place.

An index holds the numbers of the rows; their ids are beside it, as beside an output (record.py).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..search import positive
from ..similarity import unit
from .extras import library
from .outputs import Kind
from .record import VECTORS, sample
from .saved import Found, Saved, open_saved
from .work import Chunk

SUFFIXES = (".faiss", ".usearch")


def usearch_index(path: Path) -> Any:
    """Return usearch's class of indexes."""
    return library("usearch.index", path, "usearch").Index


def faiss(path: Path) -> Any:
    """Return the module faiss."""
    return library("faiss", path, "faiss")


def write_index(path: Path, chunks: Iterable[Chunk], kind: Kind, info: Mapping[str, str]) -> None:
    """Write an index of the chunks' vectors, and flush it to the disk."""
    write = _write_usearch if path.suffix.lower() == ".usearch" else _write_faiss
    write(path, chunks, kind, info)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _write_usearch(path: Path, chunks: Iterable[Chunk], kind: Kind, info: Mapping[str, str]) -> None:
    """Write a graph (HNSW) of vectors held as info["index"] says: by cosine, or bits by Hamming distance."""
    try:
        index = usearch_index(path)(
            ndim=kind.dim, metric="hamming" if kind.bits else "cos", dtype=info["index"]
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"usearch holds no vectors as {info['index']!r}: f32, bf16, f16 or i8") from error
    for chunk in chunks:
        index.add(np.arange(len(index), len(index) + len(chunk.vectors)), chunk.vectors)
    index.save(str(path))


def _write_faiss(path: Path, chunks: Iterable[Chunk], kind: Kind, info: Mapping[str, str]) -> None:
    """Write an index as FAISS's index_factory makes it of info["index"]: of unit vectors by inner product."""
    library = faiss(path)
    try:
        if kind.bits:
            index = library.index_binary_factory(kind.dim, info["index"])
        else:
            index = library.index_factory(kind.dim, info["index"], library.METRIC_INNER_PRODUCT)
        for chunk in chunks:
            vectors = chunk.vectors if kind.bits else unit(chunk.vectors)
            if not index.is_trained:
                index.train(vectors)  # on the first rows
            index.add(vectors)
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2]
        raise ValueError(f"FAISS makes no index {info['index']!r} of these vectors: {reason}") from error
    (library.write_index_binary if kind.bits else library.write_index)(index, str(path))


def open_corpus(path: Path) -> Saved:
    """Open an output of `embed` or an index of `export`; raises as open_saved does."""
    return Index(path) if path.suffix.lower() in SUFFIXES and path.is_file() else open_saved(path)


class Index(Saved):
    """An index that `export` wrote: it is searched as its library does, and holds no vectors to read."""

    again = "--overwrite"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.record is None:
            raise ValueError(f"{path}: there is no {path.name}.json, which `qwen3np export` writes beside it")
        if sample(path) != self.record["files"].get(VECTORS, {}).get("sample"):
            raise ValueError(self.mixed(path))
        self.kind = Kind(self.precision, self.record["dim"])
        self.count, self.dim, self.columns = self.record["sums"]["texts"], self.kind.dim, self.kind.columns

    def search(self, queries: NDArray[np.float32], top_k: int) -> list[list[dict[str, Any]]]:
        """Return what semantic_search does: the nearest rows that the index finds, and their scores.

        Scores are cosines; of bits, those of the signs.
        """
        stored = np.packbits(queries > 0, axis=1) if self.kind.bits else unit(queries)
        top_k = min(positive("top_k", top_k), self.count)
        if self.path.suffix.lower() == ".usearch":
            index = usearch_index(self.path).restore(str(self.path), view=True)
            found = index.search(stored, top_k)
            keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
            scores = 1 - distances.astype(np.float64) * (2 / self.dim if self.kind.bits else 1)
        else:
            module = faiss(self.path)
            index = (module.read_index_binary if self.kind.bits else module.read_index)(str(self.path))
            scores, keys = index.search(stored, top_k)
            scores = 1 - scores * (2 / self.dim) if self.kind.bits else scores
        return [
            [
                {"corpus_id": int(key), "score": float(score)}
                for key, score in zip(*row, strict=True)
                if key >= 0
            ]
            for row in zip(keys, scores, strict=True)
        ]

    def find(self, rows: Collection[int]) -> dict[int, Found]:
        return self._ids(rows)
