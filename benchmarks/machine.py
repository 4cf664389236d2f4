"""What figures depend on: the CPU, the paths it chooses, versions, the date."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from llvmlite import binding
from qwen3np.kernels import isa

from qwen3np.cores import usable_cores

PACKAGES = (
    "qwen3np", "numpy", "numba", "torch", "transformers", "sentence-transformers", "openvino", "onnxruntime",
    "llama-cpp-python",
)  # fmt: skip


def about(threads: int) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": binding.get_host_cpu_name(),
        "isa": {precision: isa.choose(precision) for precision in ("highest", "high", "medium")},
        "cores": usable_cores(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }


def describe(about: dict[str, Any], packages: tuple[str, ...] = PACKAGES) -> str:
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in packages)
    paths = ", ".join(f'"{precision}" {path}' for precision, path in about["isa"].items())
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    return f"{threads} of a {about['cpu']} CPU ({paths}), {about['date']}; {versions}."


def available_memory() -> float:
    """GB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("no MemAvailable in /proc/meminfo: benchmarks run on Linux")
