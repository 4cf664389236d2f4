"""What this machine can do at the most, measured: multiply-adds in registers and bytes from memory.

python benchmarks/roofline.py [THREADS]
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from qwen3np.kernels import amx as tiles
from qwen3np.kernels import isa, micro_kernel
from qwen3np.kernels.simd import broadcast, i32, i64, llvm, v16, v32b
from qwen3np.runtime.cores import usable_cores

CHAINS = 12  # independent sums: more than latency times units of any CPU here
LOOPS = 2_000_000


def _chains(step: Any, kind: Any = v16) -> Any:
    """A kernel of CHAINS sums in registers of a kind, LOOPS times: step(b, sum, operand) -> sum."""
    width = kind.count

    @intrinsic
    def chains(typingctx, loops):
        def codegen(context, b, sig, args):
            before, body, done = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
            # An operand that LLVM cannot know, or it would compute the sums itself.
            seed = b.bitcast(b.trunc(args[0], i32), ir.FloatType())
            operand = broadcast(b, seed, width)
            b.branch(body)
            b.position_at_end(body)
            i = b.phi(i64)
            sums = [b.phi(kind) for _ in range(CHAINS)]
            following = [step(b, s, operand) for s in sums]
            i.add_incoming(ir.Constant(i64, 0), before)
            i_next = b.add(i, ir.Constant(i64, 1))
            i.add_incoming(i_next, body)
            for s, f in zip(sums, following, strict=True):
                s.add_incoming(ir.Constant(kind, [0.0] * width), before)
                s.add_incoming(f, body)
            b.cbranch(b.icmp_signed("<", i_next, args[0]), body, done)
            b.position_at_end(done)
            total = following[0]
            for f in following[1:]:
                total = b.fadd(total, f)
            return b.extract_element(total, ir.Constant(i32, 0))

        return types.float32(types.intp), codegen

    @njit(nogil=True)
    def kernel(loops):
        return chains(loops)

    return kernel


def _fma(b: Any, total: Any, x: Any) -> Any:
    return llvm(b, "llvm.fma.v16f32", x, x, total)


def _dot(b: Any, total: Any, x: Any) -> Any:
    x = b.bitcast(x, v32b)
    return llvm(b, "llvm.x86.avx512bf16.dpbf16ps.512", total, x, x)


def _integers(kind: str) -> Any:
    """A step of integer products, as the micro-kernel's."""
    add = micro_kernel.add_words if kind == "words" else micro_kernel.add_bytes
    operand = micro_kernel.X_REGISTER[kind]

    def step(b: Any, total: Any, x: Any) -> Any:
        # By the sum itself: LLVM would move products of what does not change out of the loop.
        sums = add(
            b, b.bitcast(total, micro_kernel.integers), b.bitcast(total, operand), b.bitcast(x, operand)
        )
        return b.bitcast(sums, micro_kernel.vector)

    return step


@intrinsic
def _tile_products(typingctx, loops):
    def codegen(context, b, sig, args):
        amx = tiles.Tiles(b)
        amx.configure()
        for tile in range(8):
            amx.zero(tile)
        with cgutils.for_range(b, args[0]):
            for c in range(4):
                amx.multiply(c, 4 + c // 2, 6 + c % 2)
        amx.release()
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@njit(nogil=True)
def _tile_kernel(loops):
    _tile_products(loops)


@njit(nogil=True)
def add_up(array):
    total = 0
    for x in array:
        total += x
    return total


def measure(threads: int) -> dict[str, float]:
    """GFLOP/s and GB/s of `threads` threads together, the best of several runs."""
    pool = ThreadPoolExecutor(threads)

    def best(run: Any, work: float, rounds: int = 5) -> float:
        run(0)
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(run, range(threads)))
            seconds.append(time.perf_counter() - start)
        return threads * work / min(seconds) / 1e9

    fma, dot = _chains(_fma), _chains(_dot)
    figures = {"float32 GFLOP/s": best(lambda _: fma(LOOPS), LOOPS * CHAINS * 32)}
    if isa.has_feature("avx512bf16"):
        figures["vdpbf16ps GFLOP/s"] = best(lambda _: dot(LOOPS), LOOPS * CHAINS * 64)
    vector = micro_kernel.vector
    for kind, unit in (("words", "int16"), ("bytes", "int8")):
        if isa.has_feature("avx2") if kind == "words" else isa.vnni():
            products = LOOPS * CHAINS * vector.count * micro_kernel.PER_STEP[kind]
            chains = _chains(_integers(kind), vector)
            figures[f"{unit} GFLOP/s"] = best(lambda _, run=chains: run(LOOPS), 2 * products)
    if isa.amx_granted():
        loops = LOOPS // 8
        figures["AMX bfloat16 GFLOP/s"] = best(lambda _: _tile_kernel(loops), loops * 4 * 16 * 16 * 32 * 2)
    array = np.random.default_rng(0).integers(0, 1 << 60, 1 << 26)  # 512 MB: past every cache
    parts = np.array_split(array, threads)
    figures["memory read GB/s"] = best(lambda i: add_up(parts[i]), array.nbytes / threads)
    return figures


if __name__ == "__main__":
    for name, value in measure(int(sys.argv[1]) if len(sys.argv) > 1 else usable_cores()).items():
        print(f"{name:24}{value:10.1f}")
