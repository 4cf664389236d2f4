"""The README's figure of benchmarks/results/accuracy.json: error against float64, a row for each arithmetic.

    python benchmarks/figure.py      needs the extra `figure`; writes benchmarks/results/accuracy.png

The background is transparent and every color readable on GitHub's light and dark pages.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
TEXT, GRID, OURS, THEIRS = "#7d8590", "#7d859055", "#2f81f7", "#e5772e"


def label(name: str) -> str:
    """ "qwen3np numba, simd, matmul_precision high, 2 threads" -> 'qwen3np "high" (simd)'."""
    kernels = re.fullmatch(r"qwen3np numba, (\w+), matmul_precision (\w+), .*", name)
    if kernels:
        return f'qwen3np "{kernels[2]}" ({kernels[1]})'
    return name.replace("numpy, the reading copy", "reading copy (NumPy)")


def main() -> None:
    results = json.loads((RESULTS / "accuracy.json").read_text())
    rows = sorted((r for r in results["rows"] if math.isfinite(r["max_abs"])), key=lambda r: r["max_abs"])
    rows.reverse()  # the first row is drawn at the bottom
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": TEXT})
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.2))
    least = 10 ** math.floor(math.log10(rows[-1]["max_abs"]))
    for y, row in enumerate(rows):
        color = OURS if row["name"].startswith("qwen3np") else THEIRS
        axes.plot([least, row["max_abs"]], [y, y], color=color, linewidth=2, alpha=0.5)
        axes.plot(row["max_abs"], y, "o", color=color, markersize=8)
        shift = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{row['max_abs']:.1e}", (row["max_abs"], y), color=color, weight="bold", **shift)
    axes.set_yticks(range(len(rows)), [label(row["name"]) for row in rows])
    axes.set(xscale="log", xlim=(least, 5 * rows[0]["max_abs"]), ylim=(-0.6, len(rows) - 0.4))
    axes.set_xlabel("largest error of a unit vector's channel, against float64 (log scale; left is better)")
    axes.xaxis.label.set_color(TEXT)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT, length=0, which="both")
    axes.spines[:].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS / "accuracy.png", dpi=130, transparent=True)
    print(f"{RESULTS / 'accuracy.png'}: {(RESULTS / 'accuracy.png').stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
