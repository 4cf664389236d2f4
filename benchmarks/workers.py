"""A contender in a process of its own, seen from outside (serve.py is the inside).

No library meets another's threads, each one's peak memory is its own, and so are its Python and its
environment.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from caps import environment, split
from contenders import interpreter, preload
from workloads import RERANK_INSTRUCTION, Rerank, Workload

from qwen3np.synth.checkpoints import synthesize

PAUSE = 0.1  # seconds before a run: threads that wait by spinning have gone to sleep by then
LAYERS = 28
DEPTHS = 2, 8  # layers that heavy workloads are timed with


class Models(NamedTuple):
    """Folders of an embedding model and a reranker of the same shape."""

    embedder: Path
    reranker: Path


def models(folder: Path, layers: int) -> Models:
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


class Worker:
    """The process. Once something failed, `error` says what, and calls do nothing."""

    def __init__(self, name: str, models: Models, threads: int, python: Path | None = None) -> None:
        """`python`: another than the contender's own, for ours of another version."""
        python = python or interpreter(name)
        self.name, self.models, self.load_seconds = name, models, 0.0
        self.error = "" if python.exists() else f"not installed: there is no {python}"
        if self.error:
            return
        self.connection, there = multiprocessing.Pipe()
        descriptor = there.fileno()
        command = [python, Path(__file__).with_name("serve.py"), descriptor, name, models.embedder, threads]
        self.process = subprocess.Popen(
            list(map(str, command)), pass_fds=[descriptor], stdin=subprocess.DEVNULL, stdout=sys.stderr,
            env=os.environ | environment(split(name)[1]) | preload(python),
        )  # fmt: skip
        there.close()
        self.load_seconds, _ = self("load")

    def __call__(self, method: str, *arguments: Any) -> tuple[float, Any]:
        """(seconds, result)"""
        if self.error:
            return 0.0, None
        time.sleep(PAUSE)
        try:
            self.connection.send((method, arguments))
            status, seconds, result = self.connection.recv()
        except (EOFError, OSError):
            status, seconds, result = "error", "its process ended (out of memory?)", None
        if status == "error":
            self.error = str(seconds)
            print(f"  {self.name}: {self.error}", file=sys.stderr)
            return 0.0, None
        return seconds, result

    def run(self, work: Workload | Rerank) -> tuple[float, Any]:
        """(seconds, unit vectors or scores)"""
        if isinstance(work, Rerank):
            return self("rerank", self.models.reranker, RERANK_INSTRUCTION, work.query, work.documents)
        return self("run", work.ids, work.texts, work.prompt)

    def peak_memory(self) -> float | None:
        """GB so far."""
        return self("memory")[1]

    def close(self) -> None:
        if not hasattr(self, "process"):
            return
        self.connection.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Extrapolated:
    """A contender on two models of few layers; its seconds are those of LAYERS layers.

    A contender's time is a constant and so much per layer: from 2 and 8 layers, an error of one percent
    becomes 1.2.
    """

    def __init__(self, name: str, models: dict[int, Models], threads: int) -> None:
        self.shallow, self.deep = (Worker(name, models[depth], threads) for depth in DEPTHS)
        self.name, self.load_seconds = name, self.deep.load_seconds

    @property
    def error(self) -> str:
        return self.shallow.error or self.deep.error

    def run(self, work: Workload | Rerank) -> tuple[float, Any]:
        """(seconds, unit vectors or scores of the deeper model)"""
        few, _ = self.shallow.run(work)
        more, result = self.deep.run(work)
        return more + (LAYERS - DEPTHS[1]) * (more - few) / (DEPTHS[1] - DEPTHS[0]), result

    def peak_memory(self) -> None:
        """Not that of the whole model."""

    def close(self) -> None:
        self.shallow.close()
        self.deep.close()


def timer(worker: Worker | Extrapolated, work: Workload | Rerank) -> Callable[[], float | None]:
    """Seconds of a run, or None if it failed: for pairs.in_turns."""

    def run() -> float | None:
        seconds, _ = worker.run(work)
        return None if worker.error else seconds

    return run
