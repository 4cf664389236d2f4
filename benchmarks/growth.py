"""How time and memory grow with the length of one text, and with the tokens of a batch of short ones."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
from workers import Models, Worker
from workloads import VOCABULARY, Ids, Workload

CONTENDERS = ["qwen3np high", "qwen3np medium"]
KINDS = {"sequence length": 32768, "batch tokens": 16384}  # to the most; both from 16 on
SHORT = 16  # tokens of each text of a batch


def texts(kind: str, tokens: int) -> Ids:
    rng = np.random.default_rng(tokens)
    count = tokens // SHORT if kind == "batch tokens" else 1
    return rng.integers(0, VOCABULARY, (count, tokens // count)).tolist()


def measure(models: Models, threads: int) -> Iterator[dict[str, Any]]:
    """A row for each contender, kind and size, on a model of few layers.

    Peak memory is the process's: sizes rise, each kind in a process of its own.
    """
    for kind, most in KINDS.items():
        for name in CONTENDERS:
            worker = Worker(name, models, threads)
            tokens = 16
            worker.run(Workload([], texts(kind, tokens)))
            while tokens <= most:
                work = Workload([], texts(kind, tokens))
                seconds = [worker.run(work)[0] for _ in range(5 if tokens <= 2048 else 1)]
                yield {
                    "contender": name, "kind": kind, "tokens": tokens, "seconds": statistics.median(seconds),
                    "memory_GB": worker.peak_memory(),
                }  # fmt: skip
                tokens *= 2
            worker.close()
