"""y^T = W x^T on panels of 16 tokens.

    W   checkpoint matrix [N, K], packed once as w[N/16][K/2][16][2]: 16 rows side by side, in pairs along K,
    so that a
        row block is one sequential stream. bfloat16 bits (uint16), or float32 where the checkpoint is not
        bfloat16.
    x   operand panels. float32 [P, K, 16]; or bfloat16 pairs [parts, P, K/2, 32] (uint16) with the sum of the
    parts
        near the float32 value.
    y   float32 panels [P, N, 16].

Each result is one chain of fused multiply-adds over k = 0, 1, 2, ..., whatever the block it is computed in: a
token's result is the same bits in any company. N is padded to 16 rows and K to 32, with zeros.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import (
    broadcast,
    constant,
    i32,
    i64,
    llvm,
    pointer,
    v16,
    v16i,
    v32b,
    vector_load,
    vector_store,
)

PREFETCH = int(os.environ.get("PF", "0"))
ROWS = 16  # of W side by side in the packed layout


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


def row_block(rows: int, panels: int, accumulate: bool, kind: str) -> Any:
    """An intrinsic: `rows` rows of W times `panels` token panels over the whole of K, in registers.

    kind "pairs": W bfloat16 pairs as packed, x float32. "float32": W float32 with a stride from k to k (16 as
    packed). "dot": W bfloat16 pairs, x bfloat16 pairs, by the CPU's vdpbf16ps. With `accumulate` the chains
    start from y, else from zero.
    """
    step = 1 if kind == "float32" else 2

    @intrinsic
    def block(typingctx, w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps):
        def codegen(context, b, sig, args):
            w, w_at, w_step, x, x_at, x_step, y, y_at, y_step, steps = args
            w_base = pointer(context, b, sig.args[0], w, w_at)
            x_base = pointer(context, b, sig.args[3], x, x_at)
            y_base = pointer(context, b, sig.args[6], y, y_at)

            def at(base, panel, stride, offset=0):
                index = b.add(b.mul(ir.Constant(i64, panel), stride), ir.Constant(i64, offset))
                return b.gep(base, [index])

            upper = opaque_mask(b, 0xFFFF0000) if kind == "pairs" else None
            x_panels = [at(x_base, p, x_step) for p in range(panels)]
            y_rows = [[at(y_base, p, y_step, 16 * r) for p in range(panels)] for r in range(rows)]
            start = [
                [vector_load(b, y_rows[r][p], v16) if accumulate else constant(0.0) for p in range(panels)]
                for r in range(rows)
            ]
            entry, loop, done = b.block, b.append_basic_block("k"), b.append_basic_block("done")
            b.cbranch(b.icmp_signed(">", steps, ir.Constant(i64, 0)), loop, done)
            b.position_at_end(loop)
            k = b.phi(i64)
            k.add_incoming(ir.Constant(i64, 0), entry)
            acc = [[b.phi(v16) for _ in range(panels)] for _ in range(rows)]
            w_k = b.gep(w_base, [b.mul(k, w_step)])
            if PREFETCH:
                ahead = b.bitcast(b.gep(w_k, [ir.Constant(i64, PREFETCH)]), ir.IntType(8).as_pointer())
                fn = cgutils.get_or_insert_function(
                    b.module, ir.FunctionType(ir.VoidType(), [ahead.type] + [i32] * 3), "llvm.prefetch.p0"
                )
                b.call(fn, [ahead] + [ir.Constant(i32, n) for n in (0, 3, 1)])
            vector = v32b if kind == "dot" else v16
            x_width = 32 if kind == "dot" else 16 * step

            def operand(p, half=0):
                address = b.gep(
                    x_panels[p], [b.add(b.mul(k, ir.Constant(i64, x_width)), ir.Constant(i64, 16 * half))]
                )
                return vector_load(b, address, vector)

            even = [operand(p) for p in range(panels)]
            odd = [operand(p, 1) for p in range(panels)] if kind == "pairs" else []
            total = [[None] * panels for _ in range(rows)]
            for r in range(rows):

                def weight(r, offset):
                    """Row r's 32 bits that start `offset` elements after its pair, in all lanes."""
                    address = b.gep(w_k, [ir.Constant(i64, 2 * r + offset)])
                    return broadcast(b, b.load(b.bitcast(address, i32.as_pointer()), align=2))

                if kind == "float32":
                    value = broadcast(b, b.load(b.gep(w_k, [ir.Constant(i64, r)])))
                elif kind == "pairs":
                    # A bfloat16 is the upper half of a float32: read so that it is, clear the lower half.
                    # (One load and a shift for the other of the pair would keep eight more registers alive,
                    # and spill them.)
                    low, high = (b.bitcast(b.and_(weight(r, i), upper), v16) for i in (-1, 0))
                else:
                    pair = b.bitcast(weight(r, 0), v32b)
                for p in range(panels):
                    if kind == "float32":
                        total[r][p] = llvm(b, "llvm.fma.v16f32", value, even[p], acc[r][p])
                    elif kind == "pairs":
                        partial = llvm(b, "llvm.fma.v16f32", low, even[p], acc[r][p])
                        total[r][p] = llvm(b, "llvm.fma.v16f32", high, odd[p], partial)
                    else:
                        total[r][p] = llvm(b, "llvm.x86.avx512bf16.dpbf16ps.512", acc[r][p], even[p], pair)
            end = b.block
            k_next = b.add(k, ir.Constant(i64, 1))
            k.add_incoming(k_next, end)
            for r in range(rows):
                for p in range(panels):
                    acc[r][p].add_incoming(start[r][p], entry)
                    acc[r][p].add_incoming(total[r][p], end)
            b.cbranch(b.icmp_signed("<", k_next, steps), loop, done)
            b.position_at_end(done)
            for r in range(rows):
                for p in range(panels):
                    result = b.phi(v16)
                    result.add_incoming(start[r][p], entry)
                    result.add_incoming(total[r][p], end)
                    total[r][p] = result
            for p in range(panels):
                for r in range(rows):
                    vector_store(b, total[r][p], y_rows[r][p])
            return context.get_dummy_value()

        size = types.intp
        return types.void(w, size, size, x, size, size, y, size, size, size), codegen

    return block
