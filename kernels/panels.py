"""Panels: 16 tokens side by side, features as rows. Float32 [P, D, 16].

Token t is lane t % 16 of panel t // 16.

An operand is what a matmul reads: float32 panels, or for CPUs that multiply bfloat16, pairs of rows [P, D/2,
32] (uint16) whose elements 2l and 2l + 1 are rows 2d and 2d + 1 of lane l.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .compiled import inline
from .lanes import exp, i32, lanes, pointer, splat, store, v16b, vector_store

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
        even, odd = (b.fptrunc(x, v16b) for x in (even, odd))
        order = ir.Constant(ir.VectorType(i32, 32), [i // 2 + 16 * (i % 2) for i in range(32)])
        vector_store(
            b, b.shuffle_vector(even, odd, order), pointer(context, b, sig.args[0], operand, index), 2
        )
        return context.get_dummy_value()

    return types.void(operand, types.intp, lanes, lanes), codegen


def put_rows(operand, panel, row, even, odd):
    """Write rows `row` (an even number) and `row + 1` of a panel of an operand."""


@overload(put_rows, jit_options={"nogil": True})
def _put_rows(operand, panel, row, even, odd):
    if operand.dtype == types.float32:

        def write(operand, panel, row, even, odd):
            at = (panel * operand.shape[1] + row) * 16
            store(operand, at, even)
            store(operand, at + 16, odd)

    else:

        def write(operand, panel, row, even, odd):
            _store_pairs(operand, (panel * operand.shape[1] + row // 2) * 32, even, odd)

    return write


@intrinsic
def scatter(typingctx, array, index, stride, value):
    """array[index + i * stride] = lane i: a row of a panel becomes a column."""

    def codegen(context, b, sig, args):
        array, index, stride, value = args
        base = pointer(context, b, sig.args[0], array, index)
        for lane in range(16):
            at = b.gep(base, [b.mul(ir.Constant(stride.type, lane), stride)])
            b.store(b.extract_element(value, ir.Constant(i32, lane)), at)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), codegen


@inline
def pack_tiles(source, packed, tile, tile_step, first, last):
    """Row tiles [first, last) of source [N, K] -> packed [tiles, K', 16]: 16 rows side by side, the first of
    source's tiles into tile `tile`, then every `tile_step`-th. All of uint32: a float32, or a pair of
    bfloat16. What lies beyond N or K stays as it is."""
    for n in range(first, last):
        rows = min(ROWS, source.shape[0] - n * ROWS)
        into, from_row = packed[tile + n * tile_step], n * ROWS
        for k in range(source.shape[1]):
            for r in range(rows):
                into[k, r] = source[from_row + r, k]
