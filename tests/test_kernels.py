"""Each kernel against float64 over odd sizes; the tolerance is c * eps * sum |a||b|, the bound of a sum."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import (
    EPS,
    KINDS,
    attention_case,
    matmul_case,
    operand,
    packed,
    random,
    rms_norm_case,
    run_matmul,
    swiglu_case,
)
from numba import njit, typeof

from qwen3np.kernels import isa, matmul, panels
from qwen3np.kernels import simd as lanes
from qwen3np.synth.checkpoints import to_bfloat16

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
HEADS = [(16, 8, 128), (32, 8, 128), (6, 2, 10), (3, 1, 64), (5, 5, 18)]
LENGTHS = (1, 15, 16, 17, 31, 33, 300, 2)  # some across panels and chunks


def kinds(*left_out):
    """Tiles are slow where the CPU has none: little else compiles them."""
    slow = [] if "amx" in isa.available() else [pytest.mark.slow]
    return [
        pytest.param(kind, marks=slow if kind.startswith("tiles") else [])
        for kind in KINDS
        if kind not in left_out
    ]


@njit(nogil=True)
def run_exp(x, y):
    for i in range(0, x.size, 16):
        lanes.store(y, i, lanes.exp(lanes.load(x, i)))


@njit(nogil=True)
def run_silu(x, y):
    for i in range(0, x.size, 16):
        lanes.store(y, i, panels.silu(lanes.load(x, i)))


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("shape", WIDTHS)
def test_matmul(shape, kind):
    for tokens in TOKENS:
        case = matmul_case(*shape, tokens, kind)
        case.run()
        case.check()


@pytest.mark.parametrize("kind", kinds())
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


@pytest.mark.parametrize("K", [64, 320])
def test_weights_widened_once_give_the_same_bits(K):
    """What Intel's AVX-512 does with 48 tokens and more."""
    w = packed(to_bfloat16(random(0, 32, K)), "pairs")
    x, _ = operand(random(1, 16 * 6, K), "pairs")
    scratch = np.empty(matmul.scratch_size(6, K), np.float32)
    results = []
    for widens in (False, True):
        multiply = matmul.rows_times_panels("store", typeof(w), typeof(x), widens)

        @njit
        def run(w, x, y, panels, scratch, multiply=multiply):
            for n in range(2):
                multiply(w, n, x, 0, x[0].size, y, n * 256, y[0].size, panels, scratch, matmul.RESULTS)

        for count in range(1, 7):
            y = np.zeros((count, 32, 16), np.float32)
            run(w, x[:count].copy(), y, count, scratch)
            results.append(y)
    for in_registers, widened in zip(results[:6], results[6:], strict=True):
        np.testing.assert_array_equal(in_registers, widened)


@pytest.mark.parametrize("kind", kinds("float32", "dot", "tiles 1", "tiles 3"))
@pytest.mark.parametrize("shape", [(3072, 64), (80, 48), (47, 33)])
def test_swiglu(shape, kind):
    for tokens in TOKENS:
        case = swiglu_case(*shape, tokens, kind)
        case.run()
        case.check()


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


@njit
def run_round(even, odd, pairs):
    lanes.store(pairs, 0, panels.pairs(lanes.load(even, 0), lanes.load(odd, 0)))


def test_rounding_to_bfloat16():
    """To nearest even, beyond the largest to infinity; a NaN whose upper bits are zero stays a NaN."""
    ties = np.float32(1) + np.arange(8, dtype=np.float32) / 256
    nan = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    limits = np.array([np.inf, -np.inf, 3.4e38, -3.4e38, 0.0], np.float32)
    even = np.concatenate([ties, limits, nan])
    odd = np.concatenate([np.nextafter(-even[:-3], np.float32(0)), nan])
    pairs = np.empty(32, np.uint16)
    run_round(even, odd, pairs)
    for x, bits in ((even, pairs[::2]), (odd, pairs[1::2])):
        number = ~np.isnan(x)
        np.testing.assert_array_equal(bits[number], to_bfloat16(x[number]))
        assert np.isnan((bits[~number].astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("size", [1, 5, 33, 48, 1024, 4096])
def test_rms_norm(size):
    for tokens in TOKENS:
        case = rms_norm_case(size, tokens)
        case.run()
        case.check()


@pytest.mark.parametrize("kind", kinds("pairs"))
@pytest.mark.parametrize("heads", HEADS)
def test_attention_of_packed_sequences(heads, kind):
    case = attention_case(*heads, LENGTHS, kind)
    case.run()
    case.check()
