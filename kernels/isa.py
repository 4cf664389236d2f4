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
INT16, INT8 = "int16", "int8"
# AMX's path with its instructions emulated in float32: for tests on CPUs without them.
AMX_SPELLED_OUT = "amx_spelled_out"
PATHS = (SIMD, AVX2, AVX512_BF16, AMX, AMX_SPELLED_OUT, INT16, INT8)

# Registers and instructions are chosen when kernels are imported, and so is this process's limit.
ONLY_AVX2 = os.environ.get("QWEN3NP_ISA") == AVX2
# What x86 CPUs with AVX2 have in common, by LLVM's names: code for it is kept under the same name on all of
# them, so that a container image can bring it along.
X86_64_V3 = "x86-64-v3"
FEATURES_OF_V3 = (
    "64bit avx avx2 bmi bmi2 cmov crc32 cx16 cx8 f16c fma fxsr lzcnt mmx movbe popcnt sahf sse sse2 sse3 "
    "sse4.1 sse4.2 ssse3 xsave"
).split()


@cache
def features() -> dict[str, bool]:
    """LLVM's names of CPU features, and whether code of this process may use them."""
    found = dict(binding.get_host_cpu_features())
    if ONLY_AVX2:
        found |= dict.fromkeys(found.keys() - set(FEATURES_OF_V3), False)
    return found


if ONLY_AVX2 and features().get("avx2"):  # for all that Numba compiles from here on
    config: Any = numba.config
    config.CPU_NAME = X86_64_V3
    config.CPU_FEATURES = ",".join(f"+{name}" for name in FEATURES_OF_V3)


def has_feature(name: str) -> bool:
    """Tell whether there is a feature, by LLVM's name: "avx512f", "avx512bf16", "amx-bf16", "neon"."""
    return features().get(name, False)


def vnni() -> bool:
    """Tell whether registers of the width that is used have vpdpbusd: four products of 8 bits, added."""
    return has_feature("avx512vnni" if has_feature("avx512f") else "avxvnni")


def zen() -> bool:
    """Tell whether this is AMD's Zen, whose vector units do more than two multiply-adds per cycle."""
    return binding.get_host_cpu_name().startswith("znver")


@cache
def amx_granted() -> bool:
    """Ask the system for the tile registers, and tell whether this process may use them.

    Linux gives their 8 KB of state on request, once for all threads: arch_prctl(ARCH_REQ_XCOMP_PERM,
    XFEATURE_XTILEDATA). It refuses where a thread has a signal stack too small to hold them.
    """
    if not (has_feature("amx-tile") and has_feature("amx-bf16") and sys.platform == "linux"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def available() -> list[str]:
    """List the paths that can be asked for on this CPU."""
    return [path for path in PATHS if not _missing(path)]


def others() -> list[str]:
    """List the paths that a process here can be started with, of other code than the default's.

    Those of integers are left out: they are "low"'s, and what else a process computes is the default's.
    """
    startable = [p for p in PATHS if p not in (INT16, INT8) and (p == AVX2 or not _missing(p))]
    return [p for p in startable if p != choose("high") and (p != AVX2 or has_feature("avx512f"))]


def _missing(path: str) -> str:
    """Say what this CPU or system lacks for a path, or ""."""
    if path in (AVX2, INT16, INT8) and not has_feature("avx2"):
        return "has no avx2"
    if path in (INT16, INT8) and has_feature("avx512f") and not has_feature("avx512bw"):
        return "has AVX-512, but no avx512bw"
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


def choose(matmul_precision: str, bfloat16: bool = True, reproducible: bool = False) -> str:
    """Choose the instruction path for a precision; the environment variable QWEN3NP_ISA asks for one.

    simd         float32 multiply-adds of any width
    avx2         the same on a CPU with AVX-512, with no instruction beyond AVX2, FMA and F16C
    avx512_bf16  vdpbf16ps, for "medium" only, as it multiplies bfloat16 activations: twice the speed of
                 float32 on AMD Zen 4 and 5, but slower than float32 on the Intel CPUs that have it
    amx          bfloat16 tiles: an activation is one part for "medium", two for "high", three for "highest"
    int16        vpmaddwd, for "low" only: 8-bit weights by activations of 16 bits
    int8         vpdpbusd, for "low" only: the same by activations of 8 bits; emulated on CPUs without it

    Those of bfloat16 are for bfloat16 checkpoints: others are computed by simd. ARM has simd alone: bfmmla
    (Neoverse V1, Apple M2 and later), which could do for "medium" what vdpbf16ps does, is for the future.

    Args:
        matmul_precision: "highest", "high", "medium", or "low", whose weights are int8.
        bfloat16: the checkpoint's matrices are bfloat16.
        reproducible: choose a path whose bits are those of every CPU: simd or avx2.

    Raises:
        ValueError: QWEN3NP_ISA asks for an unknown path, or one that this CPU or `reproducible` rules out.
    """
    asked = os.environ.get("QWEN3NP_ISA", "")
    if asked not in ("", *PATHS):
        raise ValueError(f"QWEN3NP_ISA = {asked!r} is not one of {', '.join(PATHS)}")
    if reproducible and asked not in ("", SIMD, AVX2):
        raise ValueError(
            f"QWEN3NP_ISA = {asked} and reproducible=True contradict each other: reproducible vectors are "
            f"float32 sums, which {asked} does not compute; unset one of them"
        )
    if missing := _missing(asked):
        raise ValueError(f"QWEN3NP_ISA = {asked}: this CPU ({binding.get_host_cpu_name()}) {missing}")
    if matmul_precision == "low" and (integers := _integers(asked)):
        return integers
    if asked == AVX2:
        return AVX2
    if not bfloat16 or reproducible or asked == SIMD:
        return SIMD
    if asked in (AMX, AMX_SPELLED_OUT):
        return asked
    if not asked and amx_granted():
        return AMX
    if matmul_precision not in ("medium", "low"):
        return SIMD
    fast = has_feature("avx512bf16") and zen()
    return AVX512_BF16 if fast or asked == AVX512_BF16 else SIMD


def _integers(asked: str) -> str:
    """Choose the path that multiplies integers, or "": tiles of bfloat16 are faster than vectors of int8."""
    if asked in (INT16, INT8):
        return asked
    if asked not in ("", AVX2) or (not asked and amx_granted()) or _missing(INT16):
        return ""
    return INT8 if vnni() and not asked else INT16
