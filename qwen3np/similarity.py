"""Similarity of vectors: in float32 for many, in float64 and independent of all others for a search."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vectors = NDArray[np.float32]
Scores = NDArray[np.float64]

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
EXACT_ROWS = 1024  # rows scored in float64 at a time


def similarity(a: ArrayLike, b: ArrayLike, name: str = "cosine") -> Vectors:
    """Compare every vector of `a` [A, dim] with every one of `b` [B, dim] -> [A, B].

    Larger is more alike: euclidean and manhattan distances are negated. A zero vector has the cosine 0.
    """
    a, b = as_matrix(a), as_matrix(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"vectors of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared")
    if name == "cosine":
        return unit(a) @ unit(b).T
    if name == "dot":
        return a @ b.T
    scores = np.empty((len(a), len(b)), np.float32)
    for i, row in enumerate(a):  # row by row: the differences of all pairs would take len(a) times the memory
        scores[i] = exact_scores(name, row, b)
    return scores


def similarity_pairwise(a: ArrayLike, b: ArrayLike, name: str = "cosine") -> Vectors:
    """Compare vector i of `a` with vector i of `b` -> [len(a)]."""
    a, b = as_matrix(a), as_matrix(b)
    if a.shape != b.shape:
        raise ValueError(
            f"pairs need as many vectors on both sides, found {list(a.shape)} and {list(b.shape)}"
        )
    return exact_scores(name, a, b).astype(np.float32)


def check_similarity(name: str) -> str:
    """Return the name, or raise ValueError for one that is not in SIMILARITIES."""
    if name not in SIMILARITIES:
        raise ValueError(f"similarity {name!r} is not one of {', '.join(SIMILARITIES)}")
    return name


def as_matrix(x: ArrayLike, what: str = "vectors") -> Vectors:
    """Return one vector or many as a float32 matrix.

    Raises TypeError for what is not an array of real numbers; errors call it `what`.
    """
    found = _array(x, what)
    if found.dtype.kind not in "fiu" or found.dtype.itemsize == 1:
        hint = " (quantised vectors are searched by semantic_search with corpus_precision)"
        raise TypeError(
            f"{what} are {found.dtype}, expected floats{hint if found.dtype.itemsize == 1 else ''}"
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as such
        matrix = np.atleast_2d(found.astype(np.float32, copy=False))
    if matrix.ndim != 2:
        raise ValueError(f"expected one vector or a matrix of vectors, found shape {list(matrix.shape)}")
    return matrix


def unit(x: Vectors) -> Vectors:
    """Divide each vector by its length, however large or small; a zero vector stays zero."""
    lengths = lengths_of(x)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        units = x / lengths.astype(np.float32)[:, None]
    odd = ~usual(lengths)
    if odd.any():
        length = lengths[odd, None]
        units[odd] = x[odd].astype(np.float64) / np.where(length == 0, 1, length)
    return units


def lengths_of(x: Vectors) -> Scores:
    """Return the vectors' lengths.

    They are computed in float32 where it can hold the squares, else in float64, which holds those
    of every float32.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", x, x)).astype(np.float64)
        odd = ~usual(lengths)
        if odd.any():
            lengths[odd] = np.sqrt(np.sum(x[odd].astype(np.float64) ** 2, axis=1))
    return lengths


def usual(lengths: Scores) -> NDArray[np.bool_]:
    return (lengths > 1e-15) & (lengths < 1e15)


def exact_scores(name: str, query: Vectors, rows: Vectors) -> Scores:
    """Score rows [N, dim] in float64 against one query [dim] or against one per row [N, dim].

    A row's score depends on nothing but the row and its query.
    """
    scores = np.empty(len(rows))
    for start in range(0, len(rows), EXACT_ROWS):
        # In C order: NumPy adds the values of other layouts in another order.
        b = rows[start : start + EXACT_ROWS].astype(np.float64, order="C")
        a = (query[start : start + EXACT_ROWS] if query.ndim == 2 else query[None]).astype(np.float64)
        if name == "euclidean":
            score = -np.sqrt(np.sum((a - b) ** 2, axis=-1))
        elif name == "manhattan":
            score = -np.sum(np.abs(a - b), axis=-1)
        else:
            score = np.sum(a * b, axis=-1)
            if name == "cosine":
                length = np.sqrt(np.sum(a * a, axis=-1)) * np.sqrt(np.sum(b * b, axis=-1))
                score /= np.where(length == 0, 1, length)
        scores[start : start + EXACT_ROWS] = score
    # Rounded to float32 where it can hold them: cosines that only rounding tells apart are equal.
    with np.errstate(over="ignore"):
        rounded = scores.astype(np.float32).astype(np.float64)
    return np.where(np.isfinite(rounded), rounded, scores)


def check_finite(rows: Vectors, what: str, first: int = 0, numbers: Any = None) -> None:
    """Raise ValueError for the first row that is not finite.

    Args:
        rows: The rows.
        what: What the error calls a row.
        first: The number of the first row.
        numbers: The numbers of all rows, if they are not consecutive.
    """
    good = np.isfinite(rows).all(axis=1)
    if not good.all():
        bad = int(np.argmin(good))
        number = first + bad if numbers is None else int(numbers[bad])
        raise ValueError(
            f"{what} {number} holds a NaN, an infinity, or a number too large for float32: drop it, or "
            "compute that vector again"
        )


def _array(x: Any, what: str) -> NDArray[Any]:
    if np.ma.isMaskedArray(x):
        raise TypeError(f"{what} are a masked array: drop the rows that are masked, or fill them")
    return np.asarray(x)
