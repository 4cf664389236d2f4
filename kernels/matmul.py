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

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .compiled import inline
from .isa import has_feature
from .lanes import (
    broadcast,
    constant,
    i8,
    i32,
    i64,
    llvm,
    load,
    pointer,
    store,
    v16,
    v16i,
    v32b,
    vector_load,
    vector_store,
)
from .panels import ROWS, put_rows, silu
from .team import share
from .tiles import TILE, configure, release, rows_of_tiles, tiled

# Bytes: at 16 tokens the weights come from memory at 13 GB/s a core with this, and at 6 without.
PREFETCH = 8192
# Products summed in one chain before they join the total: a single chain over K = 3072 would more than double
# the error of the final vector (5e-7 against 2e-7).
CHAIN = 128


def opaque_mask(b: Any, bits: int) -> Any:
    """A vector constant that LLVM cannot see through. If it could, it would turn "load to all lanes and
    mask", one instruction, into a scalar load, a blend and a broadcast, on the ports that the multiply-adds
    need."""
    name = f"qwen3np.mask.{bits:x}"
    if name not in b.module.globals:
        variable = ir.GlobalVariable(b.module, v16i, name)
        variable.linkage = "weak"
        variable.align = 64
        variable.initializer = ir.Constant(v16i, [bits] * 16)
    return b.load(b.module.globals[name], align=64)


def row_block(rows: int, panels: int, mode: str, kind: str, chain: int) -> Any:
    """An intrinsic: `rows` rows of W times `panels` token panels over the whole of K, in registers.

    kind "pairs": W bfloat16 pairs as packed, x float32. "float32": W float32, w_step elements from k to k +
    1. "dot": W and x bfloat16 pairs, by the CPU's vdpbf16ps. mode "store": y = sum. "add": y += sum.
    "continue": y is the total so far.
    chain: products summed in one chain before they join the total.
    """
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

            x_panels = [at(x_base, (p, x_step)) for p in range(panels)]
            y_rows = [[at(y_base, (p, y_step), (16 * r, 1)) for p in range(panels)] for r in range(rows)]
            zero = constant(0.0)
            before = [[zero if mode == "store" else vector_load(b, y, v16) for y in row] for row in y_rows]
            upper = opaque_mask(b, 0xFFFF0000) if kind == "pairs" else None

            totals = [[cgutils.alloca_once(b, v16) for _ in range(panels)] for _ in range(rows)]
            for r in range(rows):
                for p in range(panels):
                    b.store(before[r][p] if mode == "continue" else zero, totals[r][p], align=64)

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
            acc = [[b.phi(v16) for _ in range(panels)] for _ in range(rows)]
            w_k = b.gep(w_base, [b.mul(k, w_step)])
            prefetch(b, w_k, PREFETCH)

            def x_row(p, half):
                address = at(x_panels[p], (k, x_width), (16 * half, 1))
                return vector_load(b, address, v32b if kind == "dot" else v16)

            def weight(r, offset):
                """In all lanes, the 32 bits that start `offset` elements after row r's pair."""
                address = b.gep(w_k, [ir.Constant(i64, 2 * r + offset)])
                return broadcast(b, b.load(b.bitcast(address, i32.as_pointer()), align=2))

            def upper_half(r, offset):
                """A bfloat16 is the upper half of a float32: read so that it is, clear the lower half. (One
                load and a shift for the other of the pair would keep eight more registers alive, and spill
                them.)"""
                return b.bitcast(b.and_(weight(r, offset), upper), v16)

            even = [x_row(p, 0) for p in range(panels)]
            odd = [x_row(p, 1) for p in range(panels)] if kind == "pairs" else []
            total = [list(row) for row in acc]
            for r in range(rows):
                if kind == "float32":
                    w_even = broadcast(b, b.load(b.gep(w_k, [ir.Constant(i64, r)])))
                elif kind == "pairs" and panels == 1:
                    pair = weight(r, 0)  # here registers are free, and loads are what bounds the block
                    w_even = b.bitcast(b.shl(pair, ir.Constant(v16i, [16] * 16)), v16)
                    w_odd = b.bitcast(b.and_(pair, upper), v16)
                elif kind == "pairs":
                    w_even, w_odd = upper_half(r, -1), upper_half(r, 0)
                else:
                    w_pair = b.bitcast(weight(r, 0), v32b)
                for p in range(panels):
                    if kind == "dot":
                        name = "llvm.x86.avx512bf16.dpbf16ps.512"
                        total[r][p] = llvm(b, name, acc[r][p], even[p], w_pair)
                        continue
                    total[r][p] = llvm(b, "llvm.fma.v16f32", w_even, even[p], acc[r][p])
                    if kind == "pairs":
                        total[r][p] = llvm(b, "llvm.fma.v16f32", w_odd, odd[p], total[r][p])
            k_next = b.add(k, ir.Constant(i64, 1))
            k.add_incoming(first, start)
            k.add_incoming(k_next, loop)
            for r in range(rows):
                for p in range(panels):
                    acc[r][p].add_incoming(zero, start)
                    acc[r][p].add_incoming(total[r][p], loop)
            b.cbranch(b.icmp_signed("<", k_next, last), loop, end)
            b.position_at_end(end)
            for r in range(rows):
                for p in range(panels):
                    b.store(b.fadd(b.load(totals[r][p], align=64), total[r][p]), totals[r][p], align=64)
            first.add_incoming(last, end)
            b.cbranch(b.icmp_signed("<", last, steps), start, done)
            b.position_at_end(done)
            for p in range(panels):
                for r in range(rows):
                    result = b.load(totals[r][p], align=64)
                    if mode == "add":
                        result = b.fadd(before[r][p], result)
                    vector_store(b, result, y_rows[r][p])
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


