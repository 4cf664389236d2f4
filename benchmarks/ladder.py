"""The matrix product, rung by rung: from the textbook's loop to what the engine runs.

    OPENBLAS_NUM_THREADS=1 python benchmarks/ladder.py    a minute; writes benchmarks/results/ladder.json

Every rung computes the same y = x W^T, q_proj of the 0.6B for 48 tokens. It is compared with float64 before
it is timed.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import roofline
from kernel_cases import KINDS, matmul_case
from kernel_operands import from_panels, packed, random, to_panels
from machine import about, describe
from numba import njit

from qwen3np.kernels.micro_kernel import BLOCK_ROWS, sixteen_rows
from qwen3np.kernels.simd import fma, load, splat, store
from qwen3np.loading.checkpoint import widen
from qwen3np.synth.checkpoints import to_bfloat16
from qwen3np.table import table

RESULTS = Path(__file__).parent / "results" / "ladder.json"
N, K, TOKENS = 2048, 1024, 48
SECONDS = 3.0  # for each rung
HEADER = ["rung", "what it adds", "lines", "GFLOP/s", "of the peak"]
PACKAGES = "qwen3np", "numpy", "numba"

fast = njit(nogil=True, fastmath={"contract"}, error_model="numpy")


@fast
def triple_loop(w, x, y):
    for t in range(x.shape[0]):
        for n in range(w.shape[0]):
            total = np.float32(0)
            for k in range(w.shape[1]):
                total += w[n, k] * x[t, k]
            y[t, n] = total


@fast
def panels(w, x, y):
    for p in range(x.shape[0]):
        for n in range(w.shape[0]):
            y[p, n] = 0
            for k in range(w.shape[1]):
                for lane in range(16):
                    y[p, n, lane] += w[n, k] * x[p, k, lane]


@fast
def one_sum(w, x, y):
    N, K = w.shape
    for p in range(x.shape[0]):
        for n in range(N):
            total = splat(np.float32(0))
            for k in range(K):
                total = fma(splat(w[n, k]), load(x, (p * K + k) * 16), total)
            store(y, (p * N + n) * 16, total)


@fast
def four_sums(w, x, y):
    N, K = w.shape
    for p in range(x.shape[0]):
        for n in range(0, N, 4):
            a = b = c = d = splat(np.float32(0))
            for k in range(K):
                column = load(x, (p * K + k) * 16)
                a, b = fma(splat(w[n, k]), column, a), fma(splat(w[n + 1, k]), column, b)
                c, d = fma(splat(w[n + 2, k]), column, c), fma(splat(w[n + 3, k]), column, d)
            at = (p * N + n) * 16
            store(y, at, a), store(y, at + 16, b), store(y, at + 32, c), store(y, at + 48, d)


PANELS = max(BLOCK_ROWS)
block = sixteen_rows(PANELS, "store", "float32", K)


@fast
def register_block(w, x, y):
    K, step = w.shape[1], y.shape[1] * 16
    for p in range(0, x.shape[0], PANELS):
        for n in range(w.shape[0]):
            y_at = p * step + n * 256
            block(w, n * K * 16, 16, x, p * K * 16, K * 16, y, y_at, step, K)


def rungs() -> dict[str, tuple[str, Callable[..., Any], Callable[[], Any]]]:
    """Name -> what it adds, the function whose lines count, and one run that returns [tokens, N]."""
    bits = to_bfloat16(random(0, N, K))
    w, x = widen(bits), random(1, TOKENS, K)
    x_panels, y_panels = to_panels(x, K), np.zeros((TOKENS // 16, N, 16), np.float32)
    blocks, y = packed(bits, "float32"), np.zeros((TOKENS, N), np.float32)

    def on_panels(function: Callable[..., Any], weights: Any) -> Callable[[], Any]:
        def run() -> Any:
            function(weights, x_panels, y_panels)
            return from_panels(y_panels, TOKENS)

        return run

    def plain() -> Any:
        triple_loop(w, x, y)
        return y

    def blas() -> Any:
        return np.matmul(x, w.T, out=y)

    made = {
        "0 triple_loop": ("the definition", triple_loop, plain),
        "1 panels": ("16 tokens side by side: one instruction for 16", panels, on_panels(panels, w)),
        "2 one_sum": ("the sum stays in a register", one_sum, on_panels(one_sum, w)),
        "3 four_sums": ("four sums: each waits for itself only", four_sums, on_panels(four_sums, w)),
        "4 register_block": (
            "packed weights; as many sums as there are registers", register_block,
            on_panels(register_block, blocks),
        ),
    }  # fmt: skip
    return made | {"- NumPy": ("its BLAS, for comparison", None, blas)}


def best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of many runs."""
    run()
    end, seconds = time.perf_counter() + SECONDS, []
    while time.perf_counter() < end or len(seconds) < 3:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure() -> dict[str, Any]:
    peak = roofline.measure(1)
    w, x = widen(to_bfloat16(random(0, N, K)), np.float64), random(1, TOKENS, K)
    exact = x.astype(np.float64) @ w.T
    rows = []
    for name, (adds, function, run) in rungs().items():
        assert np.abs(run() - exact).max() < 1e-3, name
        lines = len(inspect.getsource(function.py_func).splitlines()) - 1 if function else None
        gflops = 2e-9 * N * K * TOKENS / best(run)
        rows.append({"rung": name, "adds": adds, "lines": lines, "GFLOP/s": gflops, "unit": "float32"})
    for kind, unit in KINDS.items():
        if f"{unit} GFLOP/s" in peak:
            case = matmul_case((N, K), TOKENS, kind)
            case.run()
            case.check()
            gflops = 2e-9 * case.multiply_adds / best(case.run)
            adds = {"pairs": "bfloat16 weights, widened on the way", "float32": "chains of 128 products"}
            row = {"rung": f"5 matmul, {kind}", "adds": adds.get(kind, unit), "lines": None}
            rows.append(row | {"GFLOP/s": gflops, "unit": unit})
    return {"about": about(1), "roofline": peak, "rows": rows}


def lines(results: dict[str, Any]) -> list[list[str]]:
    return [
        [r["rung"], r["adds"], str(r["lines"] or ""), f"{r['GFLOP/s']:.1f}",
         f"{r['GFLOP/s'] / results['roofline'][r['unit'] + ' GFLOP/s']:.0%}"]
        for r in results["rows"]
    ]  # fmt: skip


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        raise SystemExit("NumPy would take all cores: OPENBLAS_NUM_THREADS=1 python benchmarks/ladder.py")
    measured = measure()
    RESULTS.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(HEADER, lines(measured)))
    print(f"\n{describe(measured['about'], PACKAGES)}")
