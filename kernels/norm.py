"""RMSNorm and RoPE on panels: sums run over rows, so every lane (token) is by itself.

rms_norm: x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467). RoPE: channel pair (i, i + H/2) turned by the
token's angle i (arXiv:2104.09864); cos and sin are panels [P, H/2, 16].
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from .compiled import inline
from .lanes import fma, load, splat, sqrt, store
from .panels import put_rows, rest, scatter, scatter_bfloats, scatter_pairs
from .team import share
from .tiles import TILE, tiled


@inline
def inverse_rms(x, at, size, eps):
    """1 / sqrt(mean(x^2) + eps) of `size` rows from the flat index `at`, for each lane. Four sums side by
    side: the additions overlap, and the error of 1024 of them is that of 256."""
    s0 = s1 = s2 = s3 = splat(np.float32(0))
    d = 0
    while d + 4 <= size:
        x0, x1 = load(x, at + d * 16), load(x, at + d * 16 + 16)
        x2, x3 = load(x, at + d * 16 + 32), load(x, at + d * 16 + 48)
        s0, s1, s2, s3 = fma(x0, x0, s0), fma(x1, x1, s1), fma(x2, x2, s2), fma(x3, x3, s3)
        d += 4
    while d < size:
        x0 = load(x, at + d * 16)
        s0 = fma(x0, x0, s0)
        d += 1
    mean = ((s0 + s1) + (s2 + s3)) / splat(np.float32(size))
    return splat(np.float32(1)) / sqrt(mean + splat(np.float32(eps)))


@inline
def rms_norm(x, first_panel, panels, weight, eps, out, thread, num_threads):
    """out[p] = rms_norm(x[first_panel + p]) for p < panels, as an operand; this thread's share. out may have
    more rows than `weight` has entries: those stay as they are."""
    size = weight.size
    first, last = share(panels, thread, num_threads)
    for p in range(first, last):
        at = (first_panel + p) * x.shape[1] * 16
        scale = inverse_rms(x, at, size, eps)
        for d in range(0, size - 1, 2):
            even = load(x, at + d * 16) * scale * splat(weight[d])
            odd = load(x, at + d * 16 + 16) * scale * splat(weight[d + 1])
            put_rows(out, p, d, even, odd)
        if size % 2:
            last_row = load(x, at + (size - 1) * 16) * scale * splat(weight[size - 1])
            put_rows(out, p, size - 1, last_row, splat(np.float32(0)))


@inline
def norm_and_rope(x, x_at, weight, eps, cos, sin, rope_at, out, out_at):
    """One head of one panel: rms_norm over its H rows, then RoPE. `out` may be `x`."""
    half = weight.size // 2
    scale = inverse_rms(x, x_at, weight.size, eps)
    for i in range(half):
        a = load(x, x_at + i * 16) * scale * splat(weight[i])
        b = load(x, x_at + (i + half) * 16) * scale * splat(weight[i + half])
        c, s = load(cos, rope_at + i * 16), load(sin, rope_at + i * 16)
        store(out, out_at + i * 16, a * c - b * s)
        store(out, out_at + (i + half) * 16, b * c + a * s)


@inline
def query_heads(q, panels, rope_panel, q_norm, eps, cos, sin, thread, num_threads):
    """Normalise and turn the query heads of `panels` panels in place: q [P, >= N*H, 16], heads one below
    the other."""
    H = q_norm.size
    heads = q.shape[1] // H
    first, last = share(panels * heads, thread, num_threads)
    for task in range(first, last):
        p, head = task // heads, task % heads
        at = (p * q.shape[1] + head * H) * 16
        norm_and_rope(q, at, q_norm, eps, cos, sin, (rope_panel + p) * (H // 2) * 16, q, at)


def keys_values(kv, panels, first_panel, k_norm, eps, cos, sin, keys, values, tokens, thread, num_threads):
    """Keys, normalised and turned, and values, to where the attention reads them (see attention.py). `kv` [p,
    2*K*H, 16] holds the K key heads and then the K value heads of the panels from `first_panel` on; tokens[p]
    are a panel's key numbers."""


@overload(keys_values, jit_options={"nogil": True})
def _keys_values(kv, panels, first_panel, k_norm, eps, cos, sin, keys, values, tokens, thread, num_threads):
    if tiled(keys):
        return _to_tiles

    def to_panels(kv, panels, first_panel, k_norm, eps, cos, sin, keys, values, tokens, thread, num_threads):
        H, heads = k_norm.size, keys.shape[0]
        first, last = share(panels * heads, thread, num_threads)
        for task in range(first, last):
            p, head = task // heads, task % heads
            panel = first_panel + p
            k_at = (p * kv.shape[1] + head * H) * 16
            key_at = (head * keys.shape[1] + panel) * H * 16
            norm_and_rope(kv, k_at, k_norm, eps, cos, sin, panel * (H // 2) * 16, keys, key_at)
            v_at = (p * kv.shape[1] + (heads + head) * H) * 16
            value_at = (head * values.shape[1] + panel * 16) * values.shape[2]
            for h in range(H):
                scatter(values, value_at + h, values.shape[2], load(kv, v_at + h * 16))

    return to_panels


def _to_tiles(kv, panels, first_panel, k_norm, eps, cos, sin, keys, values, tokens, thread, num_threads):
    H, heads, groups, parts, steps = k_norm.size, keys.shape[0], keys.shape[1], keys.shape[2], keys.shape[3]
    key_place, value_place = np.empty(16, np.int64), np.empty(16, np.int64)
    first, last = share(panels * heads, thread, num_threads)
    for task in range(first, last):
        p, head = task // heads, task % heads
        panel = first_panel + p
        for lane in range(16):
            key = np.int64(tokens[panel, lane])
            group, row = (head * groups + key // 32) * parts * steps, key % 32  # a row of one of two tiles
            key_place[lane] = group * 2 * TILE + row * 32
            group, column = head * parts * steps * groups + key // 32, key % 32  # a column of both
            value_place[lane] = group * 2 * TILE + column
        k_at = (p * kv.shape[1] + head * H) * 16
        norm_and_rope(kv, k_at, k_norm, eps, cos, sin, panel * (H // 2) * 16, kv, k_at)
        v_at = (p * kv.shape[1] + (heads + head) * H) * 16
        for h in range(0, H, 2):
            even, odd = load(kv, k_at + h * 16), load(kv, k_at + h * 16 + 16)
            for part in range(parts):
                at = (part * steps + h // 32) * 2 * TILE + h % 32
                scatter_pairs(keys, key_place, at, even, odd)
                even, odd = rest(even), rest(odd)
        for h in range(H):
            value = load(kv, v_at + h * 16)
            for part in range(parts):
                at = (part * steps + h // 32) * groups * 2 * TILE + h % 32 * 32
                scatter_bfloats(values, value_place, at, value)
                value = rest(value)
