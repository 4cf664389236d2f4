"""qwen3np against what people would pick instead: one generated 0.6B, the same token ids and threads.

    python benchmarks/run.py [--quick] [--folder FOLDER] [--only WORKLOAD ...] [--peers NAME ...]

Writes benchmarks/results/run.json (not with --quick, --only or --peers) and prints the tables that
benchmarks/report.py makes of it. benchmarks/setup_peers.sh makes an environment with all peers; those that
are missing are named. Needs 12 GB of disk, and memory for three copies of the model in float32.

Every contender has a process of its own, and those of a group take turns: whatever disturbs the machine
disturbs all, and a ratio is of medians of the same minutes. "qwen3np high" and "medium" are in every group.
Before it is timed, a contender's vectors are compared with those of qwen3np at "highest", which is also its
warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import growth
import numpy as np
import processes
import report
import roofline
from contenders import CONTENDERS
from machine import about, available_memory
from qwen3np.kernels import isa
from workers import DEPTHS, LAYERS, Extrapolated, Models, Worker
from workloads import Rerank, Workload, workloads

from qwen3np.cores import usable_cores
from qwen3np.synth import synthesize

RESULTS = Path(__file__).parent / "results" / "run.json"
THREADS = min(2, usable_cores())
OURS = ["qwen3np high", "qwen3np medium"]
GB = 3.0  # that a contender may take: weights as float32
SECONDS = 30.0  # of timed rounds of a group's contenders at a workload
ROUNDS = 2, 9  # at the least and at the most
LONG = 8.0  # seconds: a run that long is its own warm-up
LOWEST_COSINE = 0.98  # of quantised contenders; below it something else is computed
MINUTES = 26.0  # after which nothing more is begun, so that a run ends within 30


class Run:
    """What a run knows: where the models are, how much time is left, and the results so far."""

    def __init__(self, folder: Path, minutes: float, save: bool) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.save_to = RESULTS if save else None
        self.models = {layers: _models(folder, layers) for layers in (LAYERS, *DEPTHS)}
        self.results: dict[str, Any] = {"about": about(THREADS), "depths": DEPTHS, "rows": []}
        self.results["same as qwen3np high"] = self.same = [
            name for name, path in (("qwen3np highest", isa.choose("highest")), ("qwen3np simd", isa.SIMD))
            if path == isa.choose("high") == isa.SIMD
        ]  # fmt: skip
        for name in ("qwen3np highest", *OURS):
            Worker(name, self.models[DEPTHS[0]], THREADS).close()  # compiles the kernels, once per machine

    def save(self) -> None:
        """After every part: half an hour's figures are not lost with the last of them."""
        if self.save_to:
            partial = self.save_to.with_suffix(".partial")
            partial.write_text(json.dumps(self.results, indent=1) + "\n")
            partial.replace(self.save_to)

    def export(self, names: list[str]) -> dict[str, str]:
        """Makes the peers' files. Contender -> why it cannot run."""
        failed, missing = {}, {}
        folder = self.models[LAYERS].embedder
        for name in names:
            export = CONTENDERS[name][1].get("export")
            if export and not (folder / export).exists() and export not in failed:
                say(f"export {export}")
                command = [sys.executable, str(Path(__file__).parent / "exports.py"), str(folder), export]
                made = subprocess.run(command, capture_output=True, text=True)
                if made.returncode:
                    failed[export] = made.stderr.strip().splitlines()[-1]
            if export in failed:
                missing[name] = failed[export]
        return missing

    def compare(
        self, works: dict[str, Workload | Rerank], peers: list[str], missing: dict[str, str]
    ) -> None:
        """All rows of these workloads: the heavy ones last; those of a thread count together."""
        passes: dict[tuple[bool, int], dict[str, Workload | Rerank]] = {}
        for name, work in works.items():
            self.results["rows"] += [absent(name, p, why) for p, why in missing.items() if p in work.peers]
            work.peers = [p for p in work.peers if p in peers and p not in missing and p not in self.same]
            if work.peers:
                passes.setdefault((work.heavy, work.threads), {})[name] = work
        for (heavy, threads), mine in sorted(passes.items(), key=lambda item: (item[0][0], -item[0][1])):
            here = [p for p in peers if any(p in w.peers for w in mine.values())]
            self.take_turns(mine, here, threads, heavy)

    def take_turns(
        self, works: dict[str, Workload | Rerank], peers: list[str], threads: int, heavy: bool
    ) -> None:
        """The rows of workloads of one kind, of each group of contenders."""

        def start(name: str) -> Worker | Extrapolated:
            if heavy:
                return Extrapolated(name, self.models, threads)
            return Worker(name, self.models[LAYERS], threads)

        ours = [start(name) for name in OURS]
        expected: dict[str, Any] = {}
        if not heavy:  # those are compared with "high", which is compared with "highest" here
            exact = start("qwen3np highest")
            expected = {name: exact.run(work)[1] for name, work in works.items()}
            exact.close()
        for group in groups(peers):
            say(f"{', '.join(group)} ({threads} threads)")
            workers = [start(name) for name in group]
            for name, work in works.items():
                chosen = [w for w in workers if w.name in work.peers]
                if chosen and time.monotonic() > self.deadline:
                    self.results["rows"] += [absent(name, w.name, "no time was left") for w in chosen]
                elif chosen:
                    for row in self.timed(name, work, [*ours, *chosen], expected.get(name)):
                        self.results["rows"].append(row | {"threads": threads, "beside": group})
                        print(report.line(row), flush=True)
            for w in workers:
                w.close()
            self.save()
        for w in ours:
            w.close()

    def timed(
        self, name: str, work: Workload | Rerank, workers: list[Worker | Extrapolated], expected: Any
    ) -> Iterator[dict[str, Any]]:
        """A row for each worker, of alternating rounds; a worker that fails says so in its row. Without
        `expected` results, the first worker's are."""
        seconds: dict[str, list[float]] = {}
        closeness: dict[str, float] = {}
        start = time.monotonic()
        for w in workers:
            first, result = w.run(work)
            if w.error:
                continue
            expected = result if expected is None else expected
            closeness[w.name] = alike(result, expected, isinstance(work, Rerank))
            if closeness[w.name] >= LOWEST_COSINE:
                seconds[w.name] = [first] if first > LONG else []
        rounds = int(np.clip(SECONDS / (time.monotonic() - start), *ROUNDS))
        for turn in range(rounds):
            for w in workers:
                if w.name in seconds and (turn or not seconds[w.name]):
                    seconds[w.name].append(w.run(work)[0])
        for w in workers:
            if w.error or w.name not in seconds:
                yield absent(name, w.name, w.error or f"something else: cosine {closeness[w.name]:.3f}")
                continue
            values = seconds[w.name]
            yield {
                "workload": name, "contender": w.name, "seconds": values, "median": statistics.median(values),
                "range": [min(values), max(values)], "one_minus_cosine": 1 - closeness[w.name],
                "tokens": sum(work.lengths), "memory_GB": w.peak_memory(), "load_seconds": w.load_seconds,
            }  # fmt: skip


