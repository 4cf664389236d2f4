"""Each kernel against float64 over odd sizes; the tolerance is c * eps * sum |a||b|, the bound of a sum."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import EPS, KERNELS, KINDS, run_attention, run_matmul
from kernel_operands import (
    from_panels,
    operand,
    packed,
    panels_of,
    random,
    sequences,
    stored,
    to_panels,
)
from numba import njit, typeof

from qwen3np import engine
from qwen3np.kernels import attention, isa, matmul, panels
from qwen3np.kernels import simd as lanes
from qwen3np.synth.checkpoints import to_bfloat16

# Compiled for weights in pairs and for tiles of two parts alone: matmul's code but for the last step.
LEFT_OUT = {"matmul_swiglu": ("float32", "dot", "tiles 1", "tiles 3", "bytes")}
# What engine.py imports of kernels beside the kernels.
OTHERS = {"entry_point", "inline", "share", "stopping", "wait", "Panels", "Tokens", "Worker"}


def slow_if_emulated(kind: str) -> list[pytest.MarkDecorator]:
    """What the CPU has no instructions for is slow, and little else compiles it."""
    emulated = kind.startswith("tiles") and "amx" not in isa.available() or kind == "bytes" and not isa.vnni()
    return [pytest.mark.slow] if emulated else []


def registered():
    for name, kernel in KERNELS.items():
        for kind in kernel.kinds:
            for shape in kernel.shapes:
                if kind not in LEFT_OUT.get(name, ()):
                    id = "-".join([name, "x".join(map(str, shape)), kind])
                    yield pytest.param(name, shape, kind, id=id, marks=slow_if_emulated(kind))


@pytest.mark.parametrize("name, shape, kind", list(registered()))
def test_a_kernel_against_float64(name, shape, kind):
    for tokens in KERNELS[name].tokens:
        case = KERNELS[name].case(shape, tokens, kind)
        case.run()
        case.check()


def test_the_registry_has_every_kernel_of_the_engine():
    found = {
        value.__name__
        for value in vars(engine).values()
        if getattr(value, "__module__", "").startswith("qwen3np.kernels.")
    }
    assert found - OTHERS == KERNELS.keys()


@pytest.mark.slow
def test_attention_over_the_longest_text():
    """Sampled rows of 32,768 tokens against float64: the first, the last, and some between."""
    S, H = 32768, 32
    given = sequences([S], H)
    q, k, v = random(0, S, H), random(1, S, 1, H), random(2, S, 1, H)
    keys, values = stored(k, given.slots, "float32"), stored(v, given.slots, "float32", values=True)
    out = np.zeros((S // 16, H, 16), np.float32)
    scratch = np.empty(attention.scratch_size(H, 1), np.float32)
    run_attention(to_panels(q, H), given.tokens, keys, values, 1, H, out, scratch)
    got = from_panels(out, S)
    for row in (0, 1, 15, 16, 511, 512, 4095, 20000, S - 17, S - 1):
        scores = k[: row + 1, 0].astype(np.float64) @ q[row] * H**-0.5
        weights = np.exp(scores - scores.max())
        exact = weights @ v[: row + 1, 0] / weights.sum()
        np.testing.assert_allclose(got[row], exact, atol=2e-6)


@njit(nogil=True)
def run_exp(x, y):
    for i in range(0, x.size, 16):
        lanes.store(y, i, lanes.exp(lanes.load(x, i)))


@njit(nogil=True)
def run_silu(x, y):
    for i in range(0, x.size, 16):
        lanes.store(y, i, panels.silu(lanes.load(x, i)))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow_if_emulated(kind)) for kind in KINDS])
def test_a_token_is_the_same_bits_whatever_the_block(kind):
    w = packed(to_bfloat16(random(0, 32, 96)), kind)
    x_TD = random(1, 16 * 7, 96)
    x_TD[20:23, 5] = 500  # an outlier in one panel
    x, _ = operand(x_TD, kind)
    alone = np.zeros((7, 32, 16), np.float32)
    for p in range(7):
        run_matmul(w, panels_of(x, p, p + 1), alone[p : p + 1])
    for count in range(1, 8):
        together = np.zeros((count, 32, 16), np.float32)
        run_matmul(w, panels_of(x, 0, count), together)
        np.testing.assert_array_equal(together, alone[:count])


@pytest.mark.slow
def test_weights_widened_once_give_the_same_bits():
    """What Intel's AVX-512 does with 48 tokens and more."""
    w_64, x_64 = packed(to_bfloat16(random(0, 32, 64)), "pairs"), operand(random(1, 96, 64), "pairs")[0]
    multiply, widening = (
        matmul.rows_times_panels("store", typeof(w_64), typeof(x_64), widens) for widens in (False, True)
    )

    @njit
    def run(w, x, y, z, panels, scratch):
        for n in range(2):
            multiply(w, n, x, 0, x[0].size, y, n * 256, y[0].size, panels, scratch, matmul.RESULTS)
            widening(w, n, x, 0, x[0].size, z, n * 256, z[0].size, panels, scratch, matmul.RESULTS)

    for K in (64, 320):
        w, (x, _) = packed(to_bfloat16(random(0, 32, K)), "pairs"), operand(random(1, 96, K), "pairs")
        scratch = np.empty(matmul.scratch_size(6, K), np.float32)
        for count in range(1, 7):
            y, z = np.zeros((2, count, 32, 16), np.float32)
            run(w, x[:count].copy(), y, z, count, scratch)
            assert y.any()
            np.testing.assert_array_equal(y, z)


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
