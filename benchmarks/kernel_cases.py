"""The registry of kernels: how a case of each is made, in which sizes it is checked, and in which timed.

tests/test_kernels.py checks the small and odd sizes; micro.py checks and times the 0.6B's. The registry lies
here because a script's folder is the only one that Python puts on its path; pytest puts it there, too
(pyproject.toml).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from kernel_operands import (
    INTEGERS,
    Sequences,
    aligned,
    blocks_of,
    from_panels,
    held_integers,
    held_weights,
    operand,
    packed,
    parts_of,
    random,
    rounded_operand,
    run_complete,
    sequences,
    split,
    stored,
    to_panels,
    unstored,
)

from qwen3np.kernels import attention, isa, kv_layout, matmul, norm_rope
from qwen3np.kernels.compact import COLUMNS
from qwen3np.kernels.integer import OUTLIER
from qwen3np.kernels.isa import has_feature
from qwen3np.kernels.jit import entry_point, inline
from qwen3np.kernels.panels import Panels, Rounded
from qwen3np.kernels.team import COUNTERS, Worker
from qwen3np.loading.checkpoint import widen
from qwen3np.runtime.packed_batch import text_slots
from qwen3np.runtime.packed_weights import allocate, pad
from qwen3np.synth.checkpoints import LIKE, to_bfloat16

EPS = 2.0**-24
# How operands are stored, and the unit that multiplies them; "tiles n" are of n parts, for AMX. Where the CPU
# has none they are emulated in float32.
KINDS = {"pairs": "float32", "float32": "float32"}
if "avx512_bf16" in isa.available():
    KINDS["dot"] = "vdpbf16ps"
KINDS |= {f"tiles {n}": "AMX bfloat16" for n in (1, 2, 3)}
NOT_PAIRS = [kind for kind in KINDS if kind != "pairs"]  # a way to store weights alone
KINDS |= {"words": "int16", "bytes": "int8"} if has_feature("avx2") else {}
# Passes that parts need: for activations by weights, and for queries by keys (the smallest are left out).
PASSES = {"tiles 2": (2, 3), "tiles 3": (3, 6)}
NORM_EPS = np.float32(3e-3)


@dataclass
class Case:
    """run() computes; check() asserts that the result of the last run is right, against float64."""

    run: Callable[[], object]
    check: Callable[[], None]
    multiply_adds: float = 0  # those of the kernel's definition, times the passes that parts need
    bytes: float = 0  # of operands, each read once


@dataclass(frozen=True)
class Kernel:
    """One kernel of the registry.

    Args:
        case: makes a Case from (shape, tokens, kind, seed).
        kinds: how its operands may be stored.
        shapes: the small and odd ones that tests check, each with every one of `tokens`.
        tokens: how many, or the lengths of sequences.
        timed: the sizes of the 0.6B, by what they are called: (shape, tokens).
        weights: it reads weights, which no cache holds in a model.
    """

    case: Callable[..., Case]
    kinds: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    tokens: Sequence[Any]
    timed: Mapping[str, tuple[tuple[int, ...], Any]] = field(default_factory=dict)
    weights: bool = False


MATMUL_SCRATCH = matmul.scratch_size(64, 12288)


@inline
def alone():
    """A team of one thread."""
    return Worker(np.zeros(COUNTERS, np.int64), 0, 1)


@entry_point
def run_matmul(w, x, y):
    matmul.matmul(w, x, y, Panels(0, len(y)), np.empty(MATMUL_SCRATCH, np.float32), alone())


@entry_point
def run_matmul_add(w, x, y):
    matmul.matmul_add(w, x, y, Panels(0, len(y)), np.empty(MATMUL_SCRATCH, np.float32), alone())


@entry_point
def run_swiglu(w, x, y, scratch):
    matmul.matmul_swiglu(w, x, y, len(y), scratch, alone())


@entry_point
def run_rms_norm(x, weight, out):
    norm_rope.rms_norm(x, Panels(0, len(x)), weight, NORM_EPS, out, alone())


@entry_point
def run_norm_rope_queries(q, tokens, weight):
    norm_rope.norm_rope_queries(q, Panels(0, len(q)), tokens, weight, NORM_EPS, alone())


@entry_point
def run_store_keys_values(kv, tokens, weight, keys, values):
    kv_layout.store_keys_values(kv, Panels(0, len(kv)), tokens, weight, NORM_EPS, keys, values, alone())


@entry_point
def run_copy_slots(source, source_at, target, target_at, count):
    kv_layout.copy_slots(source, source_at, target, target_at, count, alone())


@entry_point
def run_attention(q, tokens, keys, values, group, head_dim, out, scratch):
    attention.attention(q, Panels(0, len(q)), tokens, keys, values, group, head_dim, out, scratch, alone())


def bytes_of(operand: Any) -> float:
    """What a matmul reads of an operand: of integers, not the panels they were made from."""
    return sum(array.nbytes for array in operand[1:]) if isinstance(operand, Rounded) else operand.nbytes


def matmul_case(shape: tuple[int, int], tokens: int, kind: str, seed: int = 0) -> Case:
    """y = W x"""
    N, K = shape
    w_NK = to_bfloat16(random(seed, N, K))
    w = packed(w_NK, kind)
    x, x_TD = operand(random(tokens, tokens, K), kind)
    y = allocate((-(-tokens // 16), pad(N, 32), 16), np.float32)

    def check() -> None:
        exact = x_TD.astype(np.float64) @ held_weights(w_NK, kind).T
        bound = 16 * EPS * (np.abs(x_TD) @ np.abs(widen(w_NK)).T) + 1e-30
        assert (np.abs(from_panels(y, tokens)[:, :N] - exact) <= bound).all()
        assert not y[:, N:].any()  # padding stays zero

    products = N * K * tokens * PASSES.get(kind, (1, 1))[0]
    return Case(lambda: run_matmul(w, x, y), check, products, w.nbytes + bytes_of(x))


def matmul_add_case(shape: tuple[int, int], tokens: int, kind: str, seed: int = 0) -> Case:
    """y += W x: it adds the sums of matmul, to the bit."""
    N, K = shape
    w = packed(to_bfloat16(random(seed, N, K)), kind)
    x, _ = operand(random(tokens, tokens, K), kind)
    y = allocate((-(-tokens // 16), pad(N, 32), 16), np.float32)
    product = np.empty_like(y)

    def run() -> None:
        y[:] = 3
        run_matmul_add(w, x, y)

    def check() -> None:
        run_matmul(w, x, product)
        np.testing.assert_array_equal(y, np.float32(3) + product)

    return Case(run, check)


def swiglu_case(shape: tuple[int, int], tokens: int, kind: str, seed: int = 0) -> Case:
    """silu(gate x) * (up x)"""
    F, D = shape
    gate, up = to_bfloat16(random(2 * seed, F, D)), to_bfloat16(random(2 * seed + 1, F, D))
    w = packed(gate, kind, up)
    x, x_TD = operand(random(tokens, tokens, D), kind)
    y = np.zeros((-(-tokens // 16), pad(F, 32), 16), np.float32)
    scratch = allocate((MATMUL_SCRATCH,), np.float32)

    def check() -> None:
        g, u = (x_TD.astype(np.float64) @ held_weights(m, kind).T for m in (gate, up))
        size_g, size_u = (np.abs(x_TD) @ np.abs(widen(m)).T for m in (gate, up))
        exact = g / (1 + np.exp(-g)) * u
        bound = 32 * EPS * (size_g * (np.abs(u) + 1) + size_u * np.abs(g) + np.abs(exact))
        assert (np.abs(from_panels(y, tokens)[:, :F] - exact) <= bound).all()
        assert not y[:, F:].any()

    products = 2 * F * D * tokens * PASSES.get(kind, (1, 1))[0]
    return Case(lambda: run_swiglu(w, x, y, scratch), check, products, w.nbytes + bytes_of(x))


def complete_case(shape: tuple[int], tokens: int, kind: str, seed: int = 0) -> Case:
    """Rounded to the nearest integer, per token and block; an outlier costs its neighbours nothing."""
    [size] = shape
    x_TD = random(tokens + seed, tokens, size)
    x_TD[::3, ::150] *= 300
    x_TD[1:2] = 0
    x_TD[2:3, size // 2] = np.inf
    operand = rounded_operand(to_panels(x_TD, pad(size, 32)), kind)

    def check() -> None:
        held = held_integers(operand, tokens)[:, :size]
        blocks = blocks_of(x_TD)
        step = np.abs(blocks).max(axis=2) / (32767 if kind == "words" else 127)
        if kind == "bytes":  # with outliers, two parts
            with np.errstate(invalid="ignore"):
                mean = np.sqrt((blocks**2).sum(axis=2) / COLUMNS)
                step = np.where(127 * step > 1.01 * OUTLIER * 2 * mean, step / 254, step)
        finite = np.isfinite(step)
        error = np.abs(blocks_of(held - x_TD)).max(axis=2)
        assert (error[finite] <= 0.51 * step[finite] + 1e-30).all()
        assert np.isnan(blocks_of(held).max(axis=2)[~finite]).all()

    return Case(lambda: run_complete(operand), check, 0, bytes_of(operand))


def rms_norm_case(shape: tuple[int], tokens: int, kind: str = "float32", seed: int = 0) -> Case:
    """x / sqrt(mean(x^2) + eps) * weight, as an operand of any number of parts."""
    [size] = shape
    weight = np.exp(random(seed, size))
    x_TD = random(tokens, tokens, size)
    x_TD[0, 0] = 5700  # a massive activation
    x = to_panels(x_TD, pad(size, 32))
    out = np.zeros_like(x)

    def check() -> None:
        x64 = x_TD.astype(np.float64)
        exact = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + NORM_EPS) * weight
        np.testing.assert_allclose(from_panels(out, tokens)[:, :size], exact, rtol=64 * EPS)
        assert not out[:, size:].any()
        for parts in (1, 2, 3):
            pairs = np.zeros((len(x), parts, pad(size, 32) // 2, 32), np.uint16)
            run_rms_norm(x, weight, pairs)
            values = widen(pairs.reshape(len(x), parts, -1, 16, 2).transpose(1, 0, 2, 4, 3))
            total = values.reshape(parts, *out.shape).sum(axis=0, dtype=np.float64)
            assert (np.abs(total - out) <= np.abs(out) * 2.0 ** (-9 * parts + 1)).all()

    return Case(lambda: run_rms_norm(x, weight, out), check, 2 * size * tokens, x.nbytes + out.nbytes)


def assert_rotated(got: Any, x_TNH: Any, weight: Any, packed: Sequences, rest: float = 0) -> None:
    """That `got` is rms_norm and RoPE of `x_TNH`, but for `rest` of a value that its parts do not hold."""
    x = x_TNH.astype(np.float64)
    x = x / np.sqrt((x**2).mean(axis=2, keepdims=True) + NORM_EPS) * weight
    a, b = np.split(x, 2, axis=2)
    cos, sin = (table[:, None].astype(np.float64) for table in (packed.cos_TH, packed.sin_TH))
    exact = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2)
    size = np.concatenate([abs(a * cos) + abs(b * sin), abs(b * cos) + abs(a * sin)], axis=2)
    assert (np.abs(got - exact) <= (64 * EPS + rest) * size).all()


def norm_rope_queries_case(shape: tuple[int, int], tokens: int, kind: str = "float32", seed: int = 0) -> Case:
    """Heads of queries, one below the other, normalised and rotated in place."""
    N, H = shape
    given = sequences([tokens], H)
    weight, x_TD = np.exp(random(seed, H)), random(tokens, tokens, N * H)
    x = to_panels(x_TD, pad(N * H, 32))
    q = np.empty_like(x)

    def run() -> None:
        q[:] = x
        run_norm_rope_queries(q, given.tokens, weight)

    def check() -> None:
        heads = (from_panels(panels, tokens)[:, : N * H].reshape(tokens, N, H) for panels in (q, x))
        assert_rotated(*heads, weight, given)

    return Case(run, check)


def store_keys_values_case(shape: tuple[int, int], lengths: Sequence[int], kind: str, seed: int = 0) -> Case:
    """Keys, normalised and rotated, and values of packed sequences, each at its slot; nothing elsewhere."""
    K, H = shape
    given = sequences(lengths, H)
    T, parts = len(given.slots), parts_of(kind)
    weight, kv_TD = np.exp(random(seed, H)), random(T, T, 2 * K * H)
    x = to_panels(kv_TD, 2 * K * H)
    kv = np.empty_like(x)
    shapes = kv_layout.shapes(K, given.slot_count + 32, H, parts, kind.startswith("tiles"))
    keys, values = (np.zeros(shape, np.uint16 if parts else np.float32) for shape in shapes)

    def run() -> None:
        kv[:] = x
        run_store_keys_values(kv, given.tokens, weight, keys, values)

    def check() -> None:
        k_TKH, v_TKH = kv_TD.reshape(T, 2, K, H).swapaxes(0, 1)
        got = [np.float64(widen(p) if parts else p) for p in unstored(keys, given.slots, K, H, kind)]
        assert_rotated(sum(got), k_TKH, weight, given, 2.0 ** (-9 * parts + 1) if parts else 0)
        stored_values = unstored(values, given.slots, K, H, kind, values=True)
        np.testing.assert_array_equal(stored_values, split(v_TKH, parts))
        free = np.setdiff1d(np.arange(given.slot_count), given.slots)
        for array in (keys, values):
            assert not np.any(unstored(array, free, K, H, kind, array is values))

    return Case(run, check)


def copy_slots_case(shape: tuple[int, int], lengths: Sequence[int], kind: str, seed: int = 0) -> Case:
    """The first sequence's keys and values, copied to the place of the last; nothing else changes."""
    K, H = shape
    given, sizes = sequences(lengths, H), np.array(lengths)
    size, to = pad(sizes, 32)[0], text_slots(sizes)[-1]
    assert size <= given.slot_count - to
    source = tuple(
        stored(random(seed + v, len(given.slots), K, H), given.slots, kind, bool(v)) for v in (0, 1)
    )
    target = tuple(np.zeros_like(array) for array in source)

    def check() -> None:
        copied = to + np.arange(size)
        others = np.setdiff1d(np.arange(given.slot_count), copied)
        for v, (before, after) in enumerate(zip(source, target, strict=True)):
            expected = unstored(before, np.arange(size), K, H, kind, bool(v))
            np.testing.assert_array_equal(unstored(after, copied, K, H, kind, bool(v)), expected)
            assert not np.any(unstored(after, others, K, H, kind, bool(v)))

    return Case(lambda: run_copy_slots(source, 0, target, to, size), check)


