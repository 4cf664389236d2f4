"""Token ids of many texts, each text once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# The most to compute at a time: the states of so many texts are 16 MB of 1024 dimensions.
PART_TEXTS = 4096
PART_TOKENS = 1 << 20


class Distinct:
    """The texts of a call without repetitions, longest first.

    So texts of a micro-batch have like lengths, and one too large for the memory fails at once. In memory an
    id has 4 bytes.

    Attributes:
        rows: [texts of the call], each one's number among these.
    """

    def __init__(self, texts: Iterable[Sequence[int]]) -> None:
        numbers: dict[bytes, int] = {}
        found = array("q")
        for ids in texts:
            found.append(numbers.setdefault(array("i", ids).tobytes(), len(numbers)))
        self._ids = sorted(numbers, key=lambda ids: (-len(ids), ids))
        rank = np.empty(len(numbers), np.int64)
        rank[[numbers[ids] for ids in self._ids]] = np.arange(len(numbers))
        self.rows: NDArray[np.int64] = rank[np.array(found, np.int64)]
        self._order = np.argsort(self.rows, kind="stable")

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, number: int) -> array[int]:
        """The token ids of a text, by its number."""
        return array("i", self._ids[number])

    def rows_of(self, numbers: range) -> NDArray[np.int64]:
        """Where in the call the texts of these numbers are, in the order of the numbers."""
        first, last = np.searchsorted(self.rows, (numbers.start, numbers.stop), sorter=self._order)
        return self._order[first:last]

    def parts(self) -> Iterator[range]:
        """Yield all numbers, in ranges to compute at a time."""
        first = tokens = 0
        for n, ids in enumerate(self._ids):
            tokens += len(ids) // array("i").itemsize
            if n > first and (n - first == PART_TEXTS or tokens > PART_TOKENS):
                yield range(first, n)
                first, tokens = n, len(ids) // array("i").itemsize
        if self._ids:
            yield range(first, len(self._ids))
