"""y^T = W x^T on panels of 16 tokens.

    W   a matrix [N, K] of the checkpoint, packed once as w[N/16, K/2, 16, 2], bfloat16 bits (uint16): 16 rows
        side by side, in pairs along K, so that the micro-kernel reads one sequential stream; float32
        [N/16, K, 16] where the checkpoint is not bfloat16
    x   an operand: float32 [P, K, 16], or for CPUs that multiply bfloat16, pairs [P, K/2, 32] (uint16), or
        integers (integer.py)
    y   float32 panels [P, N, 16]

N and K are padded to 32, with zeros. For AMX, w and x have other layouts: see amx.py.

Each result is a blocked sum: SUM_BLOCK fused multiply-adds over k = 0, 1, 2, ... at a time, whose sums are
added in order. It does not depend on the register block it is computed in: a token's result has the same
bits in any company.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .amx import TILE, Lhs, Rhs, Sums, configure, multiply_passing, release, rows_of_tiles
from .compact import COLUMNS, compact, decode, decode_pairs, decode_tiles
from .integer import integer_rows_times_panels
from .isa import has_feature, zen
from .jit import inline
from .micro_kernel import kind_of, panels_at_once, product
from .panels import ROWS, rounded_operand, silu, store_rows
from .simd import i64, load, pointer, store, v16, v16i, vector_load, vector_store
from .team import share

# Intel's AVX-512 widens bfloat16 on the two ports of its multiply-adds: 126 to 140 GFLOP/s where it is done
# in registers, 187 from float32 (Sapphire Rapids, two threads). There, from WIDEN_FROM panels on, 16 rows
# of W are widened once for up to WIDEN_FOR panels: a fiftieth of their work. AMD has other ports for it,
# and would lose 8 % to the traffic.
WIDENS = has_feature("avx512f") and not zen()
WIDEN_FROM, WIDEN_FOR = 3, 6


@intrinsic
def widen_pairs(typingctx, w, w_at, wide, at):
    """Widen 16 bfloat16 pairs to two rows of float32."""

    def codegen(context, b, sig, args):
        w, w_at, wide, at = args
        pairs = vector_load(b, pointer(context, b, sig.args[0], w, w_at), v16i)
        even = b.shl(pairs, ir.Constant(v16i, [16] * 16))
        odd = b.and_(pairs, ir.Constant(v16i, [0xFFFF0000] * 16))
        for row, bits in enumerate((even, odd)):
            place = b.add(at, ir.Constant(i64, 16 * row))
            vector_store(b, b.bitcast(bits, v16), pointer(context, b, sig.args[2], wide, place))
        return context.get_dummy_value()

    return types.void(w, types.intp, wide, types.intp), codegen


def panel_by_panel(mode: str, kind: str) -> Any:
    """Make a function: 16 rows of W times `panels` panels of x, as many at once as the registers hold."""
    multiply = product(mode, kind)

    @inline
    def all_panels(panels, w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        p = 0
        while p < panels:
            take = panels_at_once(panels - p)
            x_p, y_p = x_at + p * x_step, y_at + p * y_step
            multiply(take, w, w_at, w_step, x, x_p, x_step, y, y_p, y_step, steps)
            p += take

    return all_panels


def rows_times_panels(mode: str, w: Any, x: Any, widens: bool = WIDENS) -> Any:
    """Make a function for the types of W and x: tile n of W, 16 rows, times `panels` panels of x.

    It takes flat indexes of x and y, and scratch: room for 16 widened rows of W from wide_at on.
    """
    if rounded_operand(x):
        return stored_or_added(mode, integer_rows_times_panels(x))
    if compact(w):
        return stored_or_added(mode, decoded_rows_times_panels(x))
    multiply = panel_by_panel(mode, kind_of(w, x))

    @inline
    def in_registers(w, n, x, x_at, x_step, y, y_at, y_step, panels, scratch, wide_at):
        steps, tile = w.shape[1], w[0].size
        multiply(panels, w, n * tile, tile // steps, x, x_at, x_step, y, y_at, y_step, steps)

    if kind_of(w, x) != "pairs" or not widens:
        return in_registers
    multiply_wide = panel_by_panel(mode, "float32")

    @inline
    def widened(w, n, x, x_at, x_step, y, y_at, y_step, panels, scratch, wide_at):
        if panels < WIDEN_FROM:
            in_registers(w, n, x, x_at, x_step, y, y_at, y_step, panels, scratch, wide_at)
            return
        steps = w.shape[1]
        for k in range(steps):
            widen_pairs(w, (n * steps + k) * 32, scratch, wide_at + k * 32)
        multiply_wide(panels, scratch, wide_at, 16, x, x_at, x_step, y, y_at, y_step, 2 * steps)

    return widened


def decoded_rows_times_panels(x: Any) -> Any:
    """Make the same for weights in fewer bits: block by block, decoded into scratch, then multiplied.

    The sums are those of the micro-kernel, whose blocks are as long: the first begins them, the others go on.
    """
    dot = x.dtype != types.float32
    kind, decoded = ("dot", decode_pairs) if dot else ("float32", decode)
    begin, go_on = panel_by_panel("store", kind), panel_by_panel("continue", kind)
    words = inline((lambda scratch: scratch.view(np.uint16)) if dot else (lambda scratch: scratch))
    per_word = 2 if dot else 1  # elements of `words` per float32 of scratch, and k per row of an operand
    w_step = 16 * per_word

    @inline
    def sums(w, n, x, x_at, x_step, y, y_at, y_step, panels, scratch, wide_at):
        blocks, wide = w.shape[1], words(scratch)
        for block in range(blocks):
            decoded(w, n * blocks + block, scratch, wide_at)
            x_b, left = x_at + block * COLUMNS * 16, x_step // 16 - block * COLUMNS
            steps, at = min(COLUMNS, left) // per_word, wide_at * per_word
            if block == 0:
                begin(panels, wide, at, w_step, x, x_b, x_step, y, y_at, y_step, steps)
            else:
                go_on(panels, wide, at, w_step, x, x_b, x_step, y, y_at, y_step, steps)

    return sums


def stored_or_added(mode: str, sums: Any) -> Any:
    """Make a function that stores what `sums` computes to y, or has it formed in scratch and adds it."""
    if mode == "store":
        return sums

    @inline
    def add(w, n, x, x_at, x_step, y, y_at, y_step, panels, scratch, wide_at):
        sums(w, n, x, x_at, x_step, scratch, 0, ROWS * 16, panels, scratch, wide_at)
        for p in range(panels):
            for i in range(0, ROWS * 16, 16):
                at = y_at + p * y_step + i
                store(y, at, load(y, at) + load(scratch, p * ROWS * 16 + i))

    return add


def panels_together(w: Any, x: Any) -> Any:
    """Make a function: how many of the remaining panels pass all rows of W together.

    Their x stays in L2 while W streams past.
    """
    if compact(w) or (kind_of(w, x) == "pairs" and WIDENS):
        return inline(lambda remaining: min(WIDEN_FOR, remaining))
    return panels_at_once


# The next three get their bodies from @overload, below: README.md, "Functions without a body".


def matmul(w, x, y, panels, scratch, me):
    """y[panels.first + p] = W x[p]; this thread's share of the rows of W."""


