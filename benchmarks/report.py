"""The README's tables and plots of benchmarks/results/run.json (benchmarks/readme.py puts the tables in).

python benchmarks/report.py      needs the extra `figure`; writes results/*.png, prints the tables
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pairs
from caps import capped, split

from qwen3np.runtime.numba_backend import PARTS
from qwen3np.synth.checkpoints import LIKE

RESULTS = Path(__file__).parent / "results"
HIGH, MEDIUM = "qwen3np high", "qwen3np medium"
SENTENCE = "sentence-transformers default (bf16)"
Rows = list[dict[str, Any]]
# (workload, ours, peer, bar, reach for) of the issues.
BARS = [
    ("8x128", MEDIUM, "transformers bf16", 2.5, 3.5),
    ("8x128", HIGH, "transformers bf16", 1.5, 2.2),
    ("8x128", HIGH, "transformers float32", 6.0, 10.0),
    ("8x128", "qwen3np highest", "transformers float32", 4.0, 6.0),
    ("8x128", "qwen3np simd", "transformers float32", 1.15, 1.4),
    ("4x512", MEDIUM, "transformers bf16", 2.5, 3.5),
    ("4x512", HIGH, "transformers bf16", 1.5, 2.2),
    ("4x512", HIGH, "transformers float32", 6.0, 10.0),
    ("4x512", "qwen3np highest", "transformers float32", 4.0, 6.0),
    ("1x8192", HIGH, "transformers bf16", 1.5, 3.0),
    ("256 mixed", HIGH, SENTENCE, 4.0, 6.0),
    ("256 mixed", MEDIUM, SENTENCE, 4.0, 6.0),
    ("256 instructed", HIGH, "qwen3np high, no sharing", 1.8, 1.8),
    ("256 instructed", HIGH, SENTENCE, 4.0, 4.0),
    ("256 instructed", MEDIUM, SENTENCE, 4.0, 4.0),
    ("rerank 1x100", MEDIUM, "transformers bf16", 3.0, 3.0),
    ("rerank 1x100", HIGH, "transformers bf16", 2.0, 2.0),
]
OWN_BARS = {
    "load to ready, s": (1.5, 0.6), "peak memory, GB": (1.6, 1.4),
}  # fmt: skip
GROWTH = HIGH, "sequence length"
WORKSPACE = "memory of 32,768 tokens beyond that of 16, MB", "at most 600", "300"
UNITS = {"simd": "float32", "avx512_bf16": "vdpbf16ps", "amx": "AMX bfloat16"}


def load() -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / "run.json").read_text())
    return results


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(x: float) -> str:
    return f"{x:,.1f}" if x < 100 else f"{x:,.0f}"


def far(one_minus_cosine: float) -> str:
    """The last bits of float32 vectors are no difference."""
    return "< 1e-11" if one_minus_cosine < 1e-11 else f"{one_minus_cosine:.0e}"


def titles(results: dict[str, Any]) -> list[str]:
    return [name + " ¹" * w["heavy"] for name, w in results["workloads"].items()]


def select(rows: Rows, **values: Any) -> Rows:
    """Those measured rows whose entries are these."""
    return [r for r in rows if "median" in r and all(r[key] == value for key, value in values.items())]


def median(rows: Rows, workload: str, contender: str) -> float | None:
    """Seconds, of all groups it was measured in."""
    found = [r["median"] for r in select(rows, workload=workload, contender=contender)]
    return statistics.median(found) if found else None


def ratio(rows: Rows, workload: str, ours: str, peer: str) -> pairs.Ratio | None:
    """How many times as fast `ours` is, of rounds in the same group."""
    for row in select(rows, workload=workload, contender=peer):
        if ours in row["ratios"]:
            return pairs.Ratio(*row["ratios"][ours])
    return None


class Pair(NamedTuple):
    """What ran side by side."""

    workload: str
    ours: str
    peer: str
    ratio: pairs.Ratio
    rounds: int


def all_pairs(results: dict[str, Any]) -> list[Pair]:
    return [
        Pair(row["workload"], ours, row["contender"], pairs.Ratio(*measured), len(row["seconds"]))
        for row in select(results["rows"])
        for ours, measured in row["ratios"].items()
        if not row["contender"].startswith("qwen3np") or "sharing" in row["contender"]
    ]


def noise(results: dict[str, Any]) -> str:
    """Says which ratios a run has not measured well."""
    found = all_pairs(results)
    wide = sorted((p for p in found if p.ratio.wide), key=lambda p: -p.ratio.width)
    limit = f"{pairs.CONFIDENCE} % interval is wider than {pairs.WIDE:.0%} of it"
    if not wide:
        return f"Of {len(found)} ratios there is none whose {limit}."
    widest = "; ".join(f"{p.workload}, {p.ours} / {p.peer} {p.ratio}" for p in wide[:5])
    return f"NOISY: {len(wide)} of {len(found)} ratios are marked ~, as their {limit}. The widest: {widest}."


def pairs_table(results: dict[str, Any]) -> str:
    """Every ratio with its interval."""
    lines = [[p.workload, p.ours, p.peer, str(p.ratio), str(p.rounds)] for p in all_pairs(results)]
    return markdown(["", "ours", "against", "times as fast", "rounds"], lines) + held(results)


def held(results: dict[str, Any]) -> str:
    """What capped contenders were held to, by what their libraries say themselves."""
    lines = []
    for cap, says in results.get("caps", {}).items():
        libraries = ", ".join(f"{name} {words}" for name, words in says.items()) or "PyTorch is not installed"
        lines.append(f"PyTorch{f' held to {cap}' if cap else ''}: {libraries}.")
    return "\n\n" + "\n".join(lines) if lines else ""


def both(peer: str) -> list[str]:
    """Ours that run beside a peer, under its cap."""
    return [capped(name, split(peer)[1]) for name in (HIGH, MEDIUM)]


def beside(row: dict[str, Any]) -> str:
    """How many times as fast ours are, "high / medium", with intervals."""
    found = row["ratios"]
    return " / ".join(str(pairs.Ratio(*found[ours])) for ours in both(row["contender"]) if ours in found)


def names(results: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Workloads and contenders, in the order of the results; ours first."""
    contenders = list(dict.fromkeys(r["contender"] for r in results["rows"]))

    def order(name: str) -> tuple[str, bool, bool]:
        return split(name)[1], not name.startswith("qwen3np"), name.startswith("sentence")

    contenders.sort(key=order)
    return list(results["workloads"]), contenders


