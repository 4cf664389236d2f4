"""The queue of texts, and the steps in which they are computed.

A request is a job, of one text or thousands. A step is what is computed together: as many tokens of waiting
texts as the budget allows, an equal share of it for every job that waits and what is left for the oldest. So
a query does not wait for the ten thousand texts that came before it, and these lose one share of a step to
it. Models take turns.

Clients that wait for an answer before they ask again come back together, a moment after a step. The next one
waits for as many as the last one answered, a twentieth of its time at most: else the first to come would be
computed alone, and all others a step later.

A text that is larger than a step has a lane of its own: a second thread, with a second team of threads on
the same packed weights, whose priority is so low that the operating system gives it what steps leave (a
tenth, if they leave nothing). A text's state has the same bits in any step and lane: the engine's promise.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runtime.backend import Backend

logger = logging.getLogger("qwen3np.server")

GATHER = 0.05  # of a step's time, for which the next one waits for its clients to come back
LEAST_GATHER, MOST_GATHER = 0.002, 0.025  # seconds
LOW_PRIORITY = 10  # nice: a weight of 110 where the usual one is 1024
Ids = list[int]
States = list[NDArray[np.float32]]  # per text: [hidden_size], or [tokens, hidden_size]


class Closed(Exception):
    """Ends a job that came after the scheduler was closed."""


@dataclass(eq=False)
class Target:
    """A model as the scheduler sees it.

    Attributes:
        backend: What computes.
        check: Called with the states [n, ...] and their ids after every step; raises where they are unsound.
    """

    backend: Backend
    check: Callable[[NDArray[np.float32], Sequence[Ids]], None] = lambda states, ids: None
    beside: Backend | None = None  # the same weights, for texts larger than a step


@dataclass(eq=False)
class Job:
    """The texts of one request, until each has its state.

    Attributes:
        target: The model.
        ids: Token ids of each text.
        prefix: What all of them begin with, and later ones will too.
        every_token: Asks for the states of all tokens, not for those of the last.
        future: Gets the states, in order.
        queue_time: Seconds until its first step began.
        compute_time: Seconds of its steps.
    """

    target: Target
    ids: Sequence[Ids]
    prefix: Sequence[int] = ()
    every_token: bool = False
    future: Future[States] = field(default_factory=Future)
    queue_time: float = 0.0
    compute_time: float = 0.0
    _arrived: float = field(default_factory=time.monotonic)
    _waiting: tuple[deque[int], deque[int]] = field(default_factory=lambda: (deque(), deque()))
    _states: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """The tokens of all texts."""
        return sum(map(len, self.ids))


class Step(NamedTuple):
    """What one lane computes together: texts of jobs that ask the same model for the same thing."""

    jobs: list[Job]
    numbers: list[int]  # of the texts in their jobs
    started: float

    @property
    def tokens(self) -> int:
        return sum(len(job.ids[n]) for job, n in zip(self.jobs, self.numbers, strict=True))


class Load(NamedTuple):
    """What waits and what is computed, for /metrics and Retry-After."""

    jobs: int
    texts: int
    tokens: int
    running: int  # texts in steps
    running_tokens: int
    longest_step: float  # seconds that the older of the steps has taken so far


class Scheduler:
    """Computes jobs in steps, on a thread per lane.

    Args:
        max_batch_tokens: The budget of a step.
        on_step: Called with the texts, tokens and seconds of every step.
    """

    def __init__(
        self,
        max_batch_tokens: int,
        on_step: Callable[[int, int, float], None] = lambda texts, tokens, seconds: None,
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self._on_step = on_step
        self._changed = threading.Condition()
        self._jobs: list[Job] = []  # with texts that wait, oldest first
        self._turn: dict[tuple[Target, bool, int], int] = {}  # when a model was last computed, in steps
        self._turns = 0
        self._running: list[Step | None] = [None, None]
        self._rate = 0.0  # tokens per second of the last steps
        self._expected, self._gathering = 0, 0.0  # jobs that may come back, and until when
        self._closed = False
        self._lanes = [
            threading.Thread(target=self._run, args=(lane,), daemon=True, name=f"lane {lane}")
            for lane in (STEPS, BESIDE)
        ]
        for thread in self._lanes:
            thread.start()

    def submit(
        self,
        target: Target,
        ids: Sequence[Ids],
        prefix: Sequence[int] = (),
        every_token: bool = False,
    ) -> Job:
        """Queue texts; the job's future gets their states.

        Args:
            target: The model.
            ids: Token ids of each text.
            prefix: What all texts begin with, and later ones will too.
            every_token: Ask for the states of all tokens.

        Raises:
            Closed: The server is shutting down.
        """
        job = Job(target, ids, prefix, every_token)
        for n, text in enumerate(ids):
            job._waiting[STEPS if len(text) <= self.max_batch_tokens else BESIDE].append(n)
        with self._changed:
            if self._closed:
                raise Closed
            if ids:
                self._jobs.append(job)
                self._changed.notify_all()
        if not ids:
            job.future.set_result([])
        return job

    def cancel(self, job: Job) -> None:
        """Forget what of a job is not being computed yet."""
        with self._changed:
            for texts in job._waiting:
                texts.clear()
            self._jobs = [other for other in self._jobs if other is not job]
        job.future.cancel()

    def close(self) -> None:
        """Take no more jobs; return when those that were taken are done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._lanes:
            thread.join()

    def load(self) -> Load:
        """Say what waits and what is computed now."""
        with self._changed:
            waiting = [len(job.ids[n]) for job in self._jobs for texts in job._waiting for n in texts]
            steps = [step for step in self._running if step]
            longest = max((time.monotonic() - step.started for step in steps), default=0.0)
            texts, tokens = sum(len(s.numbers) for s in steps), sum(s.tokens for s in steps)
            return Load(len(self._jobs), len(waiting), sum(waiting), texts, tokens, longest)

    def seconds_to_drain(self) -> float:
        """Estimate how long what waits will take; 0 before the first step."""
        load = self.load()
        return (load.tokens + load.running_tokens) / self._rate if self._rate else 0.0

    def _run(self, lane: int) -> None:
        while step := self._next_step(lane):
            error: BaseException | None = None
            states: Sequence[NDArray[np.float32]] = []
            try:
                states = self._compute(step, lane)
            except BaseException as raised:  # no error may end the lane: the next job is innocent
                logger.exception("a step of %d texts failed", len(step.numbers))
                error = raised
            self._finish(step, lane, states, error)

    def _next_step(self, lane: int) -> Step | None:
        """Wait for texts, and take those of the next step; None: closed, and none are left."""
        with self._changed:
            while True:
                waiting = [job for job in self._jobs if job._waiting[lane]]
                left = self._gathering - time.monotonic()
                if waiting and (lane == BESIDE or self._closed or left <= 0 or self._is_enough(waiting)):
                    break
                if self._closed:
                    return None
                self._changed.wait(left if waiting else None)
            keys = dict.fromkeys((job.target, job.every_token, lane) for job in waiting)
            key = min(keys, key=lambda key: self._turn.get(key, 0))  # of equal ones the oldest
            self._turns += 1
            self._turn[key] = self._turns
            jobs = [job for job in waiting if (job.target, job.every_token, lane) == key]
            budget = self.max_batch_tokens if lane == STEPS else 1
            step = Step(*take(jobs, lane, budget), time.monotonic())
            for job in set(step.jobs):
                job.queue_time = job.queue_time or step.started - job._arrived
            self._jobs = [job for job in self._jobs if any(job._waiting)]
            self._running[lane] = step
            return step

    def _is_enough(self, waiting: Sequence[Job]) -> bool:
        """Tell whether a step need not wait for more jobs than these."""
        if len(waiting) >= self._expected:
            return True
        tokens = (len(job.ids[n]) for job in waiting for n in job._waiting[STEPS])
        return any(total >= self.max_batch_tokens for total in accumulate(tokens))

    def _compute(self, step: Step, lane: int) -> Sequence[NDArray[np.float32]]:
        target = step.jobs[0].target
        texts = [job.ids[n] for job, n in zip(step.jobs, step.numbers, strict=True)]
        backend = target.backend
        if lane == BESIDE:
            backend = target.beside = target.beside or in_background(target.backend)
        if step.jobs[0].every_token:
            tokens = backend.token_states(texts)
            for some, ids in zip(tokens, texts, strict=True):
                target.check(some, [ids])
            return tokens
        prefixes = {tuple(job.prefix) for job in step.jobs}
        states = backend.forward(texts, prefixes.pop() if len(prefixes) == 1 else ())
        target.check(states, texts)
        return list(states)

    def _finish(
        self,
        step: Step,
        lane: int,
        states: Sequence[NDArray[np.float32]],
        error: BaseException | None,
    ) -> None:
        seconds = time.monotonic() - step.started
        done: list[Job] = []
        with self._changed:
            self._running[lane] = None
            if error is None:
                for job, n, state in zip(step.jobs, step.numbers, states, strict=True):
                    job._states[n] = state
                rate = step.tokens / max(seconds, 1e-6)
                self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
            for job in dict.fromkeys(step.jobs):
                job.compute_time += seconds
                if error is not None:
                    for texts in job._waiting:
                        texts.clear()
                    self._jobs = [other for other in self._jobs if other is not job]
                if error is not None or len(job._states) == len(job.ids):
                    done.append(job)
            if lane == STEPS:
                self._expected = len(done)
                wait = min(max(LEAST_GATHER, GATHER * seconds), MOST_GATHER)
                self._gathering = time.monotonic() + wait
        for job in done:
            if not job.future.done() and job.future.set_running_or_notify_cancel():
                if error is not None:
                    job.future.set_exception(error)
                else:
                    job.future.set_result([job._states[n] for n in range(len(job.ids))])
        self._on_step(len(step.numbers), step.tokens, seconds)


STEPS, BESIDE = 0, 1  # the lanes


def take(jobs: Sequence[Job], lane: int, budget: int) -> tuple[list[Job], list[int]]:
    """Take the texts of a step from jobs, oldest first: an equal share each, then what is left of the budget.

    At least one text is taken, however large.
    """
    of: list[Job] = []
    numbers: list[int] = []
    tokens = 0
    for most in (budget // len(jobs), budget):
        for job in jobs:
            texts, mine = job._waiting[lane], 0
            while texts:
                size = len(job.ids[texts[0]])
                if numbers and (tokens + size > budget or (mine and mine + size > most)):
                    break
                of.append(job)
                numbers.append(texts.popleft())
                tokens += size
                mine += size
    return of, numbers


def in_background(backend: Backend) -> Backend:
    """Make a backend on the same weights whose threads yield to all others."""
    beside = backend.with_threads(backend.num_threads)
    pool: Any = getattr(beside, "pool", None)
    if pool is not None:
        pool.call(lambda job: job.run(_lower_priority))
    return beside


def _lower_priority(thread: int, num_threads: int) -> None:
    """Make the calling thread nice: on Linux, where each thread has a priority of its own."""
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
