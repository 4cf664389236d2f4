"""What this CPU can do, and which instruction path that chooses."""

from __future__ import annotations

import os
from functools import cache

from llvmlite import binding

SIMD, AVX512_BF16 = "simd", "avx512_bf16"
PATHS = (SIMD, AVX512_BF16)


@cache
def features() -> dict[str, bool]:
    return dict(binding.get_host_cpu_features())


def has_feature(name: str) -> bool:
    """By LLVM's name: "avx512f", "avx512bf16", "amx-bf16", "neon"."""
    return features().get(name, False)


def choose(matmul_precision: str) -> str:
    """The instruction path for a precision; the environment variable QWEN3NP_ISA asks for one.

    "simd": float32 multiply-adds of any width. "avx512_bf16": vdpbf16ps, for "medium" only (it multiplies
    bfloat16 activations); twice the speed of float32 on AMD Zen 4 and 5, but slower than float32 on the Intel
    CPUs that have it. Raises ValueError for an unknown path and for one that this CPU or precision rules out.
    """
    asked = os.environ.get("QWEN3NP_ISA", "")
    if asked not in ("", *PATHS):
        raise ValueError(f"QWEN3NP_ISA = {asked!r} is not one of {', '.join(PATHS)}")
    if asked == AVX512_BF16 and not has_feature("avx512bf16"):
        raise ValueError(f"QWEN3NP_ISA = {asked}: this CPU ({binding.get_host_cpu_name()}) has no avx512bf16")
    if matmul_precision != "medium" or asked == SIMD:
        return SIMD
    fast = has_feature("avx512bf16") and binding.get_host_cpu_name().startswith("znver")
    return AVX512_BF16 if fast or asked == AVX512_BF16 else SIMD
