"""The engine against PyTorch: same generated 0.6B checkpoint, token ids and threads, interleaved in one run.

    qwen3np synth FOLDER --like 0.6B --tokenizer FILE     a checkpoint, with the real tokenizer.json
    python benchmarks/engine.py FOLDER [WORKLOAD ...]     needs the extra `hf`

Every contender's vectors are checked against ours at the highest precision (cosine) before it is timed. A row
gives the median and the range of each, and the ratio of medians beside its bar. A run of all workloads is
kept in benchmarks/results/engine.json.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import transformers
from llvmlite import binding
from qwen3np.kernels import isa

from qwen3np import Embedder, reference
from qwen3np.checkpoint import Checkpoint
from qwen3np.numba_backend import NumbaBackend
from qwen3np.synth import synthesize
from qwen3np.table import table
from qwen3np.threads import usable_cores

RESULTS = Path(__file__).parent / "results" / "engine.json"
THREADS = min(2, usable_cores())
Run = Callable[[], Any]

# Workload: (texts, tokens each), rounds, and rows of (ours, theirs, bar, reach for).
WORKLOADS: dict[str, tuple[int, int, int, list[tuple[str, str, float, float]]]] = {
    "8x128": (8, 128, 5, [
        ("medium", "bfloat16", 2.5, 3.5), ("high", "bfloat16", 1.5, 2.2), ("high", "float32", 6, 10),
        ("highest", "float32", 4, 6), ("simd", "float32", 1.15, 1.4),
    ]),
    "4x512": (4, 512, 3, [
        ("medium", "bfloat16", 2.5, 3.5), ("high", "bfloat16", 1.5, 2.2), ("high", "float32", 6, 10),
        ("highest", "float32", 4, 6),
    ]),
    "1x8192": (1, 8192, 1, [("high", "bfloat16", 1.5, 3.0), ("medium", "bfloat16", 1.5, 3.0)]),
}  # fmt: skip


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, round by round, one after the other: whatever disturbs the machine disturbs
    all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ours(checkpoint: Checkpoint, name: str) -> NumbaBackend:
    """A precision; "simd" is "medium" on the float32 path, which every CPU has."""
    if name != "simd":
        return NumbaBackend(checkpoint, name, THREADS)
    os.environ["QWEN3NP_ISA"] = isa.SIMD
    try:
        return NumbaBackend(checkpoint, "medium", THREADS)
    finally:
        del os.environ["QWEN3NP_ISA"]


def theirs(folder: Path, name: str) -> Callable[[list[list[int]]], np.ndarray]:
    model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, name)).eval()

    def encode(texts: list[list[int]]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(texts)).last_hidden_state[:, -1].float().numpy()

    return encode


def against_transformers(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    checkpoint, rng, rows = Checkpoint(folder), np.random.default_rng(0), []
    for workload in names:
        count, tokens, rounds, asked = WORKLOADS[workload]
        texts = rng.integers(0, 151000, (count, tokens)).tolist()
        encoders: dict[str, Callable[[list[list[int]]], np.ndarray]] = {}
        for mine, other, _, _ in asked:
            if mine not in encoders:
                encoders[mine] = ours(checkpoint, mine).encode
            if other not in encoders:
                encoders[other] = theirs(folder, other)
        expected = reference.normalize(encoders["highest" if "highest" in encoders else "high"](texts))
        for name, encode in encoders.items():  # also the warm-up
            cosine = (reference.normalize(encode(texts)) * expected).sum(axis=1).min()
            assert cosine > 0.99, f"{name} computes something else: cosine {cosine}"
        seconds = measure({n: lambda e=e, t=texts: e(t) for n, e in encoders.items()}, rounds)
        rows += [
            row(workload, m, seconds[m], f"PyTorch {o}", seconds[o], bar, reach) for m, o, bar, reach in asked
        ]
        del encoders
        gc.collect()
    return rows


def query(folder: Path) -> dict[str, Any]:
    """One text of 16 tokens: time over the time that reading the layers' weights takes at the memory's
    speed."""
    checkpoint = Checkpoint(folder)
    encode = ours(checkpoint, "high").encode
    ids = [list(range(100, 116))]
    encode(ids)
    size = sum(t.data.nbytes for n, t in checkpoint.tensors.items() if n.startswith("layers."))
    array = np.random.default_rng(0).integers(0, 1 << 60, 1 << 26)  # 512 MB: past every cache
    parts = np.array_split(array, THREADS)
    pool = ThreadPoolExecutor(THREADS)
    list(pool.map(add_up, parts))
    runs = {"high": lambda: encode(ids), "read": lambda: list(pool.map(add_up, parts))}
    seconds = measure(runs, 21)
    floor = [s * size / array.nbytes for s in seconds["read"]]
    return row("1x16", "high", seconds["high"], "reading the weights", floor, 1.4, 1.1)


@numba.njit(nogil=True)
def add_up(array):
    total = 0
    for x in array:
        total += x
    return total


def mixed(folder: Path) -> list[dict[str, Any]]:
    """256 texts of 5 to 800 tokens, log-normal, through the whole path from text."""
    from sentence_transformers import SentenceTransformer

    rng = np.random.default_rng(0)
    words = "the capital of gravity is a force that attracts two bodies and responsible for movement".split()
    lengths = np.clip(np.exp(rng.normal(4.2, 1.0, 256)), 5, 800).astype(int)
    texts = [" ".join(rng.choice(words, length)) for length in lengths]
    dtype = {"dtype": torch.bfloat16}
    peer = SentenceTransformer(str(folder), device="cpu", model_kwargs=dtype)
    expected = peer.encode(texts[:8], normalize_embeddings=True)
    runs: dict[str, Run] = {"sentence-transformers bfloat16": lambda: peer.encode(texts, batch_size=32)}
    for name in ("high", "medium"):
        model = Embedder(folder, matmul_precision=name, num_threads=THREADS)
        assert (model.encode(texts[:8]) * expected).sum(axis=1).min() > 0.99
        runs[name] = lambda model=model: model.encode(texts)
    seconds = measure(runs, 1)
    name = "sentence-transformers bfloat16"
    return [row("mixed 256", mine, seconds[mine], name, seconds[name], 4, 6) for mine in ("high", "medium")]


START = """
import time; start = time.perf_counter()
from qwen3np import Embedder
model = Embedder({folder!r}); ready = time.perf_counter()
model.encode("hello world")
"""
START_PEER = """
from sentence_transformers import SentenceTransformer
SentenceTransformer({folder!r}, device="cpu").encode("hello world")
"""
PEAK = """
import resource
import numpy as np
from qwen3np import Embedder
model = Embedder({folder!r})
rng = np.random.default_rng(0)
model.backend.encode([rng.integers(0, 151000, n).tolist() for n in (16, 2048, *[128] * 64)])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
WORKSPACE = """
import resource
import numpy as np
from qwen3np import Embedder
model = Embedder({folder!r})
model.backend.encode([[1, 2, 3]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model.backend.encode([np.random.default_rng(0).integers(0, 151000, 32768).tolist()])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
LOAD = """
import time
import qwen3np.numba_backend
from qwen3np import Embedder
start = time.perf_counter(); Embedder({folder!r}); print(time.perf_counter() - start)
"""


def script(source: str, folder: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-c", source.format(folder=str(folder))], capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(run.stderr)
    return run.stdout.strip()


def processes(folder: Path) -> list[dict[str, Any]]:
    """Whole processes: start to first vector, load, memory. Two layers are enough for the workspace of 32k
    tokens."""
    runs: dict[str, Run] = {
        "high": lambda: script(START, folder),
        "peer": lambda: script(START_PEER, folder),
    }
    seconds = measure(runs, 1) and measure(runs, 5)
    rows = [row("first vector", "high", seconds["high"], "sentence-transformers", seconds["peer"], 2.5, 5)]
    load = [float(script(LOAD, folder)) for _ in range(5)]
    rows.append(figure("load to ready, s", statistics.median(load), 1.5, 0.6))
    rows.append(figure("peak memory, GB", int(script(PEAK, folder)) / 1e6, 1.6, 1.4))
    with tempfile.TemporaryDirectory() as temporary:
        shallow = synthesize(Path(temporary) / "model", "0.6B", layers=2)
        rows.append(figure("workspace of 32768 tokens, MB", int(script(WORKSPACE, shallow)) / 1e3, 600, 300))
    return rows


def row(
    workload: str, mine: str, a: list[float], other: str, b: list[float], bar: float, reach: float
) -> dict[str, Any]:
    x, y = statistics.median(a), statistics.median(b)
    ratio = x / y if workload == "1x16" else y / x
    return {
        "workload": workload, "ours": mine, "ms": 1e3 * x, "range": [1e3 * min(a), 1e3 * max(a)],
        "peer": other, "peer_ms": 1e3 * y, "peer_range": [1e3 * min(b), 1e3 * max(b)],
        "ratio": ratio, "bar": bar, "reach": reach,
    }  # fmt: skip


def figure(name: str, value: float, bar: float, reach: float) -> dict[str, Any]:
    return {"workload": name, "value": value, "bar": bar, "reach": reach}


def text(r: dict[str, Any]) -> list[str]:
    if "value" in r:
        return [r["workload"], "", f"{r['value']:.2f}", "", "", "", f"{r['bar']:g}", f"{r['reach']:g}"]

    def times(middle: str, both: str) -> str:
        return f"{r[middle]:.1f} ({r[both][0]:.1f}-{r[both][1]:.1f})"

    mine, other = times("ms", "range"), times("peer_ms", "peer_range")
    return [
        r["workload"],
        r["ours"],
        mine,
        r["peer"],
        other,
        f"{r['ratio']:.2f}",
        f"{r['bar']:g}",
        f"{r['reach']:g}",
    ]


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(THREADS)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        **{name: lambda name=name: against_transformers(folder, [name]) for name in WORKLOADS},
        "1x16": lambda: [query(folder)],
        "mixed": lambda: mixed(folder),
        "processes": lambda: processes(folder),
    }
    rows = []
    for name in names or parts:
        rows += parts[name]()
        print(f"{name} done", file=sys.stderr)
    header = ["workload", "ours", "ms (range)", "peer", "ms (range)", "ratio", "bar", "reach"]
    print(table(header, [text(r) for r in rows]))
    versions = {m.__name__: m.__version__ for m in (np, numba, torch, transformers)}
    about = {
        "cpu": binding.get_host_cpu_name(), "isa": isa.choose("high"), "threads": THREADS,
        "versions": versions, "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    print(about)
    if not names:
        RESULTS.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
