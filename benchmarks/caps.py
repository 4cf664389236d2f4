"""Contenders held to a smaller instruction set than the CPU's.

"transformers float32 @avx2" is that contender in a process where PyTorch's libraries use nothing beyond AVX2;
it is compared with "qwen3np high @avx2".

Variables do what the CPU itself would do only for ours and for PyTorch in float32. PyTorch asks the CPU, not
the variables, whether bfloat16 goes to oneDNN: capped to AVX2 it takes other code than on a CPU without
AVX-512. MKL obeys on Intel's CPUs alone (its documentation), ONNX Runtime and llama.cpp have no such variable
at run time, OpenVINO's release builds only oneDNN's, which its own kernels do not read: those are not capped.

python benchmarks/caps.py [CAP]     what PyTorch's libraries say that they use
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

CAPS = {
    "avx2": {
        "QWEN3NP_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "QWEN3NP_ISA": "simd", "ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}  # fmt: skip
# In what a library says, words of instructions beyond the cap.
BEYOND = {"avx2": ("512", "AMX"), "avx512": ("Boost", "bfloat16", "AMX", "AVX10")}
LIBRARIES = {
    "ATen": r"ATen (\S+)",
    "oneDNN": r"onednn_verbose,\S*info,cpu,isa:(.+)",
    "MKL": r"MKL_VERBOSE .* for Intel\(R\) 64 architecture (.+?),? (?:processors, )?Lnx",
}
ASK = """
import torch
print("ATen", torch.backends.cpu.get_cpu_capability())
torch.ones(2, 2).to_mkldnn()
torch.ones(64, 64) @ torch.ones(64, 64)
"""


def split(name: str) -> tuple[str, str]:
    """("transformers float32", "avx2") of "transformers float32 @avx2"; no cap is ""."""
    contender, _, cap = name.partition(" @")
    return contender, cap


def capped(name: str, cap: str) -> str:
    return f"{name} @{cap}" if cap else name


def environment(cap: str) -> dict[str, str]:
    return CAPS[cap] if cap else {}


def possible() -> list[str]:
    """The caps that this CPU has all instructions of: PyTorch runs beyond those into SIGILL."""
    from qwen3np.kernels.isa import has_feature

    return [cap for cap, feature in (("avx2", "avx2"), ("avx512", "avx512f")) if has_feature(feature)]


def lowering() -> list[str]:
    """The caps that take something from this CPU."""
    from qwen3np.kernels.isa import has_feature

    more = {"avx2": "avx512f", "avx512": "avx512bf16"}
    return [cap for cap in possible() if has_feature(more[cap])]


def told(cap: str) -> dict[str, str]:
    """What PyTorch's libraries say that they use, in a process of that cap. Empty without PyTorch."""
    loud = {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    command = [sys.executable, "-c", ASK]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment(cap) | loud)
    found = {library: re.search(pattern, run.stdout) for library, pattern in LIBRARIES.items()}
    return {library: match[1].strip() for library, match in found.items() if match}


def ignored(cap: str, says: dict[str, str]) -> str:
    """The library that uses more than the cap by its own words, or ""."""
    for library, words in says.items():
        if any(word in words for word in BEYOND.get(cap, ())):
            return f"held to {cap}, but {library} says {words}"
    return ""


if __name__ == "__main__":
    print(json.dumps(told(*sys.argv[1:] or [""]), indent=1))