def _models(folder: Path, layers: int) -> Models:
    """Generated, where they are not there yet."""
    made = []
    for like in ("0.6B", "reranker-0.6B"):
        path = folder / (like if layers == LAYERS else f"{like}-{layers}")
        made.append(path)
        if not path.exists() and (like == "0.6B" or layers != LAYERS):  # rerankers are timed on few layers
            say(f"generate {path.name}")
            synthesize(path, like, layers=layers)
    return Models(*made)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def absent(workload: str, contender: str, why: str) -> dict[str, Any]:
    return {"workload": workload, "contender": contender, "missing": why}


def alike(result: Any, expected: Any, scores: bool) -> float:
    """The lowest cosine of two texts' vectors; of scores, their correlation."""
    a, b = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    if scores:
        return float(np.corrcoef(a, b)[0, 1])
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def groups(names: list[str]) -> list[list[str]]:
    """Contenders that are in memory together, beside OURS."""
    size = max(1, int(available_memory() / GB) - len(OURS))
    count = -(-len(names) // size)  # of like size
    return [names[i * len(names) // count : (i + 1) * len(names) // count] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where models and exports are made, and found again")
    parser.add_argument("--quick", action="store_true", help="two workloads, PyTorch only: under 5 minutes")
    parser.add_argument("--only", nargs="+", metavar="WORKLOAD", default=[])
    parser.add_argument("--peers", nargs="+", metavar="NAME", default=[], choices=CONTENDERS)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="nothing is begun after these")
    args = parser.parse_args()
    whole = not (args.quick or args.only or args.peers)
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(args.folder or Path(temporary), args.minutes, save=whole)
        works = workloads(run.models[LAYERS].embedder, run.models[DEPTHS[0]].reranker, THREADS)
        if unknown := set(args.only) - set(works):
            parser.error(f"no workload {', '.join(unknown)}; there are: {', '.join(works)}")
        peers = args.peers or [name for name in CONTENDERS if name not in OURS]
        if args.quick:
            peers = [name for name in peers if name.startswith("transformers")]
        works = {n: w for n, w in works.items() if (w.quick or not args.quick) and n in (args.only or works)}
        run.results["workloads"] = {
            n: {"lengths": w.lengths, "shared": w.shared, "heavy": w.heavy} for n, w in works.items()
        }
        missing = run.export([p for p in peers if any(p in w.peers for w in works.values())])
        say("roofline")
        run.results["roofline"] = roofline.measure(THREADS)
        if whole:
            say("processes")
            run.results["processes"] = processes.measure(run.models[LAYERS].embedder, THREADS)
            say("growth")
            run.results["growth"] = list(growth.measure(run.models[DEPTHS[0]], THREADS))
        run.compare(works, peers, missing)
        print("\n\n".join(f"{title}\n\n{text}" for title, text in report.tables(run.results).items()))


if __name__ == "__main__":
    main()
