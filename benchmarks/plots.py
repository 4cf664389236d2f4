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
    """Tokens a second at WORKLOAD, fastest on top; beside each bar how far its vectors are from float32's."""
    rows = []
    for name in names(results)[1]:
        found = select(results["rows"], workload=WORKLOAD, contender=name)
        if found:
            seconds = median(results["rows"], WORKLOAD, name)
            rows.append((found[0]["tokens"] / seconds, name, max(r["one_minus_cosine"] for r in found)))
    rows.sort()
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(rows) + 1))
    for y, (speed, name, error) in enumerate(rows):
        axes.barh(y, speed, height=0.62, color=OURS if name.startswith("qwen3np") else THEIRS)
        far = "float32" if error < 1e-9 else f"1 - cosine {error:.0e}"
        beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "color": TEXT}
        axes.annotate(f"{speed:,.0f}   {far}", (speed, y), **beside)
    axes.set_yticks(range(len(rows)), [name for _, name, _ in rows])
    axes.set_xlim(0, 1.35 * rows[-1][0])
    axes.set_xlabel(f"tokens a second at {WORKLOAD}; more is better")
    finish(figure, "speed", grid="x")


def growth(results: dict[str, Any]) -> None:
    """A row of panels for each kind of growth: tokens a second, time with its exponent, peak memory."""
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
        labels = (f"tokens a second {layers}", f"seconds {layers}", f"peak memory, GB {layers}")
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
