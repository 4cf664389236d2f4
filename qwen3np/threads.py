"""A pool of threads that run one kernel side by side. Kernels hold no GIL, so these are as good as C
threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from .cores import thread_count
from .cores import usable_cores as usable_cores


class Lock:
    """A lock that a forked child does not inherit in a locked state. Use: `with lock():`"""

    def __init__(self) -> None:
        self._lock, self._pid = threading.Lock(), os.getpid()

    def __call__(self) -> threading.Lock:
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
        return self._lock


class Pool:
    """Threads that sleep until there is work. A forked child starts its own at its first call."""

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = thread_count(num_threads)
        self._pid = 0  # no threads yet

    def run(
        self, kernel: Callable[..., None], *arguments: Any, stop: Callable[[bool], None] | None = None
    ) -> None:
        """kernel(*arguments, thread, num_threads) on every thread; returns when all are done.

        On an interrupt (Ctrl-C) `stop(True)` asks the kernel to end early; it is raised when all threads have
        ended.
        """
        if self._pid != os.getpid():
            self._start()
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for queue in self._queues:
            queue.put((kernel, arguments, done))
        waiting, interrupt, failure = self.num_threads, None, None
        while waiting:
            try:
                failure = done.get() or failure
                waiting -= 1
            except KeyboardInterrupt as error:
                interrupt = error
                if stop is not None:
                    stop(True)
        if interrupt is not None:
            if stop is not None:
                stop(False)
            raise interrupt
        if failure is not None:
            raise failure

    def _start(self) -> None:
        self._queues: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(self.num_threads)]
        self._pid = os.getpid()
        for thread, queue in enumerate(self._queues):
            worker = threading.Thread(
                target=_work, args=(queue, thread, self.num_threads), name=f"qwen3np-{thread}", daemon=True
            )
            worker.start()
        weakref.finalize(self, _end, self._queues)


def _work(queue: SimpleQueue[Any], thread: int, num_threads: int) -> None:
    while (job := queue.get()) is not None:
        kernel, arguments, done = job
        try:
            kernel(*arguments, thread, num_threads)
            done.put(None)
        except BaseException as error:
            done.put(error)
        del job, kernel, arguments, done  # a sleeping thread keeps no arrays alive


def _end(queues: list[SimpleQueue[Any]]) -> None:
    for queue in queues:
        queue.put(None)
