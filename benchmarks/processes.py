"""Whole processes: from start to the first vector, load, memory, size on disk.

python benchmarks/processes.py FOLDER      a generated 0.6B
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3np.synth import synthesize

FIRST = """
from qwen3np import Embedder
Embedder({folder!r}).encode("hello world")
"""
FIRST_PEER = """
from sentence_transformers import SentenceTransformer
SentenceTransformer({folder!r}, device="cpu").encode("hello world")
"""
IMPORT, IMPORT_PEER = "from qwen3np import Embedder", "from sentence_transformers import SentenceTransformer"
LOAD = """
import time
import qwen3np.numba_backend
from qwen3np import Embedder
start = time.perf_counter(); Embedder({folder!r}); print(time.perf_counter() - start)
"""
PEAK = """
import resource
import numpy as np
from qwen3np import Embedder
model = Embedder({folder!r})
rng = np.random.default_rng(0)
model.backend.encode([rng.integers(0, 151000, n).tolist() for n in (16, 2048, *[128] * 64, *[3] * 300)])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
PEAK_PEER = """
import resource
from sentence_transformers import SentenceTransformer
SentenceTransformer({folder!r}, device="cpu").encode(["word " * 126] * 64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
WORKSPACE = """
import resource
import numpy as np
from qwen3np import Embedder
model = Embedder({folder!r})
model.backend.encode([[1, 2, 3]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model.backend.encode([np.random.default_rng(0).integers(0, 151000, 32768).tolist()])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""
# Figure, bar and reach for of issue 3.
BARS = {
    "first vector, ratio": (2.5, 5.0), "load to ready, s": (1.5, 0.6), "peak memory, GB": (1.6, 1.4),
    "workspace of 32768 tokens, MB": (600.0, 300.0),
}  # fmt: skip


def script(source: str, folder: Path | str = "", **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", source.format(folder=str(folder))],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )
    if run.returncode:
        raise RuntimeError(run.stderr)
    return run.stdout.strip()


def alternating(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds; one round before is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if n:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def installed_size(package: str, without: str = "") -> float:
    """MB on disk of a package and all that it needs here, extras left out."""
    todo, seen, size = [package], set(), 0
    while todo:
        name = re.split(r"[ <>=!~;\[(]", todo.pop(), maxsplit=1)[0].lower().replace("_", "-")
        if name in seen or name == without:
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


def measure(folder: Path) -> dict[str, float]:
    peers = importlib.util.find_spec("sentence_transformers") is not None
    runs = {"qwen3np": lambda: script(FIRST, folder)}
    imports = {"qwen3np": lambda: script(IMPORT)}
    if peers:
        runs["peer"] = lambda: script(FIRST_PEER, folder)
        imports["peer"] = lambda: script(IMPORT_PEER)
    first, imported = alternating(runs, 5), alternating(imports, 5)
    figures = {
        "first vector, s": first["qwen3np"],
        "import, s": imported["qwen3np"],
        "load to ready, s": statistics.median(float(script(LOAD, folder)) for _ in range(5)),
        "peak memory, GB": float(script(PEAK, folder)),
        "installed, MB": installed_size("qwen3np"),
    }
    with tempfile.TemporaryDirectory() as temporary:
        # Two layers are enough: a layer's keys and values go before the next layer's come.
        shallow = synthesize(Path(temporary) / "model", "0.6B", layers=2)
        figures["workspace of 32768 tokens, MB"] = float(script(WORKSPACE, shallow))
        start = time.perf_counter()
        script(FIRST, folder, XDG_CACHE_HOME=temporary)
        figures["first vector with a cold kernel cache, s"] = time.perf_counter() - start
    if peers:
        figures |= {
            "first vector, sentence-transformers, s": first["peer"],
            "first vector, ratio": first["peer"] / first["qwen3np"],
            "import, sentence-transformers, s": imported["peer"],
            "peak memory, sentence-transformers (its default, bf16), GB": float(script(PEAK_PEER, folder)),
            "installed, sentence-transformers, MB": installed_size("sentence-transformers"),
        }
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1])), indent=1))
