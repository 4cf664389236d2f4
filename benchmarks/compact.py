"""Weights in fewer bits, and the int8 of ONNX Runtime and OpenVINO, at one short text and at a batch.

    python benchmarks/compact.py [--model FOLDER] [--workloads 1x16 8x128]      writes results/compact.json

FOLDER holds a generated 0.6B (`qwen3np synth FOLDER --like 0.6B --outliers`), and gets the peers' files (8
GB); without it one is made in a temporary folder. With the files there, it takes five minutes and 10 GB of
memory.

Every contender has a process of its own, and all run once a round (see run.py); a ratio is the median of the
rounds' ratios, with its interval. The bars are those of this project, on CPUs where they apply: int8 saves
memory's time, where memory is the bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pairs
import roofline
from agreement import apart
from compare import workload
from machine import about, describe
from report import far, markdown, number
from workers import Models, Worker, say, timer

from qwen3np.kernels import isa
from qwen3np.runtime.cores import usable_cores
from qwen3np.synth.checkpoints import synthesize

RESULTS = Path(__file__).parent / "results" / "compact.json"
THREADS = min(2, usable_cores())
SECONDS = 20.0  # of timed runs of a contender at a workload
STORED, LOSSLESS, INT8, LOW = "qwen3np high", "qwen3np high lossless", "qwen3np high int8", "qwen3np low int8"
MEDIUM, MEDIUM_INT8 = "qwen3np medium", "qwen3np medium int8"
PEERS = ["ONNX Runtime int8", "ONNX Runtime MatMulNBits-8", "OpenVINO int8"]
# Workload, the faster, the slower, how many times as fast it is to be.
BARS = [
    ("1x16", INT8, STORED, 1 / 0.65),
    ("1x16", LOSSLESS, STORED, 1 / 0.85),
    *(("1x16", INT8, peer, 1.3) for peer in PEERS),
    ("8x128", LOW, MEDIUM, 1.5),
    *(("8x128", LOW, peer, 1.3) for peer in PEERS),
]


def ours() -> list[str]:
    """Of ours, those that compute something of their own here."""
    names = [STORED, LOSSLESS, INT8]
    if medium_is_faster():
        names += [MEDIUM, MEDIUM_INT8]
    return [*names, LOW]


def medium_is_faster() -> bool:
    return isa.choose("medium") not in (isa.SIMD, isa.AVX2)


def measure(model: Path, sizes: list[str]) -> dict[str, Any]:
    say("roofline")
    results: dict[str, Any] = {"about": about(THREADS), "roofline": roofline.measure(THREADS), "rows": []}
    workers = []
    for name in (*ours(), *PEERS):
        say(f"load {name}")
        workers.append(Worker(name, Models(model, model), THREADS))
    for size in sizes:
        say(size)
        work = workload(size)
        vectors = {w.name: w.run(work)[1] for w in workers}  # which warms up
        if vectors[STORED] is None:
            raise SystemExit(f"{STORED}: {workers[0].error}")
        runs = {w.name: timer(w, work) for w in workers if not w.error}
        reference = [name for name in (INT8, LOW) if name in runs]
        measured = pairs.in_turns(runs, reference, SECONDS)
        for w in workers:
            row: dict[str, Any] = {"workload": size, "contender": w.name}
            if w.name in measured:
                row |= {"seconds": measured[w.name], "memory_GB": w.peak_memory()}
                row["one_minus_cosine"] = float(apart(vectors[w.name], vectors[STORED]).max())
            results["rows"].append(row if w.name in measured else row | {"missing": w.error})
    for w in workers:
        w.close()
    return results


def seconds(results: dict[str, Any], size: str, contender: str) -> list[float]:
    if contender.startswith("qwen3np medium") and not medium_is_faster():
        contender = contender.replace("medium", "high")
    found = [r for r in results["rows"] if (r["workload"], r["contender"]) == (size, contender)]
    return found[0].get("seconds", []) if found else []


def table(results: dict[str, Any]) -> str:
    """Every measurement, and how many times as fast as it INT8 and LOW are."""
    lines = []
    for r in results["rows"]:
        if "missing" in r:
            lines.append([r["workload"], r["contender"], r["missing"], *[""] * 5])
            continue
        ms = [1e3 * s for s in r["seconds"]]
        cells = [f"{number(statistics.median(ms))} ({number(min(ms))}-{number(max(ms))})", str(len(ms))]
        cells += [far(r["one_minus_cosine"]), f"{r['memory_GB']:.2f}"]
        for name in (INT8, LOW):
            beside = seconds(results, r["workload"], name)
            cells.append(str(pairs.ratio(r["seconds"], beside)) if beside and name != r["contender"] else "")
        lines.append([r["workload"], r["contender"], *cells])
    header = ["", "", "ms, median (range)", "runs", "1 - cosine", "peak memory, GB"]
    return markdown([*header, "as fast: high int8", "low int8"], lines)


def bars(results: dict[str, Any]) -> str:
    lines = []
    for size, faster, slower, least in BARS:
        ours, theirs = (seconds(results, size, name) for name in (faster, slower))
        if ours and theirs:
            ratio = pairs.ratio(theirs, ours)
            verdict = "held" if ratio.median >= least else "missed"
            lines.append([size, faster, slower, str(ratio), f"{least:.2f}", verdict])
    return markdown(["", "", "against", "times as fast", "bar", ""], lines)


def part(results: dict[str, Any]) -> str:
    """The tables, and what they depend on."""
    peaks = ", ".join(f"{name} {value:,.0f}" for name, value in results["roofline"].items())
    return f"{table(results)}\n\n{bars(results)}\n\nMeasured peaks: {peaks}. {describe(results['about'])}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER")
    parser.add_argument("--workloads", nargs="+", metavar="TEXTSxTOKENS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = args.model or synthesize(Path(temporary) / "0.6B", "0.6B", outliers=True)
        results = measure(model, args.workloads or ["1x16", "8x128"])
    if not args.workloads:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(part(results))


if __name__ == "__main__":
    main()
