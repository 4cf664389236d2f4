"""What threads cost and give: measured with the cores there are, counted and predicted for more.

python benchmarks/many_cores.py                      three minutes; writes results/many_cores.json, and the
                                                     figures of docs/performance.md
python benchmarks/many_cores.py --teams [SECONDS]    only two teams of one against one team of two
"""

from __future__ import annotations

import heapq
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import roofline
from kernel_cases import rms_norm_case
from machine import about, describe
from pairs import in_turns, ratio
from parts import ROOT, fill
from report import markdown
from workloads import VOCABULARY, Ids

from qwen3np.engine import forward
from qwen3np.kernels.jit import inline
from qwen3np.kernels.team import GENERATION, barrier, new_team
from qwen3np.loading.checkpoint import Checkpoint
from qwen3np.loading.config import Config
from qwen3np.runtime import cores, prefix_cache
from qwen3np.runtime.micro_batches import MICRO_BATCH_TOKENS, MOST_TEAMS, TEAM_TOKENS, micro_batches, plan
from qwen3np.runtime.numba_backend import NumbaBackend
from qwen3np.runtime.packed_weights import pad
from qwen3np.runtime.threads import Job
from qwen3np.runtime.workspace import Layout, Workspace
from qwen3np.synth.checkpoints import LIKE, synthesize

RESULTS = ROOT / "benchmarks/results/many_cores.json"
DOCUMENT = ROOT / "docs/performance.md"
PACKAGES = "qwen3np", "numpy", "numba"
LAYERS = 2  # of the model that is timed: their 63 MB are past every cache here
BATCHES = {"8x128": [128] * 8, "64x16": [16] * 64, "4x512": [512] * 4}
PREDICTED = {"1x16": [16], "8x128": [128] * 8, "64x128": [128] * 64, "1x4096": [4096]}
MODELS = "0.6B", "4B", "8B"
CORES = 1, 2, 8, 32, 64, 128
BLOCK = 256  # tokens that pass a layer together

# ---- what is assumed of machines that are not here
SHARING = 8  # cores to an L3, as AMD's servers have it
# GB/s: four fifths of what 2 channels of DDR5-5600, 8 and 12 of DDR5-4800, 12 of DDR5-6000 carry; measured
# for as many cores as are here.
MEMORY = {8: 72, 32: 246, 64: 369, 128: 461}
FASTER = 10  # a second prediction: cores that multiply so many times as fast, as tiles do


# ---- measured


def texts_of(lengths: Sequence[int]) -> Ids:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]


def as_one_team(run: NumbaBackend) -> Callable[..., Any]:
    return lambda lengths, cached, most: [
        (run.num_threads, micro_batches(lengths, MICRO_BATCH_TOKENS, len(lengths)))
    ]


def compare_teams(run: NumbaBackend, seconds: float) -> list[dict[str, Any]]:
    """Every batch as one team and in teams, in turns, each for its part of the time."""
    chosen, rows = run._plan, []
    for name, lengths in BATCHES.items():
        texts = texts_of(lengths)

        def timed(planned: Any, texts: Ids = texts) -> float:
            run._plan = planned  # type: ignore[method-assign]
            start = time.perf_counter()
            run.forward(texts)
            return time.perf_counter() - start

        runs: dict[str, Any] = {"one team": partial(timed, as_one_team(run)), "teams": partial(timed, chosen)}
        for encode in runs.values():
            encode()
        measured = in_turns(runs, ["teams"], seconds / len(BATCHES))
        size = chosen(lengths, 0, None)[-1][0]
        rows.append({"batch": name, "team": size, "seconds": measured})
    del run._plan  # the class's is there again, for copies of `run` too
    return rows


@inline
def barriers(count, team, thread, num_threads):
    for _ in range(count):
        barrier(team, num_threads)


def barrier_ns(num_threads: int, count: int = 100_000) -> float:
    """Of threads that come at the same time."""
    barriers(1, new_team(), 0, 1)
    runs = []
    for _ in range(9):
        team = new_team()
        arguments = [(count, team, thread, num_threads) for thread in range(num_threads)]
        threads = [threading.Thread(target=barriers, args=a) for a in arguments]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        runs.append((time.perf_counter() - start) / count * 1e9)
    return min(runs)


def crowded(run: NumbaBackend, num_threads: int, times: int = 8) -> tuple[float, float]:
    """Seconds of a text of 512 tokens, and those of all cores together; there may be fewer cores."""
    usable, cores.usable_cores = cores.usable_cores, lambda: num_threads
    other = run.with_threads(num_threads)
    cores.usable_cores = usable
    text = texts_of([512])
    other.forward(text)
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(times):
        other.forward(text)
    return (time.perf_counter() - start) / times, (time.process_time() - busy) / times


