"""Whole large models, each way to hold their weights: load, memory, speed, and how near the reference.

    python benchmarks/large.py FOLDER [FOLDER ...] [--weights stored int8 low]     adds to results/large.json

FOLDER holds a generated model of all layers (`qwen3np synth FOLDER --like 8B`), of either kind. The 8B
takes 16 GB of disk, 15 of memory as stored, and 10 minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import roofline
from machine import about, describe
from parts import ROOT, fill
from report import far, markdown

from qwen3np import Embedder, Reranker
from qwen3np.runtime.cores import usable_cores
from qwen3np.synth.checkpoints import synthesize

RESULTS = Path(__file__).parent / "results" / "large.json"
DOCUMENT = ROOT / "docs/performance.md"
PACKAGES = "qwen3np", "numpy", "numba"
CHOICES: dict[str, dict[str, Any]] = {
    "stored": {}, "lossless": {"weights": "lossless"}, "int8": {"weights": "int8"},
    "low": {"matmul_precision": "low"},
}  # fmt: skip
THREADS = min(2, usable_cores())
TOKENS = 16, 128
ROUNDS = 3
QUERY = "What is the capital of China?"
PAIRS = [(QUERY, "The capital of China is Beijing."), (QUERY, "Gravity is a force.")]


def answers(folder: Path, **choices: Any) -> Any:
    """The model, and what it says of the short texts: a vector, or the scores of pairs."""
    if "LogitScore" not in (folder / "modules.json").read_text():
        embedder = Embedder(folder, **choices)
        return embedder, embedder.encode(QUERY)
    reranker = Reranker(folder, **choices)
    return reranker, reranker.predict(PAIRS, raw_scores=True)


def memory(line: str) -> float:
    """GB of this process, by its line in /proc."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(found.split()[1]) for found in status if found.startswith(line)) / 1e6


def measured(folder: Path, choice: str) -> dict[str, Any]:
    """What one way takes, in this process."""
    with tempfile.TemporaryDirectory() as temporary:  # the kernels are compiled for this
        Embedder(synthesize(Path(temporary) / "tiny"), num_threads=THREADS, **CHOICES[choice])
    start = time.perf_counter()
    model, said = answers(folder, num_threads=THREADS, **CHOICES[choice])
    found: dict[str, Any] = {"load": time.perf_counter() - start, "answers": np.asarray(said).tolist()}
    rng = np.random.default_rng(0)
    for tokens in TOKENS:
        seconds = []
        for _ in range(ROUNDS):
            ids = rng.integers(0, 150_000, tokens).tolist()
            start = time.perf_counter()
            model.backend.forward([ids])
            seconds.append(time.perf_counter() - start)
        found[f"1x{tokens}"] = seconds
    return found | {"isa": model.backend.isa, "peak": memory("VmHWM")}


def measure(folder: Path, choices: Sequence[str]) -> dict[str, Any]:
    """All ways for one model, each in a process of its own, and the reference."""
    start = time.perf_counter()
    model, said = answers(folder, backend="numpy")
    reference = time.perf_counter() - start
    c = model.checkpoint.config
    widths = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    weights = c.num_hidden_layers * c.hidden_size * (2 * sum(widths) + 3 * c.intermediate_size)
    rows = {}
    for choice in choices:
        print(f"{folder}: {choice}", file=sys.stderr)
        child = [sys.executable, __file__, str(folder), "--child", choice]
        rows[choice] = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    for row in rows.values():
        row["error"] = apart(row.pop("answers"), said)
    return {
        "about": about(THREADS), "roofline": roofline.measure(THREADS), "layers": c.num_hidden_layers,
        "weights": weights, "reference": reference, "choices": rows,
    }  # fmt: skip


def apart(got: Any, expected: Any) -> str:
    """How far answers are from the reference's: 1 - cosine, or the largest difference of a score."""
    got, expected = np.array(got), np.array(expected)
    if len(expected) == len(PAIRS):
        return f"score {far(float(np.abs(got - expected).max()))}"
    cosine = got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)
    return far(float(1 - cosine))


def lines(results: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, found in results.items():
        for choice, r in found["choices"].items():
            unit = {"int16": "int16", "int8": "int8"}.get(r["isa"], "float32")
            peak = found["roofline"].get(f"{unit} GFLOP/s", found["roofline"]["float32 GFLOP/s"])
            speeds = []
            for tokens in TOKENS:
                seconds = statistics.median(r[f"1x{tokens}"])
                part = 2e-9 * found["weights"] * tokens / seconds / peak
                speeds.append(f"{tokens / seconds:.1f} ({part:.0%})")
            rows.append([name, choice, f"{r['load']:.0f}", f"{r['peak']:.2f}", *speeds, r["error"]])
    return rows


HEADER = [
    "",
    "weights",
    "load, s",
    "peak memory, GB",
    *(f"tokens/s, 1x{n}" for n in TOKENS),
    "from the reference",
]


def figures(results: dict[str, Any]) -> dict[str, str]:
    last = max(results.values(), key=lambda found: found["about"]["date"])
    return {"large": f"{markdown(HEADER, lines(results))}\n\n{describe(last['about'], PACKAGES)}"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--child", choices=CHOICES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args.folders[0], args.child)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for folder in args.folders:
        found, before = measure(folder, args.weights), results.get(folder.name, {"choices": {}})
        results[folder.name] = found | {"choices": before["choices"] | found["choices"]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    DOCUMENT.write_text(fill(DOCUMENT.name, DOCUMENT.read_text(), figures(results)))
    print("\n".join("  ".join(line) for line in lines(results)))


if __name__ == "__main__":
    main()
