"""Integer products: 8-bit weights by activations that are rounded per token and block.

    x       Rounded: float32 panels, and what they are rounded to, once all of a block's rows are there
    w       int8 weights in blocks of 16 rows by 128 columns, with a scale per row (compact.py)

Of a token's 128 values in a block, x ~ scale * q. The products of a block are summed exactly, in int32, and
the sum times both scales joins the total in float32, block after block. A token's result depends on nothing
else: it has the same bits in any batch, and on every CPU that rounds activations to as many bits.

    words   q int16 [P, K/2, 32]     two rows in turns. AVX2's vpmaddwd multiplies 16 bits as fast as its
                                     vpmaddubsw 8, whose sums another instruction has to widen: 1.6 times
                                     the products per second of float32 on AMD Zen 4
    bytes   q int8 [P, 2, K/4, 64]   four rows in turns, for vpdpbusd: twice the products of words

Eight bits do not hold an outlier and the values beside it. Where the largest of a token's values in a block
is more than OUTLIER times their root mean square, what the first part leaves is rounded to a second part,
which is multiplied, too: 127 * 254 steps instead of 127. Outliers apart from the rest: Dettmers et al.,
"LLM.int8()", arXiv:2208.07339. There channels are; here the choice is a token's own, whose result stays
independent of the batch.

AMX has no part in it: of 128 columns, two of its products of int8, 32 cycles, are followed by 256 sums to
scale, 60 cycles, and four of bfloat16 take 64.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from .compact import COLUMNS, INT8_BYTES, SCALES, prefetch_behind, v16c
from .jit import always_inline, inline
from .micro_kernel import BLOCK_ROWS, MAX_PANELS, PER_STEP, panels_at_once, register_block
from .panels import ROWS, rounded_operand
from .simd import (
    ROUND,
    any_lane,
    f32x16,
    fma,
    i32,
    i64,
    load,
    maximum,
    negative,
    pointer,
    select,
    splat,
    store,
    v16,
    v16i,
    vector_load,
    vector_store,
)
from .team import share, wait

WORDS = np.int16
OUTLIER = 6.0  # of 128 normal values the largest is 2.7 times their root mean square
STORED = {"words": np.int16, "bytes": np.uint8}  # decoded weights
WORD_STEPS, BYTE_STEPS = 32767.0, 127.0  # of the largest value
SECOND = 254.0  # steps of the second part in one of the first: what rounding leaves is half a step at most


def kind_of_integers(x: Any) -> str:
    """The micro-kernel's kind, from the Numba type of a Rounded."""
    return "words" if x.types[x.fields.index("q")].dtype == types.int16 else "bytes"


