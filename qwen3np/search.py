"""Similarity of vectors, and exact search in many of them.

Memory is bounded: a corpus is read in blocks of rows, so it may be a memory-mapped array larger than RAM
(`np.load(path, mmap_mode="r")`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import reference

Vectors = NDArray[np.float32]

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
BLOCK_ROWS = 16384  # of a corpus at a time: 64 MB of 1024 float32 channels
QUERIES = 256  # at a time: their scores of a block are 16 MB


def similarity(a: ArrayLike, b: ArrayLike, name: str = "cosine") -> Vectors:
    """Every vector of `a` [A, dim] with every one of `b` [B, dim] -> [A, B].

    Larger is more alike: the euclidean and manhattan distances are negative.
    """
    a, b = as_matrix(a), as_matrix(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"vectors of {a.shape[1]} and of {b.shape[1]} channels cannot be compared")
    if name == "cosine":
        return reference.normalize(a) @ reference.normalize(b).T
    if name == "dot":
        return a @ b.T
    scores = np.empty((len(a), len(b)), np.float32)
    for i, row in enumerate(a):  # a row at a time: the differences of all pairs are len(a) times larger
        scores[i] = _along_rows(name, row, b)
    return scores


def similarity_pairwise(a: ArrayLike, b: ArrayLike, name: str = "cosine") -> Vectors:
    """Vector i of `a` with vector i of `b` -> [len(a)]."""
    a, b = as_matrix(a), as_matrix(b)
    if a.shape != b.shape:
        raise ValueError(
            f"pairs need as many vectors on both sides, found {list(a.shape)} and {list(b.shape)}"
        )
    return _along_rows(name, a, b)


def check_similarity(name: str) -> str:
    if name not in SIMILARITIES:
        raise ValueError(f"similarity {name!r} is not one of {', '.join(SIMILARITIES)}")
    return name


def as_matrix(x: ArrayLike) -> Vectors:
    x = np.atleast_2d(np.asarray(x, np.float32))
    if x.ndim != 2:
        raise ValueError(f"expected one vector or a matrix of vectors, found shape {list(x.shape)}")
    return x


def _along_rows(name: str, a: Vectors, b: Vectors) -> Vectors:
    """Along the last axis; `a` and `b` broadcast."""
    if name == "cosine":
        a, b = reference.normalize(a), reference.normalize(b)
    if name in ("cosine", "dot"):
        return np.sum(a * b, axis=-1)
    if name == "euclidean":
        return -np.linalg.norm(a - b, axis=-1)
    return -np.sum(np.abs(a - b), axis=-1)


def semantic_search(
    queries: ArrayLike,
    corpus: ArrayLike,
    top_k: int = 10,
    *,
    score_function: str = "cosine",
    corpus_precision: str = "float32",
    ranges: ArrayLike | None = None,
    rescore_embeddings: Any = None,
    rescore_multiplier: int = 4,
) -> list[list[dict[str, Any]]]:
    """The most similar rows of a corpus for each query, best first: a list of {"corpus_id", "score"} a query.

    Args:
        queries: float vectors [Q, dim], or one [dim].
        corpus: [N, dim], read in blocks; "binary" and "ubinary" rows hold 8 channels a byte.
        top_k: results a query; all N if there are fewer.
        score_function: "cosine", "dot", "euclidean" or "manhattan"; quantised corpora are searched by
        "cosine" or
            "dot".
        corpus_precision: how the corpus was quantised (`quantize_embeddings`). int8 and uint8 rows are scored
        with
            their channels' values in the middle of their steps; `ranges` [2, dim] must be those they were
            quantised with. binary rows are searched by Hamming distance, and the nearest rescore_multiplier *
            top_k scored anew as rows of +1 and -1.
        rescore_embeddings: float vectors [N, dim], such as a memory-mapped file: the nearest
        rescore_multiplier *
            top_k rows of a quantised search are scored anew with these.

    Equal scores come in the order of the corpus. Raises ValueError for shapes that do not fit.
    """
    queries_QD = as_matrix(queries)
    corpus_ND: Any = corpus if hasattr(corpus, "shape") else np.asarray(corpus)
    _check_search(queries_QD, corpus_ND, top_k, score_function, corpus_precision, ranges, rescore_embeddings)
    binary = corpus_precision.endswith("binary")
    scores: Callable[[Vectors, Any], Vectors]
    if binary:
        scores = hamming
    elif corpus_precision == "float32":

        def scores(a: Vectors, b: Any) -> Vectors:
            return similarity(a, b, score_function)

    else:
        starts, steps = _starts_and_steps(np.asarray(ranges, np.float32))
        middle = 0.5 + (128 if corpus_precision == "int8" else 0)

        def scores(a: Vectors, b: Any) -> Vectors:
            return similarity(a, starts + (np.asarray(b, np.float32) + middle) * steps, score_function)

    exact = corpus_precision == "float32" or not (binary or rescore_embeddings is not None)
    found = _best(queries_QD, corpus_ND, top_k if exact else top_k * rescore_multiplier, scores)
    results = []
    for query, (ids, values) in zip(queries_QD, found, strict=True):
        if not exact:
            if rescore_embeddings is not None:
                rows = np.asarray(rescore_embeddings[ids], np.float32)
            else:
                rows = np.unpackbits(_as_bits(corpus_ND[ids]), axis=1, count=len(query)) * np.float32(2) - 1
            values = similarity(query, rows, score_function)[0]
            order = np.lexsort((ids, -values))[:top_k]
            ids, values = ids[order], values[order]
        results.append([{"corpus_id": int(i), "score": float(s)} for i, s in zip(ids, values, strict=True)])
    return results


def _check_search(
    queries: Vectors, corpus: Any, top_k: int, score_function: str, precision: str, ranges: Any, rescore: Any
) -> None:
    from .quantization import PRECISIONS

    check_similarity(score_function)
    if type(top_k) is not int or top_k < 1:
        raise ValueError(f"top_k must be a positive integer, found {top_k!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"corpus_precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision != "float32" and score_function not in ("cosine", "dot"):
        raise ValueError(f"a corpus of {precision} is searched by cosine or dot, not by {score_function}")
    dim = queries.shape[1]
    columns = -(-dim // 8) if precision.endswith("binary") else dim
    if corpus.ndim != 2 or corpus.shape[1] != columns:
        raise ValueError(
            f"queries of {dim} channels need a {precision} corpus [N, {columns}], found {list(corpus.shape)}"
        )
    if precision.endswith("int8") and (ranges is None or np.shape(ranges) != (2, dim)):
        raise ValueError(f"a corpus of {precision} needs the ranges [2, {dim}] it was quantised with")
    if rescore is not None and rescore.shape != (len(corpus), dim):
        raise ValueError(f"rescore_embeddings must be [{len(corpus)}, {dim}], found {list(rescore.shape)}")


def _best(
    queries: Vectors, corpus: Any, count: int, scores: Callable[[Vectors, Any], Vectors]
) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """Row numbers and scores of the `count` best rows a query, best first, the earlier row where two are
    equal."""
    for start in range(0, len(queries), QUERIES):
        some = queries[start : start + QUERIES]
        found = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in some]
        for first in range(0, len(corpus), BLOCK_ROWS):
            for i, row in enumerate(scores(some, corpus[first : first + BLOCK_ROWS])):
                ids, best = found[i]
                # Rows that beat the last of the best are few in all blocks but the first.
                new = np.flatnonzero(row > best[-1]) if len(best) == count else np.arange(len(row))
                ids, best = np.concatenate([ids, first + new]), np.concatenate([best, row[new]])
                order = np.argsort(-best, kind="stable")[:count]
                found[i] = ids[order], best[order]
        yield from found


def hamming(queries: Vectors, corpus: Any) -> Vectors:
    """Minus the number of channels whose signs differ: float queries [Q, dim], packed corpus [N, dim / 8] ->
    [Q, N]."""
    bits = _as_bits(corpus)
    scores = np.empty((len(queries), len(bits)), np.float32)
    for i, query in enumerate(np.packbits(queries > 0, axis=1)):
        scores[i] = -np.bitwise_count(bits ^ query).sum(axis=1, dtype=np.int32)
    return scores


def _as_bits(rows: Any) -> NDArray[np.uint8]:
    """Packed rows as they were packed: "binary" is stored less 128."""
    rows = np.asarray(rows)
    return (rows.astype(np.int16) + 128).astype(np.uint8) if rows.dtype == np.int8 else rows


def _starts_and_steps(ranges: Vectors) -> tuple[Vectors, Vectors]:
    steps = (ranges[1] - ranges[0]) / 255
    return ranges[0], np.where(steps == 0, 1, steps).astype(np.float32)
