"""RMSNorm and RoPE on panels: sums run over rows, so every lane (token) is by itself.

RMSNorm: x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467). RoPE: channel pair (i, i + H/2) is rotated by
the token's angle i (arXiv:2104.09864); cos and sin are panels [P, H/2, 16].
"""

from __future__ import annotations

import numpy as np

from .jit import inline
from .panels import store_rows
from .simd import fma, load, negative, splat, sqrt, store
from .team import share


@inline
def inverse_rms(x, at, size, eps):
    """1 / sqrt(mean(x^2) + eps) of `size` rows from the flat index `at` on, per lane.

    Four sums side by side: the additions overlap, and the error of 1024 of them is that of 256.
    """
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
def rms_norm(x, panels, weight, eps, out, me):
    """out[p] = rms_norm(x[panels.first + p]), as an operand; this thread's share of the panels.

    Rows of `out` beyond `weight` stay as they are. Where panels.first is 0, `out` may be `x`.
    """
    size = weight.size
    first, last = share(panels.count, me.thread, me.num_threads)
    for p in range(first, last):
        at = (panels.first + p) * x.shape[1] * 16
        scale = inverse_rms(x, at, size, eps)
        for d in range(0, size - 1, 2):
            even = load(x, at + d * 16) * scale * splat(weight[d])
            odd = load(x, at + d * 16 + 16) * scale * splat(weight[d + 1])
            store_rows(out, p, d, even, odd)
        if size % 2:
            last_row = load(x, at + (size - 1) * 16) * scale * splat(weight[size - 1])
            store_rows(out, p, size - 1, last_row, splat(np.float32(0)))


@inline
def norm_rope(x, x_at, weight, eps, cos, sin, rope_at, out, out_at):
    """RMSNorm over the H rows of one head of one panel, then RoPE. `out` may be `x`."""
    half = weight.size // 2
    scale = inverse_rms(x, x_at, weight.size, eps)
    for i in range(half):
        a = load(x, x_at + i * 16) * scale * splat(weight[i])
        b = load(x, x_at + (i + half) * 16) * scale * splat(weight[i + half])
        c, s = load(cos, rope_at + i * 16), load(sin, rope_at + i * 16)
        store(out, out_at + i * 16, fma(a, c, negative(b * s)))
        store(out, out_at + (i + half) * 16, fma(b, c, a * s))


@inline
def norm_rope_queries(q, panels, tokens, q_norm, eps, me):
    """Normalise and rotate the query heads of a block in place; this thread's share.

    q [block, >= N*H, 16]: the heads of a panel, one below the other.
    """
    H = q_norm.size
    heads = q.shape[1] // H
    first, last = share(panels.count * heads, me.thread, me.num_threads)
    for task in range(first, last):
        p, head = task // heads, task % heads
        at = (p * q.shape[1] + head * H) * 16
        rope_at = (panels.first + p) * (H // 2) * 16
        norm_rope(q, at, q_norm, eps, tokens.cos, tokens.sin, rope_at, q, at)