def attention_case(shape: tuple[int, int, int], lengths: Sequence[int], kind: str, seed: int = 0) -> Case:
    """N query heads on K key/value heads of H channels; sequences back to back, each against float64."""
    N, K, H = shape
    given = sequences(lengths, H)
    S = len(given.slots)
    q_TD, k_SKH, v_SKH = random(seed, S, N * H), random(seed + 1, S, K, H), random(seed + 2, S, K, H)
    q = to_panels(q_TD, pad(N * H, 16))
    keys, values = stored(k_SKH, given.slots, kind), stored(v_SKH, given.slots, kind, values=True)
    out = np.zeros((len(q), pad(N * H, 32), 16), np.float32)
    scratch = aligned(np.full(attention.scratch_size(H, N // K), np.nan, np.float32))

    def run() -> None:
        run_attention(q, given.tokens, keys, values, N // K, H, out, scratch)

    def check() -> None:
        got = from_panels(out, S)[:, : N * H].reshape(S, N, H)
        parts = parts_of(kind)
        held_q, held_k, held_v = (
            sum(widen(p) if parts else p for p in split(x, parts)) for x in (q_TD, k_SKH, v_SKH)
        )
        rest = 2.0 ** (-9 * parts + 1) if parts else 0  # of a probability, what its parts do not hold
        left_out = 4 * rest if parts > 1 else 0  # of a product, what left-out pairs of parts can hold
        for begin, end in zip(given.begins, given.ends, strict=True):
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

    pairs = sum(length * (length + 1) / 2 for length in lengths)
    products = 2 * N * H * pairs * PASSES.get(kind, (1, 1))[1]
    return Case(run, check, products, q.nbytes + keys.nbytes + values.nbytes)


TOKENS = (1, 15, 16, 17, 31, 33, 100)
LENGTHS = [(1, 15, 16, 17, 31, 33, 300, 2)]  # some across panels and chunks
# [N, K] of the projections of the 0.6B, 4B and 8B (rows shortened: they are independent), and odd ones.
WIDTHS = [(48, 1024), (32, 2048), (32, 3072), (16, 2560), (16, 4096), (16, 9728), (16, 12288)]
WIDTHS += [(50, 70), (33, 31), (7, 5)]
HEADS = [(16, 8, 128), (32, 8, 128), (6, 2, 10), (3, 1, 64), (5, 5, 18)]  # N, K, H
QUERY_HEADS = [(N, H) for N, _, H in HEADS]
KEY_HEADS = sorted({(K, H) for _, K, H in HEADS})

C = LIKE["0.6B"]
D, F = C.hidden_size, C.intermediate_size
QKV = C.num_attention_heads, C.num_key_value_heads, C.head_dim


def timed(shapes: dict[str, tuple[int, int]]) -> dict[str, tuple[tuple[int, int], int]]:
    """Matrices of the 0.6B by their names, for few tokens and for many."""
    return {
        f"{name} {rows} x {columns}, {tokens} tokens": ((rows, columns), tokens)
        for tokens in (16, 48, 256)
        for name, (rows, columns) in shapes.items()
    }


KERNELS = {
    "matmul": Kernel(
        matmul_case,
        list(KINDS),
        WIDTHS,
        TOKENS,
        timed({"q_proj": (QKV[0] * QKV[2], D), "down_proj": (D, F)}),
        weights=True,
    ),
    "matmul_add": Kernel(matmul_add_case, list(KINDS), WIDTHS, TOKENS),
    "matmul_swiglu": Kernel(
        swiglu_case,
        list(KINDS),
        [(3072, 64), (80, 48), (47, 33)],
        TOKENS,
        timed({"gate and up": (F, D)}),
        weights=True,
    ),
    "complete": Kernel(
        complete_case,
        [kind for kind in INTEGERS if kind in KINDS],
        [(32,), (200,), (1024,)],
        TOKENS,
        {f"{D} x 256 tokens": ((D,), 256)},
    ),
    "rms_norm": Kernel(
        rms_norm_case,
        ["float32"],
        [(1,), (5,), (33,), (48,), (1024,), (4096,)],
        TOKENS,
        {f"{D} x 256 tokens": ((D,), 256)},
    ),
    "norm_rope_queries": Kernel(norm_rope_queries_case, ["float32"], QUERY_HEADS, TOKENS),
    "store_keys_values": Kernel(store_keys_values_case, NOT_PAIRS, KEY_HEADS, LENGTHS),
    "copy_slots": Kernel(copy_slots_case, NOT_PAIRS, KEY_HEADS, [(40, 7, 64), (1, 3)]),
    "attention": Kernel(
        attention_case,
        NOT_PAIRS,
        HEADS,
        LENGTHS,
        {"512 tokens": (QKV, [512]), "4096 tokens": (QKV, [4096])},
    ),
}
