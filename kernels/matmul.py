"""y^T = W x^T on panels of 16 tokens.

W   checkpoint matrix [N, K], packed once as w[N/16, K/2, 16, 2]: 16 rows side by side, in pairs along K, so
    that a row block is one sequential stream. bfloat16 bits (uint16); or float32 [N/16, K, 16] where the
    checkpoint is not bfloat16.
x   operand panels: float32 [P, K, 16], or bfloat16 pairs [P, K/2, 32] (uint16) for CPUs that multiply those.
y   float32 panels [P, N, 16].

For AMX, w and x are tiles: see tiles.py.

Each result is a sum, in order, of chains of CHAIN fused multiply-adds over k = 0, 1, 2, ..., whatever the
block it is computed in: a token's result is the same bits in any company. N and K are padded to 32, with
zeros.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .compiled import inline
from .isa import has_feature
from .lanes import (
    broadcast,
    f32,
    i8,
    i32,
    i64,
    llvm,
    load,
    pointer,
    store,
    v32b,
    vector_load,
    vector_store,
)
from .panels import ROWS, put_rows, silu
from .team import share
from .tiles import TILE, configure, release, rows_of_tiles, tiled

# Bytes: at 16 tokens the weights come from memory at 13 GB/s a core with this, and at 6 without.
PREFETCH = 8192
# float32 in a register: of AVX-512, AVX2, NEON. A block is written in registers, not in panels, so that LLVM
# widens each weight once and has no more values alive than there are registers.
REGISTER = 16 if has_feature("avx512f") else 8 if has_feature("avx2") else 4
# Products summed in one chain before they join the total: a single chain over K = 3072 would more than double
# the error of the final vector (5e-7 against 2e-7).
CHAIN = 128


def opaque_mask(b: Any, bits: int) -> Any:
    """A vector constant that LLVM cannot see through. If it could, it would turn "load to all lanes and
    mask", one instruction, into a scalar load, a blend and a broadcast, on the ports that the multiply-adds
    need."""
    name = f"qwen3np.mask.{bits:x}"
    if name not in b.module.globals:
        kind = ir.VectorType(i32, REGISTER)
        variable = ir.GlobalVariable(b.module, kind, name)
        variable.linkage = "weak"
        variable.align = 64
        variable.initializer = ir.Constant(kind, [bits] * REGISTER)
    return b.load(b.module.globals[name], align=64)


def row_block(rows: int, panels: int, mode: str, kind: str, chain: int) -> Any:
    """An intrinsic: `rows` rows of W times `panels` token panels over the whole of K, in registers.

    kind "pairs": W bfloat16 pairs as packed, x float32. "float32": W float32, w_step elements from k to k +
    1. "dot": W and x bfloat16 pairs, by the CPU's vdpbf16ps. mode "store": y = sum. "add": y += sum.
    "continue": y is the total so far.
    chain: products summed in one chain before they join the total.
    """
    vector = ir.VectorType(f32, REGISTER)
    x_width = {"float32": 16, "pairs": 32, "dot": 32}[kind]  # elements of a panel of x that one step consumes

    @intrinsic
    def block(typingctx, w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        def codegen(context, b, sig, args):
            w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps = args
            w_base = pointer(context, b, sig.args[0], w, w_at)
            x_base = pointer(context, b, sig.args[3], x, x_at)
            y_base = pointer(context, b, sig.args[6], y, y_at)

            def at(base, *terms):
                return b.gep(base, [sum_of(b, terms)])

            # Each panel is as many columns as it takes registers.
            columns = [(p, i) for p in range(panels) for i in range(0, 16, REGISTER)]
            x_columns = [at(x_base, (p, x_step), (i, 1)) for p, i in columns]
            y_rows = [[at(y_base, (p, y_step), (16 * r + i, 1)) for p, i in columns] for r in range(rows)]
            zero = ir.Constant(vector, [0.0] * REGISTER)
            before = [
                [zero if mode == "store" else vector_load(b, y, vector) for y in row] for row in y_rows
            ]
            upper = opaque_mask(b, 0xFFFF0000) if kind == "pairs" else None

            totals = [[cgutils.alloca_once(b, vector) for _ in columns] for _ in range(rows)]
            for r in range(rows):
                for c in range(len(columns)):
                    b.store(before[r][c] if mode == "continue" else zero, totals[r][c])

            entry = b.block
            start, loop, end, done = (b.append_basic_block(n) for n in ("chain", "k", "chain_end", "done"))
            b.branch(start)  # steps > 0
            b.position_at_end(start)
            first = b.phi(i64)
            first.add_incoming(ir.Constant(i64, 0), entry)
            beyond = b.add(first, ir.Constant(i64, chain // (1 if kind == "float32" else 2)))
            last = b.select(b.icmp_signed("<", beyond, steps), beyond, steps)
            b.branch(loop)
            b.position_at_end(loop)
            k = b.phi(i64)
            acc = [[b.phi(vector) for _ in columns] for _ in range(rows)]
            w_k = b.gep(w_base, [b.mul(k, w_step)])
            prefetch(b, w_k, PREFETCH)

            def x_rows(half):
                rows_at = [at(x, (k, x_width), (16 * half, 1)) for x in x_columns]
                return [vector_load(b, row, v32b if kind == "dot" else vector) for row in rows_at]

            def weight(r, offset, element, align):
                """In all lanes, the element that starts `offset` behind the first of row r."""
                address = b.gep(w_k, [ir.Constant(i64, r * (1 if kind == "float32" else 2) + offset)])
                loaded = b.load(b.bitcast(address, element.as_pointer()), align=align)
                return broadcast(b, loaded, REGISTER)

            @cache
            def four_rows(r, half):
                """The weights of rows r to r + 3, widened together: NEON multiplies by a lane of a register,
                and a step takes 1.3 instructions a multiply-add. (With a load to all lanes for each weight
                2, and on many CPUs spills.) Behind the block's last row are others of the 16."""
                address = b.gep(w_k, [ir.Constant(i64, r * (1 if kind == "float32" else 2))])
                four = vector_load(b, address, ir.VectorType(i32, 4))
                if kind == "pairs":
                    sixteen = ir.Constant(four.type, [16] * 4)
                    four = b.and_(four, upper) if half else b.shl(four, sixteen)
                return b.bitcast(four, vector)

            def widened(r, half):
                """A bfloat16 is the upper half of a float32: read so that it is, clear the lower half. (One
                load and a shift for the other of the pair would keep eight more registers alive, and spill
                them; but where registers are free, loads are what bounds the block.)"""
                if REGISTER == 4:
                    four = four_rows(r // 4 * 4, half)
                    return b.shuffle_vector(four, four, ir.Constant(ir.VectorType(i32, 4), [r % 4] * 4))
                if kind == "float32":
                    return weight(r, 0, f32, 4)
                if half == 0 and one_load:
                    shift = ir.Constant(upper.type, [16] * REGISTER)
                    return b.bitcast(b.shl(weight(r, 0, i32, 2), shift), vector)
                return b.bitcast(b.and_(weight(r, half - 1 if half == 0 else 0, i32, 2), upper), vector)

            halves = range(2 if kind == "pairs" else 1)
            one_load = panels == 1 and REGISTER == 16
            # Where registers are few, x of one half of the pairs is in them at a time.
            order = [(r, h) for r in range(rows) for h in halves]
            if REGISTER < 16:
                order.sort(key=lambda at: at[1])
            x = {}
            total = [list(row) for row in acc]
            for r, half in order:
                if half not in x:
                    x[half] = x_rows(half)
                if kind == "dot":
                    name, w_r = "llvm.x86.avx512bf16.dpbf16ps.512", b.bitcast(weight(r, 0, i32, 2), v32b)
                    total[r] = [llvm(b, name, t, x_c, w_r) for t, x_c in zip(total[r], x[half], strict=True)]
                else:
                    name, w_r = f"llvm.fma.v{REGISTER}f32", widened(r, half)
                    total[r] = [llvm(b, name, w_r, x_c, t) for t, x_c in zip(total[r], x[half], strict=True)]
            k_next = b.add(k, ir.Constant(i64, 1))
            k.add_incoming(first, start)
            k.add_incoming(k_next, loop)
            for r in range(rows):
                for c in range(len(columns)):
                    acc[r][c].add_incoming(zero, start)
                    acc[r][c].add_incoming(total[r][c], loop)
            b.cbranch(b.icmp_signed("<", k_next, last), loop, end)
            b.position_at_end(end)
            for r in range(rows):
                for c in range(len(columns)):
                    b.store(b.fadd(b.load(totals[r][c]), total[r][c]), totals[r][c])
            first.add_incoming(last, end)
            b.cbranch(b.icmp_signed("<", last, steps), start, done)
            b.position_at_end(done)
            for c in range(len(columns)):
                for r in range(rows):
                    result = b.load(totals[r][c])
                    if mode == "add":
                        result = b.fadd(before[r][c], result)
                    vector_store(b, result, y_rows[r][c])
            return context.get_dummy_value()

        size = types.intp
        return types.void(w, size, size, x, size, size, y, size, size, size), codegen

    return block


def sum_of(b: Any, terms: Any) -> Any:
    """Sum of products of LLVM values and Python ints, as an index."""

    def value(x: Any) -> Any:
        return ir.Constant(i64, x) if isinstance(x, int) else x

    total = ir.Constant(i64, 0)
    for x, y in terms:
        total = b.add(total, b.mul(value(x), value(y)))
    return total


def prefetch(b: Any, address: Any, distance: int) -> None:
    """Ask for the cache line `distance` bytes ahead; past the end of an array it is no fault."""
    ahead = b.gep(b.bitcast(address, i8.as_pointer()), [ir.Constant(i64, distance)])
    hint = ir.FunctionType(ir.VoidType(), [ahead.type, i32, i32, i32])
    read_to_l1 = [ir.Constant(i32, n) for n in (0, 3, 1)]
    b.call(cgutils.get_or_insert_function(b.module, hint, "llvm.prefetch.p0"), [ahead, *read_to_l1])


# Token panels a block takes -> rows of W it takes: what fits into the registers. AVX-512 has 32 of 16 floats.
# AVX2 has 16 of 8, NEON 32 of 4, so a block there is one panel wide: 6 rows of AVX2 are 12 sums, 2 registers
# of x and one weight; of NEON 24 sums, 4 of x, 2 of four weights as packed and 1 or 2 widened. (8 sums just
# cover the latency of a multiply-add, 4 cycles with 2 begun in each; NEON begins up to 4.)
BLOCK_ROWS = {1: 16, 2: 8, 3: 8} if has_feature("avx512f") else {1: 6}
MAX_PANELS = max(BLOCK_ROWS)


@inline
def panels_at_once(left):
    """How many of the `left` panels the next block takes: three, but of four two and two."""
    if MAX_PANELS == 1 or left == 1:
        return 1
    return 3 if left == 3 or left > 4 else 2


def product(mode: str, kind: str, chain: int = CHAIN) -> Any:
    """A kernel function: 16 rows of W times `take` panels (see panels_at_once)."""
    one, two, three = (sixteen_rows(min(take, MAX_PANELS), mode, kind, chain) for take in (1, 2, 3))

    @inline
    def multiply(take, w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        if take == 1:
            one(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps)
        elif take == 2:
            two(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps)
        else:
            three(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps)

    return multiply


@cache
def sixteen_rows(panels: int, mode: str, kind: str, chain: int) -> Any:
    """Blocks of as many rows as the registers hold, and one of what is left."""
    rows = BLOCK_ROWS[panels]
    left = ROWS % rows
    block = row_block(rows, panels, mode, kind, chain)
    last = row_block(left, panels, mode, kind, chain) if left else block
    width = 1 if kind == "float32" else 2  # elements of W from row to row

    @inline
    def blocks(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        for r in range(0, ROWS - left, rows):
            block(w, w_at + r * width, w_step, x, x_at, x_step, y, y_at + r * 16, y_step, steps)
        if left:
            r = ROWS - left
            last(w, w_at + r * width, w_step, x, x_at, x_step, y, y_at + r * 16, y_step, steps)

    return blocks


def kind_of(w: Any, x: Any) -> str:
    """The row block for the Numba types of the two operands."""
    if w.dtype == types.float32:
        return "float32"
    return "pairs" if x.dtype == types.float32 else "dot"


def matmul(w, x, y, y_panel, panels, thread, num_threads):
    """y[y_panel + p] = W x[p] for p < panels; this thread's share of the rows."""


def matmul_add(w, x, y, y_panel, panels, scratch, thread, num_threads):
    """y[y_panel + p] += W x[p]. The sum over k is formed first and added once: added one by one to a residual
    near 5700, each product would be rounded to 2^-11."""


def matmul_swiglu(w, x, y, panels, scratch, thread, num_threads):
    """y[p] = silu(gate x[p]) * (up x[p]), an operand. W holds gate and up in turns, 16 rows of each."""


def scratch_size(panels: int) -> int:
    """float32 values of scratch that a thread needs for `panels` panels at a time: 32 rows of each."""
    return max(panels, MAX_PANELS) * 2 * TILE


def _whole(mode: str, w: Any, x: Any) -> Any:
    """All rows of W (this thread's share) times all panels."""
    multiply = product(mode, kind_of(w, x))

    def whole(w, x, y, y_panel, panels, thread, num_threads):
        first, last = share(w.shape[0], thread, num_threads)
        steps, tile = w.shape[1], w[0].size
        x_step, y_step = x.shape[1] * x.shape[2], y.shape[1] * 16
        p = 0
        while p < panels:  # the panels of a block stay in L2 while the weights stream past
            take = panels_at_once(panels - p)
            for n in range(first, last):
                y_at = (y_panel + p) * y_step + n * ROWS * 16
                multiply(take, w, n * tile, tile // steps, x, p * x_step, x_step, y, y_at, y_step, steps)
            p += take

    return whole


@overload(matmul, jit_options={"nogil": True})
def _matmul(w, x, y, y_panel, panels, thread, num_threads):
    if not tiled(w):
        return _whole("store", w, x)

    def whole(w, x, y, y_panel, panels, thread, num_threads):
        first, last = share(w.shape[0], thread, num_threads)
        y_step = y.shape[1] * 16
        configure(w)
        for n in range(first, last):
            rows_of_tiles(w, n, x, panels, y, y_panel * y_step + n * 2 * ROWS * 16, y_step)
        release(w)

    return whole


@overload(matmul_add, jit_options={"nogil": True})
def _matmul_add(w, x, y, y_panel, panels, scratch, thread, num_threads):
    if not tiled(w):
        whole = inline(_whole("add", w, x))
        return lambda w, x, y, y_panel, panels, scratch, thread, num_threads: whole(
            w, x, y, y_panel, panels, thread, num_threads
        )

    def add(w, x, y, y_panel, panels, scratch, thread, num_threads):
        first, last = share(w.shape[0], thread, num_threads)
        step = 2 * ROWS * 16
        configure(w)
        for n in range(first, last):
            rows_of_tiles(w, n, x, panels, scratch, 0, step)
            for p in range(panels):
                y_at = (y_panel + p) * y.shape[1] * 16 + n * step
                for i in range(0, step, 16):
                    store(y, y_at + i, load(y, y_at + i) + load(scratch, p * step + i))
        release(w)

    return add


@overload(matmul_swiglu, jit_options={"nogil": True})
def _matmul_swiglu(w, x, y, panels, scratch, thread, num_threads):
    if tiled(w):

        def swiglu(w, x, y, panels, scratch, thread, num_threads):
            first, last = share(w.shape[0], thread, num_threads)
            configure(w)
            for n in range(first, last):
                rows_of_tiles(w, n, x, panels, scratch, 0, 2 * ROWS * 16)
                put_swiglu(scratch, panels, y, 0, n)
            release(w)

        return swiglu

    multiply = product("store", kind_of(w, x))

    def whole(w, x, y, panels, scratch, thread, num_threads):
        first, last = share(w.shape[0] // 2, thread, num_threads)
        steps, tile = w.shape[1], w[0].size
        x_step, s_step = x.shape[1] * x.shape[2], 2 * ROWS * 16
        p = 0
        while p < panels:
            take = panels_at_once(panels - p)
            for n in range(first, last):
                for half in range(2):  # gate, then up
                    w_at, s_at = (2 * n + half) * tile, half * ROWS * 16
                    multiply(
                        take, w, w_at, tile // steps, x, p * x_step, x_step, scratch, s_at, s_step, steps
                    )
                put_swiglu(scratch, take, y, p, n)
            p += take

    return whole


@inline
def put_swiglu(scratch, take, y, panel, n):
    """Rows 16n to 16n + 15 of y's panels from `panel` on: scratch holds 16 rows of gate x and 16 of up x for
    each."""
    for q in range(take):
        for i in range(0, ROWS, 2):
            gate, up = (q * 2 * ROWS + i) * 16, (q * 2 * ROWS + ROWS + i) * 16
            even = silu(load(scratch, gate)) * load(scratch, up)
            odd = silu(load(scratch, gate + 16)) * load(scratch, up + 16)
            put_rows(y, panel + q, n * ROWS + i, even, odd)
