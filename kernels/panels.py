"""Panels: 16 tokens side by side, features as rows. Float32 [P, D, 16].

Token t is lane t % 16 of panel t // 16.

An operand is what a matmul reads, in one of four forms:

    float32     [P, D, 16]              the panels themselves
    pairs       [P, D/2, 32]            bfloat16 (uint16): elements 2l, 2l + 1 are rows 2d, 2d + 1 of lane l
    parts       [P, parts, D/2, 32]     for AMX: pairs, whose sum over the parts is the float32 value
    Rounded                             float32, and the integers that it is rounded to (integer.py)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from .jit import inline
from .simd import (
    constant,
    exp,
    f32x16,
    i32,
    load,
    mask16,
    negative,
    pointer,
    round_to_bfloat16,
    select,
    splat,
    store,
    v16,
    v16i,
    vector_load,
    vector_store,
    widen_bfloat16,
)

ROWS = 16  # of a weight matrix, side by side in the packed layout


class Panels(NamedTuple):
    """A block: panels [first, first + count) of the batch, [0, count) of arrays for one block."""

    first: int
    count: int  # type: ignore[assignment]  # and not tuple.count


class Tokens(NamedTuple):
    """Where the tokens of a packed batch are, panel by panel."""

    cos: NDArray[Any]  # [P, H/2, 16] of each lane's position in its sequence
    sin: NDArray[Any]
    slots: NDArray[Any]  # [P, 16] of each lane's key and value; float32, to compare with lanes: exact to 2^24
    starts: NDArray[Any]  # [P + 1]: panel p has segments[starts[p] : starts[p + 1]], one per sequence in it
    segments: NDArray[Any]  # [n, 4]: slot of the sequence's first key, of its last + 1; first lane, last + 1


class Rounded(NamedTuple):
    """An operand of integers, beside the float32 panels that they are made from."""

    wide: NDArray[np.float32]  # [P, K', 16]
    q: NDArray[Any]  # int16 or int8, see integer.py
    tokens: NDArray[np.float32]  # [P, K'/128, 2 * parts, 16]: a part's scale, and what its sums begin with
    outliers: NDArray[np.uint8]  # [P, K'/128]: whether a block has a second part


def rounded_operand(operand: Any) -> bool:
    """Tell whether an operand's Numba type is Rounded."""
    return isinstance(operand, types.NamedTuple) and operand.instance_class is Rounded


@inline
def silu(x):
    """x * sigmoid(x): reference.silu."""
    one = splat(np.float32(1))
    return x / (one + exp(negative(x)))