# Token panels a block takes -> rows of W it takes: what fits into the registers. AVX-512 has 32 of 16 floats;
# AVX2 has 16 of 8, NEON 32 of 4, so a block there is one panel wide.
BLOCK_ROWS = {1: 16, 2: 8, 3: 8} if has_feature("avx512f") else {1: 4}
MAX_PANELS = max(BLOCK_ROWS)


@inline
def panels_at_once(left):
    """How many of the `left` panels the next block takes: three, but of four two and two."""
    if MAX_PANELS == 1 or left == 1:
        return 1
    return 3 if left == 3 or left > 4 else 2


def product(mode: str, kind: str, chain: int = CHAIN) -> Any:
    """A kernel function: `rows` rows of W, a multiple of 16, times `take` panels (see panels_at_once)."""
    widest = BLOCK_ROWS[1]
    rows_1, rows_2, rows_3 = widest, BLOCK_ROWS.get(2, widest), BLOCK_ROWS.get(3, widest)
    one = row_block(rows_1, 1, mode, kind, chain)
    two = row_block(rows_2, 2, mode, kind, chain) if 2 in BLOCK_ROWS else one
    three = row_block(rows_3, 3, mode, kind, chain) if 3 in BLOCK_ROWS else one
    width = 1 if kind == "float32" else 2  # elements of W from row to row

    @inline
    def multiply(take, rows, w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        if take == 1:
            for r in range(0, rows, rows_1):
                one(w, w_at + r * width, w_step, x, x_at, x_step, y, y_at + r * 16, y_step, steps)
        elif take == 2:
            for r in range(0, rows, rows_2):
                two(w, w_at + r * width, w_step, x, x_at, x_step, y, y_at + r * 16, y_step, steps)
        else:
            for r in range(0, rows, rows_3):
                three(w, w_at + r * width, w_step, x, x_at, x_step, y, y_at + r * 16, y_step, steps)

    return multiply


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
                multiply(
                    take, ROWS, w, n * tile, tile // steps, x, p * x_step, x_step, y, y_at, y_step, steps
                )
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
                        take,
                        ROWS,
                        w,
                        w_at,
                        tile // steps,
                        x,
                        p * x_step,
                        x_step,
                        scratch,
                        s_at,
                        s_step,
                        steps,
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
