"""Whole processes: installed size, import, start to first vector, and this package's memory.

python benchmarks/processes.py FOLDER      a generated 0.6B
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contenders import CONTENDERS

from qwen3np.runtime.cores import usable_cores

ROUNDS = 3
# One of each package: what is measured here hardly depends on the precision.
PROCESSES = [
    "qwen3np high", "sentence-transformers default (bf16)", "transformers bf16", "OpenVINO bf16",
    "ONNX Runtime int8", "llama.cpp Q8_0",
]  # fmt: skip
FIRST_VECTOR = [str(Path(__file__).parent / "contenders.py"), "{name}", "{folder}", "{threads}"]
LOAD = """
import time
import qwen3np.runtime.numba_backend
from qwen3np import Embedder
start = time.perf_counter(); Embedder({folder!r}); print(time.perf_counter() - start)
"""
# The mix of lengths that the bar on peak memory is for: one long text, many short ones.
PEAK = """
import numpy as np
from serve import peak_memory
from qwen3np import Embedder
model = Embedder({folder!r})
rng = np.random.default_rng(0)
model.backend.forward([rng.integers(0, 151000, n).tolist() for n in (16, 2048, *[128] * 16, *[3] * 300)])
print(peak_memory())
"""


def python(arguments: Sequence[str], **environment: str) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    output(arguments, **environment)
    return time.perf_counter() - start


def output(arguments: Sequence[str], **environment: str) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parent)} | environment
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if run.returncode:
        raise RuntimeError(run.stderr.strip().splitlines()[-1])
    return run.stdout.strip()


def script(source: str, folder: Path) -> float:
    """What it prints."""
    return float(output(["-c", source.format(folder=str(folder))]))


def alternating(runs: dict[str, Callable[[], float]]) -> dict[str, dict[str, Any]]:
    """Median and range of ROUNDS runs of each; the one that fails says why."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    failed: dict[str, str] = {}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            if name not in failed:
                try:
                    seconds[name].append(run())
                except RuntimeError as error:
                    failed[name] = str(error)
    return {
        name: {"missing": failed[name]}
        if name in failed
        else {"median": statistics.median(values), "range": [min(values), max(values)]}
        for name, values in seconds.items()
    }


def installed_size(packages: Sequence[str]) -> float:
    """MB on disk of packages and all that they need here, extras left out."""
    todo, seen, size = list(packages), set(), 0
    while todo:
        name = re.split(r"[ <>=!~;\[(]", todo.pop(), maxsplit=1)[0].lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in found.files or []:
            path = Path(str(found.locate_file(file)))
            size += path.stat().st_size if path.is_file() else 0
        todo += [r for r in found.requires or [] if "extra ==" not in r]
    return size / 1e6


def measure(folder: Path, threads: int) -> dict[str, Any]:
    names = [name for name in PROCESSES if (folder / CONTENDERS[name][1].get("export", "")).exists()]

    def first_vector(name: str, **environment: str) -> Callable[[], float]:
        command = [part.format(name=name, folder=folder, threads=threads) for part in FIRST_VECTOR]
        return lambda: python(command, **environment)

    def imported(name: str) -> Callable[[], float]:
        return lambda: python(["-c", CONTENDERS[name][0].imports])

    first = alternating({name: first_vector(name) for name in names})
    imports = alternating({name: imported(name) for name in names})
    with tempfile.TemporaryDirectory() as temporary:
        cold = first_vector("qwen3np high", XDG_CACHE_HOME=temporary)()
    return {
        "contenders": {
            name: {
                "installed_MB": installed_size(CONTENDERS[name][0].packages), "import": imports[name],
                "first_vector": first[name],
            }
            for name in names
        },
        "first vector with a cold kernel cache, s": cold,
        "load to ready, s": statistics.median(script(LOAD, folder) for _ in range(ROUNDS)),
        "peak memory, GB": script(PEAK, folder),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), min(2, usable_cores())), indent=1))