def speed(results: dict[str, Any]) -> str:
    """Milliseconds, a line for each contender; the fastest of a workload in bold."""
    rows = results["rows"]
    workloads, contenders = names(results)
    best = {w: min((m for c in contenders if (m := median(rows, w, c))), default=0.0) for w in workloads}
    lines = []
    for contender in contenders:
        measured = select(rows, contender=contender)
        errors = [r["one_minus_cosine"] for r in measured if not r["workload"].startswith("rerank")]
        missing = [r["missing"] for r in rows if r["contender"] == contender and "missing" in r]
        label = [contender, *(results["same as qwen3np high"] if contender == HIGH else [])]
        cells = [", ".join(label), far(max(errors)) if errors else missing[0]]
        for workload in workloads:
            seconds = median(rows, workload, contender)
            text = number(1e3 * seconds) if seconds else ""
            cells.append(f"**{text}**" if seconds and seconds == best[workload] else text)
        lines.append(cells)
    note = f"¹ from the times of {' and '.join(map(str, results['depths']))} of 28 layers."
    return markdown(["ms", "1 - cosine", *titles(results)], lines) + f"\n\n{note}"


def ratios(results: dict[str, Any]) -> str:
    """How many times as fast "high" and "medium" are as each peer."""
    rows = results["rows"]
    workloads, contenders = names(results)
    lines = []
    for peer in [c for c in contenders if not c.startswith("qwen3np")]:
        cells = [peer]
        for workload in workloads:
            found = [ratio(rows, workload, ours, peer) for ours in both(peer)]
            cells.append(" / ".join(x.short() for x in found if x))
        if any(cells[1:]):
            lines.append(cells)
    return markdown(["", *titles(results)], lines) + f"\n\n{noise(results)}{held(results)}"


