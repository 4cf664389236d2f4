"""The threads of a call in teams: which compute what, to the same bits; what ends one ends all."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3np import Embedder
from qwen3np.loading.checkpoint import Checkpoint
from qwen3np.runtime import cores, prefix_cache, threads
from qwen3np.runtime import micro_batches as steps
from qwen3np.runtime.micro_batches import MICRO_BATCH_TOKENS, plan
from qwen3np.runtime.numba_backend import NumbaBackend

ALL = None  # as one team
PLANS = {
    # texts, threads, cores that share a cache -> threads of a team, its steps
    "one query": ([16], 2, 2, ALL, 1),
    "one long text": ([4096], 8, 8, ALL, 1),
    "a batch on two cores": ([128] * 8, 2, 2, 1, 2),
    "too little to read the weights twice for": ([16] * 16, 2, 2, ALL, 1),
    "queries": ([16] * 64, 2, 2, 1, 2),
    "on a laptop": ([128] * 8, 8, 8, 2, 4),
    "more of it": ([128] * 64, 8, 8, 1, 8),
    "of six cores that share a cache, half": ([128] * 8, 12, 6, 3, 4),
    "on a server": ([128] * 8, 64, 8, 16, 4),
    "more of it on a server": ([128] * 64, 64, 8, 4, 16),
    "on the largest": ([200] * 1024, 128, 8, 8, 205),
    "an odd number of threads": ([100] * 200, 7, 7, 1, 20),
    "three like texts on two cores": ([600] * 3, 2, 2, ALL, 1),
    "of one thread": ([128] * 64, 1, 1, ALL, 4),
}


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS.keys())
def test_which_teams_compute_a_batch(case):
    lengths, num_threads, sharing, size, count = case
    planned = [(n, len(ranges)) for n, ranges in plan(lengths, 0, None, num_threads, sharing, 256) if ranges]
    assert planned == [(size or num_threads, count)]


def test_a_long_text_is_computed_by_all_and_the_others_by_teams():
    assert plan([5000, *[128] * 8], 0, None, 2, 2, 256) == [(2, [(0, 1)]), (1, [(1, 5), (5, 9)])]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 5000) | st.integers(1, 200), min_size=1, max_size=80),
    st.none() | st.integers(1, 40),
    st.sampled_from([1, 2, 3, 6, 8, 12, 48, 96, 128]),
    st.sampled_from([1, 2, 6, 8, 64]),
)
def test_any_plan(lengths, most, num_threads, sharing):
    """Every text once; no more at a time than asked for, nor more tokens than one text may have."""
    planned = plan(lengths, 0, most, num_threads, sharing, 256)
    ranges = sorted(r for _, some in planned for r in some)
    assert [i for first, last in ranges for i in range(first, last)] == list(range(len(lengths)))
    for size, some in planned:
        teams = num_threads // size
        assert teams * size == num_threads
        for first, last in some:
            assert most is None or teams * (last - first) <= most
            assert teams == 1 or max(lengths[first:last]) <= MICRO_BATCH_TOKENS
            assert last - first == 1 or sum(lengths[first:last]) <= MICRO_BATCH_TOKENS
    assert steps.MOST_TEAMS * MICRO_BATCH_TOKENS <= 32768


@pytest.fixture
def six_threads(monkeypatch) -> None:
    """More than there are cores."""
    monkeypatch.setattr(cores, "usable_cores", lambda: 6)
    monkeypatch.setattr(cores, "performance_cores", lambda: None)


def texts_of(lengths, seed=0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 2048, length).tolist() for length in lengths]


def in_teams(run: NumbaBackend, size: int, texts: int, monkeypatch) -> None:
    """Steps of so many texts, whatever their tokens."""

    def planned(lengths, known, most):
        ranges = [(first, min(first + texts, len(lengths))) for first in range(0, len(lengths), texts)]
        return [(size, ranges)]

    monkeypatch.setattr(run, "_plan", planned)


def test_teams_change_no_bit(tiny, kernel, six_threads, monkeypatch):
    """Random batches in teams of one, two, three and six threads, with beginnings that the texts share."""
    monkeypatch.setattr(prefix_cache, "SMALL_CALL", 0)  # nothing is kept of a text alone
    run, rng = NumbaBackend(Checkpoint(tiny), kernel[1]), np.random.default_rng(1)
    assert run.num_threads == 6
    shared = texts_of([40])[0]
    texts = texts_of((1, 15, 16, 17, 33, 100, 300, 257, 2, 64))
    texts += [shared + text for text in texts]
    alone = np.concatenate([run.forward([text]) for text in texts])
    for trial in range(40):
        chosen = rng.integers(0 if trial % 2 else 10, len(texts), rng.integers(1, 30))
        in_teams(run, (1, 2, 3, 6)[trial % 4], int(rng.integers(1, 6)), monkeypatch)
        advanced: list[int] = []
        states = run.forward([texts[i] for i in chosen], progress=advanced.append)
        np.testing.assert_array_equal(states, alone[chosen])
        assert sum(advanced) == len(chosen)


def test_the_chosen_teams_change_no_bit(tiny, six_threads, monkeypatch):
    """As a user's call takes them: a long text, and many of all lengths that several teams compute."""
    monkeypatch.setattr(prefix_cache, "SMALL_CALL", 0)
    run = NumbaBackend(Checkpoint(tiny))
    lengths = sorted([2100, *np.random.default_rng(2).integers(1, 200, 60).tolist()], reverse=True)
    assert {size for size, ranges in run._plan(lengths, 0, None) if ranges} > {6}
    texts = texts_of(lengths)
    alone = np.concatenate([run.forward([text]) for text in texts])
    np.testing.assert_array_equal(run.forward(texts), alone)


