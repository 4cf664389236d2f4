"""The README's tables and plots of benchmarks/results/run.json (benchmarks/readme.py puts the tables in).

python benchmarks/report.py      needs the extra `figure`; writes results/*.png, prints the tables
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TEXT, GRID = "#7d8590", "#7d859055"
COLORS = {"qwen3np high": "#2f81f7", "qwen3np medium": "#e5772e"}
OURS = tuple(COLORS)
# (workload, ours, peer, bar, reach for) of the issues.
BARS = [
    ("8x128", "qwen3np medium", "transformers bf16", 2.5, 3.5),
    ("8x128", "qwen3np high", "transformers bf16", 1.5, 2.2),
    ("8x128", "qwen3np high", "transformers float32", 6.0, 10.0),
    ("8x128", "qwen3np highest", "transformers float32", 4.0, 6.0),
    ("8x128", "qwen3np simd", "transformers float32", 1.15, 1.4),
    ("4x512", "qwen3np medium", "transformers bf16", 2.5, 3.5),
    ("4x512", "qwen3np high", "transformers bf16", 1.5, 2.2),
    ("4x512", "qwen3np high", "transformers float32", 6.0, 10.0),
    ("4x512", "qwen3np highest", "transformers float32", 4.0, 6.0),
    ("1x8192", "qwen3np high", "transformers bf16", 1.5, 3.0),
    ("256 mixed", "qwen3np high", "sentence-transformers bf16", 4.0, 6.0),
    ("256 mixed", "qwen3np medium", "sentence-transformers bf16", 4.0, 6.0),
    ("256 instructed", "qwen3np high", "qwen3np high, no sharing", 1.8, 1.8),
    ("256 instructed", "qwen3np high", "sentence-transformers bf16", 4.0, 4.0),
    ("256 instructed", "qwen3np medium", "sentence-transformers bf16", 4.0, 4.0),
    ("rerank 1x100", "qwen3np medium", "transformers bf16", 3.0, 3.0),
    ("rerank 1x100", "qwen3np high", "transformers bf16", 2.0, 2.0),
]
LAYER_PARAMETERS = 440_401_920  # of the 0.6B: multiplied by every token


def load() -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / "run.json").read_text())
    return results


def cell(row: dict[str, Any]) -> str:
    if "missing" in row:
        return row["missing"]
    low, high = (1e3 * x for x in row["range"])
    digits = 1 if low < 100 else 0
    return f"{1e3 * row['median']:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def ratio(rows: list[dict[str, Any]], workload: str, ours: str, peer: str) -> float | None:
    """How many times faster, of medians beside each other; of those beside any, where they were not."""

    def median(name: str, beside: str) -> float | None:
        here = [r for r in rows if r["workload"] == workload and r["contender"] == name and "median" in r]
        near = [r for r in here if r["beside"] == beside] or here
        return statistics.median(r["median"] for r in near) if near else None

    a, b = median(ours, peer), median(peer, peer)
    return b / a if a and b else None


def table(results: dict[str, Any]) -> str:
    """A line for each workload and peer, with OURS beside it; peers that win are there like the others."""
    lines = ["| workload | peer | peer, ms | qwen3np high | faster | qwen3np medium | faster |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    rows = results["rows"]
    for peer_row in rows:
        peer, workload = peer_row["contender"], peer_row["workload"]
        if peer in OURS or peer != peer_row["beside"]:
            continue
        cells = []
        for name in OURS:
            mine = [r for r in rows if (r["workload"], r["contender"], r["beside"]) == (workload, name, peer)]
            times = ratio(rows, workload, name, peer) if "median" in peer_row else None
            cells += [cell(mine[0]) if mine else "", f"{times:.2f}" if times else ""]
        lines.append("| " + " | ".join([workload, peer, cell(peer_row), *cells]) + " |")
    return "\n".join(lines)


def bars(results: dict[str, Any]) -> str:
    """What the issues ask for, and what was measured."""
    lines = ["| | against | measured | accepted at | best |", "|---|---|---|---|---|"]
    for workload, ours, peer, bar, reach in BARS:
        times = ratio(results["rows"], workload, ours, peer)
        if times:
            lines.append(f"| {workload}, {ours} | {peer} | {times:.2f} | {bar:g} | {reach:g} |")
    return "\n".join(lines)


def bounds(results: dict[str, Any]) -> str:
    """Each workload's fraction of what the machine can do: products in registers, or weights from memory."""
    peak = results["roofline"]
    lines = [
        "| workload | | linear layers, GFLOP/s | of the unit's peak | weights, GB/s | of memory's |",
        "|---|---|---|---|---|---|",
    ]
    seen = set()
    for row in results["rows"]:
        name, key = row["contender"], (row["workload"], row["contender"])
        if name not in OURS or "tokens_per_second" not in row or key in seen or row["threads"] == 1:
            continue
        if row["workload"].startswith("256"):  # texts share tokens that are computed once
            continue
        seen.add(key)
        path = results["about"]["isa"][name.split()[1]]
        unit = {"simd": "float32", "avx512_bf16": "vdpbf16ps", "amx": "AMX bfloat16"}[path]
        parts = {"high": 2, "highest": 3}.get(name.split()[1], 1) if path == "amx" else 1
        gflops = 2e-9 * LAYER_PARAMETERS * row["tokens_per_second"]
        read = 2e-9 * LAYER_PARAMETERS / row["median"]  # at least once
        cells = [row["workload"], f"{name} ({unit})", f"{gflops:,.0f}",
                 f"{parts * gflops / peak[f'{unit} GFLOP/s']:.0%}", f"{read:.1f}",
                 f"{read / peak['memory read GB/s']:.0%}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    measured = ", ".join(f"{name} {value:,.0f}" for name, value in peak.items())
    return "\n".join(lines) + f"\n\nMeasured peaks of {results['about']['threads']} threads: {measured}."


def processes(results: dict[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {value:,.2f} |" for name, value in results.get("processes", {}).items()]
    return "\n".join(lines)


def exponent(points: list[tuple[float, float]]) -> float:
    """Of y = c x^e: the slope of a straight line through the logarithms."""
    x, y = [math.log(p[0]) for p in points], [math.log(p[1]) for p in points]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def plot_growth(results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "text.color": TEXT})
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8))
    kinds = [("sequence length", "tokens_per_second", "tokens a second (4 of 28 layers)"),
             ("batch tokens", "tokens_per_second", "tokens a second (4 of 28 layers)"),
             ("sequence length", "memory_GB", "peak memory, GB")]  # fmt: skip
    for axes, (kind, what, label) in zip(panels, kinds, strict=True):
        for name, color in COLORS.items():
            rows = [r for r in results["growth"] if r["contender"] == name and r["kind"] == kind]
            x = [r["tokens"] for r in rows]
            if what == "memory_GB":
                axes.plot(x, [r[what] for r in rows], "o-", color=color, label=name, markersize=4)
                continue
            slope = exponent([(r["tokens"], r["seconds"]) for r in rows[-3:]])
            y = [r["tokens"] / r["seconds"] for r in rows]
            text = f"{name}: time ~ tokens^{slope:.2f} at the end"
            axes.plot(x, y, "o-", color=color, label=text, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(kind + (" (texts of 128)" if kind == "batch tokens" else ""), color=TEXT)
        axes.set_ylabel(label, color=TEXT)
        axes.tick_params(colors=TEXT)
        axes.grid(color=GRID, linewidth=0.6)
        axes.legend(
            frameon=False, fontsize=8, labelcolor=TEXT, loc="lower right" if axes is not panels[2] else None
        )
        for spine in axes.spines.values():
            spine.set_color(GRID)
    figure.tight_layout()
    figure.savefig(RESULTS / "growth.png", dpi=110, transparent=True)


if __name__ == "__main__":
    run = load()
    print(table(run), bars(run), bounds(run), processes(run), sep="\n\n")
    if "growth" in run:
        plot_growth(run)
