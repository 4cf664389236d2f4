"""Texts that a saved output holds twice, or nearly: by their hashes, and by the cosine of their vectors.

Every distinct text is compared with every earlier one that stays, block by block: memory is bounded, and the
work grows with the square of their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..nearest import EPSILON
from ..similarity import check_finite, exact_scores, unit
from .saved import BLOCK, Saved
from .update import Hashes, grouped


class Duplicate(NamedTuple):
    """A row that repeats an earlier one.

    Attributes:
        row: Its number.
        of: The earliest row of the same text, or else the earliest that stays and is as near as was asked.
        cosine: Of their vectors; 1 for the same text.
        exact: Whether the texts are the same.
    """

    row: int
    of: int
    cosine: float
    exact: bool


def duplicates(
    saved: Saved, hashes: Hashes, threshold: float, progress: Callable[[int], object] = lambda rows: None
) -> Iterator[Duplicate]:
    """Yield the rows that repeat earlier ones, in order.

    The rows that are left have distinct texts, and no two of them a cosine of `threshold` or more.

    Args:
        saved: The output.
        hashes: Those of its texts.
        threshold: The smallest cosine of near duplicates; above 1, only the same texts are found.
        progress: Called with the number of rows done.
    """
    first = _first_of_equal(hashes)
    stays = first == np.arange(len(first))
    for start in range(0, len(first), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(first)))
        of, cosine = first[rows], np.ones(len(rows))
        if threshold <= 1:
            distinct = rows[stays[rows]]
            near, cosines = _nearly_equal(saved, distinct, stays, threshold)
            stays[distinct[near != distinct]] = False
            of[distinct - start], cosine[distinct - start] = near, cosines
        for i in np.flatnonzero(of != rows):
            yield Duplicate(int(rows[i]), int(of[i]), float(cosine[i]), bool(first[rows[i]] != rows[i]))
        progress(int(rows[-1]) + 1)


def _first_of_equal(hashes: Hashes) -> NDArray[np.int64]:
    """Return, for each row, the number of the first row with the same hash."""
    order, begins = grouped(hashes)
    first = np.empty_like(order)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def _nearly_equal(
    saved: Saved, rows: NDArray[np.int64], stays: NDArray[np.bool_], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the earliest row that stays and is near each of the rows, else itself; and their cosines."""
    vectors = saved.floats(saved.vectors[rows])
    check_finite(vectors, f"{saved.path}: row", numbers=rows)
    units, of, cosine = unit(vectors), rows.copy(), np.ones(len(rows))

    def compare(earlier: NDArray[Any], others: NDArray[np.float32], maybe: NDArray[np.bool_]) -> None:
        """Note the first of the earlier rows that is near, for each row of which one may be."""
        for i in np.flatnonzero(maybe.any(axis=1)):
            # A row of this block that was found to be near another is no one's earliest.
            candidates = np.flatnonzero(maybe[i] & (of == rows) if others is vectors else maybe[i])
            scores = exact_scores("cosine", vectors[i], others[candidates])
            near = np.flatnonzero(scores >= threshold)
            if of[i] == rows[i] and len(near):
                of[i], cosine[i] = earlier[candidates[near[0]]], scores[near[0]]

    # float32 rounds a product by less (search.py); what may be near is scored in float64.
    least = threshold - 8 * (saved.dim + 16) * EPSILON
    for start in range(0, int(rows[0]) if len(rows) else 0, BLOCK):
        earlier = np.flatnonzero(stays[start : min(start + BLOCK, rows[0])]) + start
        others = saved.floats(saved.vectors[earlier])
        compare(earlier, others, units @ unit(others).T >= least)
    compare(rows, vectors, np.tril(units @ units.T >= least, -1))
    return of, cosine
