"""Exact search: the nearest of any number of vectors, a block of them at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

BLOCK = 65536


def semantic_search(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    top_k: int = 10,
) -> list[list[dict[str, int | float]]]:
    """For every query [Q, dim] the `top_k` vectors of `corpus`, [N, dim] or such blocks in order, with the
    largest dot products (of unit vectors: cosines).

    Returns lists of {"corpus_id", "score"}, best first; of equal scores the one with the smaller corpus_id
    comes first. Memory: Q x 65,536 scores, whatever N is. Raises ValueError for a top_k below 1.
    """
    if type(top_k) is not int or top_k < 1:
        raise ValueError(f"top_k must be a positive integer, found {top_k!r}")
    best_scores = np.empty((len(queries), 0), np.float32)
    best_ids = np.empty((len(queries), 0), np.int64)
    first = 0
    for block in _blocks(corpus):
        scores = queries @ block.T
        ids = np.broadcast_to(np.arange(first, first + len(block)), scores.shape)
        first += len(block)
        best_scores = np.concatenate([best_scores, scores], axis=1)
        best_ids = np.concatenate([best_ids, ids], axis=1)
        # Stable, and earlier blocks first: equal scores stay in the order of their ids.
        order = np.argsort(-best_scores, axis=1, kind="stable")[:, :top_k]
        best_scores = np.take_along_axis(best_scores, order, axis=1)
        best_ids = np.take_along_axis(best_ids, order, axis=1)
    return [
        [{"corpus_id": int(i), "score": float(s)} for i, s in zip(ids, scores, strict=True)]
        for ids, scores in zip(best_ids, best_scores, strict=True)
    ]


def _blocks(
    corpus: NDArray[np.float32] | Iterable[NDArray[np.float32]],
) -> Iterable[NDArray[np.float32]]:
    for block in [corpus] if isinstance(corpus, np.ndarray) else corpus:
        for start in range(0, len(block), BLOCK):
            yield block[start : start + BLOCK]