def matmul_add(w, x, y, panels, scratch, me):
    """y[panels.first + p] += W x[p]; this thread's share of the rows of W.

    The sum over k is formed first and added once: added one by one to a residual near 5700, each product
    would be rounded to 2^-11.
    """


def matmul_swiglu(w, x, y, count, scratch, me):
    """y[p] = silu(gate x[p]) * (up x[p]), `count` panels of an operand; this thread's share.

    W holds gate and up in turns, 16 rows of each.
    """


RESULTS = WIDEN_FOR * 2 * TILE  # float32 values of scratch for 32 rows of each panel
DECODED = (COLUMNS + COLUMNS // 2 + COLUMNS) * ROWS  # for compact.decode_tiles, which needs the most


def scratch_size(panels: int, K: int) -> int:
    """The float32 values of scratch that a thread needs for `panels` panels of up to K rows."""
    return max(panels * 2 * TILE + DECODED, RESULTS + max(K * ROWS, DECODED))


def in_tiles(x: Any) -> bool:
    """Tell whether an operand's Numba type is one for tiles."""
    return not rounded_operand(x) and x.ndim == 4


def panel_step(x):
    """The flat index of an operand's second panel; integers are indexed by panel."""


@overload(panel_step, jit_options={"nogil": True})
def _panel_step(x):
    if rounded_operand(x):
        return lambda x: 1
    return lambda x: x.shape[1] * x.shape[2]


def groups_of_32(w: Any) -> Any:
    """Make a function: how many times 32 rows W has."""
    return inline((lambda w: w.shape[0] // 2) if compact(w) else (lambda w: w.shape[0]))


def rows_by_tiles(w: Any) -> Any:
    """Make a function: 32 rows of W, in tiles or in fewer bits, times all panels of an operand in tiles."""
    if not compact(w):

        @inline
        def stored(w, n, x, panels, c, c_at, c_step, scratch, bases):
            rows_of_tiles(w, n, x, panels, c, c_at, c_step)

        return stored

    @inline
    def decoded(w, n, x, panels, c, c_at, c_step, scratch, bases):
        parts, part_step, at = x.shape[1], x.shape[2] * x.shape[3], scratch.size - DECODED
        sums = Sums(c, c_at, c_step)
        for block in range(w.shape[1]):
            decode_tiles(w, n, block, scratch, at, bases)
            k = block * (COLUMNS // 32)
            lhs = Lhs(scratch.view(np.uint16), 2 * at, 0, 1)
            rhs = Rhs(x, k * TILE, parts * part_step, part_step, parts)
            multiply_passing(block == 0, lhs, rhs, panels, sums, min(COLUMNS // 32, x.shape[2] // 16 - k), 0)

    return decoded


def macro_kernel(mode: str, w: Any, x: Any) -> Any:
    """Make a function: this thread's rows of W times all panels, micro-kernel by micro-kernel."""
    multiply, together = rows_times_panels(mode, w, x), panels_together(w, x)

    def product(w, x, y, panels, scratch, me):
        first, last = share(w.shape[0], me.thread, me.num_threads)
        x_step, y_step = panel_step(x), y.shape[1] * 16
        p = 0
        while p < panels.count:
            take = together(panels.count - p)
            for n in range(first, last):
                y_at = (panels.first + p) * y_step + n * ROWS * 16
                multiply(w, n, x, p * x_step, x_step, y, y_at, y_step, take, scratch, RESULTS)
            p += take

    return product


@overload(matmul, jit_options={"nogil": True})
def _matmul(w, x, y, panels, scratch, me):
    if not in_tiles(x):
        return macro_kernel("store", w, x)
    multiply, groups = rows_by_tiles(w), groups_of_32(w)

    def product(w, x, y, panels, scratch, me):
        first, last = share(groups(w), me.thread, me.num_threads)
        y_step, bases = y.shape[1] * 16, np.empty(ROWS, np.int64)
        configure(w)
        for n in range(first, last):
            y_at = panels.first * y_step + n * 2 * ROWS * 16
            multiply(w, n, x, panels.count, y, y_at, y_step, scratch, bases)
        release(w)

    return product


@overload(matmul_add, jit_options={"nogil": True})
def _matmul_add(w, x, y, panels, scratch, me):
    if not in_tiles(x):
        return macro_kernel("add", w, x)
    multiply, groups = rows_by_tiles(w), groups_of_32(w)

    def add(w, x, y, panels, scratch, me):
        first, last = share(groups(w), me.thread, me.num_threads)
        step, bases = 2 * ROWS * 16, np.empty(ROWS, np.int64)
        configure(w)
        for n in range(first, last):
            multiply(w, n, x, panels.count, scratch, 0, step, scratch, bases)
            for p in range(panels.count):
                y_at = (panels.first + p) * y.shape[1] * 16 + n * step
                for i in range(0, step, 16):
                    store(y, y_at + i, load(y, y_at + i) + load(scratch, p * step + i))
        release(w)

    return add


@overload(matmul_swiglu, jit_options={"nogil": True})
def _matmul_swiglu(w, x, y, count, scratch, me):
    if in_tiles(x):
        multiply_tiles, groups = rows_by_tiles(w), groups_of_32(w)

        def swiglu(w, x, y, count, scratch, me):
            first, last = share(groups(w), me.thread, me.num_threads)
            bases = np.empty(ROWS, np.int64)
            configure(w)
            for n in range(first, last):
                multiply_tiles(w, n, x, count, scratch, 0, 2 * ROWS * 16, scratch, bases)
                swiglu_epilogue(scratch, count, y, 0, n)
            release(w)

        return swiglu

    multiply, together = rows_times_panels("store", w, x), panels_together(w, x)

    def swiglu(w, x, y, count, scratch, me):
        first, last = share(w.shape[0] // 2, me.thread, me.num_threads)
        x_step, s_step = panel_step(x), 2 * ROWS * 16
        p = 0
        while p < count:
            take = together(count - p)
            for n in range(first, last):
                for half in range(2):  # gate, then up
                    s_at = half * ROWS * 16
                    multiply(
                        w, 2 * n + half, x, p * x_step, x_step, scratch, s_at, s_step, take, scratch, RESULTS
                    )
                swiglu_epilogue(scratch, take, y, p, n)
            p += take

    return swiglu


@inline
def swiglu_epilogue(scratch, take, y, panel, n):
    """Write rows 16n to 16n + 15 of y's panels from `panel` on.

    For each panel, scratch holds 16 rows of gate x, then 16 of up x.
    """
    for q in range(take):
        for i in range(0, ROWS, 2):
            gate, up = (q * 2 * ROWS + i) * 16, (q * 2 * ROWS + ROWS + i) * 16
            even = silu(load(scratch, gate)) * load(scratch, up)
            odd = silu(load(scratch, gate + 16)) * load(scratch, up + 16)
            store_rows(y, panel + q, n * ROWS + i, even, odd)
