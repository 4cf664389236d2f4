"""The kernels' registry: a function for each makes its operands, of any size, stored in every way there is.
test_kernels.py checks the cases it asks for; benchmarks/micro.py checks and times the model's own sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qwen3np.kernels import attention, isa, matmul, team
from qwen3np.kernels import kv_layout as keys_values
from qwen3np.kernels import norm_rope as norm
from qwen3np.kernels.panels import Panels, Tokens
from qwen3np.loading.checkpoint import widen
from qwen3np.runtime.packed_batch import text_segments
from qwen3np.runtime.packed_weights import allocate, as_uint32, pack_share, pad
from qwen3np.synth.checkpoints import to_bfloat16

EPS = 2.0**-24
# How operands are stored, and the unit that multiplies them; "tiles n" are of n parts, for AMX. Where the CPU
# has none they are spelled out in float32.
KINDS = {"pairs": "float32", "float32": "float32"}
if "avx512_bf16" in isa.available():
    KINDS["dot"] = "vdpbf16ps"
KINDS |= {f"tiles {n}": "AMX bfloat16" for n in (1, 2, 3)}
# Passes that parts need: for activations by weights, and for queries by keys (the smallest are left out).
PASSES = {"tiles 2": (2, 3), "tiles 3": (3, 6)}
STALE = np.float32([-1e37])  # what may lie behind a text's last key: any finite number


@dataclass
class Case:
    """run() computes; check() asserts that the result of the last run is right, against float64."""

    run: Callable[[], object]
    check: Callable[[], None]
    multiply_adds: float  # those of the kernel's definition, times the passes that parts need
    bytes: float  # of operands, each read once


MATMUL_SCRATCH = matmul.scratch_size(64, 12288)


@njit(nogil=True)
def alone():
    """A team of one thread."""
    return team.Worker(np.zeros(team.COUNTERS, np.int64), 0, 1)


@njit(nogil=True)
def run_matmul(w, x, y, count):
    matmul.matmul(w, x, y, Panels(0, count), np.empty(MATMUL_SCRATCH, np.float32), alone())


@njit(nogil=True)
def run_matmul_add(w, x, y, count):
    matmul.matmul_add(w, x, y, Panels(0, count), np.empty(MATMUL_SCRATCH, np.float32), alone())


@njit(nogil=True)
def run_swiglu(w, x, y, count, scratch):
    matmul.matmul_swiglu(w, x, y, count, scratch, alone())


def random(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def parts_of(kind: str) -> int:
    """bfloat16 parts of an activation; 0 for float32."""
    return int(kind[-1]) if kind.startswith("tiles") else int(kind == "dot")


def aligned(array):
    """A copy as the model has it, from a cache line on: a tile that lies across lines loads six times
    slower."""
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


def packed(w_NK, kind, *more):
    """As weights.py packs it; with more matrices of the same shape, 16 rows of each in turns."""
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
    if not parts:
        return to_panels(x_TD, rows), x_TD
    bfloats = split(x_TD, parts)
    pairs = [to_panels(b, rows).reshape(-1, rows // 2, 2, 16).transpose(0, 1, 3, 2) for b in bfloats]
    laid = np.stack([p.reshape(len(p), rows // 2, 32) for p in pairs], axis=1)
    held = sum(map(widen, bfloats))
    return aligned(laid if kind.startswith("tiles") else laid[:, 0]), held


def matmul_case(N: int, K: int, tokens: int, kind: str, seed: int = 0) -> Case:
    """y = W x, and y += W x: that adds the same sums, to the bit."""
    w_NK = to_bfloat16(random(seed, N, K))
    w = packed(w_NK, kind)
    x, x_TD = operand(random(tokens, tokens, K), kind)
    y = allocate((len(x), pad(N, 32), 16), np.float32)

    def check():
        exact = x_TD.astype(np.float64) @ widen(w_NK, np.float64).T
        bound = 16 * EPS * (np.abs(x_TD) @ np.abs(widen(w_NK)).T) + 1e-30
        assert (np.abs(from_panels(y, tokens)[:, :N] - exact) <= bound).all()
        assert not y[:, N:].any()  # padding stays zero
        added = np.full_like(y, 3.0)
        run_matmul_add(w, x, added, len(x))
        np.testing.assert_array_equal(added, np.float32(3) + y)

    products = N * K * tokens * PASSES.get(kind, (1, 1))[0]
    return Case(lambda: run_matmul(w, x, y, len(x)), check, products, w.nbytes + x.nbytes)


def swiglu_case(F: int, D: int, tokens: int, kind: str, seed: int = 0) -> Case:
    """silu(gate x) * (up x)"""
    gate, up = to_bfloat16(random(2 * seed, F, D)), to_bfloat16(random(2 * seed + 1, F, D))
    w = packed(gate, kind, up)
    x, x_TD = operand(random(tokens, tokens, D), kind)
    y = np.zeros((len(x), pad(F, 32), 16), np.float32)
    scratch = allocate((MATMUL_SCRATCH,), np.float32)

    def check():
        g, u = (x_TD.astype(np.float64) @ widen(m, np.float64).T for m in (gate, up))
        size_g, size_u = (np.abs(x_TD) @ np.abs(widen(m)).T for m in (gate, up))
        exact = g / (1 + np.exp(-g)) * u
        bound = 32 * EPS * (size_g * (np.abs(u) + 1) + size_u * np.abs(g) + np.abs(exact))
        assert (np.abs(from_panels(y, tokens)[:, :F] - exact) <= bound).all()
        assert not y[:, F:].any()

    products = 2 * F * D * tokens * PASSES.get(kind, (1, 1))[0]
    return Case(lambda: run_swiglu(w, x, y, len(x), scratch), check, products, w.nbytes + x.nbytes)


def rms_norm_case(size: int, tokens: int) -> Case:
    weight = np.exp(random(0, size))
    x_TD = random(tokens, tokens, size)
    x_TD[0, 0] = 5700  # a massive activation
    x = to_panels(x_TD, pad(size, 32))
    out = np.zeros_like(x)

    def check():
        x64 = x_TD.astype(np.float64)
        exact = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 3e-3) * weight
        np.testing.assert_allclose(from_panels(out, tokens)[:, :size], exact, rtol=64 * EPS)
        assert not out[:, size:].any()
        for parts in (1, 2, 3):
            pairs = np.zeros((len(x), parts, pad(size, 32) // 2, 32), np.uint16)
            norm.rms_norm(x, Panels(0, len(x)), weight, np.float32(3e-3), pairs, alone())
            values = widen(pairs.reshape(len(x), parts, -1, 16, 2).transpose(1, 0, 2, 4, 3))
            total = values.reshape(parts, *out.shape).sum(axis=0, dtype=np.float64)
            assert (np.abs(total - out) <= np.abs(out) * 2.0 ** (-9 * parts + 1)).all()

    def run():
        norm.rms_norm(x, Panels(0, len(x)), weight, np.float32(3e-3), out, alone())

    return Case(run, check, 2 * size * tokens, x.nbytes + out.nbytes)


def stored(x_SKH, places, kind, values=False):
    """Keys or values as kernels/keys_values.py lays them out: token s at place places[s]."""
    _, K, H = x_SKH.shape
    S, parts, tiles = pad(places.max() + 1, 32), parts_of(kind), kind.startswith("tiles")
    shape = keys_values.shapes(K, S, H, parts, tiles)[values]
    rows = keys_values.padded(H, tiles) if tiles or values else H
    out = np.stack([np.broadcast_to(part, (K, S, rows)) for part in split(STALE, parts)], axis=1)
    for part, x in enumerate(split(x_SKH, parts)):
        out[:, part, places, :H] = x.transpose(1, 0, 2)
    width = 1 if kind == "float32" else 2
    if tiles and values:
        laid = out.reshape(K, parts, -1, 32, rows // 32, 2, 16).transpose(0, 1, 4, 2, 5, 6, 3)
    elif tiles:
        laid = out.reshape(K, parts, -1, 2, 16, rows // 32, 32).transpose(0, 2, 1, 5, 3, 4, 6)
    elif values:
        laid = out.reshape(K, -1, width, rows // 16, 16).transpose(0, 3, 1, 4, 2)
    else:
        laid = out.reshape(K, -1, 16, H // width, width).transpose(0, 1, 3, 2, 4)
    return aligned(laid).reshape(shape)


def attention_case(N: int, K: int, H: int, lengths: Sequence[int], kind: str) -> Case:
    """N query heads on K key/value heads of H channels; sequences back to back, each against float64."""
    sizes = np.array(lengths)
    ends = np.cumsum(sizes)
    begins, S = ends - sizes, int(ends[-1])
    key_begins = np.cumsum(pad(sizes, 32)) - pad(sizes, 32)
    places = np.arange(S) + np.repeat(key_begins - begins, sizes)
    q_TD, k_SKH, v_SKH = random(0, S, N * H), random(1, S, K, H), random(2, S, K, H)
    count = -(-S // 16)
    q = to_panels(q_TD, pad(N * H, 16))
    keys, values = stored(k_SKH, places, kind), stored(v_SKH, places, kind, values=True)
    panel, segments = text_segments(begins, ends, key_begins)
    starts = np.searchsorted(panel, np.arange(count + 1))
    slots = np.zeros((count, 16), np.float32)
    slots.ravel()[:S] = places
    tokens = Tokens(slots, slots, slots, starts, segments)  # cos and sin are not attention's
    out = np.zeros((count, pad(N * H, 32), 16), np.float32)
    scratch = aligned(np.full(attention.scratch_size(H, N // K), np.nan, np.float32))

    def run():
        panels = Panels(0, count)
        attention.attention(q, panels, tokens, keys, values, N // K, H, out, scratch, alone())

    def check():
        got = from_panels(out, S)[:, : N * H].reshape(S, N, H)
        parts = parts_of(kind)
        held_q, held_k, held_v = (
            sum(widen(p) if parts else p for p in split(x, parts)) for x in (q_TD, k_SKH, v_SKH)
        )
        rest = 2.0 ** (-9 * parts + 1) if parts else 0  # of a probability, what its parts do not hold
        left_out = 4 * rest if parts > 1 else 0  # of a product, what left-out pairs of parts can hold
        for begin, end in zip(begins, ends, strict=True):
            T = end - begin
            for n in range(N):
                qn = held_q[begin:end, n * H : (n + 1) * H].astype(np.float64)
                kn, vn = held_k[begin:end, n // (N // K)], held_v[begin:end, n // (N // K)]
                scores = qn @ kn.T.astype(np.float64) * H**-0.5
                scores[np.triu(np.ones((T, T), bool), 1)] = -np.inf
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                weights /= weights.sum(axis=1, keepdims=True)
                # An error of the scores is a relative error of the probabilities.
                size = (np.abs(qn) @ np.abs(kn).T * H**-0.5).max(axis=1, keepdims=True)
                relative = (8 * EPS + left_out) * size + 32 * EPS + left_out + rest
                assert (np.abs(got[begin:end, n] - weights @ vn) <= relative * (weights @ np.abs(vn))).all()

    pairs = float((sizes * (sizes + 1) / 2).sum())
    products = 2 * N * H * pairs * PASSES.get(kind, (1, 1))[1]
    return Case(run, check, products, q.nbytes + keys.nbytes + values.nbytes)
