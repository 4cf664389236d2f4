"""What this CPU can do, and which instruction path that chooses."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

from llvmlite import binding

SIMD, AVX512_BF16, AMX = "simd", "avx512_bf16", "amx"
# AMX's path with its instructions spelled out in float32: for tests on CPUs without them.
AMX_SPELLED_OUT = "amx_spelled_out"
PATHS = (SIMD, AVX512_BF16, AMX, AMX_SPELLED_OUT)


@cache
def features() -> dict[str, bool]:
    return dict(binding.get_host_cpu_features())


def has_feature(name: str) -> bool:
    """By LLVM's name: "avx512f", "avx512bf16", "amx-bf16", "neon"."""
    return features().get(name, False)


@cache
def amx_granted() -> bool:
    """Whether this process may use the tile registers. Linux gives their 8 KB of state on request, once for
    all threads: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); it refuses where a thread has a signal
    stack too small to hold them."""
    if not (has_feature("amx-tile") and has_feature("amx-bf16") and sys.platform == "linux"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def available() -> list[str]:
    """The paths that can be asked for on this CPU."""
    return [path for path in PATHS if not _missing(path)]


def _missing(path: str) -> str:
    """What this CPU or system lacks for a path, or ""."""
    if path == AVX512_BF16 and not has_feature("avx512bf16"):
        return "has no avx512bf16"
    if path == AMX and not has_feature("amx-bf16"):
        return "has no amx-bf16"
    if path == AMX and not amx_granted():
        return "has amx-bf16, but the system does not grant this process the tile registers"
    if path == AMX_SPELLED_OUT and has_feature("amx-bf16"):
        return "has the instructions themselves: ask for amx"
    return ""


def choose(matmul_precision: str, bfloat16: bool = True) -> str:
    """The instruction path for a precision; the environment variable QWEN3NP_ISA asks for one.

    "simd": float32 multiply-adds of any width. "amx": bfloat16 tiles, one part of the activations for
    "medium", two for "high", three for "highest". "avx512_bf16": vdpbf16ps, for "medium" only (it multiplies
    bfloat16 activations); twice the speed of float32 on AMD Zen 4 and 5, but slower than float32 on the Intel
    CPUs that have it. Both are for bfloat16 checkpoints: others are computed by "simd". Raises ValueError for
    an unknown path and for one that this CPU rules out.
    """
    asked = os.environ.get("QWEN3NP_ISA", "")
    if asked not in ("", *PATHS):
        raise ValueError(f"QWEN3NP_ISA = {asked!r} is not one of {', '.join(PATHS)}")
    if missing := _missing(asked):
        raise ValueError(f"QWEN3NP_ISA = {asked}: this CPU ({binding.get_host_cpu_name()}) {missing}")
    if not bfloat16 or asked == SIMD:
        return SIMD
    if asked in (AMX, AMX_SPELLED_OUT):
        return asked
    if not asked and amx_granted():
        return AMX
    if matmul_precision != "medium":
        return SIMD
    fast = has_feature("avx512bf16") and binding.get_host_cpu_name().startswith("znver")
    return AVX512_BF16 if fast or asked == AVX512_BF16 else SIMD
