"""Each kernel against float64 over odd sizes; the tolerance is c * eps * sum |a||b|, the bound of a sum."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from qwen3np.kernels import attention, isa, keys_values, lanes, matmul, norm, panels, team

from qwen3np.checkpoint import widen
from qwen3np.numba_backend import text_segments
from qwen3np.synth import to_bfloat16
from qwen3np.weights import allocate, as_uint32, pack_share, pad

EPS = 2.0**-24
TOKENS = (1, 15, 16, 17, 31, 33, 100)
# [N, K] of the projections of the 0.6B, 4B and 8B (rows shortened: they are independent), and odd ones.
WIDTHS = (
    (48, 1024),
    (32, 2048),
    (32, 3072),
    (16, 2560),
    (16, 4096),
    (16, 9728),
    (16, 12288),
    (50, 70),
    (33, 31),
    (7, 5),
)
# How operands are stored; "tiles n": of n parts, for AMX. Where the CPU has none they are spelled out in
# float32: slow, as little else then compiles them.
TILES = [
    pytest.param(f"tiles {n}", marks=[] if "amx" in isa.available() else pytest.mark.slow) for n in (1, 2, 3)
]
KINDS = ["pairs", "float32", *TILES, *(["dot"] if "avx512_bf16" in isa.available() else [])]


matmul_scratch = matmul.scratch_size(7)


@njit(nogil=True)
def run_matmul(w, x, y, count):
    matmul.matmul(w, x, y, 0, count, 0, 1)


@njit(nogil=True)
def run_matmul_add(w, x, y, count):
    matmul.matmul_add(w, x, y, 0, count, np.empty(matmul_scratch, np.float32), 0, 1)


@njit(nogil=True)
def run_swiglu(w, x, y, count, scratch):
    matmul.matmul_swiglu(w, x, y, count, scratch, 0, 1)


@njit(nogil=True)
def run_exp(x, y):
    for i in range(0, x.size, 16):
        lanes.store(y, i, lanes.exp(lanes.load(x, i)))


@njit(nogil=True)
def run_silu(x, y):
    for i in range(0, x.size, 16):
        lanes.store(y, i, panels.silu(lanes.load(x, i)))


def to_panels(x_TD, rows):
    """[T, D] -> [P, rows, 16], zeros beyond."""
    count = -(-len(x_TD) // 16)
    padded = np.zeros((count * 16, rows), np.float32)
    padded[: len(x_TD), : x_TD.shape[1]] = x_TD
    return np.ascontiguousarray(padded.reshape(count, 16, rows).transpose(0, 2, 1))


def from_panels(panels_PD16, tokens):
    return panels_PD16.transpose(0, 2, 1).reshape(-1, panels_PD16.shape[1])[:tokens]


def packed(w_NK, kind, tile=0, step=1, tiles=None):
    N, K = w_NK.shape
    tiles = tiles or pad(N, 32) // 16
    if kind.startswith("tiles"):
        out = allocate((tiles // 2, pad(K, 32) // 32, 2, 16, 32), np.uint16)
        pack_share(as_uint32(w_NK), out.view(np.uint32), tile, step, 0, 1)
        return out
    shape = (tiles, pad(K, 32), 16) if kind == "float32" else (tiles, pad(K, 32) // 2, 16, 2)
    out = allocate(shape, np.float32 if kind == "float32" else np.uint16)
    source = widen(w_NK) if kind == "float32" else w_NK
    pack_share(as_uint32(source), out.view(np.uint32).reshape(tiles, -1, 16), tile, step, 0, 1)
    return out


def operand(x_TD, kind):
    """As the kernels read it, and the float values it then holds."""
    x = to_panels(x_TD, pad(x_TD.shape[1], 32))
    if kind in ("pairs", "float32"):
        return x, x_TD
    parts, held, left = [], np.zeros_like(x_TD), x_TD
    for _ in range(int(kind[-1]) if kind.startswith("tiles") else 1):
        part = to_bfloat16(to_panels(left, x.shape[1])).reshape(len(x), -1, 2, 16).transpose(0, 1, 3, 2)
        parts.append(part.reshape(len(x), -1, 32))
        held, left = held + widen(to_bfloat16(left)), left - widen(to_bfloat16(left))
    return (np.stack(parts, 1) if kind.startswith("tiles") else parts[0].copy()), held


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", WIDTHS)
def test_matmul(shape, kind):
    N, K = shape
    w_NK = to_bfloat16(random(0, N, K))
    w = packed(w_NK, kind)
    for tokens in TOKENS:
        x, x_TD = operand(random(tokens, tokens, K), kind)
        exact = x_TD.astype(np.float64) @ widen(w_NK, np.float64).T
        bound = 16 * EPS * (np.abs(x_TD) @ np.abs(widen(w_NK)).T) + 1e-30
        y = np.zeros((len(x), pad(N, 32), 16), np.float32)
        run_matmul(w, x, y, len(x))
        assert (np.abs(from_panels(y, tokens)[:, :N] - exact) <= bound).all()
        assert not y[:, N:].any()  # padding stays zero
        added = np.full_like(y, 3.0)
        run_matmul_add(w, x, added, len(x))
        np.testing.assert_array_equal(added, np.float32(3) + y)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_the_same_bits_whatever_the_block(kind):
    w = packed(to_bfloat16(random(0, 32, 96)), kind)
    x, _ = operand(random(1, 16 * 7, 96), kind)
    alone = np.zeros((7, 32, 16), np.float32)
    for p in range(7):
        run_matmul(w, x[p : p + 1].copy(), alone[p : p + 1], 1)
    for count in range(1, 8):
        together = np.zeros((count, 32, 16), np.float32)
        run_matmul(w, x[:count].copy(), together, count)
        np.testing.assert_array_equal(together, alone[:count])


@pytest.mark.parametrize("kind", ["pairs", TILES[1]])
@pytest.mark.parametrize("shape", [(3072, 64), (80, 48), (47, 33)])
def test_swiglu(shape, kind):
    F, D = shape
    gate, up = to_bfloat16(random(0, F, D)), to_bfloat16(random(1, F, D))
    w = packed(gate, kind, 0, 2, 2 * pad(F, 32) // 16)
    words = w.view(np.uint32) if kind == "tiles 2" else w.view(np.uint32).reshape(len(w), -1, 16)
    pack_share(as_uint32(up), words, 1, 2, 0, 1)
    for tokens in TOKENS:
        x, x_TD = operand(random(tokens, tokens, D), kind)
        g, u = (x_TD.astype(np.float64) @ widen(m, np.float64).T for m in (gate, up))
        y = np.zeros((len(x), pad(F, 32), 16), np.float32)
        run_swiglu(w, x, y, len(x), np.zeros(matmul_scratch, np.float32))
        exact = g / (1 + np.exp(-g)) * u
        size = np.abs(x_TD) @ np.abs(widen(gate)).T * (np.abs(u) + 1) + np.abs(x_TD) @ np.abs(
            widen(up)
        ).T * np.abs(g)
        assert (np.abs(from_panels(y, tokens)[:, :F] - exact) <= 32 * EPS * (size + np.abs(exact))).all()
        assert not y[:, F:].any()


def test_exp_and_silu():
    x = np.concatenate([np.linspace(-100, 100, 9600), [-np.inf, -87.01, 0, 88] * 4]).astype(np.float32)
    y = np.empty_like(x)
    run_exp(x, y)
    exact = np.exp(np.minimum(x.astype(np.float64), 88))
    np.testing.assert_allclose(y[x > -87], exact[x > -87], rtol=4 * EPS)
    assert not y[x < -87].any()  # exactly zero: a masked key adds nothing
    assert y[x == 0][0] == 1
    run_silu(x[:9600], y[:9600])
    x = x[:9600].astype(np.float64)
    np.testing.assert_allclose(y[:9600], x / (1 + np.exp(-x)), rtol=8 * EPS, atol=1e-35)


@pytest.mark.parametrize("size", [1, 5, 33, 48, 1024, 4096])
def test_rms_norm(size):
    weight = np.exp(random(0, size))
    for tokens in TOKENS:
        x_TD = random(tokens, tokens, size)
        x_TD[0, 0] = 5700  # a massive activation
        x = to_panels(x_TD, pad(size, 32))
        out = np.zeros_like(x)
        norm.rms_norm(x, 0, len(x), weight, np.float32(3e-3), out, 0, 1)
        x64 = x_TD.astype(np.float64)
        exact = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 3e-3) * weight
        np.testing.assert_allclose(from_panels(out, tokens)[:, :size], exact, rtol=64 * EPS)
        assert not out[:, size:].any()
        for parts in (1, 2, 3):
            operand = np.zeros((len(x), parts, pad(size, 32) // 2, 32), np.uint16)
            norm.rms_norm(x, 0, len(x), weight, np.float32(3e-3), operand, 0, 1)
            values = widen(operand.reshape(len(x), parts, -1, 16, 2).transpose(1, 0, 2, 4, 3))
            total = values.reshape(parts, *out.shape).sum(axis=0, dtype=np.float64)
            assert (np.abs(total - out) <= np.abs(out) * 2.0 ** (-9 * parts + 1)).all()


def split(x, parts):
    """Its bfloat16 parts; with none, x itself."""
    bfloats, left = [], x
    for _ in range(parts):
        bfloats.append(to_bfloat16(left))
        left = left - widen(bfloats[-1])
    return bfloats or [x]


def parts_of(kind):
    return int(kind[-1]) if kind.startswith("tiles") else int(kind == "dot")


STALE = np.float32([-1e37])  # what may lie behind a text's last key: any finite number


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
        laid = out.reshape(K, -1, 16 // width, width, rows).transpose(0, 1, 2, 4, 3)
    else:
        laid = out.reshape(K, -1, 16, H // width, width).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(laid).reshape(shape)


HEADS = [(16, 8, 128), (32, 8, 128), (6, 2, 10), (3, 1, 64), (5, 5, 18)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pairs"])
@pytest.mark.parametrize("heads", HEADS)
def test_attention_of_packed_sequences(heads, kind):
    """Sequences back to back, some across panels and chunks, against float64 one by one."""
    N, K, H = heads
    lengths = np.array([1, 15, 16, 17, 31, 33, 300, 2])
    ends = np.cumsum(lengths)
    begins, S = ends - lengths, ends[-1]
    key_begins = np.cumsum(pad(lengths, 32)) - pad(lengths, 32)
    places = np.arange(S) + np.repeat(key_begins - begins, lengths)
    q_TD, k_SKH, v_SKH = random(0, S, N * H), random(1, S, K, H), random(2, S, K, H)
    count = -(-S // 16)
    q = to_panels(q_TD, pad(N * H, 16))
    keys, values = stored(k_SKH, places, kind), stored(v_SKH, places, kind, values=True)
    panel, segments = text_segments(begins, ends, key_begins)
    starts = np.searchsorted(panel, np.arange(count + 1))
    tokens = np.zeros((count, 16), np.float32)
    tokens.ravel()[:S] = places
    out = np.zeros((count, pad(N * H, 32), 16), np.float32)
    scratch = np.full(attention.scratch_size(H, N // K), np.nan, np.float32)
    attention.attention(
        q, count, 0, keys, values, N // K, H, starts, segments, tokens, out, scratch, team.new_team()
    )
    got = from_panels(out, S)[:, : N * H].reshape(S, N, H)
    parts = parts_of(kind)
    q_TD, k_SKH, v_SKH = (sum(map(widen, split(x, parts))) for x in (q_TD, k_SKH, v_SKH))
    rest = 2.0 ** (-9 * parts + 1) if parts else 0  # of a probability, what its parts do not hold
    left_out = 4 * rest if parts > 1 else 0  # of a product, what left-out pairs of parts can hold
    for begin, end in zip(begins, ends, strict=True):
        T = end - begin
        for n in range(N):
            qn = q_TD[begin:end, n * H : (n + 1) * H].astype(np.float64)
            scores = qn @ k_SKH[begin:end, n // (N // K)].T.astype(np.float64) * H**-0.5
            scores[np.triu(np.ones((T, T), bool), 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            v = v_SKH[begin:end, n // (N // K)]
            # An error of the scores is a relative error of the probabilities.
            sizes = np.abs(qn) @ np.abs(k_SKH[begin:end, n // (N // K)]).T * H**-0.5
            size = sizes.max(axis=1, keepdims=True)
            relative = (8 * EPS + left_out) * size + 32 * EPS + left_out + rest
            bound = relative * (weights @ np.abs(v))
            assert (np.abs(got[begin:end, n] - weights @ v) <= bound).all()
