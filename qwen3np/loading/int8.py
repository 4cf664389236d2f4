"""Weights of 8 bits in files: a matrix as int8 [N, K], and a scale for every 128 columns of a row.

The numbers are those of kernels/compact.py: the largest of 128 weights is 127 times their scale, and a weight
is q * scale, rounded to bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP = 128
# What config.json says of such files: other programs refuse a method that they do not know.
METHOD = {"quant_method": "qwen3np-int8", "bits": 8, "group_size": GROUP}
MATRICES = "_proj.weight"  # how their names end
SCALES = "_scale"  # behind a matrix's name


def scales_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a matrix's scales."""
    return shape[0], -(-shape[1] // GROUP)


def quantize(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix [N, K] to int8 [N, K] with scales [N, K/128]; a group that is not finite becomes NaN."""
    rows, columns = values.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = values
    groups = padded.reshape(rows, -1, GROUP)
    scales = np.abs(groups).max(axis=2) / np.float32(127)
    scales[~np.isfinite(scales)] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        q = np.rint(groups / scales[..., None])
    q[~np.isfinite(q)] = 0
    q = np.clip(q, -127, 127).astype(np.int8)
    return q.reshape(rows, -1)[:, :columns], scales


def dequantize(q: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights [N, K] that int8 and scales stand for."""
    values = q.astype(np.float32)
    for group in range(scales.shape[1]):
        values[:, group * GROUP : (group + 1) * GROUP] *= scales[:, group : group + 1]
    bits: NDArray[Any] = values.view(np.uint32)  # to the nearest bfloat16, a tie away from zero
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
