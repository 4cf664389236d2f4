"""Panels: 16 tokens side by side, features as rows. Float32 [P, D, 16].

Token t is lane t % 16 of panel t // 16.

An operand is what a matmul reads: float32 panels, or for CPUs that multiply bfloat16, pairs of rows [P, D/2,
32] (uint16) whose elements 2l and 2l + 1 are rows 2d and 2d + 1 of lane l; for AMX one or more of those, the
parts [P, parts, D/2, 32] whose sum is the float32 value.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .jit import inline
from .simd import (
    constant,
    exp,
    i32,
    lanes,
    load,
    mask,
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


@inline
def silu(x):
    """x * sigmoid(x); replaces reference.silu."""
    one = splat(np.float32(1))
    return x / (one + exp(splat(np.float32(0)) - x))


@intrinsic
def pairs(typingctx, even, odd):
    """Two rows as 32 bfloat16, rounded to nearest even, one of each row in turns: 32 bits a lane."""

    def codegen(context, b, sig, args):
        even, odd = (round_to_bfloat16(b, x) for x in args)
        order = ir.Constant(ir.VectorType(i32, 32), [i // 2 + 16 * (i % 2) for i in range(32)])
        return b.bitcast(b.shuffle_vector(even, odd, order), v16)

    return lanes(lanes, lanes), codegen


@intrinsic
def rest(typingctx, x):
    """What rounding x to bfloat16 leaves: exact, and zero where x is not finite (there is nothing to add)."""

    def codegen(context, b, sig, args):
        left = b.fsub(args[0], widen_bfloat16(b, round_to_bfloat16(b, args[0])))
        return b.select(b.fcmp_ordered("ord", left, left), left, constant(0.0))

    return lanes(lanes), codegen


@intrinsic
def rounded(typingctx, x):
    """The nearest bfloat16, of two the larger in size: two operations on integers, if x is finite."""

    def codegen(context, b, sig, args):
        bits = b.add(b.bitcast(args[0], v16i), ir.Constant(v16i, [0x8000] * 16))
        return b.bitcast(b.and_(bits, ir.Constant(v16i, [0xFFFF0000] * 16)), v16)

    return lanes(lanes), codegen


@intrinsic
def pairs_of_rounded(typingctx, even, odd):
    """pairs() of numbers that are bfloat16 already."""

    def codegen(context, b, sig, args):
        even, odd = (b.bitcast(x, v16i) for x in args)
        return b.bitcast(b.or_(odd, b.lshr(even, ir.Constant(v16i, [16] * 16))), v16)

    return lanes(lanes, lanes), codegen


@inline
def put_parts(array, index, step, parts, even, odd):
    """Two rows as bfloat16 pairs at the flat index, each further part `step` behind."""
    for part in range(parts):
        store(array, index + part * step, pairs(even, odd))
        even, odd = rest(even), rest(odd)


def put_rows(operand, panel, row, even, odd):
    """Write rows `row` (an even number) and `row + 1` of a panel of an operand."""


@overload(put_rows, jit_options={"nogil": True})
def _put_rows(operand, panel, row, even, odd):
    if operand.dtype == types.float32:

        def write(operand, panel, row, even, odd):
            at = (panel * operand.shape[1] + row) * 16
            store(operand, at, even)
            store(operand, at + 16, odd)

    elif operand.ndim == 4:

        def write(operand, panel, row, even, odd):
            parts, step = operand.shape[1], operand.shape[2] * 32
            put_parts(operand, panel * parts * step + row // 2 * 32, step, parts, even, odd)

    else:

        def write(operand, panel, row, even, odd):
            store(operand, (panel * operand.shape[1] + row // 2) * 32, pairs(even, odd))

    return write


def put_lanes(operand, panel, row, even, odd, mine):
    """put_rows of some lanes; the others stay as they are."""


@overload(put_lanes, jit_options={"nogil": True})
def _put_lanes(operand, panel, row, even, odd, mine):
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
            even, odd = rest(even), rest(odd)

    return write


@intrinsic
def scatter(typingctx, array, places, index, value):
    """A row of a panel becomes a column: lane i goes to array[places[i] + index], as bfloat16 if the array is
    of uint16."""

    def codegen(context, b, sig, args):
        array, places, index, value = args
        if sig.args[0].dtype == types.uint16:
            value = round_to_bfloat16(b, value)
        _scatter(context, b, sig.args, array, places, index, value)
        return context.get_dummy_value()

    return types.void(array, places, types.intp, lanes), codegen


@intrinsic
def store_bfloats(typingctx, array, index, value, mine):
    """Some lanes as bfloat16, side by side; the array's others stay as they are."""

    def codegen(context, b, sig, args):
        array, index, value, mine = args
        value = round_to_bfloat16(b, value)
        at = b.bitcast(pointer(context, b, sig.args[0], array, index), value.type.as_pointer())
        arguments = [value, at, ir.Constant(i32, 2), mine]
        function = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        b.call(cgutils.get_or_insert_function(b.module, function, "llvm.masked.store.v16i16.p0"), arguments)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes, mask), codegen


@intrinsic
def store_columns(typingctx, array, places, index, source, at):
    """Sixteen rows of pairs, one below the other at source[at], become columns: lane i's 16 pairs go to
    array[places[i] + index] and behind."""

    def codegen(context, b, sig, args):
        array, places, index, source, at = args
        base = pointer(context, b, sig.args[3], source, at)
        rows = [vector_load(b, b.gep(base, [ir.Constant(i32, 32 * r)]), v16i) for r in range(16)]
        for s in (1, 2, 4, 8):  # squares of s x s change places
            upper = ir.Constant(v16i, [i if not i & s else 16 + i - s for i in range(16)])
            lower = ir.Constant(v16i, [i + s if not i & s else 16 + i for i in range(16)])
            for r in (r for r in range(16) if not r & s):
                pair = rows[r], rows[r + s]
                rows[r], rows[r + s] = b.shuffle_vector(*pair, upper), b.shuffle_vector(*pair, lower)
        for lane, row in enumerate(rows):
            place = b.load(pointer(context, b, sig.args[1], places, ir.Constant(index.type, lane)))
            vector_store(b, row, pointer(context, b, sig.args[0], array, b.add(place, index)))
        return context.get_dummy_value()

    return types.void(array, places, types.intp, source, types.intp), codegen


def _scatter(context, b, kinds, array, places, index, vector):
    for lane in range(16):
        place = b.load(pointer(context, b, kinds[1], places, ir.Constant(index.type, lane)))
        at = pointer(context, b, kinds[0], array, b.add(place, index))
        element = b.extract_element(vector, ir.Constant(i32, lane))
        b.store(element, b.bitcast(at, element.type.as_pointer()), align=2)


def pack_tiles(source, packed, tile, tile_step, first, last):
    """Row tiles [first, last) of source [N, K], the first of source's tiles into tile `tile` of packed, then
    every `tile_step`-th. All of uint32: a float32, or a pair of bfloat16. What lies beyond N or K stays.

    packed [tiles, K', 16]: 16 rows side by side. packed [tiles/2, K'/16, 2, 16, 16]: two tiles of 16 rows, 16
    words of K wide (see kernels/tiles.py).
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
