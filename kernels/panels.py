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
from numba.extending import intrinsic, overload

from .compiled import inline
from .lanes import (
    constant,
    exp,
    i32,
    lanes,
    pointer,
    round_to_bfloat16,
    splat,
    store,
    v16i,
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
def _store_pairs(typingctx, operand, index, even, odd):
    """Two rows of lanes as 32 bfloat16, rounded to nearest even, one of each row in turns."""

    def codegen(context, b, sig, args):
        operand, index, even, odd = args
        even, odd = (round_to_bfloat16(b, x) for x in (even, odd))
        order = ir.Constant(ir.VectorType(i32, 32), [i // 2 + 16 * (i % 2) for i in range(32)])
        vector_store(
            b, b.shuffle_vector(even, odd, order), pointer(context, b, sig.args[0], operand, index), 2
        )
        return context.get_dummy_value()

    return types.void(operand, types.intp, lanes, lanes), codegen


@intrinsic
def rest(typingctx, x):
    """What rounding x to bfloat16 leaves: exact, and zero where x is not finite (there is nothing to add)."""

    def codegen(context, b, sig, args):
        left = b.fsub(args[0], widen_bfloat16(b, round_to_bfloat16(b, args[0])))
        return b.select(b.fcmp_ordered("ord", left, left), left, constant(0.0))

    return lanes(lanes), codegen


@inline
def put_parts(array, index, step, parts, even, odd):
    """Two rows as bfloat16 pairs at the flat index, each further part `step` behind."""
    for part in range(parts):
        _store_pairs(array, index + part * step, even, odd)
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
            _store_pairs(operand, (panel * operand.shape[1] + row // 2) * 32, even, odd)

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
def scatter_pairs(typingctx, array, places, index, even, odd):
    """A row of bfloat16 pairs becomes a column: lane i's pair goes to array[places[i] + index]."""

    def codegen(context, b, sig, args):
        array, places, index, even, odd = args
        order = ir.Constant(ir.VectorType(i32, 32), [i // 2 + 16 * (i % 2) for i in range(32)])
        pairs = b.shuffle_vector(round_to_bfloat16(b, even), round_to_bfloat16(b, odd), order)
        _scatter(context, b, sig.args, array, places, index, b.bitcast(pairs, v16i))
        return context.get_dummy_value()

    return types.void(array, places, types.intp, lanes, lanes), codegen


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
