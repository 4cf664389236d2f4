"""Operands of kernels, of any size, stored in every way there is.

kernel_cases.py and ladder.py compute with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3np.kernels import kv_layout
from qwen3np.kernels.compact import COLUMNS, FORMATS, MOST_LISTED
from qwen3np.kernels.integer import complete, rounded_shapes
from qwen3np.kernels.jit import entry_point
from qwen3np.kernels.panels import Rounded, Tokens
from qwen3np.kernels.team import COUNTERS, Worker
from qwen3np.loading.checkpoint import widen
from qwen3np.runtime.packed_batch import slot_count, text_segments, text_slots
from qwen3np.runtime.packed_weights import allocate, as_uint32, encode_share, pack_share, pad
from qwen3np.synth.checkpoints import to_bfloat16

INTEGERS = {"words": np.int16, "bytes": np.int8}  # activations for 8-bit weights
STALE = np.float32([-1e37])  # what may lie behind a text's last key: any finite number


def random(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def parts_of(kind: str) -> int:
    """bfloat16 parts of an activation; 0 for float32."""
    return int(kind[-1]) if kind.startswith("tiles") else int(kind == "dot")


def aligned(array):
    """A copy that starts on a cache line, as the model has it.

    A tile that lies across lines loads six times slower.
    """
    copy = allocate(array.shape, array.dtype)
    copy[:] = array
    return copy


def split(x, parts):
    """Its bfloat16 parts; with none, x itself."""
    bfloats, left = [], x
    for _ in range(parts):
        bfloats.append(to_bfloat16(left))
        left = left - widen(bfloats[-1])
    return bfloats or [x]


def to_panels(x_TD, rows):
    """[T, D] -> [P, rows, 16], zeros beyond."""
    count = -(-len(x_TD) // 16)
    padded = np.zeros((count * 16, rows), x_TD.dtype)
    padded[: len(x_TD), : x_TD.shape[1]] = x_TD
    return np.ascontiguousarray(padded.reshape(count, 16, rows).transpose(0, 2, 1))


def from_panels(panels_PD16, tokens):
    return panels_PD16.transpose(0, 2, 1).reshape(-1, panels_PD16.shape[1])[:tokens]


def encoded(weights: str, bits_NK: Any, *more: Any) -> Any:
    """In fewer bits, as packed_weights.pack does; with more matrices, 16 rows of each in turns."""
    dtype, size = FORMATS[weights]
    N, K = bits_NK.shape
    matrices, listed = (bits_NK, *more), np.zeros(1, np.int64)
    out = allocate((len(matrices) * pad(N, 32) // 16, -(-pad(K, 32) // COLUMNS), size), dtype)
    for i, matrix in enumerate(matrices):
        encode_share(as_uint32(matrix), True, out, i, len(matrices), listed, 0, 1)
        assert listed[0] <= MOST_LISTED
    return out


def blocks_of(x: Any) -> Any:
    """[N, K] -> [N, K/128, 128], zeros beyond."""
    padded = np.zeros((len(x), pad(x.shape[1], COLUMNS)), x.dtype)
    padded[:, : x.shape[1]] = x
    return padded.reshape(len(x), -1, COLUMNS)


def held_weights(w_NK: Any, kind: str) -> NDArray[np.float64]:
    """The values that packed weights have."""
    if kind not in INTEGERS:
        return widen(w_NK, np.float64)
    rows = blocks_of(widen(w_NK))
    scales = np.abs(rows).max(axis=2, keepdims=True) / np.float32(127)
    q = np.rint(np.divide(rows, scales, out=np.zeros_like(rows), where=scales > 0))
    return (q.astype(np.float64) * scales).reshape(len(rows), -1)[:, : w_NK.shape[1]]


def packed(w_NK, kind, *more):
    """As weights.py packs it; with more matrices of the same shape, 16 rows of each in turns."""
    if kind in INTEGERS:
        return encoded("int8", w_NK, *more)
    matrices, (N, K) = (w_NK, *more), w_NK.shape
    groups = len(matrices) * pad(N, 32) // 16
    if kind.startswith("tiles"):
        out = allocate((groups // 2, pad(K, 32) // 32, 2, 16, 32), np.uint16)
        words = out.view(np.uint32)
    elif kind == "float32":
        out = allocate((groups, pad(K, 32), 16), np.float32)
        words = out.view(np.uint32)
    else:
        out = allocate((groups, pad(K, 32) // 2, 16, 2), np.uint16)
        words = out.view(np.uint32).reshape(groups, -1, 16)
    for i, matrix in enumerate(matrices):
        source = widen(matrix) if kind == "float32" else matrix
        pack_share(as_uint32(source), words, i, len(matrices), 0, 1)
    return out


def operand(x_TD, kind):
    """As the kernels read it, and the float values it then holds."""
    parts, rows = parts_of(kind), pad(x_TD.shape[1], 32)
    if kind in INTEGERS:
        rounded = rounded_operand(to_panels(x_TD, rows), kind)
        run_complete(rounded)
        return rounded, held_integers(rounded, len(x_TD))[:, : x_TD.shape[1]]
    if not parts:
        return to_panels(x_TD, rows), x_TD
    bfloats = split(x_TD, parts)
    pairs = [to_panels(b, rows).reshape(-1, rows // 2, 2, 16).transpose(0, 1, 3, 2) for b in bfloats]
    laid = np.stack([p.reshape(len(p), rows // 2, 32) for p in pairs], axis=1)
    held = sum(map(widen, bfloats))
    return aligned(laid if kind.startswith("tiles") else laid[:, 0]), held


def rounded_operand(panels: Any, kind: str) -> Rounded:
    """An operand of integers, before it is rounded."""
    shapes, dtypes = rounded_shapes(*panels.shape[:2], INTEGERS[kind])
    operand = Rounded(*map(allocate, shapes, dtypes))
    operand.wide[:] = panels
    return operand


def panels_of(operand: Any, first: int, last: int) -> Any:
    """A copy of some panels of an operand."""
    if isinstance(operand, Rounded):
        return Rounded(*(array[first:last].copy() for array in operand))
    return operand[first:last].copy()


@entry_point
def run_complete(operand):
    complete(operand, len(operand.wide), Worker(np.zeros(COUNTERS, np.int64), 0, 1))


def held_integers(operand: Rounded, tokens: int) -> NDArray[np.float64]:
    """The values that an operand of integers has, scales times integers: [tokens, K']."""
    P, rows, _ = operand.wide.shape
    parts = operand.tokens.shape[2] // 2
    per_word = 2 if parts == 1 else 4
    q = operand.q.reshape(P, parts, rows // per_word, 16, per_word).transpose(1, 0, 2, 4, 3)
    scales = operand.tokens.reshape(P, -1, parts, 2, 16)[:, :, :, 0].transpose(2, 0, 1, 3)
    scales = np.repeat(scales, COLUMNS, axis=2)[:, :, :rows]
    used = np.ones((parts, P, rows, 16))
    if parts == 2:
        used[1] = np.repeat(operand.outliers, COLUMNS, axis=1)[:, :rows, None]
    values = q.reshape(parts, P, rows, 16).astype(np.float64) * scales
    return from_panels(np.where(used, values, 0).sum(axis=0), tokens)


def arrangement(
    K: int, parts: int, S: int, rows: int, kind: str, values: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """[K, parts, S, rows] becomes what kernels/kv_layout.py draws: reshaped so, its axes in this order."""
    tiles, width = kind.startswith("tiles"), 1 if kind == "float32" else 2
    if tiles and values:
        return (K, parts, S // 32, 32, rows // 32, 2, 16), (0, 1, 4, 2, 5, 6, 3)
    if tiles:
        return (K, parts, S // 32, 2, 16, rows // 32, 32), (0, 2, 1, 5, 3, 4, 6)
    if values:
        return (K, S // width, width, rows // 16, 16), (0, 3, 1, 4, 2)
    return (K, S // 16, 16, rows // width, width), (0, 1, 3, 2, 4)


def stored(x_SKH: Any, slots: Any, kind: str, values: bool = False) -> Any:
    """Keys or values as kernels/kv_layout.py lays them out: token s at slot slots[s]."""
    _, K, H = x_SKH.shape
    S, parts, tiles = pad(slots.max() + 1, 32), parts_of(kind), kind.startswith("tiles")
    rows = kv_layout.padded(H, tiles) if tiles or values else H
    out = np.stack([np.broadcast_to(part, (K, S, rows)) for part in split(STALE, parts)], axis=1)
    for part, x in enumerate(split(x_SKH, parts)):
        out[:, part, slots, :H] = x.transpose(1, 0, 2)
    shape, axes = arrangement(K, max(parts, 1), S, rows, kind, values)
    return aligned(out.reshape(shape).transpose(axes)).reshape(
        kv_layout.shapes(K, S, H, parts, tiles)[values]
    )


def unstored(array: Any, slots: Any, K: int, H: int, kind: str, values: bool = False) -> list[Any]:
    """The parts of what lies at these slots, [S, K, H] each."""
    parts, tiles = max(parts_of(kind), 1), kind.startswith("tiles")
    rows = kv_layout.padded(H, tiles) if tiles or values else H
    S = array.size // (K * parts * rows)
    shape, axes = arrangement(K, parts, S, rows, kind, values)
    laid = array.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
    return [x[:, slots, :H].transpose(1, 0, 2) for x in laid.reshape(K, parts, S, rows).swapaxes(0, 1)]


@dataclass(frozen=True)
class Sequences:
    """Sequences back to back.

    Args:
        begins: of the sequences, in tokens.
        ends: as well.
        slots: of each token.
        slot_count: of all slots there are; the next one is for lanes behind the last token.
        cos_TH: any cosines, [T, H/2].
        sin_TH: the sines.
        tokens: all of it as the kernels take it.
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    slots: NDArray[np.int64]
    slot_count: int
    cos_TH: NDArray[np.float32]
    sin_TH: NDArray[np.float32]
    tokens: Tokens


def sequences(lengths: Sequence[int], head_dim: int) -> Sequences:
    sizes = np.array(lengths)
    ends, count = np.cumsum(sizes), slot_count(sizes)
    begins, T = ends - sizes, int(sizes.sum())
    slots = np.arange(T) + np.repeat(text_slots(sizes) - begins, sizes)
    angles = random(T, T, head_dim // 2)
    tables = np.cos(angles), np.sin(angles)
    cos, sin = (to_panels(table, head_dim // 2) for table in tables)
    lanes = np.full((len(cos), 16), count, np.float32)
    lanes.ravel()[:T] = slots
    panel, segments = text_segments(begins, ends, text_slots(sizes))
    starts = np.searchsorted(panel, np.arange(len(cos) + 1))
    return Sequences(begins, ends, slots, count, *tables, Tokens(cos, sin, lanes, starts, segments))
