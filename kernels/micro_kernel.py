"""The micro-kernel: some rows of W times some panels of x over the whole of K, the sums in registers.

Its loop over k is plain Python. What it works on is a register block: rows x panels x 16 float32 sums, in as
many registers as the CPU needs for them, as a tuple that LLVM keeps there. Each step of k adds the outer
product of a column of W and a row of every panel: rows + panels loads for rows * panels multiply-adds.

    kind        W                 x                 multiplied by
    float32     float32           float32           float32 multiply-adds
    pairs       bfloat16 pairs    float32           the same, W widened on the way
    dot         bfloat16 pairs    bfloat16 pairs    vdpbf16ps
    words       int16 pairs       int16 pairs       vpmaddwd and an addition; integers, scaled at the end
    bytes       uint8 quads       int8 quads        vpdpbusd; the same

    mode        y at the end
    store       the sum
    add         y + the sum
    continue    the sum, which began with y

The terms are those of BLIS (Van Zee and van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS
Functionality", ACM TOMS 41(3), 2015).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from .isa import has_feature, vnni
from .jit import inline
from .panels import ROWS
from .simd import (
    broadcast,
    f32,
    i8,
    i32,
    i64,
    llvm,
    pointer,
    prefetch,
    v32b,
    vector_load,
    vector_store,
)

# Products that are summed before their sum joins the total (blocked summation): one sum over K = 3072 would
# more than double the error of the final vector (5e-7 against 2e-7).
SUM_BLOCK = 128
REGISTER = 16 if has_feature("avx512f") else 8 if has_feature("avx2") else 4  # float32: AVX-512, AVX2, NEON
# Panels of a register block -> its rows of W: what fits into the registers.
#   AVX-512, 32 registers: 8 x 3 sums, 6 of x (two halves of pairs), a mask, a weight
#   AVX2, 16 registers: 6 x 2 sums (a panel is two registers), 2 of x, a mask, a weight
#   NEON, 32 registers: 6 x 4 sums, 4 of x, 2 of four weights as packed, 1 or 2 of four widened
# Eight sums just cover the latency of a multiply-add: 4 cycles, with two started in each (NEON: up to four).
BLOCK_ROWS = {1: 16, 2: 8, 3: 8} if has_feature("avx512f") else {1: 6}
MAX_PANELS = max(BLOCK_ROWS)

vector, integers = (ir.VectorType(element, REGISTER) for element in (f32, i32))
# Elements of a row of W, and of a token, that one step multiplies, and a register of x: those of its tokens.
PER_STEP = {"float32": 1, "pairs": 2, "dot": 2, "words": 2, "bytes": 4}
X_REGISTER = {
    "float32": vector,
    "pairs": vector,
    "dot": v32b,
    "words": ir.VectorType(ir.IntType(16), 2 * REGISTER),
    "bytes": ir.VectorType(i8, 4 * REGISTER),
}


class RegisterType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Register")


@register_model(RegisterType)
class RegisterModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, vector)


register = RegisterType()


class RegisterBlock(NamedTuple):
    """The functions on the sums of one shape and kind, a tuple of registers."""

    zero: Any  # () -> sums
    load: Any  # (y, y_at, y_step) -> sums
    same_rows: Any  # (x, x_at, x_step) -> sums: of every row those
    add_products: Any  # (sums, w, w_at, x, x_at, x_step) -> sums, with those of one step of k
    add: Any  # (sums, sums) -> sums
    add_scaled: Any  # (sums, integer sums, w_scales, at, x_scales, at, step) -> sums
    store: Any  # (sums, y, y_at, y_step)


@cache
def register_block(rows: int, panels: int, kind: str) -> RegisterBlock:
    """Make the functions on `rows` rows of sums; a row is 16 / REGISTER registers of every panel."""
    columns = [(p, i) for p in range(panels) for i in range(0, 16, REGISTER)]
    count = rows * len(columns)
    block = types.UniTuple(register, count)
    per_step, x_register = PER_STEP[kind], X_REGISTER[kind]
    per_lane = 1 if x_register == vector else per_step

    def addresses(context, b, array_type, array, at, step, per_lane=1):
        """The addresses of the columns, in panels that are `step` apart."""
        base = pointer(context, b, array_type, array, at)
        offsets = (
            b.add(b.mul(step, ir.Constant(i64, p)), ir.Constant(i64, i * per_lane)) for p, i in columns
        )
        return [b.gep(base, [offset]) for offset in offsets]

    def rows_of(b, starts):
        return [b.gep(start, [ir.Constant(i64, 16 * r)]) for r in range(rows) for start in starts]

    @intrinsic
    def zero(typingctx):
        zeros = [ir.Constant(vector, [0.0] * REGISTER)] * count
        return block(), lambda context, b, sig, args: context.make_tuple(b, block, zeros)

    @intrinsic
    def load(typingctx, y, y_at, y_step):
        def codegen(context, b, sig, args):
            places = rows_of(b, addresses(context, b, sig.args[0], *args))
            return context.make_tuple(b, block, [vector_load(b, place, vector) for place in places])

        return block(y, types.intp, types.intp), codegen

    @intrinsic
    def same_rows(typingctx, x, x_at, x_step):
        def codegen(context, b, sig, args):
            row = [vector_load(b, place, vector) for place in addresses(context, b, sig.args[0], *args)]
            return context.make_tuple(b, block, row * rows)

        return block(x, types.intp, types.intp), codegen

    @intrinsic
    def store(typingctx, sums, y, y_at, y_step):
        def codegen(context, b, sig, args):
            sums, y, y_at, y_step = args
            places = rows_of(b, addresses(context, b, sig.args[1], y, y_at, y_step))
            for value, place in zip(cgutils.unpack_tuple(b, sums, count), places, strict=True):
                vector_store(b, value, place)
            return context.get_dummy_value()

        return types.void(block, y, types.intp, types.intp), codegen

    @intrinsic
    def add(typingctx, one, other):
        def codegen(context, b, sig, args):
            pairs = zip(*(cgutils.unpack_tuple(b, sums, count) for sums in args), strict=True)
            return context.make_tuple(b, block, [b.fadd(*pair) for pair in pairs])

        return block(block, block), codegen

    @intrinsic
    def add_scaled(typingctx, total, sums, w_scales, w_at, x_scales, x_at, x_step):
        def codegen(context, b, sig, args):
            total, sums = (cgutils.unpack_tuple(b, a, count) for a in args[:2])
            w = b.bitcast(pointer(context, b, sig.args[2], *args[2:4]), f32.as_pointer())
            x_places = addresses(context, b, sig.args[4], *args[4:])
            x = [vector_load(b, place, vector) for place in x_places]
            for r in range(rows):
                w_scale = broadcast(b, b.load(b.gep(w, [ir.Constant(i64, r)]), align=4), REGISTER)
                for i, x_scale in enumerate(x, r * len(columns)):
                    units = b.sitofp(b.bitcast(sums[i], integers), vector)
                    scale = b.fmul(w_scale, x_scale)
                    total[i] = llvm(b, f"llvm.fma.v{REGISTER}f32", units, scale, total[i])
            return context.make_tuple(b, block, total)

        arguments = block, block, w_scales, types.intp, x_scales, types.intp, types.intp
        return block(*arguments), codegen

    @intrinsic
    def add_products(typingctx, sums, w, w_at, x, x_at, x_step):
        def codegen(context, b, sig, args):
            sums, w, w_at, x, x_at, x_step = args
            sums = cgutils.unpack_tuple(b, sums, count)
            w = pointer(context, b, sig.args[1], w, w_at)
            x = addresses(context, b, sig.args[3], x, x_at, x_step, per_lane)
            if kind not in ("words", "bytes"):  # those are in the first-level cache already
                prefetch(b, w)
            upper = opaque_mask(b, 0xFFFF0000) if kind == "pairs" else None
            order = [(r, half) for r in range(rows) for half in range(2 if kind == "pairs" else 1)]
            if REGISTER < 16:  # few registers: x of one half of the pairs is in them at a time
                order.sort(key=lambda at: at[1])
            x_rows: dict[int, Any] = {}
            four = cache(lambda r, half: four_weights(b, w, r, half, upper))
            for r, half in order:
                if half not in x_rows:
                    places = [b.gep(column, [ir.Constant(i64, 16 * half)]) for column in x]
                    x_rows[half] = [vector_load(b, p, x_register) for p in places]
                if REGISTER == 4:
                    all_lanes = ir.Constant(ir.VectorType(i32, 4), [r % 4] * 4)
                    weight = b.shuffle_vector(four(r // 4 * 4, half), four(r // 4 * 4, half), all_lanes)
                else:
                    weight = one_weight(b, w, r, half, upper)
                for i, x_c in enumerate(x_rows[half], r * len(columns)):
                    sums[i] = multiply_add(b, weight, x_c, sums[i])
            return context.make_tuple(b, block, sums)

        return block(block, w, types.intp, x, types.intp, types.intp), codegen

    def four_weights(b, w, r, half, upper):
        """The weights of rows r to r + 3, widened together.

        NEON multiplies by a lane of a register: a step takes 1.3 instructions per multiply-add. With a load
        to all lanes for each weight it would take 2, and on many CPUs spill. Behind the block's last row
        are others of the 16.
        """
        place = b.gep(w, [ir.Constant(i64, r * per_step)])
        words = vector_load(b, place, ir.VectorType(i32, 4))
        if kind == "pairs":
            words = b.and_(words, upper) if half else b.shl(words, ir.Constant(words.type, [16] * 4))
        return b.bitcast(words, vector)

    def one_weight(b, w, r, half, upper):
        """The weight of row r, or its pair or four, in all lanes.

        A bfloat16 is the upper half of a float32: load the four bytes in which it is the upper half, and
        clear the lower. For the first weight in memory they begin two bytes in front of it (GUARD_BYTES
        in runtime/packed_weights.py). One load, and a shift for the other of the pair, would keep eight
        more registers alive, and spill them; where registers are free, loads are what bounds the block,
        and that is done.
        """

        def loaded(offset, element, align):
            place = b.gep(w, [ir.Constant(i64, offset)])
            return broadcast(b, b.load(b.bitcast(place, element.as_pointer()), align=align), REGISTER)

        if kind == "float32":
            return loaded(r, f32, 4)
        if kind != "pairs":
            return loaded(per_step * r, i32, 2)
        if half == 0 and panels == 1 and REGISTER == 16:
            return b.bitcast(b.shl(loaded(2 * r, i32, 2), ir.Constant(upper.type, [16] * REGISTER)), vector)
        return b.bitcast(b.and_(loaded(2 * r + half - 1, i32, 2), upper), vector)

    def multiply_add(b, weight, x, total):
        if kind == "dot":
            return llvm(b, "llvm.x86.avx512bf16.dpbf16ps.512", total, x, b.bitcast(weight, x_register))
        if x_register != vector:
            add = add_words if kind == "words" else add_bytes
            added = add(b, b.bitcast(total, integers), b.bitcast(weight, x_register), x)
            return b.bitcast(added, vector)
        return llvm(b, f"llvm.fma.v{REGISTER}f32", weight, x, total)

    return RegisterBlock(zero, load, same_rows, add_products, add, add_scaled, store)


def add_words(b: Any, total: Any, weight: Any, x: Any) -> Any:
    """Add the products of int16 pairs to int32 sums; LLVM makes one instruction of it where there is VNNI."""
    name = "avx512.pmaddw.d.512" if REGISTER == 16 else "avx2.pmadd.wd"
    return b.add(total, llvm(b, f"llvm.x86.{name}", weight, x, result=integers))


def add_bytes(b: Any, total: Any, weight: Any, x: Any) -> Any:
    """Add the products of four uint8 weights and four int8 activations to int32 sums."""
    if vnni():
        name = f"llvm.x86.avx512.vpdpbusd.{32 * REGISTER}"
        return llvm(b, name, total, b.bitcast(weight, integers), b.bitcast(x, integers))
    wide = ir.VectorType(i32, 4 * REGISTER)
    products = b.mul(b.zext(weight, wide), b.sext(x, wide))
    for i in range(4):
        lanes = ir.Constant(integers, [4 * lane + i for lane in range(REGISTER)])
        total = b.add(total, b.shuffle_vector(products, products, lanes))
    return total


def opaque_mask(b: Any, bits: int) -> Any:
    """Make a vector constant that LLVM cannot see through.

    If it could, it would turn "load to all lanes and mask", one instruction, into a scalar load, a blend
    and a broadcast, on the ports that the multiply-adds need.
    """
    name = f"qwen3np.mask.{bits:x}"
    if name not in b.module.globals:
        kind = ir.VectorType(i32, REGISTER)
        variable = ir.GlobalVariable(b.module, kind, name)
        variable.linkage = "weak"
        variable.align = 64
        variable.initializer = ir.Constant(kind, [bits] * REGISTER)
    return b.load(b.module.globals[name], align=64)


@cache
def micro_kernel(rows: int, panels: int, mode: str, kind: str, sum_block: int) -> Any:
    """Make the micro-kernel of one shape: `rows` rows of W times `panels` panels.

    Args:
        rows: of W.
        panels: of x and y.
        mode: "store", "add" or "continue".
        kind: "pairs", "float32" or "dot".
        sum_block: products that are summed before their sum joins the total.

    The function takes arrays, flat indexes into them, and steps: w_step elements of W from one k to the next,
    x_step and y_step from panel to panel; `steps` is the number of k, or of pairs of k.
    """
    block = register_block(rows, panels, kind)
    zero, load, add_products, add, store = block.zero, block.load, block.add_products, block.add, block.store
    x_width = 16 * PER_STEP[kind]  # elements of a panel of x that one step consumes
    block_steps = sum_block // PER_STEP[kind]

    @inline
    def multiply(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        before = zero() if mode == "store" else load(y, y_at, y_step)
        total = before if mode == "continue" else zero()
        for first in range(0, steps, block_steps):
            sums = zero()
            for k in range(first, min(first + block_steps, steps)):
                sums = add_products(sums, w, w_at + k * w_step, x, x_at + k * x_width, x_step)
            total = add(total, sums)
        store(add(before, total) if mode == "add" else total, y, y_at, y_step)

    return multiply


@cache
def sixteen_rows(panels: int, mode: str, kind: str, sum_block: int) -> Any:
    """Make a function of 16 rows: micro-kernels of as many as the registers hold, then the rest."""
    rows = BLOCK_ROWS[panels]
    left = ROWS % rows
    block = micro_kernel(rows, panels, mode, kind, sum_block)
    last = micro_kernel(left or rows, panels, mode, kind, sum_block)
    width = PER_STEP[kind]  # elements of W from row to row

    @inline
    def blocks(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        for r in range(0, ROWS - left, rows):
            block(w, w_at + r * width, w_step, x, x_at, x_step, y, y_at + r * 16, y_step, steps)
        if left:
            r = ROWS - left
            last(w, w_at + r * width, w_step, x, x_at, x_step, y, y_at + r * 16, y_step, steps)

    return blocks


@inline
def panels_at_once(remaining):
    """The panels of the next micro-kernel call: 3, except that 4 are split 2 + 2."""
    if MAX_PANELS == 1 or remaining == 1:
        return 1
    return 3 if remaining == 3 or remaining > 4 else 2


def product(mode: str, kind: str, sum_block: int = SUM_BLOCK) -> Any:
    """Make a function of 16 rows of W times `take` panels (see panels_at_once)."""
    one, two, three = (sixteen_rows(min(take, MAX_PANELS), mode, kind, sum_block) for take in (1, 2, 3))

    @inline
    def multiply(take, w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        if take == 1:
            one(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps)
        elif take == 2:
            two(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps)
        else:
            three(w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps)

    return multiply


def kind_of(w: Any, x: Any) -> str:
    """The kind, from the Numba types of the two operands."""
    if w.dtype == types.float32:
        return "float32"
    return "pairs" if x.dtype == types.float32 else "dot"
