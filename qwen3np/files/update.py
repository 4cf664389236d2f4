"""The vectors of an older output, found by the texts that they are of: what need not be computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .saved import Saved

Hashes = NDArray[np.uint64]  # [N, 2]: 128 bits a text


def hashes_of(texts: Iterable[str]) -> Hashes:
    """Return the hash of each text."""
    digests = (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def grouped(hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return an order in which equal hashes stand together, the first row first, and where a group begins."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    return order, begins


class Older:
    """The vectors of an output by the hashes of their texts.

    A text's vector depends on nothing else: neither on its id nor on where it stands.

    Attributes:
        record: The output's record.
        vectors: As the output stores them, [N, columns]; they may be in a file.
        ranges: The ranges of int8 and uint8, else None.
        kept: Number of the texts asked for with `count` that are in the output.
    """

    def __init__(self, saved: Saved) -> None:
        hashes = saved.hashes()
        self._order, self._begins = grouped(hashes)
        self._sorted = hashes[self._order]
        self._first = np.ascontiguousarray(self._sorted[:, 0])
        self._used = np.zeros(len(hashes), np.bool_)  # the first of equal hashes stands for all
        self.record, self.vectors, self.ranges, self.kept = saved.record, saved.vectors, saved.ranges, 0

    def rows(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """Return the number of a vector for each text, or -1."""
        at, found = self._places(texts)
        return np.where(found, self._order[at], -1)

    def count(self, texts: Iterable[str]) -> None:
        """Note that these texts are in the new input."""
        at, found = self._places(texts)
        self._used[at[found]] = True
        self.kept += int(found.sum())

    @property
    def gone(self) -> int:
        """Number of rows whose texts were not asked for."""
        return int((~self._used[self._begins][np.cumsum(self._begins) - 1]).sum())

    def _places(self, texts: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return where each text's hash stands among the sorted ones, and whether it does."""
        hashes = hashes_of(texts)
        at = np.minimum(np.searchsorted(self._first, hashes[:, 0]), len(self._first) - 1)
        return at, (self._sorted[at] == hashes).all(axis=1)
