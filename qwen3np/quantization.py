"""Vectors of one byte or one bit per dimension, as sentence-transformers makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Precision -> dtype of the array that holds it.
STORED_AS = {"float32": "float32", "int8": "int8", "uint8": "uint8", "binary": "int8", "ubinary": "uint8"}
VECTOR_PRECISIONS = tuple(STORED_AS)


def quantization_ranges(embeddings: ArrayLike) -> NDArray[np.float32]:
    """Return the smallest and the largest value of each dimension, float32 [2, dim].

    int8 and uint8 divide these ranges into 255 steps.

    Args:
        embeddings: Vectors [N, dim], typical of those to be quantised; two or more.

    Raises:
        TypeError: `embeddings` is not an array of floats.
        ValueError: There are fewer than two vectors, or they are not finite.
    """
    x = _floats(embeddings, "the vectors that ranges are taken from")
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(
            f"ranges need two vectors or more, found shape {list(x.shape)}: pass `ranges`, or "
            "`calibration_embeddings` that are typical of the vectors to come"
        )
    return np.stack([x.min(axis=0), x.max(axis=0)]).astype(np.float32)


def starts_and_steps(ranges: ArrayLike, dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return where each dimension's range starts and how wide its 255 steps are, [dim] each.

    A dimension whose values were all the same has steps of 1. Raises ValueError for what quantization_ranges
    would not return.
    """
    with np.errstate(over="ignore"):
        found = _floats(_floats(ranges, "ranges").astype(np.float32), "ranges")
    if found.shape != (2, dim):
        raise ValueError(
            f"ranges must be [2, {dim}], the smallest and the largest value of each dimension, found "
            f"{list(found.shape)}"
        )
    starts, ends = found
    if (ends < starts).any():
        at = int(np.argmax(ends < starts))
        raise ValueError(
            f"ranges are reversed: dimension {at} goes from {starts[at]} to {ends[at]}; the smallest values "
            "come first"
        )
    with np.errstate(over="ignore"):
        steps = (ends - starts) / np.float32(255)
    if not np.isfinite(steps).all():
        raise ValueError("ranges are wider than float32 holds")
    return starts, np.where(steps == 0, np.float32(1), steps)


def values_of(stored: ArrayLike, precision: str, ranges: ArrayLike | None, dim: int) -> NDArray[np.float32]:
    """Return the float vectors [N, dim] that quantised ones [N, ...] stand for.

    int8 and uint8 stand for the middle of their step, bits for +1 and -1.
    """
    found = np.asarray(stored)
    if precision == "float32":
        return found.astype(np.float32, copy=False)
    if precision.endswith("binary"):
        return np.unpackbits(as_bits(found), axis=1, count=dim) * np.float32(2) - 1
    origins, steps = origins_and_steps(precision, ranges, dim)
    return found.astype(np.float32) * steps + origins


def origins_and_steps(
    precision: str, ranges: ArrayLike | None, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the value that 0 stands for in int8 or uint8, and what each step adds to it, [dim] each."""
    if ranges is None:
        raise ValueError(f"a corpus of {precision} needs the ranges it was quantised with")
    starts, steps = starts_and_steps(ranges, dim)
    first, last = np.asarray(ranges)
    middle = np.where(first == last, np.float32(0), np.float32(0.5))  # there is one value only
    return starts + (middle + (128 if precision == "int8" else 0)) * steps, steps


def as_bits(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """Return packed rows as they were packed: "binary" is stored less 128."""
    return (rows.astype(np.int16) + 128).astype(np.uint8) if rows.dtype == np.int8 else rows


def quantize_embeddings(
    embeddings: ArrayLike,
    precision: str,
    ranges: ArrayLike | None = None,
    calibration_embeddings: ArrayLike | None = None,
) -> NDArray[Any]:
    """Quantise float vectors [..., dim] to a lower precision.

    Vectors that are compared with each other must be quantised with the same ranges.

    Args:
        embeddings: The vectors.
        precision: "int8" or "uint8": a step of 1/255 of each dimension's range, [..., dim]. "binary" (stored
            as int8) or "ubinary" (uint8): one bit per dimension, set where it is above zero, [..., dim / 8].
            "float32" changes nothing.
        ranges: The ranges [2, dim] of int8 and uint8, as `quantization_ranges` returns them.
        calibration_embeddings: Vectors to take the ranges from. Default: the vectors themselves.

    Raises:
        TypeError: An argument is not an array of floats.
        ValueError: The precision is unknown, there are fewer than two vectors to take ranges from, or vectors
            or ranges are not finite.
    """
    if precision not in VECTOR_PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(VECTOR_PRECISIONS)}")
    x = _floats(embeddings, "the vectors to quantise")
    if precision == "float32":
        return x.astype(np.float32)
    if precision.endswith("binary"):
        bits = np.packbits(x > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if x.size == 0:
        return np.zeros(x.shape, precision)
    if ranges is None:
        ranges = quantization_ranges(x if calibration_embeddings is None else calibration_embeddings)
    starts, steps = starts_and_steps(ranges, x.shape[-1])
    values = np.clip(np.floor((x - starts) / steps), 0, 255)
    return (values - 128).astype(np.int8) if precision == "int8" else values.astype(np.uint8)


def _floats(x: Any, what: str) -> NDArray[Any]:
    """Return x as an array of finite floats; errors call it `what`."""
    if np.ma.isMaskedArray(x):
        raise TypeError(f"{what} are a masked array: drop the rows that are masked, or fill them")
    found = np.asarray(x)
    if found.dtype.kind != "f":
        raise TypeError(f"{what} are {found.dtype}, expected floats")
    if not np.isfinite(found).all():
        place = [int(i) for i in np.argwhere(~np.isfinite(found))[0]]
        value = found[tuple(place)]
        raise ValueError(f"{what} hold {value} at {place}: drop that vector, or compute it again")
    return found
