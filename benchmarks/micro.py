"""The kernels alone, on the cases of their tests, at the 0.6B's sizes: GFLOP/s, GB/s, and the fraction of
what the machine can do. Every case is checked before it is timed.

python benchmarks/micro.py      one thread, two minutes; writes benchmarks/results/micro.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import roofline
from machine import about, describe

from qwen3np.synth.checkpoints import LIKE
from qwen3np.table import table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import kernel_cases as cases

RESULTS = Path(__file__).parent / "results" / "micro.json"
TOKENS = (16, 48, 256)
CONTEXTS = (512, 4096)  # tokens of one text
COPIES = 8  # of the weights, taken in turn: past every private cache, as in a model
RUNS = 4  # of each copy, and one before
HEADER = ["kernel", "operands", "ms", "GFLOP/s", "GB/s", "of the bound", "bound by"]
MEMORY = "memory read GB/s"
PACKAGES = "qwen3np", "numpy", "numba"


def kernels(kind: str) -> dict[str, list[cases.Case]]:
    """Name -> the case, on as many copies of its operands as are taken in turn."""
    c = LIKE["0.6B"]
    D, F, H = c.hidden_size, c.intermediate_size, c.head_dim
    N, K = c.num_attention_heads, c.num_key_value_heads
    made = {}
    for tokens in TOKENS:

        def copies(make: Callable[..., cases.Case], rows: int, columns: int, t: int = tokens) -> Any:
            return [make(rows, columns, t, kind, seed) for seed in range(COPIES)]

        made[f"matmul, q_proj {N * H} x {D}, {tokens} tokens"] = copies(cases.matmul_case, N * H, D)
        made[f"matmul, down_proj {D} x {F}, {tokens} tokens"] = copies(cases.matmul_case, D, F)
        made[f"matmul_swiglu, {2 * F} x {D}, {tokens} tokens"] = copies(cases.swiglu_case, F, D)
    if kind != "pairs":  # a way to store weights; keys and values are float32 with it
        for length in CONTEXTS:
            made[f"attention, {length} tokens"] = [cases.attention_case(N, K, H, [length], kind)]
    if kind == "float32":
        made[f"rms_norm, {D} x 256 tokens"] = [cases.rms_norm_case(D, 256)]
    return made


def timed(copies: list[cases.Case], peak: dict[str, float], unit: str) -> dict[str, Any]:
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
    for kind, unit in cases.KINDS.items():
        if f"{unit} GFLOP/s" not in peak:
            continue  # spelled out in float32 on this CPU: for tests alone
        for name, copies in kernels(kind).items():
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
