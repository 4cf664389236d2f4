"""Ratios that survive noise.

Machines swing by a factor of two for minutes: a time means little, but what is measured in turns is disturbed
together. A ratio is the median, over rounds, of two times of the same round; its interval is the percentile
bootstrap's over rounds (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
CONFIDENCE = 95  # percent
NARROW = 0.05  # of the ratio: measured well enough
WIDE = 0.10  # a ratio with a wider interval is marked
# Rounds: of a peer that is slow, of others before they are done, and at the most. The range of five holds the
# median 94 times of 100, that of three 75.
FEWEST, LEAST, MOST = 3, 5, 60


class Ratio(NamedTuple):
    """With the ends of its interval."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.median

    @property
    def wide(self) -> bool:
        return self.width > WIDE

    def short(self) -> str:
        return "~" * self.wide + f"{self.median:.2f}"

    def __str__(self) -> str:
        return f"{self.short()} ({self.low:.2f}-{self.high:.2f})"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """How many times as fast `ours` is, of seconds by rounds: as many as both have.

    The same numbers give the same interval.
    """
    rounds = min(len(theirs), len(ours))
    return Ratio(*interval(np.divide(theirs[:rounds], ours[:rounds])))


def interval(of_rounds: ArrayLike) -> tuple[float, float, float]:
    """The median of one number per round, with the ends of its interval."""
    values = np.asarray(of_rounds, np.float64)
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(np.median(drawn, axis=1), [tail, 100 - tail])
    return float(np.median(values)), float(low), float(high)


def in_turns(
    runs: dict[str, Callable[[], float | None]], ours: Collection[str], seconds: float, narrow: float = NARROW
) -> dict[str, list[float]]:
    """Seconds by rounds of each run that does not fail (by returning None).

    Those of a round run in an order drawn anew. A peer is done when its ratios to all of `ours` are `narrow`,
    or when it alone took `seconds`; rounds end when all peers are done.
    """
    measured: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffle = list(runs), random.Random(0).shuffle

    def goes_on(name: str, rounds: int) -> bool:
        if name in ours or rounds < FEWEST:
            return True
        if sum(measured[name]) > seconds:
            return False
        wide = (ratio(measured[name], measured[o]).width > narrow for o in ours if o in measured)
        return rounds < LEAST or any(wide)

    for turn in range(1, MOST + 1):
        shuffle(order)
        for name in order:
            taken = runs[name]()
            if taken is None:
                del measured[name]
            else:
                measured[name].append(taken)
        order = [name for name in order if name in measured and goes_on(name, turn)]
        if turn >= FEWEST and set(order) <= set(ours):
            break
    return measured