@intrinsic
def pairs(typingctx, even, odd):
    """Round two rows to bfloat16, to nearest even, and interleave them: 32 bits per lane."""

    def codegen(context, b, sig, args):
        even, odd = (round_to_bfloat16(b, x) for x in args)
        order = ir.Constant(ir.VectorType(i32, 32), [i // 2 + 16 * (i % 2) for i in range(32)])
        return b.bitcast(b.shuffle_vector(even, odd, order), v16)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def bf16_remainder(typingctx, x):
    """What rounding x to bfloat16 leaves, exactly; zero where x is not finite."""

    def codegen(context, b, sig, args):
        left = b.fsub(args[0], widen_bfloat16(b, round_to_bfloat16(b, args[0])))
        return b.select(b.fcmp_ordered("ord", left, left), left, constant(0.0))

    return f32x16(f32x16), codegen


@intrinsic
def rounded(typingctx, x):
    """Round a finite x to the nearest bfloat16, a tie away from zero: two operations on integers."""

    def codegen(context, b, sig, args):
        bits = b.add(b.bitcast(args[0], v16i), ir.Constant(v16i, [0x8000] * 16))
        return b.bitcast(b.and_(bits, ir.Constant(v16i, [0xFFFF0000] * 16)), v16)

    return f32x16(f32x16), codegen


@intrinsic
def pairs_of_rounded(typingctx, even, odd):
    """Interleave two rows as pairs() does, of numbers that are bfloat16 already."""

    def codegen(context, b, sig, args):
        even, odd = (b.bitcast(x, v16i) for x in args)
        return b.bitcast(b.or_(odd, b.lshr(even, ir.Constant(v16i, [16] * 16))), v16)

    return f32x16(f32x16, f32x16), codegen


@inline
def store_parts(array, index, step, parts, even, odd):
    """Write two rows as bfloat16 pairs at a flat index, each further part `step` behind the last.

    Each part is what those before it left, rounded: split bfloat16, bf16x2 or bf16x3 (arXiv:1904.06376).
    """
    for part in range(parts):
        store(array, index + part * step, pairs(even, odd))
        even, odd = bf16_remainder(even), bf16_remainder(odd)


def store_rows(operand, panel, row, even, odd):
    """Write rows `row` (an even number) and `row + 1` of a panel of an operand."""


@overload(store_rows, jit_options={"nogil": True})
def _store_rows(operand, panel, row, even, odd):
    if rounded_operand(operand):
        return lambda operand, panel, row, even, odd: store_rows(operand.wide, panel, row, even, odd)

    if operand.dtype == types.float32:

        def write(operand, panel, row, even, odd):
            at = (panel * operand.shape[1] + row) * 16
            store(operand, at, even)
            store(operand, at + 16, odd)

    elif operand.ndim == 4:

        def write(operand, panel, row, even, odd):
            parts, step = operand.shape[1], operand.shape[2] * 32
            store_parts(operand, panel * parts * step + row // 2 * 32, step, parts, even, odd)

    else:

        def write(operand, panel, row, even, odd):
            store(operand, (panel * operand.shape[1] + row // 2) * 32, pairs(even, odd))

    return write


def store_lanes(operand, panel, row, even, odd, mine):
    """Write the lanes of `mine` as store_rows does; the others stay as they are."""


@overload(store_lanes, jit_options={"nogil": True})
def _store_lanes(operand, panel, row, even, odd, mine):
    if rounded_operand(operand):
        return lambda operand, panel, row, even, odd, mine: store_lanes(
            operand.wide, panel, row, even, odd, mine
        )

    if operand.dtype == types.float32:

        def write(operand, panel, row, even, odd, mine):
            at = (panel * operand.shape[1] + row) * 16
            store(operand, at, select(mine, even, load(operand, at)))
            store(operand, at + 16, select(mine, odd, load(operand, at + 16)))

        return write

    tiles = operand.ndim == 4

    def write(operand, panel, row, even, odd, mine):
        parts = operand.shape[1] if tiles else 1
        step = operand[0].size // parts
        for part in range(parts):
            at = (panel * parts + part) * step + row // 2 * 32
            store(operand, at, select(mine, pairs(even, odd), load(operand, at)))
            even, odd = bf16_remainder(even), bf16_remainder(odd)

    return write


@intrinsic
def scatter(typingctx, array, bases, index, value):
    """Turn a row of a panel into a column: lane i goes to array[bases[i] + index].

    As bfloat16, if the array is of uint16.
    """

    def codegen(context, b, sig, args):
        array, bases, index, value = args
        if sig.args[0].dtype == types.uint16:
            value = round_to_bfloat16(b, value)
        _scatter(context, b, sig.args, array, bases, index, value)
        return context.get_dummy_value()

    return types.void(array, bases, types.intp, f32x16), codegen


@intrinsic
def store_bfloats(typingctx, array, index, value, mine):
    """Write the lanes of `mine` side by side as bfloat16; what lies between them stays as it is."""

    def codegen(context, b, sig, args):
        array, index, value, mine = args
        value = round_to_bfloat16(b, value)
        at = b.bitcast(pointer(context, b, sig.args[0], array, index), value.type.as_pointer())
        arguments = [value, at, ir.Constant(i32, 2), mine]
        function = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        b.call(cgutils.get_or_insert_function(b.module, function, "llvm.masked.store.v16i16.p0"), arguments)
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x16, mask16), codegen


@intrinsic
def store_columns(typingctx, array, bases, index, source, at):
    """Turn 16 rows of pairs, one below the other at source[at], into columns.

    Lane i's 16 pairs go to array[bases[i] + index] and behind.
    """

    def codegen(context, b, sig, args):
        array, bases, index, source, at = args
        base = pointer(context, b, sig.args[3], source, at)
        rows = [vector_load(b, b.gep(base, [ir.Constant(i32, 32 * r)]), v16i) for r in range(16)]
        for s in (1, 2, 4, 8):  # squares of s x s change places
            upper = ir.Constant(v16i, [i if not i & s else 16 + i - s for i in range(16)])
            lower = ir.Constant(v16i, [i + s if not i & s else 16 + i for i in range(16)])
            for r in (r for r in range(16) if not r & s):
                pair = rows[r], rows[r + s]
                rows[r], rows[r + s] = b.shuffle_vector(*pair, upper), b.shuffle_vector(*pair, lower)
        for lane, row in enumerate(rows):
            place = b.load(pointer(context, b, sig.args[1], bases, ir.Constant(index.type, lane)))
            vector_store(b, row, pointer(context, b, sig.args[0], array, b.add(place, index)))
        return context.get_dummy_value()

    return types.void(array, bases, types.intp, source, types.intp), codegen


def _scatter(context, b, kinds, array, bases, index, vector):
    for lane in range(16):
        place = b.load(pointer(context, b, kinds[1], bases, ir.Constant(index.type, lane)))
        at = pointer(context, b, kinds[0], array, b.add(place, index))
        element = b.extract_element(vector, ir.Constant(i32, lane))
        b.store(element, b.bitcast(at, element.type.as_pointer()), align=2)


def pack_tiles(source, packed, tile, tile_step, first, last):
    """Pack tiles [first, last), of 16 rows each, of a matrix. What lies beyond N or K stays as it is.

    Both arrays are of uint32 words: a float32 value, or a pair of bfloat16.

    Args:
        source: [N, K] words.
        packed: [tiles, K', 16]: 16 rows side by side; or [tiles/2, K'/16, 2, 16, 16]: two tiles of 16 rows by
            16 words (see amx.py).
        tile: source's tile n goes to tile `tile + n * tile_step` of packed.
        tile_step: 2, where two matrices take turns.
        first: of this thread's share of source's tiles.
        last: the tile behind the share.
    """


@overload(pack_tiles, jit_options={"nogil": True})
def _pack_tiles(source, packed, tile, tile_step, first, last):
    if packed.ndim == 3:

        def copy(source, packed, tile, tile_step, first, last):
            for n in range(first, last):
                rows = min(ROWS, source.shape[0] - n * ROWS)
                into, from_row = packed[tile + n * tile_step], n * ROWS
                for k in range(source.shape[1]):
                    for r in range(rows):
                        into[k, r] = source[from_row + r, k]

    else:

        def copy(source, packed, tile, tile_step, first, last):
            for n in range(first, last):
                into = tile + n * tile_step
                for r in range(min(ROWS, source.shape[0] - n * ROWS)):
                    row = source[n * ROWS + r]
                    for k in range(row.size):
                        packed[into // 2, k // 16, into % 2, r, k % 16] = row[k]

    return copy
