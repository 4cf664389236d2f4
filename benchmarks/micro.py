"""The kernels alone, at the 0.6B's sizes: GFLOP/s, GB/s, and the fraction of what the machine can do.

    python benchmarks/micro.py      one thread, two minutes; writes benchmarks/results/micro.json

The cases are those of the tests, and every one is checked before it is timed.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import roofline
from kernel_cases import KERNELS, KINDS, Case
from machine import about, describe

from qwen3np.table import table

RESULTS = Path(__file__).parent / "results" / "micro.json"
COPIES = 8  # of the weights, taken in turn: past every private cache, as in a model
RUNS = 4  # of each copy, and one before
HEADER = ["kernel", "operands", "ms", "GFLOP/s", "GB/s", "of the bound", "bound by"]
MEMORY = "memory read GB/s"
PACKAGES = "qwen3np", "numpy", "numba"


def cases(kind: str) -> dict[str, list[Case]]:
    """Name -> the case, on as many copies of its operands as are taken in turn."""
    return {
        f"{name}, {size}": [
            kernel.case(shape, tokens, kind, seed) for seed in range(COPIES if kernel.weights else 1)
        ]
        for name, kernel in KERNELS.items()
        if kind in kernel.kinds
        for size, (shape, tokens) in kernel.timed.items()
    }


def timed(copies: list[Case], peak: dict[str, float], unit: str) -> dict[str, Any]:
    for case in copies:
        case.run()
    copies[0].check()
    seconds = []
    for _ in range(RUNS):
        for case in copies:
            start = time.perf_counter()
            case.run()
            seconds.append(time.perf_counter() - start)
    median, case = statistics.median(seconds), copies[0]
    gflop, gb = 2e-9 * case.multiply_adds, 1e-9 * case.bytes
    # One copy stays in the caches: memory is no bound.
    bound, by = max((gflop / peak[unit], unit), (gb / peak[MEMORY] * (len(copies) > 1), MEMORY))
    return {
        "seconds": median, "range": [min(seconds), max(seconds)], "GFLOP/s": gflop / median,
        "GB/s": gb / median, "of the bound": bound / median, "by": by.rsplit(" ", 1)[0],
    }  # fmt: skip


def measure() -> dict[str, Any]:
    peak = roofline.measure(1)
    rows = []
    for kind, unit in KINDS.items():
        if f"{unit} GFLOP/s" not in peak:
            continue  # emulated in float32 on this CPU: for tests alone
        for name, copies in cases(kind).items():
            rows.append({"kernel": name, "operands": kind} | timed(copies, peak, f"{unit} GFLOP/s"))
    return {"about": about(1), "roofline": peak, "rows": rows}


def lines(results: dict[str, Any]) -> list[list[str]]:
    return [
        [r["kernel"], r["operands"], f"{1e3 * r['seconds']:.3f}", f"{r['GFLOP/s']:.0f}", f"{r['GB/s']:.1f}",
         f"{r['of the bound']:.0%}", r["by"]]
        for r in results["rows"]
    ]  # fmt: skip


if __name__ == "__main__":
    measured = measure()
    RESULTS.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(HEADER, lines(measured)))
    print(f"\n{describe(measured['about'], PACKAGES)}")
    print("Measured peaks:", ", ".join(f"{name} {value:.0f}" for name, value in measured["roofline"].items()))
