"""Which beginnings are kept, and which texts are computed together: by token ids alone, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3np.runtime import prefix_cache
from qwen3np.runtime.prefix_cache import CAPACITY, MAX_PREFIX, CachedPrefix, PrefixCache, Step, steps

Ids = list[int]
NOTHING = np.empty(0)
UNUSED = count(10)


def new_cache() -> PrefixCache:
    return PrefixCache(CachedPrefix((), NOTHING, NOTHING))


@pytest.fixture
def cache() -> PrefixCache:
    return new_cache()


def new(tokens: int) -> Ids:
    """Ids that no other text has."""
    return list(islice(UNUSED, tokens))


def pairs(query: Ids, number: int) -> list[Ids]:
    """A query's texts, with documents of 30 tokens."""
    return [query + new(30) for _ in range(number)]


def call(cache: PrefixCache, texts: Sequence[Ids], requested: Sequence[int] = ()) -> list[Step]:
    """Do what the steps of a call say, except to compute."""
    done = []
    for step in steps(texts, requested, cache):
        if step.kept:
            cache.add(CachedPrefix(step.kept, NOTHING, NOTHING))
        done.append(step)
    return done


def computed(texts: Sequence[Ids], done: Sequence[Step]) -> int:
    return sum(len(texts[i]) - len(step.cached) for step in done for i in step.texts)


def test_what_recurs_is_kept_by_the_second_text_and_used_by_the_third(cache):
    query = new(200)
    for tokens, kept in ((230, 0), (230, 200), (30, 0), (30, 0)):
        texts = pairs(query, 1)
        [step] = done = call(cache, texts)
        assert (computed(texts, done), len(step.kept)) == (tokens, kept)


def test_an_entry_serves_texts_that_begin_with_a_part_of_it(cache):
    """Of two documents that begin alike by chance, too; and an entry that another begins with is dropped."""
    instruction = new(40)
    query, chance = instruction + new(100), new(20)
    for document in (chance + new(10), chance + new(10)):
        call(cache, [query + document])
    assert len(cache.longest(query + chance)) == len(cache) == 160
    for begin in (query, instruction):
        texts = pairs(begin, 1)
        assert computed(texts, call(cache, texts)) == 30
    call(cache, [instruction + new(9)], instruction)
    longer = query + chance + new(50)
    for text in pairs(longer, 2):
        call(cache, [text])
    assert len(cache) == len(longer)


def test_a_text_has_a_token_of_its_own(cache):
    """Also where it was computed before, or is all that others begin with."""
    text = new(60)
    for _ in range(2):
        call(cache, [text])
    [step] = call(cache, [text])
    assert len(step.cached) == 59
    texts = [text, *pairs(text, 9)]
    for _ in range(3):
        done = call(cache, texts)
        assert all(len(step.cached) < len(texts[i]) for step in done for i in step.texts)


def test_texts_of_several_kept_queries_are_computed_by_query(cache):
    instruction = new(40)
    one, other = instruction + new(100), instruction + new(100)
    for query in (one, other):
        for text in pairs(query, 2):
            call(cache, [text])
    texts = [*pairs(one, 1), *pairs(instruction, 3), *pairs(other, 2), *pairs(one, 1)]
    done = call(cache, texts)
    assert sorted(step.texts for step in done) == [[0, 6], [1, 2, 3], [4, 5]]
    assert [len(step.cached) for step in done] == [140, 140, 40]
    # A pass of their own costs more than the tokens it saves: together, on what all begin with.
    short = instruction + new(20)
    for text in pairs(short, 2):
        call(cache, [text])
    [step] = call(cache, [*pairs(short, 2), *pairs(instruction, 2)])
    assert (step.texts, len(step.cached)) == ([0, 1, 2, 3], 40)


def test_what_a_call_shares_is_computed_once(cache):
    """By one of its texts; or what is requested, if the texts begin with it."""
    query = new(200)
    first, others = call(cache, pairs(query, 300), query[:20])
    assert (len(first.texts), len(first.kept)) == (1, 200)
    assert (len(others.texts), len(others.cached)) == (299, 200)
    prompt = new(20)
    assert call(cache, pairs(prompt, 1), prompt)[0].kept == tuple(prompt)
    assert [step.kept for step in call(cache, pairs(query[:199], 1), prompt)] == [()]


def test_a_large_call_is_compared_with_nothing_and_leaves_nothing(cache):
    texts = [new(200) for _ in range(prefix_cache.SMALL_CALL + 1)]
    for _ in range(3):
        [step] = call(cache, texts)
        assert step.texts == list(range(len(texts)))
    assert len(cache) == len(cache.earlier) == 0


def test_one_call_does_not_drop_what_it_has_kept(cache):
    """More texts recur than there is room for: some are kept, and the next call finds them."""
    texts = [new(200) for _ in range(16)]
    call(cache, texts)
    kept = [step.kept for step in call(cache, texts) if step.kept]
    assert kept and all(cache.longest(ids).ids == ids for ids in kept)
    assert computed(texts, call(cache, texts)) < sum(map(len, texts)) - 100 * len(kept)


def test_the_least_recently_used_are_dropped(cache):
    queries = [new(300) for _ in range(4)]
    for query in queries:
        for text in pairs(query, 2):
            call(cache, [text])
        texts = pairs(queries[0], 1)
        assert computed(texts, call(cache, texts)) == 30
    assert [len(cache.longest(query)) for query in queries] == [300, 0, 300, 300]
    assert len(cache) <= CAPACITY


def test_what_is_remembered_is_bounded(cache, monkeypatch):
    monkeypatch.setattr(prefix_cache, "REMEMBERED", 20)
    first = new(600)
    call(cache, [first])
    for _ in range(19):
        call(cache, [new(600)])
    assert call(cache, [first])[0].kept == tuple(first[:MAX_PREFIX])
    second = new(600)
    for text in (second, *[new(600) for _ in range(20)], second):
        [step] = call(cache, [text])
    assert not step.kept  # it was forgotten
    assert len(cache.earlier) == len(cache.earlier._sorted) == 20
    assert {len(begin) for begin in cache.earlier._by_age} == {MAX_PREFIX}


@settings(deadline=None)
@given(st.data())
def test_every_text_is_in_one_step_that_fits_it(data):
    """In calls of any texts, of few different tokens so that many begin alike."""
    cache = new_cache()
    parts = data.draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=90), min_size=1, max_size=5))
    text = st.lists(st.sampled_from(parts), min_size=1, max_size=14).map(lambda some: sum(some, []))
    for texts in data.draw(st.lists(st.lists(text, min_size=1, max_size=8), min_size=1, max_size=8)):
        done = call(cache, texts, data.draw(text))
        assert sorted(i for step in done for i in step.texts) == list(range(len(texts)))
        for step in done:
            for i in step.texts:
                assert len(step.cached) < len(texts[i])
                assert tuple(texts[i][: len(step.cached)]) == step.cached.ids
            if step.kept:
                [i] = step.texts
                assert len(step.cached) < len(step.kept) <= min(MAX_PREFIX, len(texts[i]) - 1)
                assert tuple(texts[i][: len(step.kept)]) == step.kept
        assert len(cache) <= CAPACITY
