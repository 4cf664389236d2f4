"""Beginnings that texts share, an instruction above all: their keys and values are computed once.

In causal attention a token's keys and values depend on the tokens before it alone, and here they are the same
bits in any company: reusing them changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

SHORTEST, LONGEST = 8, 512  # tokens of a shared beginning: 512 of the 0.6B are 117 MB in float32
KEPT = 1024  # tokens in all
SAVED = 128  # tokens that a beginning must save to be worth one more pass over the weights


@dataclass(frozen=True)
class Beginning:
    """Token ids, and their keys and values of every layer [L, ...] as kernels/keys_values.py lays them
    out."""

    ids: tuple[int, ...]
    keys: NDArray[Any]
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)


class Beginnings:
    """Those that are kept; the one that was not used for longest goes first."""

    def __init__(self, none: Beginning) -> None:
        self.none = none
        self._kept: list[Beginning] = []

    def longest(self, ids: Sequence[int]) -> Beginning:
        """The longest kept beginning of `ids`, or `none`."""
        ids = tuple(ids)
        fitting = [b for b in self._kept if ids[: len(b)] == b.ids]
        if not fitting:
            return self.none
        best = max(fitting, key=len)
        self._kept.remove(best)
        self._kept.append(best)
        return best

    def add(self, beginning: Beginning) -> None:
        self._kept.append(beginning)
        while sum(map(len, self._kept)) > KEPT:
            del self._kept[0]


def shared_by(texts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all texts begin with, less than the whole of any."""
    first, last = min(map(tuple, texts)), max(map(tuple, texts))  # what these two share, all share
    most = min(map(len, texts)) - 1
    length = next((i for i in range(most) if first[i] != last[i]), most)
    return tuple(first[:length])


def worth_computing(
    texts: Sequence[Sequence[int]], asked: Sequence[int], kept: Beginnings
) -> Iterator[tuple[int, ...]]:
    """Beginnings of all texts that are not kept and should be: `asked`, if it is one, and what the texts
    share, if that saves enough."""
    shared = shared_by(texts)[:LONGEST]
    asked = tuple(asked)[:LONGEST]
    if SHORTEST <= len(asked) and asked == shared[: len(asked)] and len(kept.longest(asked)) < len(asked):
        yield asked
    more = len(shared) - len(kept.longest(shared))
    if len(shared) >= SHORTEST and more * (len(texts) - 1) >= SAVED:
        yield shared
