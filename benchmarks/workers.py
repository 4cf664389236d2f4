"""A contender in a process of its own: no library meets another's threads, and each one's peak memory is its
own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from contenders import make
from workloads import RERANK_INSTRUCTION, Rerank, Workload

PAUSE = 0.1  # seconds before a run: threads that wait by spinning have gone to sleep by then
LAYERS = 28
DEPTHS = 2, 8  # layers that heavy workloads are timed with


class Models(NamedTuple):
    """Folders of an embedding model and a reranker of the same shape."""

    embedder: Path
    reranker: Path


class Worker:
    """The process, seen from outside. Once something failed, `error` says what, and calls do nothing."""

    def __init__(self, name: str, models: Models, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.models = models
        arguments = (there, name, models.embedder, threads)
        self.process = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        there.close()
        self.name, self.error = name, ""
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
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


class Extrapolated:
    """A contender on two models of few layers; its seconds are those of LAYERS layers. A contender's time is
    a constant and so much a layer: from 2 and 8 layers, an error of one percent becomes 1.2."""

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


def work(connection: Connection, name: str, folder: Path, threads: int) -> None:
    """The process itself: answers (method, arguments) with ("ok", seconds, result) or ("error", text,
    None)."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="0")
    contender: Any = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            start = time.perf_counter()
            result = None
            if method == "load":
                contender = make(name, folder, threads)
            elif method == "memory":
                result = peak_memory()
            elif method == "run":
                ids, texts, prompt = arguments
                takes_texts = texts and hasattr(contender, "encode_texts")
                result = contender.encode_texts(texts, prompt) if takes_texts else contender.encode(ids)
            else:
                result = getattr(contender, method)(*arguments)
            connection.send(("ok", time.perf_counter() - start, result))
        except ImportError as error:
            connection.send(("error", f"not installed: {error.name or error}", None))
        except BaseException as error:  # a peer's bug must not end the run
            traceback.print_exc()
            connection.send(("error", f"{type(error).__name__}: {str(error).splitlines()[:1]}", None))


def peak_memory() -> float:
    """GB of this process. Not getrusage's, which a child inherits from the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("no VmHWM in /proc/self/status: peak memory is measured on Linux")
