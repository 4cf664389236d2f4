"""The queue: who is computed when, and that nothing of it changes a bit, loses a text or hangs."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3np import Embedder
from qwen3np.server.scheduler import STEPS, Closed, Job, Scheduler, Target, take


class Echo:
    """A backend that computes a text's first id, once it is let; it keeps what it was given."""

    num_threads = 1

    def __init__(self) -> None:
        self.calls: list[list[list[int]]] = []
        self.let = threading.Event()
        self.entered = threading.Event()

    def forward(self, texts: Sequence[Sequence[int]], prefix: Sequence[int] = ()) -> np.ndarray:
        self.calls.append([list(text) for text in texts])
        self.entered.set()
        assert self.let.wait(20)
        if any(text[0] < 0 for text in texts):
            raise MemoryError("no room for this")
        return np.array([[text[0]] for text in texts], np.float32)

    def token_states(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.array([[i] for i in text], np.float32) for text in texts]

    def with_threads(self, num_threads: int) -> Echo:
        return self


@pytest.fixture
def echo():
    backend = Echo()
    yield backend
    backend.let.set()


@pytest.fixture
def scheduler():
    made = Scheduler(max_batch_tokens=64)
    yield made
    made.close()


def busy(scheduler: Scheduler, target: Target, echo: Echo) -> Job:
    """Put a text into a step that does not end before echo.let is set."""
    job = scheduler.submit(target, [[1] * 60])
    assert echo.entered.wait(20)
    return job


sizes = st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=12), min_size=1, max_size=8)


@given(sizes, st.integers(1, 100))
def test_a_step_is_within_its_budget_fair_and_in_order(jobs_sizes, budget):
    jobs = [Job(Target(Echo()), [[0] * size for size in some]) for some in jobs_sizes]
    for job in jobs:
        job._waiting[STEPS].extend(range(len(job.ids)))
    of, numbers = take(jobs, STEPS, budget)
    taken = [len(job.ids[n]) for job, n in zip(of, numbers, strict=True)]
    assert sum(taken) <= budget or len(taken) == 1
    assert of[0] is jobs[0] and numbers[0] == 0
    for job in jobs:  # each in its own order, none twice, the rest still waits
        mine = [n for other, n in zip(of, numbers, strict=True) if other is job]
        assert mine + list(job._waiting[STEPS]) == list(range(len(job.ids)))
    # Nothing fits into what is left: at the head of no job.
    assert all(
        sum(taken) + len(job.ids[job._waiting[STEPS][0]]) > budget for job in jobs if job._waiting[STEPS]
    )
    share = budget // len(jobs)
    for job, some in zip(jobs, jobs_sizes, strict=True):  # who asks for less than a share gets all of it
        if sum(some) <= share and max(map(max, jobs_sizes)) <= share:
            assert not job._waiting[STEPS]


def test_a_query_is_in_the_next_step_whoever_came_before(scheduler, echo):
    target = Target(echo)
    busy(scheduler, target, echo)
    many = scheduler.submit(target, [[2] * 10 for _ in range(1000)])
    query = scheduler.submit(target, [[3] * 10])
    echo.let.set()
    assert query.future.result(20)[0] == 3
    assert not many.future.done() or len(echo.calls) > 100
    assert [3] * 10 in echo.calls[1] and [2] * 10 in echo.calls[1]
    assert [int(state[0]) for state in many.future.result(60)] == [2] * 1000


def test_models_take_turns(scheduler, echo):
    one, other = Target(echo), Target(echo)
    busy(scheduler, one, echo)
    first = scheduler.submit(one, [[2] * 10 for _ in range(500)])
    second = scheduler.submit(other, [[3] * 10 for _ in range(500)])
    echo.let.set()
    first.future.result(60), second.future.result(60)
    kinds = [call[0][0] for call in echo.calls[1:]]
    assert kinds[:60] == [3, 2] * 30 or kinds[:60] == [2, 3] * 30


