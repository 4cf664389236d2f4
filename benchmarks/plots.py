"""The README's plots of a run: speed against accuracy, and how cost grows.

Transparent, and readable on GitHub's light and dark pages.
"""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from report import RESULTS, exponent, median, names, select

TEXT, GRID, OURS, THEIRS = "#7d8590", "#7d859055", "#2f81f7", "#e5772e"
COLORS = {"qwen3np high": OURS, "qwen3np medium": "#57ab5a"}
WORKLOAD = "8x128"
EXACT = 1e-6  # where float32 is drawn: its last bits are no difference


def finish(figure: Any, name: str, grid: str = "both") -> None:
    for axes in figure.axes:
        axes.tick_params(colors=TEXT, which="both", length=0)
        axes.xaxis.label.set_color(TEXT)
        axes.yaxis.label.set_color(TEXT)
        axes.grid(axis=grid, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=110, transparent=True)
    plt.close(figure)


def speed(results: dict[str, Any]) -> None:
    """Tokens per second at WORKLOAD against how far the vectors are from float32's: top right is best."""
    figure, axes = plt.subplots(figsize=(9, 4.6))
    beside: list[float] = []  # speeds of float32's points, which stand above each other
    for name in names(results)[1]:
        found = select(results["rows"], workload=WORKLOAD, contender=name)
        if not found:
            continue
        speed = found[0]["tokens"] / median(results["rows"], WORKLOAD, name)
        error = max(r["one_minus_cosine"] for r in found)
        color = OURS if name.startswith("qwen3np") else THEIRS
        axes.plot(max(error, EXACT), speed, "o", color=color, markersize=9)
        left = error < EXACT and any(abs(speed - other) < 25 for other in beside)
        beside += [speed] * (error < EXACT)
        style = {"color": color, "va": "center", "ha": "right" if left else "left", "weight": "bold"}
        style |= {"xytext": (-9 if left else 9, 0), "textcoords": "offset points"}
        axes.annotate(f"{name}  {speed:,.0f}", (max(error, EXACT), speed), **style)
    axes.set(xscale="log", xlim=(3e-2, EXACT / 40), ylim=(0, None))
    ticks = [10.0**e for e in range(-2, -6, -1)]
    axes.set_xticks([*ticks, EXACT], [*(f"{tick:.0e}" for tick in ticks), "float32"])
    axes.minorticks_off()
    axes.set_xlabel("1 - cosine with float32's vectors (log scale; right is better)")
    axes.set_ylabel(f"tokens per second at {WORKLOAD}")
    finish(figure, "speed")


def growth(results: dict[str, Any]) -> None:
    """A row of panels for each kind of growth: tokens per second, time with its exponent, peak memory."""
    kinds = list(dict.fromkeys(r["kind"] for r in results["growth"]))
    figure, panels = plt.subplots(len(kinds), 3, figsize=(12, 3.6 * len(kinds)), squeeze=False)
    for line, kind in zip(panels, kinds, strict=True):
        for name, color in COLORS.items():
            rows = [r for r in results["growth"] if r["contender"] == name and r["kind"] == kind]
            if len(rows) < 4:
                continue
            x = [r["tokens"] for r in rows]
            slope = exponent([(r["tokens"], r["seconds"]) for r in rows[-4:]])
            style = {"color": color, "markersize": 4, "linewidth": 1.5}
            line[0].plot(x, [r["tokens"] / r["seconds"] for r in rows], "o-", label=name, **style)
            fitted = f"{name}: tokens^{slope:.2f} at the end"
            line[1].plot(x, [r["seconds"] for r in rows], "o-", label=fitted, **style)
            line[2].plot(x, [r["memory_GB"] for r in rows], "o-", label=name, **style)
        line[1].set_yscale("log")
        layers = f"({results['depths'][0]} of 28 layers)"
        labels = (f"tokens per second {layers}", f"seconds {layers}", f"peak memory, GB {layers}")
        for axes, label in zip(line, labels, strict=True):
            axes.set_xscale("log", base=2)
            if axes is not line[1]:
                axes.set_ylim(bottom=0)
            axes.set_xlabel(kind + (" (texts of 16)" if kind == "batch tokens" else ""))
            axes.set_ylabel(label)
            axes.legend(frameon=False, fontsize=8, labelcolor=TEXT)
    finish(figure, "growth")


def draw(results: dict[str, Any]) -> None:
    plt.rcParams.update({"font.size": 10, "text.color": TEXT})
    speed(results)
    if results.get("growth"):
        growth(results)