class Struck(BaseException):
    pass


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_exception_of_the_caller_ends_all_teams(tiny, six_threads, monkeypatch, size):
    """At their next block: the long texts that they are at are not finished; the next call is in order."""
    run = NumbaBackend(Checkpoint(tiny))
    expected = run.forward(texts_of([40, 50, 60]))
    in_teams(run, size, 1, monkeypatch)
    ended = []
    compute = run._pooled

    def counting(*arguments):
        states = compute(*arguments)
        ended.append(len(states))
        return states

    monkeypatch.setattr(run, "_pooled", counting)

    def strike(texts: int) -> None:
        raise Struck

    with pytest.raises(Struck):
        run.forward(texts_of([20, *[20000] * 30]), progress=strike)
    assert len(ended) < 6 // size
    np.testing.assert_array_equal(run.forward(texts_of([40, 50, 60])), expected)


@pytest.mark.parametrize("failing", [0, 3, 5])
def test_an_exception_in_a_team_is_the_calls(six_threads, failing):
    """Whichever thread it is on; the others take no further item, and the pool works on."""
    pool, taken = threads.Pool(), []
    barrier = threading.Barrier(6, timeout=60)

    def work(team: threads.Team, item: int) -> None:
        taken.append(item)
        barrier.wait()  # each team has one
        if item == failing:
            raise MemoryError(f"item {item}")
        while not team.counters[threads.STOP]:  # as a kernel looks
            time.sleep(0.001)
        team.check()

    with pytest.raises(MemoryError, match=f"item {failing}"):
        pool.call(lambda job: job.in_teams(1, work, list(range(100))))
    assert sorted(taken) == list(range(6))
    assert pool.call(lambda job: 1) == 1


def test_teams_that_were_left_keep_no_weights_alive(tiny, six_threads, monkeypatch):
    """Neither their steps nor what ended them is in a cycle that only the garbage collector ends."""

    def fail(*_: object) -> None:
        raise Struck

    monkeypatch.setattr(steps, "BUSY", 0)
    gc.collect()
    gc.disable()
    try:
        for how in ("done", "progress", "step"):
            model = Embedder(tiny)
            ids = texts_of([300] * 12)
            assert len(model.backend._plan([300] * 12, 0, None)) == 2
            if how == "done":
                model.backend.forward(ids)
            else:
                with pytest.raises(Struck), pytest.MonkeyPatch.context() as patch:
                    if how == "step":
                        patch.setattr(NumbaBackend, "_pooled", fail)
                    model.backend.forward(ids, progress=fail)
            backend = weakref.ref(model.backend)
            del model
            assert backend() is None, how
    finally:
        gc.enable()
