"""The prefix cache: what texts begin with, an instruction above all, is computed once.

In causal attention a token's keys and values depend on the tokens before it alone, and here they have the
same bits in any company: reusing them changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

MIN_PREFIX, MAX_PREFIX = 8, 512  # tokens of a prefix: 512 of the 0.6B are 117 MB in float32
CAPACITY = 1024  # tokens in all
MIN_TOKENS_SAVED = 128  # for which one more pass over the weights is worth its time


@dataclass(frozen=True)
class CachedPrefix:
    """A prefix: its token ids, and its keys and values in every layer."""

    ids: tuple[int, ...]
    keys: NDArray[Any]  # [L, ...] as kernels/kv_layout.py says
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)


class PrefixCache:
    """An LRU cache of prefixes. `none` is the one of no tokens."""

    def __init__(self, none: CachedPrefix) -> None:
        self.none = none
        self._entries: list[CachedPrefix] = []  # the least recently used first

    def __len__(self) -> int:
        """The tokens of all entries."""
        return sum(map(len, self._entries))

    def longest(self, ids: Sequence[int]) -> CachedPrefix:
        """The longest cached prefix of `ids`, or `none`."""
        ids = tuple(ids)
        fitting = [entry for entry in self._entries if ids[: len(entry)] == entry.ids]
        if not fitting:
            return self.none
        best = max(fitting, key=len)
        self._entries.remove(best)
        self._entries.append(best)
        return best

    def add(self, entry: CachedPrefix) -> None:
        """Keep an entry, and drop the least recently used ones beyond CAPACITY tokens."""
        self._entries.append(entry)
        while len(self) > CAPACITY:
            del self._entries[0]


def common_prefix(texts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The longest common prefix, at least one token shorter than the shortest text."""
    first, last = min(map(tuple, texts)), max(map(tuple, texts))  # what these two share, all share
    most = min(map(len, texts)) - 1
    length = next((i for i in range(most) if first[i] != last[i]), most)
    return tuple(first[:length])


def prefixes_to_compute(
    texts: Sequence[Sequence[int]], requested: Sequence[int], cache: PrefixCache
) -> Iterator[tuple[int, ...]]:
    """Yield the prefixes to compute before this batch.

    They are `requested`, if all texts begin with it, and their common prefix, if that saves MIN_TOKENS_SAVED
    tokens or more.
    """
    common = common_prefix(texts)[:MAX_PREFIX]
    asked = tuple(requested)[:MAX_PREFIX]
    if MIN_PREFIX <= len(asked) and asked == common[: len(asked)] and len(cache.longest(asked)) < len(asked):
        yield asked
    more = len(common) - len(cache.longest(common))
    if len(common) >= MIN_PREFIX and more * (len(texts) - 1) >= MIN_TOKENS_SAVED:
        yield common
