"""Exact search in many vectors.

Memory is bounded: a corpus is read in blocks of rows, so it may be a memory-mapped array larger than RAM
(`np.load(path, mmap_mode="r")`). Equal rows have equal scores, whatever the blocks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .nearest import Nearest, Stored
from .quantization import STORED_AS, VECTOR_PRECISIONS, values_of
from .similarity import Vectors, as_matrix, check_finite, check_similarity, exact_scores

BLOCK_ROWS = 16384  # rows of a corpus read at a time: 64 MB of 1024 float32 dimensions
QUERIES = 256  # queries at a time: their scores of a block are 16 MB


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
    """Find the most similar rows of a corpus for each query, best first.

    Args:
        queries: Float vectors [Q, dim], or one [dim].
        corpus: The vectors to search, [N, dim], read in blocks: an array, or a memory-mapped file. Rows of
            "binary" and "ubinary" hold 8 dimensions per byte.
        top_k: Number of results per query; all N if there are fewer.
        score_function: "cosine", "dot", "euclidean" or "manhattan". Quantised corpora are searched by
            "cosine" or "dot".
        corpus_precision: How the corpus was quantised (see `quantize_embeddings`). int8 and uint8 rows are
            scored with the middle of each step. binary rows are searched by Hamming distance; the nearest
            rescore_multiplier * top_k are scored again as rows of +1 and -1.
        ranges: The ranges [2, dim] that an int8 or uint8 corpus was quantised with.
        rescore_embeddings: Float vectors [N, dim], such as a memory-mapped file, to score the nearest
            rescore_multiplier * top_k rows of a quantised search again.
        rescore_multiplier: See corpus_precision and rescore_embeddings.

    Returns:
        One list per query of {"corpus_id": row, "score": number}. Equal scores keep the corpus' order.

    Raises:
        TypeError: The corpus has another dtype than corpus_precision says.
        ValueError: Shapes do not fit, or vectors are not finite.
    """
    queries_QD = as_matrix(queries, "queries")
    corpus_ND = _sliceable(corpus)
    rescore = None if rescore_embeddings is None else _sliceable(rescore_embeddings)
    _check_search(queries_QD, corpus_ND, score_function, corpus_precision, rescore)

    def blocks() -> Iterator[Any]:
        rows = BLOCK_ROWS
        return (corpus_ND[first : first + rows] for first in range(0, len(corpus_ND), rows))

    return search_blocks(
        queries_QD,
        blocks,
        top_k,
        score_function,
        (corpus_precision, ranges),
        corpus_ND.__getitem__,
        None if rescore is None else rescore.__getitem__,
        rescore_multiplier,
    )


def search_blocks(
    queries: Vectors,
    blocks: Callable[[], Iterable[Any]],
    top_k: int,
    score_function: str,
    stored: Stored,
    rows: Callable[[NDArray[np.int64]], Any],
    rescore: Callable[[NDArray[np.int64]], Any] | None = None,
    rescore_multiplier: int = 4,
    what: str = "corpus row",
) -> list[list[dict[str, Any]]]:
    """Search a corpus that is read block by block, as `semantic_search` does.

    Args:
        queries: Float vectors [Q, dim].
        blocks: Returns an iterator over all rows of the corpus, in order.
        top_k: As for semantic_search.
        score_function: As for semantic_search.
        stored: The corpus' precision and ranges.
        rows: Returns the rows of the corpus with these numbers.
        rescore: Returns float vectors of the rows with these numbers, to score them again.
        rescore_multiplier: As for semantic_search.
        what: What errors call a row.
    """
    top_k, multiplier = positive("top_k", top_k), positive("rescore_multiplier", rescore_multiplier)
    precision, ranges = stored
    bits = precision.endswith("binary")
    exact = precision == "float32" or not (bits or rescore is not None)
    results = []
    for start in range(0, len(queries), QUERIES):
        some = queries[start : start + QUERIES]
        nearest = Nearest(some, top_k if exact else top_k * multiplier, score_function, stored, what)
        nearest.add_all(blocks())
        for query, (ids, scores) in zip(some, nearest.found, strict=True):
            if not exact:
                if rescore is None:
                    vectors = values_of(rows(ids), precision, ranges, len(query))
                else:
                    vectors = as_matrix(rescore(ids)).reshape(-1, len(query))
                    check_finite(vectors, "row of rescore_embeddings", numbers=ids)
                scores = exact_scores(score_function, query, vectors)
                order = np.lexsort((ids, -scores))[:top_k]
                ids, scores = ids[order], scores[order]
            results.append(
                [{"corpus_id": int(i), "score": float(s)} for i, s in zip(ids, scores, strict=True)]
            )
    return results


def _check_search(queries: Vectors, corpus: Any, score_function: str, precision: str, rescore: Any) -> None:
    """Raise ValueError or TypeError for arguments of semantic_search that do not fit together."""
    check_similarity(score_function)
    if precision not in VECTOR_PRECISIONS:
        raise ValueError(f"corpus_precision {precision!r} is not one of {', '.join(VECTOR_PRECISIONS)}")
    if precision != "float32" and score_function not in ("cosine", "dot"):
        raise ValueError(f"a corpus of {precision} is searched by cosine or dot, not by {score_function}")
    dim = queries.shape[1]
    columns = -(-dim // 8) if precision.endswith("binary") else dim
    if corpus.ndim != 2 or corpus.shape[1] != columns:
        raise ValueError(
            f"queries of {dim} dimensions need a {precision} corpus [N, {columns}], "
            f"found {list(corpus.shape)}"
        )
    stored = STORED_AS[precision]
    if precision != "float32" and corpus.dtype != stored:
        raise TypeError(f"a corpus of {precision} is an array of {stored}, found {corpus.dtype}")
    if precision == "float32":
        as_matrix(corpus[:0], "the corpus' vectors")
    if rescore is not None:
        if rescore.shape != (len(corpus), dim):
            raise ValueError(
                f"rescore_embeddings must be [{len(corpus)}, {dim}], found {list(rescore.shape)}"
            )
        as_matrix(rescore[:0], "rescore_embeddings")


def _sliceable(x: Any) -> Any:
    """Return what can be sliced: arrays and files as they are, read row by row; lists as arrays."""
    return x if isinstance(getattr(x, "dtype", None), np.dtype) else np.asarray(x)


def positive(name: str, value: Any) -> int:
    """Return the value as an int, or raise ValueError that calls it `name`."""
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a positive integer, found {value!r}")
    return number
