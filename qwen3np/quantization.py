"""Vectors of one byte or one bit a channel, as sentence-transformers makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# By which array a precision is stored.
STORED = {"float32": "float32", "int8": "int8", "uint8": "uint8", "binary": "int8", "ubinary": "uint8"}
PRECISIONS = tuple(STORED)


def quantization_ranges(embeddings: ArrayLike) -> NDArray[np.float32]:
    """Smallest and largest value of each channel, [2, dim]: what int8 and uint8 divide into 255 steps."""
    x = _floats(embeddings, "the vectors that ranges are taken from")
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(
            f"ranges need two vectors or more, found shape {list(x.shape)}: pass `ranges`, or "
            "`calibration_embeddings` that are typical of the vectors to come"
        )
    return np.stack([x.min(axis=0), x.max(axis=0)]).astype(np.float32)


def starts_and_steps(ranges: ArrayLike, dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[dim] each. A channel whose values were all the same has steps of 1. Raises ValueError for what
    quantization_ranges would not return."""
    with np.errstate(over="ignore"):
        found = _floats(_floats(ranges, "ranges").astype(np.float32), "ranges")
    if found.shape != (2, dim):
        raise ValueError(
            f"ranges must be [2, {dim}], the smallest and the largest value of each channel, found "
            f"{list(found.shape)}"
        )
    starts, ends = found
    if (ends < starts).any():
        channel = int(np.argmax(ends < starts))
        raise ValueError(
            f"ranges are reversed: channel {channel} goes from {starts[channel]} to {ends[channel]}; the "
            "smallest values come first"
        )
    with np.errstate(over="ignore"):
        steps = (ends - starts) / np.float32(255)
    if not np.isfinite(steps).all():
        raise ValueError("ranges are wider than float32 holds")
    return starts, np.where(steps == 0, np.float32(1), steps)


def quantize_embeddings(
    embeddings: ArrayLike,
    precision: str,
    ranges: ArrayLike | None = None,
    calibration_embeddings: ArrayLike | None = None,
) -> NDArray[Any]:
    """Float vectors [..., dim] -> a lower precision.

    "int8", "uint8": each channel's range in 255 steps, [..., dim]. The ranges [2, dim] are given, or those of
    calibration_embeddings, or of the vectors themselves. "binary" (int8), "ubinary" (uint8): one bit a
    channel, whether it is above zero, [..., dim / 8].

    Vectors that are compared must be quantised with the same ranges. Raises ValueError for an unknown
    precision, where there are no two vectors to take ranges from, and for vectors and ranges that are not
    finite; TypeError for what is not an array of floats."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
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
    """As an array of finite floats."""
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