def rounded_shapes(panels: int, rows: int, dtype: Any) -> tuple[tuple[tuple[int, ...], ...], tuple[Any, ...]]:
    """The shapes and types of the arrays of a Rounded of so many panels and rows."""
    blocks, parts = -(-rows // COLUMNS), 1 if dtype == WORDS else 2
    q = (panels, rows // 2, 32) if dtype == WORDS else (panels, 2, rows // 4, 64)
    shapes = (panels, rows, 16), q, (panels, blocks, 2 * parts, 16), (panels, blocks)
    return shapes, (np.float32, dtype, np.float32, np.uint8)


# ---- activations


@intrinsic
def integer_lanes(typingctx, x):
    """Convert whole numbers to int32 bits."""

    def codegen(context, b, sig, args):
        return b.bitcast(b.fptosi(args[0], v16i), v16)

    return f32x16(f32x16), codegen


@intrinsic
def join(typingctx, rows):
    """Interleave 2 rows of whole numbers as int16, or 4 as int8: 32 bits per lane.

    ROUND was added to them: they are in the lower bits.
    """
    count = len(rows)
    bits = 32 // count

    def codegen(context, b, sig, args):
        joined = ir.Constant(v16i, [0] * 16)
        for i in range(count):
            low = b.and_(
                b.bitcast(b.extract_value(args[0], i), v16i), ir.Constant(v16i, [(1 << bits) - 1] * 16)
            )
            joined = b.or_(joined, b.shl(low, ir.Constant(v16i, [bits * i] * 16)))
        return b.bitcast(joined, v16)

    return f32x16(rows), codegen


def complete(operand, panels, me):
    """Wait until an operand's panels [0, panels) are written, and round them if it is of integers."""


@overload(complete, jit_options={"nogil": True})
def _complete(operand, panels, me):
    if not rounded_operand(operand):
        return lambda operand, panels, me: wait(me)
    round_block = round_to_words if kind_of_integers(operand) == "words" else round_to_bytes

    def rounding(operand, panels, me):
        wait(me)
        blocks = operand.tokens.shape[1]
        first, last = share(panels * blocks, me.thread, me.num_threads)
        for task in range(first, last):
            round_block(operand, task // blocks, task % blocks)
        wait(me)

    return rounding


@inline
def extremes(wide, at, rows):
    """The largest size of `rows` values, NaN if one is not finite, and the sum of their squares, per lane."""
    zero = splat(np.float32(0))
    largest, squares, nothing = zero, zero, zero
    for i in range(at, at + rows * 16, 16):
        x = load(wide, i)
        largest = maximum(maximum(x, negative(x)), largest)
        squares, nothing = fma(x, x, squares), fma(x, zero, nothing)
    return maximum(largest, splat(np.float32(1e-30))) + nothing, squares


@inline
def rows_of(wide, p, block):
    """The first row of a block of a panel, counted through all panels, and how many rows it has."""
    return p * wide.shape[1] + block * COLUMNS, min(COLUMNS, wide.shape[1] - block * COLUMNS)


@inline
def round_to_words(operand, p, block):
    """Round one block of a panel to int16."""
    wide, tokens, steps = operand.wide, operand.tokens, splat(np.float32(WORD_STEPS))
    row, rows = rows_of(wide, p, block)
    largest, _ = extremes(wide, row * 16, rows)
    inverse = steps / largest
    for i in range(row * 16, (row + rows) * 16, 32):
        even = fma(load(wide, i), inverse, splat(np.float32(ROUND)))
        odd = fma(load(wide, i + 16), inverse, splat(np.float32(ROUND)))
        store(operand.q, i, join((even, odd)))
    at = (p * tokens.shape[1] + block) * 32
    store(tokens, at, largest / steps)
    store(tokens, at + 16, splat(np.float32(0)))


@inline
def round_to_bytes(operand, p, block):
    """Round one block of a panel to int8, and to a second part where a token has outliers in it."""
    wide, tokens, steps = operand.wide, operand.tokens, splat(np.float32(BYTE_STEPS))
    row, rows = rows_of(wide, p, block)
    largest, squares = extremes(wide, row * 16, rows)
    inverse, to_integer, zero = steps / largest, splat(np.float32(ROUND)), splat(np.float32(0))
    uneven = largest * largest * splat(np.float32(rows)) > squares * splat(np.float32(OUTLIER * OUTLIER))
    second = any_lane(uneven)
    operand.outliers[p, block] = second
    at = (p * tokens.shape[1] + block) * 64
    q_at, part_step = (p * 2 * wide.shape[1] + block * COLUMNS) * 16, wide.shape[1] * 16
    for part in range(2 if second else 1):
        total = zero
        for i in range(0, rows * 16, 64):
            a, b, c, d = (
                rounding(wide, row * 16 + i, inverse, part, uneven),
                rounding(wide, row * 16 + i + 16, inverse, part, uneven),
                rounding(wide, row * 16 + i + 32, inverse, part, uneven),
                rounding(wide, row * 16 + i + 48, inverse, part, uneven),
            )
            total = total + (((a - to_integer) + (b - to_integer)) + ((c - to_integer) + (d - to_integer)))
            store(operand.q, q_at + part * part_step + i, join((a, b, c, d)))
        scale = largest / steps
        store(tokens, at + part * 32, scale / splat(np.float32(SECOND)) if part else scale)
        store(tokens, at + part * 32 + 16, integer_lanes(total * splat(np.float32(-128))))


@inline
def rounding(wide, at, inverse, part, uneven):
    """A row's integers of one part, to which ROUND is added; of the second part, in the lanes of `uneven`."""
    x, to_integer = load(wide, at) * inverse, splat(np.float32(ROUND))
    first = x + to_integer
    if part == 0:
        return first
    left = (x - (first - to_integer)) * splat(np.float32(SECOND))
    return select(uneven, left, splat(np.float32(0))) + to_integer


# ---- weights


@intrinsic
def interleave(typingctx, w, index, words, at):
    """Write 16 rows of two columns as int16 pairs, or of four as quads of uint8, each q + 128."""
    count = 2 if words.dtype == types.int16 else 4

    def codegen(context, b, sig, args):
        w, index, words, at = args
        first = pointer(context, b, sig.args[0], w, index)
        places = [b.gep(first, [ir.Constant(i64, ROWS * k)]) for k in range(count)]
        columns = [vector_load(b, place, v16c, 1) for place in places]
        while len(columns) > 1:  # of four, 0 with 2 and 1 with 3 first
            half, size = len(columns) // 2, columns[0].type.count
            turns = ir.Constant(
                ir.VectorType(i32, 2 * size), [i // 2 + i % 2 * size for i in range(2 * size)]
            )
            columns = [b.shuffle_vector(columns[i], columns[i + half], turns) for i in range(half)]
        if count == 2:
            joined = b.sext(columns[0], ir.VectorType(ir.IntType(16), 32))
        else:
            joined = b.xor(columns[0], ir.Constant(columns[0].type, [-128] * 64))
        vector_store(b, joined, pointer(context, b, sig.args[2], words, at))
        return context.get_dummy_value()

    return types.void(w, types.intp, words, types.intp), codegen


# ---- products


class Lhs(NamedTuple):
    """A decoded block of W: 16 rows, and the flat index of their scales in W."""

    words: NDArray[Any]
    w: NDArray[np.int8]
    scales_at: int


class Rhs(NamedTuple):
    """One part of a block of some panels of x: flat indexes, and steps from panel to panel."""

    q: NDArray[Any]
    at: int
    step: int
    tokens: NDArray[np.float32]
    tokens_at: int
    tokens_step: int


class Sums(NamedTuple):
    """Rows of y, in panels that are `step` apart."""

    y: NDArray[np.float32]
    at: int
    step: int


@cache
def integer_micro_kernel(rows: int, panels: int, mode: str, kind: str) -> Any:
    """Make the micro-kernel of one shape: rows r and on of a decoded block, times a block of the panels."""
    block = register_block(rows, panels, kind)
    zero, begin, load_sums, store_sums = block.zero, block.same_rows, block.load, block.store
    add_products, add_scaled, width = block.add_products, block.add_scaled, 16 * PER_STEP[kind]

    @always_inline  # a call would cost a tenth of a block's time
    def multiply(r, lhs, rhs, sums, steps):
        units = begin(rhs.tokens, rhs.tokens_at + 16, rhs.tokens_step)
        for k in range(steps):
            w_at, x_at = k * width + r * width // 16, rhs.at + k * width
            units = add_products(units, lhs.words, w_at, rhs.q, x_at, rhs.step)
        y_at = sums.at + r * 16
        total = zero() if mode == "store" else load_sums(sums.y, y_at, sums.step)
        scales_at = lhs.scales_at + 4 * r
        total = add_scaled(total, units, lhs.w, scales_at, rhs.tokens, rhs.tokens_at, rhs.tokens_step)
        store_sums(total, sums.y, y_at, sums.step)

    return multiply


@cache
def rows_of_block(panels: int, mode: str, kind: str) -> Any:
    """Make a function of 16 rows: micro-kernels of as many as the registers hold, then the rest."""
    rows = BLOCK_ROWS[panels]
    left = ROWS % rows
    most, last = (integer_micro_kernel(n, panels, mode, kind) for n in (rows, left or rows))

    @inline
    def multiply(lhs, rhs, sums, steps):
        for r in range(0, ROWS - left, rows):
            most(r, lhs, rhs, sums, steps)
        if left:
            last(ROWS - left, lhs, rhs, sums, steps)

    return multiply


def panel_by_panel(mode: str, kind: str) -> Any:
    """Make a function: a block of W times the same block of `panels` panels, as many at once as fit."""
    one, two, three = (rows_of_block(min(take, MAX_PANELS), mode, kind) for take in (1, 2, 3))

    @inline
    def multiply(panels, lhs, rhs, sums, steps):
        p = 0
        while p < panels:
            take = panels_at_once(panels - p)
            tokens_at = rhs.tokens_at + p * rhs.tokens_step
            x = Rhs(rhs.q, rhs.at + p * rhs.step, rhs.step, rhs.tokens, tokens_at, rhs.tokens_step)
            y = Sums(sums.y, sums.at + p * sums.step, sums.step)
            if take == 1:
                one(lhs, x, y, steps)
            elif take == 2:
                two(lhs, x, y, steps)
            else:
                three(lhs, x, y, steps)
            p += take

    return multiply


def integer_rows_times_panels(x: Any) -> Any:
    """Make a function for the type of x: tile n of W, 16 rows, times `panels` panels from `first` on.

    y_at is panel `first`'s flat index in y. Scratch has room for a decoded block from decoded_at on. `step`
    is there for the other functions of matmul.rows_times_panels.
    """
    kind = kind_of_integers(x)
    per_step, parts, word = PER_STEP[kind], 1 if kind == "words" else 2, STORED[kind]
    begin, go_on = (panel_by_panel(mode, kind) for mode in ("store", "continue"))
    again = rows_of_block(1, "continue", kind)

    @inline
    def multiply(w, n, x, first, step, y, y_at, y_step, panels, scratch, decoded_at):
        blocks, rows = x.tokens.shape[1], x.wide.shape[1]
        words, size = scratch[decoded_at:].view(word), rows * 16
        for block in range(blocks):
            w_at = (n * blocks + block) * INT8_BYTES
            for k in range(0, COLUMNS, per_step):
                prefetch_behind(w, w_at + k * ROWS)
                interleave(w, w_at + SCALES + k * ROWS, words, k * ROWS)
            lhs, steps = Lhs(words, w, w_at), min(COLUMNS, rows - block * COLUMNS) // per_step
            x_at, t_at = first * parts * size + block * COLUMNS * 16, (first * blocks + block) * parts * 32
            rhs = Rhs(x.q, x_at, parts * size, x.tokens, t_at, blocks * parts * 32)
            sums = Sums(y, y_at, y_step)
            if block == 0:
                begin(panels, lhs, rhs, sums, steps)
            else:
                go_on(panels, lhs, rhs, sums, steps)
            if parts == 2:
                for p in range(panels):
                    if x.outliers[first + p, block]:
                        second = Rhs(
                            x.q, x_at + (2 * p + 1) * size, 0, x.tokens, t_at + (2 * p * blocks + 1) * 32, 0
                        )
                        again(lhs, second, Sums(y, y_at + p * y_step, 0), steps)

    return multiply
