"""The prefix cache: what texts begin with, an instruction or a query, is computed once.

In causal attention a token's keys and values depend on the tokens before it alone, and here they have the
same bits in any company: reusing them changes nothing but the time. So an entry also serves a text that
begins with its first tokens only. And no prefix is computed apart: its keys and values are copied from the
pass of a text that begins with it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, count
from operator import ne
from typing import Any, NamedTuple

from numpy.typing import NDArray

MIN_PREFIX, MAX_PREFIX = 8, 512  # tokens of a prefix: 512 of the 0.6B are 117 MB in float32
CAPACITY = 1024  # tokens in all
# What one more pass over the weights costs: on 2 cores the time of some 30 tokens, and more on more cores.
PASS_TOKENS = 64
MIN_GROWTH = 16  # tokens for which a text that is alone has its beginning kept: a copy, but no pass
SMALL_CALL = 128  # texts: up to so many are compared with earlier ones, in 0.1 ms each; 0: none
REMEMBERED = 1024  # texts of earlier calls: 2 MB of token ids


@dataclass(frozen=True)
class CachedPrefix:
    """A prefix: its token ids, and its keys and values in every layer."""

    ids: tuple[int, ...]
    keys: NDArray[Any]  # [L, ...] as kernels/kv_layout.py says; there may be more than those of `ids`
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)


class PrefixCache:
    """An LRU cache of prefixes. `none` is the one of no tokens."""

    def __init__(self, none: CachedPrefix) -> None:
        self.none = none
        self.earlier = EarlierTexts()
        self._entries: list[CachedPrefix] = []  # the least recently used first

    def __len__(self) -> int:
        """The tokens of all entries."""
        return sum(map(len, self._entries))

    def longest(self, ids: Sequence[int]) -> CachedPrefix:
        """The longest cached prefix of `ids`, which may be a part of an entry; or `none`."""
        best, length = self.none, MIN_PREFIX - 1
        for entry in reversed(self._entries):
            if (shared := common_length(entry.ids, ids)) > length:
                best, length = entry, shared
        if best is self.none:
            return best
        self._entries.remove(best)
        self._entries.append(best)
        return replace(best, ids=best.ids[:length])

    def add(self, new: CachedPrefix) -> None:
        """Keep an entry; drop those that are a part of it, and the least recently used beyond CAPACITY."""
        self._entries = [entry for entry in self._entries if new.ids[: len(entry)] != entry.ids] + [new]
        while len(self) > CAPACITY:
            del self._entries[0]


class EarlierTexts:
    """How the latest REMEMBERED texts of small calls began, sorted: a text's neighbours share the most."""

    def __init__(self) -> None:
        self._sorted: list[array[int]] = []
        self._by_age: deque[array[int]] = deque()

    def __len__(self) -> int:
        return len(self._by_age)

    def meet(self, begin: Sequence[int]) -> int:
        """Return how many tokens `begin` shares with an earlier text, and remember it."""
        new = array("i", begin)
        at = bisect_left(self._sorted, new)
        neighbours = self._sorted[max(at - 1, 0) : at + 1]
        if new not in neighbours:
            self._sorted.insert(at, new)
            self._by_age.append(new)
            if len(self) > REMEMBERED:
                del self._sorted[bisect_left(self._sorted, self._by_age.popleft())]
        return max((common_length(begin, other) for other in neighbours), default=0)


class Step(NamedTuple):
    """Texts to compute together.

    Attributes:
        texts: their numbers in the call.
        cached: what all of them begin with.
        kept: a beginning of the only text, to be added to the cache; often empty.
    """

    texts: list[int]
    cached: CachedPrefix
    kept: tuple[int, ...] = ()


def steps(texts: Sequence[Sequence[int]], requested: Sequence[int], cache: PrefixCache) -> Iterator[Step]:
    """Plan a call: yield its steps. What a step keeps is in the cache before the next one is asked for.

    Texts with a beginning to keep come first, each alone: one for all texts, if they begin with `requested`
    or their common prefix saves a pass's worth of tokens; and in a small call those that begin like an
    earlier text.
    """
    begins = [tuple(ids[: min(len(ids) - 1, MAX_PREFIX)]) for ids in texts]  # one token is a text's own
    small = len(texts) <= SMALL_CALL
    repeated = [cache.earlier.meet(begin) if small else 0 for begin in begins]
    rest = list(range(len(texts)))
    if wanted := _wanted_by_all(begins, requested, cache):
        i = rest.pop()
        kept = begins[i][: max(wanted, repeated[i])]
        yield Step([i], cache.longest(begins[i]), kept)
    room = CAPACITY // 2  # more in one call would drop what the next one needs
    for i in rest[:] if small else ():
        cached = cache.longest(begins[i])
        least = MIN_GROWTH if len(texts) == 1 else PASS_TOKENS
        if repeated[i] - len(cached) >= least and repeated[i] <= room:
            room -= repeated[i]
            rest.remove(i)
            yield Step([i], cached, begins[i][: repeated[i]])
    prefixes = {p.ids: p for p in (cache.longest(begins[i]) for i in rest)} if small else {}
    while rest:
        shared = cache.longest(common_prefix([begins[i] for i in rest]))
        best = Step(rest, shared)
        most = PASS_TOKENS - 1
        for ids, prefix in prefixes.items():
            having = [i for i in rest if begins[i][: len(ids)] == ids]
            if (saved := (len(ids) - len(shared)) * len(having)) > most:
                best, most = Step(having, prefix), saved
        yield best
        rest = sorted(set(rest) - set(best.texts))


def _wanted_by_all(begins: Sequence[tuple[int, ...]], requested: Sequence[int], cache: PrefixCache) -> int:
    """The tokens of what all texts begin with that is to be kept; 0 if it is, or is not worth it."""
    common = common_prefix(begins)
    more = len(common) - len(cache.longest(common))
    if len(common) >= MIN_PREFIX and more * (len(begins) - 1) >= PASS_TOKENS:
        return len(common)
    asked = tuple(requested[:MAX_PREFIX])
    fits = len(asked) >= MIN_PREFIX and asked == common[: len(asked)]
    return len(asked) if fits and len(cache.longest(asked)) < len(asked) else 0


def common_prefix(texts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common prefix."""
    first, last = min(texts), max(texts)  # what these two share, all share
    return first[: common_length(first, last)]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that both begin with."""
    return next(compress(count(), map(ne, one, other)), min(len(one), len(other)))
