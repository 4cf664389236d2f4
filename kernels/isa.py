"""What this CPU can do, and which instruction path that chooses."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

import numba
from llvmlite import binding

SIMD, AVX2, AVX512_BF16, AMX = "simd", "avx2", "avx512_bf16", "amx"
# AMX's path with its instructions spelled out in float32: for tests on CPUs without them.
AMX_SPELLED_OUT = "amx_spelled_out"
PATHS = (SIMD, AVX2, AVX512_BF16, AMX, AMX_SPELLED_OUT)

# Registers and instructions are chosen when kernels are imported: so is this process's limit.
ONLY_AVX2 = os.environ.get("QWEN3NP_ISA") == AVX2


@cache
def features() -> dict[str, bool]:
    """LLVM's names of what code of this process may use, and whether the CPU has it."""
    found = dict(binding.get_host_cpu_features())
    if ONLY_AVX2:
        beyond = (n for n in found if n.startswith(("avx", "amx")) and n not in ("avx", "avx2"))
        found |= dict.fromkeys(beyond, False)
    return found


if ONLY_AVX2:  # for all that Numba compiles from here on
    config: Any = numba.config
    config.CPU_FEATURES = ",".join(f"{'+' if there else '-'}{name}" for name, there in features().items())


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


def others() -> list[str]:
    """The paths with other code than the default's that a process on this CPU can be started with."""
    startable = [path for path in PATHS if path == AVX2 or not _missing(path)]
    return [p for p in startable if p != choose("high") and (p != AVX2 or has_feature("avx512f"))]


def _missing(path: str) -> str:
    """What this CPU or system lacks for a path, or ""."""
    if path == AVX2 and not has_feature("avx2"):
        return "has no avx2"
    if path == AVX2 and has_feature("avx512f"):
        return "has AVX-512, and kernels were imported for that: set QWEN3NP_ISA before the process starts"
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

    "simd": float32 multiply-adds of any width. "avx2": the same on a CPU with AVX-512, with no instruction
    beyond AVX2, FMA and F16C. "amx": bfloat16 tiles, one part of the activations for
    "medium", two for "high", three for "highest". "avx512_bf16": vdpbf16ps, for "medium" only (it multiplies
    bfloat16 activations); twice the speed of float32 on AMD Zen 4 and 5, but slower than float32 on the Intel
    CPUs that have it. Both are for bfloat16 checkpoints: others are computed by "simd". ARM has "simd" alone:
    bfmmla (Neoverse V1, Apple M2 and later), which could do for "medium" what vdpbf16ps does, is for the
    future. Raises ValueError for an unknown path and for one that this CPU rules out.
    """
    asked = os.environ.get("QWEN3NP_ISA", "")
    if asked not in ("", *PATHS):
        raise ValueError(f"QWEN3NP_ISA = {asked!r} is not one of {', '.join(PATHS)}")
    if missing := _missing(asked):
        raise ValueError(f"QWEN3NP_ISA = {asked}: this CPU ({binding.get_host_cpu_name()}) {missing}")
    if asked == AVX2:
        return AVX2
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