def details(results: dict[str, Any]) -> str:
    """Every measurement: where, with what spread."""
    lines = []
    for r in sorted(results["rows"], key=lambda r: list(results["workloads"]).index(r["workload"])):
        if "median" in r:
            low, high = (number(1e3 * x) for x in r["range"])
            figures = [
                f"{number(1e3 * r['median'])} ({low}-{high})", str(len(r["seconds"])),
                f"{r['tokens'] / r['median']:,.0f}", far(r["one_minus_cosine"]),
                f"{r['memory_GB']:.2f}" if r["memory_GB"] else "", f"{r['load_seconds']:.1f}",
                beside(r),
            ]  # fmt: skip
        else:
            figures = [r["missing"], *[""] * 6]
        lines.append([r["workload"], r["contender"], *figures])
    header = [
        "", "", "ms, median (range)", "runs", "tokens/s", "1 - cosine", "memory so far, GB", "load, s",
        "times as fast: high / medium (95 % interval)",
    ]  # fmt: skip
    return markdown(header, lines)


def processes(results: dict[str, Any]) -> str:
    """A line for each package; its memory is that of the run, the peak by the end of 8x128."""
    measured = results["processes"]
    lines = []
    for name, r in measured["contenders"].items():
        here = select(results["rows"], contender=name, workload="8x128")
        cells = [name, f"{r['installed_MB']:,.0f}"]
        for figure in (r["import"], r["first_vector"]):
            if "missing" in figure:
                cells.append(figure["missing"])
            else:
                cells.append("{:.2f} ({:.2f}-{:.2f})".format(figure["median"], *figure["range"]))
        cells.append(f"{here[0]['memory_GB']:.2f}" if here else "")
        lines.append(cells)
    header = ["", "installed, MB", "import, s", "start to first vector, s", "peak memory at 8x128, GB"]
    cold = measured["first vector with a cold kernel cache, s"]
    return markdown(header, lines) + (
        f"\n\nWith a cold kernel cache, once per machine, qwen3np's first vector takes {cold:.0f} s."
    )


def bars(results: dict[str, Any]) -> str:
    """What the issues ask for, and what was measured."""
    lines = []
    for workload, ours, peer, bar, reach in BARS:
        measured_as = HIGH if ours in results["same as qwen3np high"] else ours
        times = ratio(results["rows"], workload, measured_as, peer)
        if times:
            seconds, _ = bound(results, workload, ours.split()[1].replace("simd", "high"))
            most = (median(results["rows"], workload, peer) or 0) / seconds
            figures = [str(times), f"{most:.2f}", f"{bar:g}", f"{reach:g}"]
            lines.append([f"{workload}, {ours}", peer, *figures])
    measured = results.get("processes", {})
    if SENTENCE in measured.get("contenders", {}):
        first = [measured["contenders"][c]["first_vector"] for c in (HIGH, SENTENCE)]
        if "median" in first[1]:
            faster = first[1]["median"] / first[0]["median"]
            lines.append(["first vector", SENTENCE, f"{faster:.2f}", "", "2.5", "5"])
    for name, (bar, reach) in OWN_BARS.items():
        if name in measured:
            lines.append([name, "", f"{measured[name]:.2f}", "", f"at most {bar:g}", f"{reach:g}"])
    long = [r["memory_GB"] for r in results.get("growth", []) if (r["contender"], r["kind"]) == GROWTH]
    if long:
        lines.append([WORKSPACE[0], "", f"{1e3 * (long[-1] - long[0]):.0f}", "", *WORKSPACE[1:]])
    header = ["", "against", "measured", "at the bound", "accepted at", "best"]
    note = '"At the bound": if ours took no longer than the machine\'s measured peaks allow.'
    return markdown(header, lines) + f"\n\n{note}"


