"""The keys and values of one layer, where attention.py reads them.

K heads of H channels; S slots. A sequence's slots begin at a multiple of 32: its key t is at slot begin + t.
Both arrays are left-hand sides of products, as W is in matmul.py:

    keys      [K, S/16, H, 16]      16 keys side by side: a row of scores is a key
    values    [K, H'/16, S, 16]     16 channels side by side: a row of the result is a channel

H' is H padded to 16. For CPUs that multiply pairs of bfloat16 the rows are in pairs, uint16: elements 2i and
2i + 1 are rows 2r and 2r + 1 of column i.

    keys      [K, S/16, H/2, 32]
    values    [K, H'/16, S/2, 32]

For AMX they are tiles (amx.py), uint16, in as many parts as the queries and the probabilities, and H' is a
multiple of 32:

    keys      [K, S/32, parts, H'/32, 2, 16, 32]
    values    [K, parts, H'/32, S/32, 2, 16, 32]
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from .amx import TILE, tiled
from .jit import inline
from .norm_rope import norm_rope
from .panels import bf16_remainder, scatter, store_bfloats, store_columns, store_parts
from .simd import LANE, both, load, splat
from .team import share

KV_ALIGN = 32  # keys that one tile product sums: a sequence's slots begin at a multiple of it


def padded(head_dim: int, tiles: bool) -> int:
    """H': rows of a head of `values`; in tiles, of `keys` too."""
    multiple = 32 if tiles else 16
    return -(-head_dim // multiple) * multiple


def shapes(
    heads: int, slots: int, head_dim: int, parts: int, tiles: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the keys and of the values.

    Args:
        heads: K.
        slots: S, a multiple of 32.
        head_dim: H.
        parts: bfloat16 parts of a value; 0 for float32. More than one is in tiles only.
        tiles: for AMX.
    """
    H = padded(head_dim, tiles)
    if tiles:
        groups, H_tiles = slots // 32, H // 32
        return (heads, groups, parts, H_tiles, 2, 16, 32), (heads, parts, H_tiles, groups, 2, 16, 32)
    width = 2 if parts else 1  # rows side by side
    return (
        (heads, slots // 16, head_dim // width, 16 * width),
        (heads, H // 16, slots // width, 16 * width),
    )


@inline
def store_keys_values(kv, panels, tokens, k_norm, eps, keys, values, me):
    """Normalise and rotate the keys of a block, and store keys and values; this thread's share.

    kv [block, >= 2*K*H, 16]: the K key heads of a panel, one below the other, then its K value heads.
    """
    H, heads = k_norm.size, keys.shape[0]
    to_key, to_value = np.empty(16, np.int64), np.empty(16, np.int64)
    first, last = share(panels.count * heads, me.thread, me.num_threads)
    for task in range(first, last):
        p, head = task // heads, task % heads
        k_at, v_at = (p * kv.shape[1] + head * H) * 16, (p * kv.shape[1] + (heads + head) * H) * 16
        rope_at = (panels.first + p) * (H // 2) * 16
        norm_rope(kv, k_at, k_norm, eps, tokens.cos, tokens.sin, rope_at, kv, k_at)
        store_head(kv, k_at, v_at, H, keys, values, head, tokens.slots[panels.first + p], to_key, to_value)


def store_head(kv, k_at, v_at, H, keys, values, head, slots, to_key, to_value):
    """Store one head of one panel. to_key, to_value: int64 [16], scratch."""


@overload(store_head, jit_options={"nogil": True})
def _store_head(kv, k_at, v_at, H, keys, values, head, slots, to_key, to_value):
    if tiled(keys):

        def put(kv, k_at, v_at, H, keys, values, head, slots, to_key, to_value):
            groups, parts, steps = keys.shape[1], keys.shape[2], keys.shape[3]
            for lane in range(16):
                slot = np.int64(slots[lane])
                to_key[lane] = (head * groups + slot // 32) * parts * steps * 2 * TILE + slot % 32 * 32
            rows = np.empty(3 * TILE, np.uint16)
            for step in range(steps):
                for h in range(step * 32, step * 32 + 32, 2):
                    even = odd = splat(np.float32(0))
                    if h < H:
                        even, odd = load(kv, k_at + h * 16), load(kv, k_at + h * 16 + 16)
                    store_parts(rows, h % 32 * 16, TILE, parts, even, odd)
                for part in range(parts):
                    store_columns(keys, to_key, (part * steps + step) * 2 * TILE, rows, part * TILE)
            here = load(LANE, 0)
            lane = 0
            while lane < 16:  # lanes whose slots lie side by side
                slot, end = np.int64(slots[lane]), lane + 1
                while end < 16 and slots[end] == slot + end - lane and (slot + end - lane) % 32 > 0:
                    end += 1
                mine = both(here >= splat(np.float32(lane)), here < splat(np.float32(end)))
                begin = (head * parts * steps * groups + slot // 32) * 2 * TILE + slot % 32 - lane
                for h in range(H):
                    value = load(kv, v_at + h * 16)
                    for part in range(parts):
                        at = begin + (part * steps + h // 32) * groups * 2 * TILE + h % 32 * 32
                        store_bfloats(values, at, value, mine)
                        value = bf16_remainder(value)
                lane = end

    else:
        width = 1 if keys.dtype == types.float32 else 2  # rows side by side

        def put(kv, k_at, v_at, H, keys, values, head, slots, to_key, to_value):
            for lane in range(16):
                slot = np.int64(slots[lane])
                to_key[lane] = (head * keys.shape[1] + slot // 16) * H * 16 + slot % 16 * width
                row = head * values.shape[1] * values.shape[2] + slot // width
                to_value[lane] = row * 16 * width + slot % width
            block = values.shape[2] * values.shape[3]  # 16 channels of all slots
            for h in range(H):
                scatter(keys, to_key, h // width * width * 16 + h % width, load(kv, k_at + h * 16))
                scatter(values, to_value, h // 16 * block + h % 16 * width, load(kv, v_at + h * 16))

    return put


@inline
def copy_slots(source, source_at, target, target_at, count, me):
    """Copy `count` slots of (keys, values), from one slot on each; this thread's share.

    All three are multiples of 32. Slots beyond a sequence's last key are copied too: they may hold anything.
    """
    heads = source[0].shape[0]
    for i in range(2):
        outer = heads if i == 0 else heads * value_rows(source[1])
        from_groups, to_groups = groups_of(source[0]), groups_of(target[0])
        flat, to_flat = source[i].reshape(source[i].size), target[i].reshape(target[i].size)
        size = flat.size // (outer * from_groups)  # of 32 slots
        first, last = share(outer, me.thread, me.num_threads)
        for o in range(first, last):
            a, b = o * from_groups + source_at // KV_ALIGN, o * to_groups + target_at // KV_ALIGN
            n = count // KV_ALIGN * size
            to_flat[b * size : b * size + n] = flat[a * size : a * size + n]


def groups_of(keys):
    """The number of 32-slot groups in `keys`."""


@overload(groups_of, jit_options={"nogil": True})
def _groups_of(keys):
    if tiled(keys):
        return lambda keys: keys.shape[1]
    return lambda keys: keys.shape[1] // 2


def value_rows(values):
    """The number of channel blocks that one head has in `values`."""


@overload(value_rows, jit_options={"nogil": True})
def _value_rows(values):
    if tiled(values):
        return lambda values: values.shape[1] * values.shape[2]
    return lambda values: values.shape[1]
