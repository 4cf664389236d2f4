"""Two versions of this package against each other, in turns: which is faster, and are their bits the same?

    python benchmarks/compare.py OLD/bin/python NEW/bin/python [--workloads 8x128 1x4096 ...] [--cap avx2]

Each Python belongs to an environment with another qwen3np; `git worktree add` and `pip install -e` make one.
Where the new one is the faster, the ratio is above one.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import caps
import numpy as np
import pairs
from report import markdown, number
from workers import LAYERS, Worker, models, say, timer
from workloads import VOCABULARY, Workload, texts_of

from qwen3np.runtime.cores import usable_cores

SECONDS = 40.0  # of timed runs of the old version at a workload
NARROW = 0.01  # so that a percent can be told, where there is time for it
WORKLOADS = ["1x16", "1x128", "8x128", "4x512", "1x4096"]


def workload(name: str) -> Workload:
    """ "8x128": 8 texts of 128 tokens."""
    size = re.fullmatch(r"(\d+)x(\d+)", name)
    if not size:
        raise argparse.ArgumentTypeError(f"{name!r} is not TEXTSxTOKENS, such as 8x128")
    return Workload([], texts_of(int(size[1]), int(size[2]), VOCABULARY, np.random.default_rng(0)))


def compare(old: Worker, new: Worker, work: Workload) -> tuple[pairs.Ratio, list[float], str]:
    """(old / new, their median seconds, how far the vectors are apart)"""
    (_, before), (_, after) = old.run(work), new.run(work)  # which warms up
    runs = {"old": timer(old, work), "new": timer(new, work)}
    seconds = pairs.in_turns(runs, ["new"], SECONDS, NARROW)
    for worker in (old, new):
        if worker.error:
            raise SystemExit(f"{worker.name}: {worker.error}")
    same = "same bits" if np.array_equal(before, after) else f"{np.abs(before - after).max():.0e} apart"
    medians = [float(np.median(seconds[name])) for name in runs]
    return pairs.ratio(seconds["old"], seconds["new"]), medians, same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--workloads", nargs="+", metavar="TEXTSxTOKENS", default=WORKLOADS)
    parser.add_argument("--precision", nargs="+", default=["high"], choices=["highest", "high", "medium"])
    parser.add_argument("--cap", choices=caps.possible(), default="")
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()))
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the generated model")
    parser.add_argument("--folder", type=Path, help="where the model is made, and found again")
    args = parser.parse_args()
    works = {name: workload(name) for name in args.workloads}
    lines, wide = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        made = models(args.folder or Path(temporary), args.layers)
        for precision in args.precision:
            name = caps.capped(f"qwen3np {precision}", args.cap)
            say(name)
            old, new = (Worker(name, made, args.threads, python) for python in (args.old, args.new))
            for size, work in works.items():
                ratio, seconds, same = compare(old, new, work)
                wide += ratio.wide
                times = [number(1e3 * s) for s in seconds]
                lines.append([size, precision, *times, str(ratio), same])
                print(" ".join(lines[-1]), flush=True)
            old.close()
            new.close()
    print("\n" + markdown(["", "", "old, ms", "new, ms", "times as fast", "vectors"], lines))
    if wide:
        print(f"\nNOISY: {wide} ratios have an interval wider than {pairs.WIDE:.0%} and are marked ~.")


if __name__ == "__main__":
    main()
