"""Vectors of one byte or one bit a channel, as sentence-transformers makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


def quantization_ranges(embeddings: ArrayLike) -> NDArray[np.float32]:
    """Smallest and largest value of each channel, [2, dim]: what int8 and uint8 divide into 255 steps."""
    x = np.asarray(embeddings, np.float32)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(
            f"ranges need two vectors or more, found shape {list(x.shape)}: pass `ranges`, or "
            "`calibration_embeddings` that are typical of the vectors to come"
        )
    return np.stack([x.min(axis=0), x.max(axis=0)])


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
    precision and where there are no two vectors to take ranges from."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    x = np.asarray(embeddings)
    if x.dtype.kind != "f":
        raise ValueError(f"expected float vectors to quantise, found {x.dtype}")
    if precision == "float32":
        return x.astype(np.float32)
    if precision.endswith("binary"):
        bits = np.packbits(x > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if x.size == 0:
        return np.zeros(x.shape, precision)
    if ranges is None:
        ranges = quantization_ranges(x if calibration_embeddings is None else calibration_embeddings)
    starts, ends = np.asarray(ranges, np.float32)
    steps = (ends - starts) / 255
    steps = np.where(steps == 0, 1, steps)
    values = np.clip(np.floor((x - starts) / steps), 0, 255)
    return (values - 128).astype(np.int8) if precision == "int8" else values.astype(np.uint8)
