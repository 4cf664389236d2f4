"""The kernels alone, on the operands of their tests: GFLOP/s, and the fraction of the unit's measured peak.

python benchmarks/micro.py      one thread; shapes of the 0.6B; needs the extra `test`
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import roofline

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import test_kernels as cases

from qwen3np.synth import to_bfloat16
from qwen3np.table import table

SHAPES = [(2048, 1024), (6144, 1024), (1024, 3072)]  # q_proj, gate and up, down_proj
TOKENS = (16, 48, 256)
COPIES = 8  # of the weights, taken in turn: past every private cache, as in a model


def main() -> None:
    peak = roofline.measure(1)
    unit = {"pairs": "float32", "float32": "float32", "dot": "vdpbf16ps"}
    rows = []
    for kind in cases.KINDS:
        name = unit.get(kind, "AMX bfloat16")
        if f"{name} GFLOP/s" not in peak:
            continue  # spelled out in float32 on this CPU: for tests alone
        parts = int(kind[-1]) if kind.startswith("tiles") else 1
        for N, K in SHAPES:
            weights = [cases.packed(to_bfloat16(cases.random(i, N, K)), kind) for i in range(COPIES)]
            for tokens in TOKENS:
                x, _ = cases.operand(cases.random(0, tokens, K), kind)
                y = np.zeros((len(x), N, 16), np.float32)
                seconds = []
                for i in range(5 * COPIES):
                    start = time.perf_counter()
                    cases.run_matmul(weights[i % COPIES], x, y, len(x))
                    seconds.append(time.perf_counter() - start)
                median = statistics.median(seconds[COPIES:])
                gflops = 2e-9 * N * K * tokens * parts / median
                read = weights[0].nbytes / median / 1e9
                rows.append(
                    [kind, f"{N} x {K}", str(tokens), f"{gflops:.0f}",
                     f"{gflops / peak[f'{name} GFLOP/s']:.0%}", f"{read:.1f}",
                     f"{read / peak['memory read GB/s']:.0%}"]
                )  # fmt: skip
    print(table(["operands", "W", "tokens", "GFLOP/s", "of peak", "weights, GB/s", "of memory"], rows))
    print(peak)


if __name__ == "__main__":
    main()
