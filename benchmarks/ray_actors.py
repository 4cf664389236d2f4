"""Ray Data's actors against separate processes, and what 1,000 machines would do by calculation.

    qwen3np synth FOLDER --like 0.6B --layers 2
    python benchmarks/ray_actors.py FOLDER      under three minutes; writes results/ray.json

One thread each. What counts is the time in which all workers compute: from the last one's first batch to the
first one's last. (Not named ray.py: a script's folder is where `import ray` looks first.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import report
from machine import about, describe

from qwen3np.integrations.ray import Embed

RESULTS = Path(__file__).parent / "results" / "ray.json"
TOKENS, BATCH, SECONDS = 128, 16, 25  # of a text, texts of a batch, of a measurement
PACKAGES = "qwen3np", "numpy", "numba", "ray"
Spans = list[tuple[int, float, float]]  # of each batch: whose it is, when it began, and ended


class Timed(Embed):
    """Embeds as Embed does, and gives for each row the worker and the times of its batch."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        start = time.time()
        super().__call__(batch)
        times = {"worker": os.getpid(), "start": start, "end": time.time()}
        return {name: np.repeat(value, len(batch["text"])) for name, value in times.items()}


def texts(count: int) -> list[str]:
    """Texts of some TOKENS tokens, no two of them with a common beginning."""
    rng = np.random.default_rng(0)
    return [" ".join(f"{n:x}" for n in rng.integers(0, 4096, TOKENS // 3)) for _ in range(count)]


def process(folder: str, count: int) -> None:
    """A process of its own: it prints the times of its batches."""
    embed, mine, spans = Timed(folder, num_threads=1), texts(count), []
    for first in range(0, count, BATCH):
        times = embed({"text": np.array(mine[first : first + BATCH], object)})
        spans.append([float(times["start"][0]), float(times["end"][0])])
    print(json.dumps(spans))


def of_processes(folder: str, workers: int, count: int) -> Spans:
    command = [sys.executable, __file__, folder, str(count)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(workers)]
    return [(i, *span) for i, p in enumerate(running) for span in json.loads(p.communicate()[0])]


def of_actors(folder: str, workers: int, count: int) -> Spans:
    import ray

    ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"text": text} for text in texts(workers * count)]
    blocks = ray.data.from_items(rows, override_num_blocks=len(rows) // BATCH)
    timed = blocks.map_batches(
        Timed, fn_constructor_args=[folder], batch_size=BATCH, num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
    ).take_all()  # fmt: skip
    ray.shutdown()
    return sorted({(row["worker"], row["start"], row["end"]) for row in timed})


def texts_per_second(spans: Spans) -> float:
    workers = {worker: [s for s in spans if s[0] == worker] for worker, _, _ in spans}
    begin = max(min(start for _, start, _ in mine) for mine in workers.values())
    end = min(max(end for _, _, end in mine) for mine in workers.values())
    inside = sum(max(0.0, min(e, end) - max(s, begin)) / (e - s) for _, s, e in spans)
    return BATCH * inside / (end - begin)


def measure(folder: str) -> dict[str, Any]:
    pace = texts_per_second(of_processes(folder, 1, 6 * BATCH))
    count = max(1, int(pace * SECONDS / BATCH)) * BATCH
    rows = [
        {"workers": workers, "kind": kind, "texts/s": texts_per_second(run(folder, workers, count))}
        for workers in (1, 2)
        for kind, run in (("processes", of_processes), ("actors", of_actors))
    ]
    machine = about(1)
    machine["versions"]["ray"] = version("ray")
    return {"about": machine, "rows": rows}


def table(results: dict[str, Any]) -> str:
    pace = {(row["workers"], row["kind"]): row["texts/s"] for row in results["rows"]}
    lines = [
        [str(n), f"{pace[n, 'processes']:.1f}", f"{pace[n, 'actors']:.1f}",
         f"{pace[n, 'actors'] / pace[n, 'processes']:.0%}"]
        for n in sorted({n for n, _ in pace})
    ]  # fmt: skip
    header = ["one thread each", "processes, texts/s", "actors, texts/s", "of the processes"]
    return f"{report.markdown(header, lines)}\n\n{describe(results['about'], PACKAGES)}"


# What the plan assumes: of a corpus, of machines, of the network.
CORPUS, PER_TEXT, BYTES_PER_TOKEN = 1e12, 256, 4.2  # tokens; English web text
NODES, CORES, BLOCK = 1000, 64, 1024  # the last in texts: a task, and a file
WEIGHTS, DIMENSIONS = 1.19e9, 1024
SHARED, OBJECTS = 1e10, 1e9  # bytes/s: of one file server for all, of an object store for each machine


def plan() -> str:
    """What limits 1,000 machines, from this package's measured speed; nothing of it was run."""
    results = report.load()
    row, *_ = report.select(results["rows"], workload="8x128", contender=report.HIGH)
    per_core = 8 * 128 / row["median"] / results["about"]["threads"]
    node = per_core * CORES
    block = BLOCK * PER_TEXT
    vector = 4 * DIMENSIONS / PER_TEXT  # bytes for each token
    all_nodes, megabytes = NODES * node, 1e-6 * NODES * node
    hours, shared, objects = CORPUS / all_nodes / 3600, NODES * WEIGHTS / SHARED, WEIGHTS / OBJECTS
    rows = [
        ("computing", f"{node:,.0f} tokens/s a machine, {per_core:.0f} a core", f"{hours:.0f} hours"),
        (
            "reading texts", f"{1e-3 * node * BYTES_PER_TOKEN:.0f} KB/s a machine",
            f"{megabytes * BYTES_PER_TOKEN:.0f} MB/s in all",
        ),
        (
            "writing float32 vectors", f"{1e-3 * node * vector:.0f} KB/s a machine",
            f"{megabytes * vector:.0f} MB/s, {1e-12 * CORPUS * vector:.0f} TB; ubinary is a 32nd of it",
        ),
        (
            "loading weights", f"{1e-9 * WEIGHTS:.2f} GB a machine, {1e-12 * NODES * WEIGHTS:.1f} TB at once",
            f"{shared:.0f} s from one file server, {objects:.1f} s from an object store",
        ),
        ("tasks", f"{block / node:.0f} s each", f"{all_nodes / block:.0f} a second for the driver"),
        ("files", f"{1e-6 * BLOCK * 4 * DIMENSIONS:.1f} MB each", f"{1e-6 * CORPUS / block:.1f} million"),
        ("a machine lost", "its block is computed again", f"{block / node:.0f} s of its work"),
    ]  # fmt: skip
    return report.markdown(["", "rate or size", "in all"], [list(row) for row in rows])


def figures() -> dict[str, str]:
    """The generated parts of docs/processes-and-machines.md."""
    measured = table(json.loads(RESULTS.read_text())) if RESULTS.exists() else "Not measured yet."
    return {"actors": measured, "plan": plan()}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        process(sys.argv[1], int(sys.argv[2]))
    else:
        results = measure(str(Path(sys.argv[1]).resolve()))
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(table(results))
