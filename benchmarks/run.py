"""qwen3np against what people would pick instead: one generated 0.6B, the same token ids and threads.

    python benchmarks/run.py [--folder FOLDER]        all, an hour or more; writes results/run.json
    python benchmarks/run.py --bars                   PyTorch at six workloads, ten minutes
    python benchmarks/run.py --only 1x16 8x128 --peers NAME "NAME @avx2" ... [--cap avx2]

Prints the tables that benchmarks/report.py makes of it. benchmarks/setup_peers.sh makes an environment with
all peers; those that are missing are named. Needs 14 GB of disk, and memory for three copies of the model in
float32.

Every contender has a process of its own, and those of a group run once a round, in an order drawn anew:
whatever disturbs the machine disturbs all. A ratio is the median of the rounds' ratios, and rounds go on
until its interval is narrow (pairs.py); those that stay wide are marked and named at the end. "qwen3np high"
and "medium" are in every group. "NAME @avx2" is a contender held to AVX2, beside "qwen3np high @avx2"
(caps.py). Before it is timed, a contender's vectors are compared with those of qwen3np at "highest", which is
also its warm-up.
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

import caps
import growth
import numpy as np
import pairs
import processes
import report
import roofline
from contenders import CONTENDERS, can_be_capped
from machine import about, available_memory
from workers import DEPTHS, LAYERS, Extrapolated, Worker, models, say, timer
from workloads import BARS, CAPPED, PRECISIONS, PYTORCH, SENTENCE, Rerank, Workload, workloads

from qwen3np.kernels import isa
from qwen3np.runtime.cores import usable_cores

RESULTS = Path(__file__).parent / "results" / "run.json"
THREADS = min(2, usable_cores())
OURS = ["qwen3np high", "qwen3np medium"]
GB = 3.0  # that a contender may take: weights as float32
SECONDS = 20.0  # of timed runs of a peer at a workload
LOWEST_COSINE = 0.98  # of quantised contenders; below it something else is computed
HOPELESS = 20  # times our time: not worth timing, nor at a larger workload
MINUTES = 80.0  # after which nothing more is begun


class Run:
    """What a run knows: where the models are, how much time is left, and the results so far."""

    def __init__(self, folder: Path, minutes: float, save: bool) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.save_to = RESULTS if save else None
        self.models = {layers: models(folder, layers) for layers in (LAYERS, *DEPTHS)}
        self.results: dict[str, Any] = {"about": about(THREADS), "depths": DEPTHS, "rows": [], "caps": {}}
        paths = {name: isa.choose(name.split()[1]) for name in ("qwen3np highest", "qwen3np medium")}
        paths["qwen3np simd"] = isa.SIMD
        high = isa.choose("high")
        same = [name for name, path in paths.items() if path == high and high in (isa.SIMD, isa.AVX2)]
        self.results["same as qwen3np high"] = self.same = same
        for name in ("qwen3np highest", *OURS):
            Worker(name, self.models[DEPTHS[0]], THREADS).close()  # compiles the kernels, once per machine

    def save(self) -> None:
        """After every part: an hour's figures are not lost with the last of them."""
        if self.save_to:
            partial = self.save_to.with_suffix(".partial")
            partial.write_text(json.dumps(self.results, indent=1) + "\n")
            partial.replace(self.save_to)

    def unable(self, peers: set[str]) -> dict[str, str]:
        """Makes the peers' files, and checks that caps hold. Contender -> why it cannot run."""
        failed, missing = {}, {}
        folder = self.models[LAYERS].embedder
        for cap in sorted({caps.split(name)[1] for name in peers}):
            self.results["caps"][cap] = caps.told(cap)
        for name in sorted(peers):
            contender, cap = caps.split(name)
            export = CONTENDERS[contender][1].get("export")
            if export and not (folder / export).exists() and export not in failed:
                say(f"export {export}")
                command = [sys.executable, str(Path(__file__).parent / "exports.py"), str(folder), export]
                made = subprocess.run(command, capture_output=True, text=True)
                if made.returncode:
                    failed[export] = made.stderr.strip().splitlines()[-1]
            if why := failed.get(export) or caps.ignored(cap, self.results["caps"][cap]):
                missing[name] = why
        return missing

    def compare(self, works: dict[str, Workload | Rerank]) -> None:
        """All rows of these workloads: the heavy ones last; those of a thread count and a cap together."""
        missing = self.unable({p for work in works.values() for p in work.peers})
        passes: dict[tuple[bool, int, str], dict[str, list[str]]] = {}
        for name, work in works.items():
            for peer in work.peers:
                if peer in missing:
                    self.results["rows"].append(absent(name, peer, missing[peer]))
                elif peer not in self.same:
                    kind = work.heavy, -work.threads, caps.split(peer)[1]
                    passes.setdefault(kind, {}).setdefault(name, []).append(peer)
        for (heavy, threads, cap), mine in sorted(passes.items()):
            self.take_turns({n: works[n] for n in mine}, mine, -threads, heavy, cap)

    def take_turns(
        self, works: dict[str, Workload | Rerank], peers: dict[str, list[str]], threads: int, heavy: bool,
        cap: str,
    ) -> None:  # fmt: skip
        """The rows of workloads of one kind, of each group of contenders."""

        def start(name: str) -> Worker | Extrapolated:
            if heavy:
                return Extrapolated(name, self.models, threads)
            return Worker(name, self.models[LAYERS], threads)

        # Capped, all precisions are the same code.
        ours = [start(caps.capped(n, cap)) for n in (OURS[:1] if cap else OURS) if n not in self.same]
        expected: dict[str, Any] = {}
        if not heavy:  # those are compared with "high", which is compared with "highest" here
            exact = start("qwen3np highest")
            expected = {name: exact.run(work)[1] for name, work in works.items()}
            exact.close()
        names = list(dict.fromkeys(p for chosen in peers.values() for p in chosen))
        for group in groups(sorted(names, key=lambda name: list(CONTENDERS).index(caps.split(name)[0]))):
            say(f"{', '.join(group)} ({threads} threads)")
            workers = [start(name) for name in group]
            hopeless: dict[str, str] = {}
            for name, work in works.items():
                chosen = [w for w in workers if w.name in peers[name]]
                if time.monotonic() > self.deadline:
                    self.results["rows"] += [absent(name, w.name, "no time was left") for w in chosen]
                elif chosen:
                    for row in self.timed(name, work, ours, chosen, expected.get(name), hopeless):
                        self.results["rows"].append(row | {"threads": threads})
                        print(report.line(row), flush=True)
            for w in workers:
                w.close()
            self.save()
        for w in ours:
            w.close()

    def timed(
        self, name: str, work: Workload | Rerank, ours: list[Any], peers: list[Any], expected: Any,
        hopeless: dict[str, str],
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """A row for each worker; one that fails, or is `hopeless` (which is added to), says so in its row.

        Without `expected` results, the first worker's are.
        """
        closeness: dict[str, float] = {}
        fine, limit = [], 0.0
        for w in [w for w in [*ours, *peers] if w.name not in hopeless]:
            seconds, result = w.run(work)
            if w.error:
                continue
            if w in ours:
                limit = max(limit, HOPELESS * seconds)
            elif seconds > limit and (seconds := w.run(work)[0]) > limit:  # the first run may compile
                hopeless[w.name] = f"{HOPELESS * seconds / limit:.0f} times ours at {name}: not timed"
                continue
            expected = result if expected is None else expected
            closeness[w.name] = alike(result, expected, isinstance(work, Rerank))
            if closeness[w.name] >= LOWEST_COSINE:
                fine.append(w)

        runs = {w.name: timer(w, work) for w in fine}
        measured = pairs.in_turns(runs, [w.name for w in ours], SECONDS)
        for w in [*ours, *peers]:
            if w.name not in measured:
                far = f"something else: cosine {closeness.get(w.name, 0.0):.3f}"
                yield absent(name, w.name, w.error or hopeless.get(w.name) or far)
                continue
            values = measured[w.name]
            yield {
                "workload": name, "contender": w.name, "seconds": values, "median": statistics.median(values),
                "range": [min(values), max(values)], "one_minus_cosine": 1 - closeness[w.name],
                "tokens": sum(work.lengths), "memory_GB": w.peak_memory(), "load_seconds": w.load_seconds,
                "ratios": {  # how many times as fast those of ours are that ran beside it: with an interval
                    o: pairs.ratio(values, measured[o])
                    for o in measured if o.startswith("qwen3np") and o != w.name
                },
            }  # fmt: skip


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


def choose(works: dict[str, Workload | Rerank], arguments: argparse.Namespace) -> None:
    """Sets each workload's peers by what was asked for."""
    bfloat16 = isa.has_feature("avx512bf16") or isa.has_feature("amx-bf16")
    for name, work in works.items():
        if arguments.peers:
            work.peers = [p for p in arguments.peers if caps.split(p)[0] in work.peers]
        elif arguments.bars:
            # In software, bfloat16 takes minutes a run, and no bar asks for it.
            slow = [] if bfloat16 or sum(work.lengths) <= 128 else ["transformers bf16"]
            wanted = [p for p in (*PRECISIONS[:1], *PYTORCH, SENTENCE) if p not in slow]
            work.peers = [p for p in wanted if p in work.peers]
        if arguments.cap:
            able = [p for p in work.peers if can_be_capped(p) and p not in PRECISIONS]
            work.peers = [caps.capped(p, arguments.cap) for p in able]
        elif not arguments.peers and name in CAPPED[0]:
            work.peers += [caps.capped(p, c) for c in caps.lowering() for p in work.peers if p in CAPPED[1]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where models and exports are made, and found again")
    parser.add_argument("--bars", action="store_true", help=f"PyTorch at {', '.join(BARS)}: ten minutes")
    parser.add_argument("--only", nargs="+", metavar="WORKLOAD", default=[])
    parser.add_argument("--peers", nargs="+", metavar="NAME", default=[], help="also as NAME @CAP")
    parser.add_argument("--cap", choices=caps.possible(), default="", help="for all contenders")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="nothing is begun after these")
    args = parser.parse_args()
    for contender, cap in map(caps.split, args.peers):
        if contender not in CONTENDERS:
            parser.error(f"no contender {contender}; there are: {', '.join(CONTENDERS)}")
        if cap and cap not in caps.possible():
            parser.error(f"{contender} @{cap}: this CPU has {', '.join(caps.possible()) or 'none of these'}")
        if cap and not can_be_capped(contender):
            parser.error(f"{contender} cannot be capped: see benchmarks/caps.py")
    whole = not (args.bars or args.only or args.peers or args.cap)
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(args.folder or Path(temporary), args.minutes, save=whole)
        works = workloads(run.models[LAYERS].embedder, run.models[DEPTHS[0]].reranker, THREADS)
        if unknown := set(args.only) - set(works):
            parser.error(f"no workload {', '.join(unknown)}; there are: {', '.join(works)}")
        works = {n: works[n] for n in args.only or (BARS if args.bars else works)}
        choose(works, args)
        run.results["workloads"] = {
            n: {"lengths": w.lengths, "shared": w.shared, "heavy": w.heavy} for n, w in works.items()
        }
        say("roofline")
        run.results["roofline"] = roofline.measure(THREADS)
        run.compare(works)
        if whole:
            say("processes")
            run.results["processes"] = processes.measure(run.models[LAYERS].embedder, THREADS)
            say("growth")
            run.results["growth"] = list(growth.measure(run.models[DEPTHS[0]], THREADS))
            run.save()
        print(report.pairs_table(run.results))
        if not args.bars:
            print("\n\n".join(f"{title}\n\n{text}" for title, text in report.tables(run.results).items()))
        print(report.noise(run.results))


if __name__ == "__main__":
    main()
