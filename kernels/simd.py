"""Sixteen float32 in registers, as the Numba type F32x16.

Activations are panels of 16 tokens (features are rows, tokens are lanes), so every kernel is vertical
arithmetic on rows of 16: no shuffles, and a token's result never depends on its neighbours. LLVM lowers one
F32x16 to a single AVX-512 register, two of AVX2 or four of NEON. Numba's own loops over small arrays keep
nothing in registers; this type does.

    a = load(array, i)        16 floats from the flat index i of a C-contiguous float32 array
    a * b + splat(c)          arithmetic; fma(a, b, c) rounds once
    select(a <= b, x, y)      a comparison gives a Mask16
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from .isa import has_feature

WIDTH = 16
LANE = np.arange(WIDTH, dtype=np.float32)

i1, i8, i32, i64 = (ir.IntType(n) for n in (1, 8, 32, 64))
f32 = ir.FloatType()
v16 = ir.VectorType(f32, WIDTH)
v16i = ir.VectorType(i32, WIDTH)
v16s = ir.VectorType(ir.IntType(16), WIDTH)


class BFloat(ir.types.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


bf16 = BFloat()
v16b, v32b = ir.VectorType(bf16, 16), ir.VectorType(bf16, 32)


class F32x16Type(types.Type):
    def __init__(self) -> None:
        super().__init__(name="F32x16")


class Mask16Type(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Mask16")


f32x16, mask16 = F32x16Type(), Mask16Type()


def _vector_model(element: Any) -> type:
    class VectorModel(models.PrimitiveModel):
        def __init__(self, dmm: Any, fe_type: Any) -> None:
            super().__init__(dmm, fe_type, ir.VectorType(element, WIDTH))

    return VectorModel


register_model(F32x16Type)(_vector_model(f32))
register_model(Mask16Type)(_vector_model(i1))


def constant(x: float) -> ir.Constant:
    return ir.Constant(v16, [x] * WIDTH)


def broadcast(b: Any, scalar: Any, width: int = WIDTH) -> Any:
    """Put a scalar of any type into all lanes."""
    vector = ir.VectorType(scalar.type, width)
    one = b.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(i32, 0))
    return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(i32, width), [0] * width))


def llvm(b: Any, name: str, *args: Any, result: Any = None) -> Any:
    """Call an LLVM intrinsic; its result type is its first argument's unless given."""
    kind = ir.FunctionType(result or args[0].type, [a.type for a in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def round_to_bfloat16(b: Any, x: Any) -> Any:
    """Round sixteen float32 to bfloat16, to nearest even: their bits, v16s. A NaN stays one.

    For CPUs that have no instruction for it, LLVM would call a function that Numba does not bring along:
    there the bits are computed.
    """
    if has_feature("avx512bf16"):
        return b.bitcast(b.fptrunc(x, v16b), v16s)

    def all_lanes(value: int) -> Any:
        return ir.Constant(v16i, [value] * WIDTH)

    bits = b.bitcast(x, v16i)
    even = b.and_(b.lshr(bits, all_lanes(16)), all_lanes(1))
    rounded = b.add(bits, b.add(even, all_lanes(0x7FFF)))
    quiet = b.or_(bits, all_lanes(0x400000))
    return b.trunc(b.lshr(b.select(b.fcmp_unordered("uno", x, x), quiet, rounded), all_lanes(16)), v16s)


def widen_bfloat16(b: Any, bits: Any) -> Any:
    """Widen v16s to v16: a bfloat16 is the upper half of a float32."""
    return b.bitcast(b.shl(b.zext(bits, v16i), ir.Constant(v16i, [16] * WIDTH)), v16)


def pointer(context: Any, b: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The address of flat element `index` of a contiguous array: a GEP from its base (numba #10695)."""
    return b.gep(context.make_array(array_type)(context, b, array).data, [index])


# Bytes ahead: at 16 tokens the weights come from memory at 13 GB/s per core with this, and at 6 without.
PREFETCH = 8192


def prefetch(b: Any, address: Any) -> None:
    """Prefetch the cache line PREFETCH bytes ahead; past the end of an array it is not a fault."""
    ahead = b.gep(b.bitcast(address, i8.as_pointer()), [ir.Constant(i64, PREFETCH)])
    hint = ir.FunctionType(ir.VoidType(), [ahead.type, i32, i32, i32])
    read_to_l1 = [ir.Constant(i32, n) for n in (0, 3, 1)]
    b.call(cgutils.get_or_insert_function(b.module, hint, "llvm.prefetch.p0"), [ahead, *read_to_l1])


def vector_load(b: Any, address: Any, vector: Any, align: int = 4) -> Any:
    return b.load(b.bitcast(address, vector.as_pointer()), align=align)


def vector_store(b: Any, value: Any, address: Any, align: int = 4) -> None:
    b.store(value, b.bitcast(address, value.type.as_pointer()), align=align)


@intrinsic
def load(typingctx, array, index):
    def codegen(context, b, sig, args):
        return vector_load(b, pointer(context, b, sig.args[0], *args), v16)

    return f32x16(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, value):
    def codegen(context, b, sig, args):
        vector_store(b, args[2], pointer(context, b, sig.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x16), codegen


@intrinsic
def splat(typingctx, x):
    return f32x16(types.float32), lambda context, b, sig, args: broadcast(b, args[0])


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding."""
    return f32x16(f32x16, f32x16, f32x16), lambda context, b, sig, args: llvm(b, "llvm.fma.v16f32", *args)


@intrinsic
def negative(typingctx, a):
    return f32x16(f32x16), lambda context, b, sig, args: b.fneg(args[0])


@intrinsic
def sqrt(typingctx, a):
    return f32x16(f32x16), lambda context, b, sig, args: llvm(b, "llvm.sqrt.v16f32", *args)


@intrinsic
def maximum(typingctx, a, b):
    """Return the larger, or b where one of them is NaN: so it is one instruction."""

    def codegen(context, b, sig, args):
        return b.select(b.fcmp_ordered(">", *args), *args)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def minimum(typingctx, a, b):
    return f32x16(f32x16, f32x16), lambda context, b, sig, args: llvm(b, "llvm.minnum.v16f32", *args)


@intrinsic
def select(typingctx, condition, yes, no):
    return f32x16(mask16, f32x16, f32x16), lambda context, b, sig, args: b.select(*args)


@intrinsic
def any_lane(typingctx, condition):
    """Tell whether the condition holds in one lane or more."""

    def codegen(context, b, sig, args):
        bits = b.bitcast(args[0], ir.IntType(WIDTH))
        return b.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask16), codegen


@intrinsic
def both(typingctx, a, b):
    return mask16(mask16, mask16), lambda context, b, sig, args: b.and_(*args)


# Cephes' expf: exp(x) = 2^n * exp(r) with n = round(x / ln 2), |r| <= ln(2)/2.
# ln 2 is in two parts so that r is exact.
LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
EXP_MIN, EXP_MAX = -87.0, 88.0


@intrinsic
def exp(typingctx, a):
    """e^x to 2 ulp; exactly 0 below -87 (and for -inf), clamped at e^88."""

    def codegen(context, b, sig, args):
        def fused(*abc):
            return llvm(b, "llvm.fma.v16f32", *abc)

        x = llvm(b, "llvm.minnum.v16f32", args[0], constant(EXP_MAX))
        zero = b.fcmp_ordered("<", x, constant(EXP_MIN))
        x = llvm(b, "llvm.maxnum.v16f32", x, constant(EXP_MIN))
        n = llvm(b, "llvm.floor.v16f32", fused(x, constant(LOG2_E), constant(0.5)))
        r = fused(n, constant(-LN2_LOW), fused(n, constant(-LN2_HIGH), x))
        y = constant(EXP_POLYNOMIAL[0])
        for c in EXP_POLYNOMIAL[1:]:
            y = fused(y, r, constant(c))
        y = b.fadd(fused(y, b.fmul(r, r), r), constant(1.0))
        bits = b.shl(
            b.add(b.fptosi(n, v16i), ir.Constant(v16i, [127] * WIDTH)), ir.Constant(v16i, [23] * WIDTH)
        )
        return b.select(zero, constant(0.0), b.fmul(y, b.bitcast(bits, v16)))

    return f32x16(f32x16), codegen


# 2^r, |r| <= 1/2, to 9e-8, and 1 at 0: fitted to the relative error.
EXP2_POLYNOMIAL = (
    1.326472614891827e-3, 9.671512991189957e-3, 5.550733581185341e-2, 2.4022242426872253e-1,
    6.931470036506653e-1, 1.0,
)  # fmt: skip
ROUND = 1.5 * 2**23  # a sum with it has the nearest integer in its lower bits


@intrinsic
def exp2(typingctx, a):
    """2^x for x <= 0, to 3 ulp from -126 up and exactly 1 at 0.

    It is exactly 0 from -127 down, and less than 2^-126 between the two.
    """

    def codegen(context, b, sig, args):
        lowest = constant(-127.0)  # 1.0 with 127 taken from its exponent is 0.0
        x = b.select(b.fcmp_ordered(">", args[0], lowest), args[0], lowest)
        shifted = b.fadd(x, constant(ROUND))
        r = b.fsub(x, b.fsub(shifted, constant(ROUND)))
        y = constant(EXP2_POLYNOMIAL[0])
        for c in EXP2_POLYNOMIAL[1:]:
            y = llvm(b, "llvm.fma.v16f32", y, r, constant(c))
        n = b.shl(b.bitcast(shifted, v16i), ir.Constant(v16i, [23] * WIDTH))
        return b.bitcast(b.add(b.bitcast(y, v16i), n), v16)  # n joins the exponent

    return f32x16(f32x16), codegen


def _arithmetic(name: str) -> Any:
    @intrinsic
    def operation(typingctx, a, b):
        return f32x16(f32x16, f32x16), lambda context, b, sig, args: getattr(b, name)(*args)

    return operation


def _comparison(symbol: str) -> Any:
    @intrinsic
    def operation(typingctx, a, b):
        return mask16(f32x16, f32x16), lambda context, b, sig, args: b.fcmp_ordered(symbol, *args)

    return operation


def _define(python_operator: Any, operation: Any) -> None:
    @overload(python_operator)
    def typed(a, b):
        if isinstance(a, F32x16Type) and isinstance(b, F32x16Type):
            return lambda a, b: operation(a, b)


for _operator, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_operator, _arithmetic(_name))
for _operator, _symbol in ((operator.le, "<="), (operator.lt, "<"), (operator.ge, ">="), (operator.gt, ">")):
    _define(_operator, _comparison(_symbol))