def best(call: Callable[[], Any], times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure() -> dict[str, Any]:
    prefix_cache.SMALL_CALL = 0  # every run has the same texts: nothing is kept of them
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Checkpoint(synthesize(Path(temporary) / "model", "0.6B", layers=LAYERS))
        run = NumbaBackend(checkpoint, "highest")
        results: dict[str, Any] = {"about": about(run.num_threads), "teams": compare_teams(run, 100)}
        one, none = run.with_threads(1), run._none
        batch = texts_of([128] * 8)

        def passed(job: Job[Workspace]) -> int:
            job.run(forward, *run._arguments(job, [[0] * BLOCK], none, none, every_token=True))
            return int(job.counters[GENERATION])

        results["barriers"] = run.pool.call(passed) // LAYERS
        flops = LAYERS * 8 * 128 * (2 * sum(N * K for N, K in matmuls(checkpoint.config).values()))
        results["GFLOP/s"] = flops / best(lambda: one.forward(batch)) / 1e9
        prepare = best(lambda: one.pool.call(lambda job: one._arguments(job, batch, none, none) and None))
        results["prepare_us"] = prepare / (8 * 128) * 1e6
        results["crowded"] = {n: crowded(run, n) for n in (run.num_threads, 2 * run.num_threads)}
    results["barrier_ns"] = {n: barrier_ns(n) for n in (1, 2)}
    norm = rms_norm_case((LIKE["0.6B"].hidden_size,), BLOCK)
    results["norm_us"] = best(norm.run, 20) / (BLOCK / 16) * 1e6
    peaks = [roofline.measure(n) for n in (1, run.num_threads)]
    results["memory"] = [peak["memory read GB/s"] for peak in peaks]
    return results


# ---- counted


def matmuls(c: Config) -> dict[str, tuple[int, int]]:
    """Rows and columns."""
    D, F = c.hidden_size, c.intermediate_size
    NH, KH = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return {
        "q_proj": (NH, D), "kv_proj": (2 * KH, D), "o_proj": (D, NH), "gate_up_proj": (2 * F, D),
        "down_proj": (D, F),
    }  # fmt: skip


def shares(name: str, rows: int, at_once: int) -> int:
    """That threads take of a matrix: of `at_once` rows, but 16 of gate and the same 16 of up."""
    return pad(rows, 32) // (32 if name == "gate_up_proj" else at_once)


def used(count: int, threads: int) -> float:
    """The part of the threads' time in which they have a share.

    Each takes as many as another or one less.
    """
    return count / (-(-count // threads) * threads)


def layer_used(c: Config, threads: int, at_once: int) -> float:
    work = {name: (N * K, used(shares(name, N, at_once), threads)) for name, (N, K) in matmuls(c).items()}
    return sum(w for w, _ in work.values()) / sum(w / part for w, part in work.values())


def work_megabytes(c: Config, tokens: int) -> float:
    """Of a team's work arrays, in float32."""
    layout = Layout(c, parts=0, tiles=False, block_panels=BLOCK // 16)
    arrays = Workspace(layout, layout.prefix()).work(tokens, 1, tokens, 1)
    return sum(array.nbytes for array in arrays) / 1e6


# ---- predicted


def predicted(lengths: list[int], planned: list[Any], threads: int, m: dict[str, Any], faster: int) -> float:
    """Seconds a layer of the 0.6B, of a call that is planned so."""
    prepare = m["prepare_us"] * 1e-6 / LIKE["0.6B"].num_hidden_layers  # in Python: one thread at a time
    total = 0.0
    for size, ranges in planned:
        ends = [0.0] * (threads // size)
        for first, last in ranges:
            step = step_seconds(lengths[first:last], size, threads, m, faster)
            heapq.heapreplace(ends, ends[0] + step + prepare * sum(lengths[first:last]))
        total += max(ends)
    return max(total, prepare * sum(lengths))


def step_seconds(lengths: list[int], size: int, threads: int, m: dict[str, Any], faster: int) -> float:
    """Of a layer, by a team of `size` of the threads that compute."""
    c, rate = LIKE["0.6B"], m["GFLOP/s"] * 1e9 * faster
    weights = sum(N * K for N, K in matmuls(c).values())
    memory = {1: m["memory"][0], 2: m["memory"][1], **MEMORY}
    bandwidth = min(size * m["memory"][0], memory[threads] * size / threads) * 1e9
    wait = m["barriers"] * m["barrier_ns"]["2"] * 1e-9 * (size - 1)
    seconds = 0.0
    for first in range(0, sum(lengths), BLOCK):
        tokens = min(BLOCK, sum(lengths) - first)
        multiply = 2 * weights * tokens / (rate * size * layer_used(c, size, 16))
        norm = 2 * m["norm_us"] * 1e-6 * -(-tokens // 16 // size)
        seconds += max(multiply, 2 * weights / bandwidth) + norm + wait
    attention = sum(2 * c.num_attention_heads * c.head_dim * length**2 for length in lengths)
    return seconds + attention / (rate * size)


# ---- shown


def measured_teams(rows: list[dict[str, Any]]) -> str:
    shown = []
    for row in rows:
        one, teams = row["seconds"]["one team"], row["seconds"]["teams"]
        medians = [f"{1e3 * statistics.median(s) / LAYERS:.0f}" for s in (one, teams)]
        shown.append([row["batch"], *medians, str(ratio(one, teams)), str(min(len(one), len(teams)))])
    header = ["batch", "one team, ms per layer", "teams, ms per layer", "times as fast", "rounds"]
    return markdown(header, shown)


def share_tables() -> str:
    c = LIKE["0.6B"]
    rows = [
        [name, f"{N} x {K}", *(f"{used(shares(name, N, 16), n):.0%}" for n in CORES)]
        for name, (N, K) in matmuls(c).items()
    ]
    for model in MODELS:
        for at_once, path in ((16, ""), (32, ", tiles")):
            parts = (f"{layer_used(LIKE[model], n, at_once):.0%}" for n in CORES)
            rows.append([f"a layer of the {model}{path}", "", *parts])
    return markdown(["threads of a team", "", *map(str, CORES)], rows)


def predictions(m: dict[str, Any]) -> str:
    rows = []
    for name, lengths in PREDICTED.items():
        for threads in CORES[1:]:
            chosen = [p for p in plan(lengths, 0, None, threads, min(SHARING, threads), BLOCK) if p[1]]
            whole = [(threads, micro_batches(lengths, MICRO_BATCH_TOKENS, len(lengths)))]
            size = chosen[-1][0]
            one, teams, one_fast, teams_fast = (
                1e3 * predicted(lengths, planned, threads, m, faster)
                for faster in (1, FASTER)
                for planned in (whole, chosen)
            )
            shape = f"{min(threads // size, len(chosen[-1][1]))} of {size}"
            figures = [f"{one:.2f}", f"{teams:.2f}", f"{one / teams:.2f}", f"{one_fast / teams_fast:.2f}"]
            rows.append([name, str(threads), shape, *figures])
    header = ["texts", "cores", "teams", "one team, ms per layer", "teams, ms per layer", "times as fast"]
    return markdown([*header, f"at {FASTER} times the rate"], rows)


def figures(m: dict[str, Any]) -> dict[str, str]:
    """Name of a part of the document -> its text."""
    (few, (seconds, busy)), (many, (longer, busier)) = m["crowded"].items()
    sizes = []
    for model in MODELS:
        work = [work_megabytes(LIKE[model], tokens) for tokens in (TEAM_TOKENS, MICRO_BATCH_TOKENS)]
        sizes.append([model, *(f"{size:.0f}" for size in work), f"{work[0] * MOST_TEAMS / 1e3:.1f}"])
    return {
        "measured": f"""| measured here | |
|---|---|
| barrier of one thread | {m["barrier_ns"]["1"]:.0f} ns |
| barrier of two threads that come at the same time | {m["barrier_ns"]["2"]:.0f} ns |
| barriers per layer and block of {BLOCK} tokens | {m["barriers"]} |
| one thread multiplies, 8x128 tokens | {m["GFLOP/s"]:.0f} GFLOP/s |
| one thread reads; all {m["about"]["threads"]} | {m["memory"][0]:.0f}; {m["memory"][1]:.0f} GB/s |
| RMSNorm of 16 tokens | {m["norm_us"]:.1f} us |
| preparing a micro-batch, in Python | {m["prepare_us"]:.1f} us per token |
| 1x512 tokens, {few} threads | {1e3 * seconds:.0f} ms, {1e3 * busy:.0f} ms of the cores' time |
| the same, {many} threads on these cores | {1e3 * longer:.0f} ms, {1e3 * busier:.0f} ms |

{describe(m["about"], PACKAGES)} A model of the 0.6B's shape with {LAYERS} layers, in float32.""",
        "teams": measured_teams(m["teams"]),
        "work": markdown(
            ["a team's work arrays", f"MB at {TEAM_TOKENS} tokens", f"at {MICRO_BATCH_TOKENS}",
             f"GB of {MOST_TEAMS} teams at {TEAM_TOKENS}"], sizes),
        "shares": share_tables(),
        "predicted": predictions(m),
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--teams"]:
        seconds = float(arguments[1]) if arguments[1:] else 60
        with tempfile.TemporaryDirectory() as temporary:
            run = NumbaBackend(Checkpoint(synthesize(Path(temporary) / "model", "0.6B", layers=LAYERS)))
            return print(measured_teams(compare_teams(run, seconds)))
    RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
    parts = figures(json.loads(RESULTS.read_text()))
    DOCUMENT.write_text(fill(DOCUMENT.name, DOCUMENT.read_text(), parts))


if __name__ == "__main__":
    main(sys.argv[1:])