def test_a_long_text_is_computed_beside_the_steps(scheduler):
    slow, fast = Echo(), Echo()
    fast.let.set()
    target = Target(fast, beside=slow)
    long = scheduler.submit(target, [[7] * 65, [8] * 5])
    assert slow.entered.wait(20)
    assert scheduler.submit(target, [[9]]).future.result(20)[0] == 9
    assert not long.future.done()
    slow.let.set()
    assert [int(state[0]) for state in long.future.result(20)] == [7, 8]


def test_a_step_that_fails_ends_its_own_jobs_alone(scheduler, echo):
    target = Target(echo)
    echo.let.set()
    bad = scheduler.submit(target, [[-1] * 60, [1] * 60, [1] * 65])
    with pytest.raises(MemoryError, match="no room"):
        bad.future.result(20)
    assert scheduler.submit(target, [[4]]).future.result(20)[0] == 4
    assert scheduler.load().texts == 0

    def unsound(states, ids):
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        scheduler.submit(Target(echo, unsound), [[1]]).future.result(20)


def test_what_is_cancelled_is_not_computed(scheduler, echo):
    target = Target(echo)
    busy(scheduler, target, echo)
    gone = scheduler.submit(target, [[2] * 10, [5] * 65])
    stays = scheduler.submit(target, [[3] * 10])
    scheduler.cancel(gone)
    echo.let.set()
    assert stays.future.result(20)[0] == 3
    with pytest.raises(CancelledError):
        gone.future.result(20)
    scheduler.close()
    assert [2] * 10 not in sum(echo.calls, [])


def test_a_job_that_is_cancelled_in_its_step_harms_no_other(scheduler, echo):
    target = Target(echo)
    running = busy(scheduler, target, echo)
    scheduler.cancel(running)
    other = scheduler.submit(target, [[3]])
    echo.let.set()
    assert other.future.result(20)[0] == 3


def test_closing_finishes_what_was_taken_and_takes_no_more(echo):
    scheduler, target = Scheduler(64), Target(echo)
    jobs = [busy(scheduler, target, echo), *(scheduler.submit(target, [[i] * 30] * 4) for i in range(2, 9))]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while not scheduler._closed:
        pass
    with pytest.raises(Closed):
        scheduler.submit(target, [[1]])
    echo.let.set()
    closing.join(20)
    assert [int(job.future.result(0)[0][0]) for job in jobs] == list(range(1, 9))


def test_the_load_is_what_waits_and_what_is_computed(scheduler, echo):
    target = Target(echo)
    busy(scheduler, target, echo)
    scheduler.submit(target, [[2] * 10, [3] * 20])
    load = scheduler.load()
    assert (load.jobs, load.texts, load.tokens, load.running, load.running_tokens) == (1, 2, 30, 1, 60)
    assert load.longest_step > 0
    echo.let.set()
    while any(scheduler.load()[:5]):
        pass
    assert scheduler.load().longest_step == 0


def test_bits_are_those_of_the_model_alone(tiny):
    """Whatever shares a step, and on either lane, while many threads ask."""
    model = Embedder(tiny)
    numbers = random.Random(3)
    texts = [[numbers.randrange(1, 2000) for _ in range(numbers.choice((3, 20, 90, 150)))] for _ in range(60)]
    expected = [model.backend.forward([text])[0] for text in texts]
    scheduler, target = Scheduler(128), Target(model.backend)
    wrong: deque[int] = deque()

    def ask(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(15):
            some = mine.sample(range(len(texts)), mine.randrange(1, 12))
            states = scheduler.submit(target, [texts[n] for n in some]).future.result(60)
            wrong.extend(n for n, state in zip(some, states, strict=True) if (state != expected[n]).any())

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tokens = scheduler.submit(target, texts[:3], every_token=True).future.result(60)
    scheduler.close()
    assert not wrong
    for states, text in zip(tokens, texts, strict=False):
        assert (states == model.backend.token_states([text])[0]).all()