def work(lengths: list[int], shared: int) -> tuple[float, float]:
    """Multiply-adds that texts of these lengths cost at the 0.6B's shape.

    With weights, and of queries with keys and values. The prefix that they share is computed once; in the
    last layer pooled tokens alone have queries.
    """
    c = LIKE["0.6B"]
    D, L, H = c.hidden_size, c.num_hidden_layers, c.head_dim
    N, K = c.num_attention_heads * H, c.num_key_value_heads * H
    layer = D * (2 * N + 2 * K) + 3 * D * c.intermediate_size
    tokens = sum(lengths) - shared * (len(lengths) - 1)
    pairs = sum(n * (n + 1) / 2 for n in lengths) - (len(lengths) - 1) * shared * (shared + 1) / 2
    weights = tokens * ((L - 1) * layer + 2 * D * K) + len(lengths) * (layer - 2 * D * K)
    return weights, 2 * N * ((L - 1) * pairs + sum(lengths))


def bound(results: dict[str, Any], workload: str, precision: str) -> tuple[float, str]:
    """Seconds below which the machine's measured peaks allow nothing, and which peak it is.

    All products at the unit's speed, or the weights from memory once.
    """
    peak, path = results["roofline"], results["about"]["isa"][precision]
    texts = results["workloads"][workload]
    weights, attention = work(texts["lengths"], texts["shared"])
    parts = PARTS[precision] if path == "amx" else 1
    unit = f"{UNITS[path]} GFLOP/s"
    arithmetic = 2e-9 * (parts * weights + parts * (parts + 1) / 2 * attention) / peak[unit]
    memory = 2e-9 * work([1], 0)[0] / peak["memory read GB/s"]  # every weight is read for one token
    return max((arithmetic, UNITS[path]), (memory, "memory"))


def bounds(results: dict[str, Any]) -> str:
    """The fraction of the bound that each workload reaches."""
    threads, lines = results["about"]["threads"], []
    for workload in results["workloads"]:
        for name in (HIGH, MEDIUM):
            rows = select(results["rows"], workload=workload, contender=name)
            if rows and rows[0]["threads"] == threads:  # as the peaks were measured with
                seconds, what = bound(results, workload, name.split()[1])
                here = median(rows, workload, name) or 0.0
                cells = [number(1e3 * here), number(1e3 * seconds), what, f"{seconds / here:.0%}"]
                lines.append([workload, name, *cells])
    measured = ", ".join(f"{name} {value:,.0f}" for name, value in results["roofline"].items())
    header = ["", "", "ms", "bound, ms", "by", "reached"]
    return markdown(header, lines) + f"\n\nMeasured peaks of {threads} threads: {measured}."


TABLES = {
    "Milliseconds; the fastest in bold": speed,
    "How many times as fast as each, high / medium": ratios,
    "Processes": processes,
    "Against this project's own bars": bars,
    "Against what the machine can do": bounds,
    "Every measurement": details,
}
FOLDED = ("Against this project's own bars", "Against what the machine can do", "Every measurement")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Title -> table, of all that was measured."""
    return {
        title: make(results)
        for title, make in TABLES.items()
        if make is not processes or "processes" in results
    }


def line(row: dict[str, Any]) -> str:
    """A measurement, as it comes."""
    name = f"{row['workload']:18}{row['contender']:38}"
    if "missing" in row:
        return name + row["missing"]
    low, high = (number(1e3 * x) for x in row["range"])
    figures = f"{number(1e3 * row['median']):>10} ms ({low}-{high}, {len(row['seconds'])} runs)"
    return f"{name}{figures}  1 - cosine {far(row['one_minus_cosine']):8} {beside(row)}"


def exponent(points: list[tuple[float, float]]) -> float:
    """Of y = c x^e: the slope of a straight line through the logarithms."""
    x, y = [math.log(p[0]) for p in points], [math.log(p[1]) for p in points]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


if __name__ == "__main__":
    import plots

    run = load()
    for title, text in tables(run).items():
        print(f"{title}\n\n{text}\n")
    plots.draw(run)
