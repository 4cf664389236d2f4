"""The nearest rows of a corpus that is read block by block, exactly, whatever the blocks.

Which rows are the best depends neither on the blocks nor on where in them a row stands: products of float32
matrices, whose rounding does depend on it, only find the candidates; those are scored in float64, one by one.
Equal rows have equal scores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .quantization import as_bits, origins_and_steps, values_of
from .runtime.cores import thread_count
from .similarity import Scores, Vectors, as_matrix, check_finite, exact_scores, lengths_of, unit, usual

Stored = tuple[str, Any]  # precision, and the ranges of int8 and uint8
Candidates = tuple[NDArray[np.int64], Scores]  # rows and their scores

# So many queries read a block from memory once each, in several threads; more are one matrix product. Below
# so many values NumPy is as fast as that, and needs nothing compiled.
FEW_QUERIES, MANY_VALUES = 4, 1 << 20
EPSILON = 2.0**-24  # largest relative rounding error of float32


class Nearest:
    """The best rows for each query, among the blocks of a corpus that have been added so far.

    `found` holds, per query, the row numbers and their scores, best first; of equal scores the earlier
    row comes first.

    Args:
        queries: Float vectors [Q, dim].
        count: Number of rows kept per query.
        score_function: One of SIMILARITIES. Rows of bits are scored by their Hamming distance whatever it is.
        stored: The rows' precision, and the ranges of int8 and uint8.
        what: What errors call a row.
    """

    def __init__(
        self,
        queries: Vectors,
        count: int,
        score_function: str,
        stored: Stored = ("float32", None),
        what: str = "corpus row",
    ) -> None:
        check_finite(queries, "query")
        self._queries, self._count, self._name, self._what = queries, count, score_function, what
        self._stored = precision, ranges = stored
        self._dim = queries.shape[1]
        cosine = score_function == "cosine"
        self._units = unit(queries) if cosine else queries
        self._sizes = np.ones(len(queries)) if cosine else lengths_of(queries)
        self._rows = 0
        self._decoding: tuple[Any, Any] = (None, None)
        self._slip = 0.0  # of decoding: the length of the largest row that there may be
        if precision.endswith("int8"):
            self._decoding = origins_and_steps(precision, ranges, self._dim)
            self._slip = float(np.linalg.norm(np.abs(np.asarray(ranges, np.float64)).max(axis=0)))
        self.found = [(np.empty(0, np.int64), np.empty(0)) for _ in queries]

    def add_all(self, blocks: Iterable[Any]) -> None:
        """Add blocks of the corpus, [N, dim] each, several at a time where that is faster.

        Raises ValueError for a row that is not finite: no score would say where it belongs.
        """
        # A product of many queries has threads of its own.
        threads = 1 if len(self._queries) > FEW_QUERIES else _threads()
        waiting: deque[Future[list[Candidates]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for block in blocks:
                waiting.append(pool.submit(lambda *given: [*self._scored(*given)], block, self._rows))
                self._rows += len(block)
                if len(waiting) > threads:
                    self._merge(waiting.popleft().result())
            for one in waiting:
                self._merge(one.result())

    def _merge(self, candidates: list[Candidates]) -> None:
        """Take the best of those that were found and of new ones, which are of later rows."""
        for i, (new, scores) in enumerate(candidates):
            ids, best = self.found[i]
            ids, best = np.concatenate([ids, new]), np.concatenate([best, scores])
            order = np.argsort(-best, kind="stable")[: self._count]
            self.found[i] = ids[order], best[order]

    def _scored(self, block: Any, first: int) -> Iterator[Candidates]:
        """Yield, per query, the rows of the block that may be among its best, and their exact scores.

        `found` may be older than the blocks before this one: then there are more of them.
        """
        precision = self._stored[0]
        if precision.endswith("binary"):
            for i, scores in enumerate(hamming(self._queries, block)):
                new = self._candidates(i, scores, scores)
                yield first + new, scores[new].astype(np.float64)
            return
        if precision == "float32":
            block = as_matrix(block)
        if self._name in ("euclidean", "manhattan"):
            block = self._values(block)
            check_finite(block, self._what, first)
            for query in self._queries:
                yield first + np.arange(len(block)), exact_scores(self._name, query, block)
            return
        products, lengths = self._products(block)
        # A row with a NaN or an infinity has no finite product, not even with zeros.
        finite = bool(np.isfinite(products).all())
        if not finite:
            check_finite(self._values(block), self._what, first)
        for i, query in enumerate(self._queries):
            near = self._near(i, products[i], lengths) if finite else np.arange(len(block))
            new = near[self._candidates(i, *self._bounds(i, products[i, near], lengths[near]))]
            yield first + new, exact_scores(self._name, query, self._values(block[new]))

    def _values(self, rows: Any) -> Vectors:
        return values_of(rows, *self._stored, self._dim)

    def _products(self, block: Any) -> tuple[Vectors, Scores]:
        """Return the products of all queries and rows, [Q, N], rounded, and the rows' lengths."""
        if len(self._queries) > FEW_QUERIES or block.size < MANY_VALUES or numba_is_off():
            rows = self._values(block)
            with np.errstate(over="ignore", invalid="ignore"):
                return self._units @ rows.T, lengths_of(rows)
        products, squares = self.scanned(block)
        lengths = np.sqrt(squares.astype(np.float64))
        if (odd := ~usual(lengths)).any():
            lengths[odd] = lengths_of(self._values(block[odd]))
        return products, lengths

    def scanned(self, block: Any) -> tuple[Vectors, Vectors]:
        """Return the products of all queries and rows, [Q, N], and the rows' squares, in one pass."""
        from .kernels.scan import scan

        rows = np.ascontiguousarray(block).view()
        rows.flags.writeable = False  # as a memory-mapped file's: the kernel is compiled for one of the two
        origins, steps = self._decoding
        products = np.empty((len(self._queries), len(rows)), np.float32)
        squares = np.empty(len(rows), np.float32)
        for i, query in enumerate(self._units):
            scan(rows, steps, origins, query, products[i], squares)
        return products, squares

    def _error(self, i: int) -> tuple[float, float]:
        """Return a and b: a product of query i and a row is within a * length + b of the exact one."""
        # |error| <= dim * EPSILON * |a| |b| in whatever order the products are added (Higham, Accuracy and
        # Stability, 3.1); doubled for the lengths, doubled to be safe; and what subnormal numbers lose. A
        # value that is decoded is within 3 EPSILON of the range's ends of the one that is scored.
        size = float(self._sizes[i]) * EPSILON
        return size * 4 * (self._dim + 16), size * 8 * self._slip + self._dim * 2.0**-125

    def _near(self, i: int, products: Vectors, lengths: Scores) -> NDArray[np.int64]:
        """Return all rows whose scores may be among query i's best, and few others: in two quick passes."""
        best = self.found[i][1]
        if len(best) < self._count:
            return np.arange(len(products))
        a, b = (1.01 * error for error in self._error(i))
        cosine = self._name == "cosine"
        least = (best[-1] - a) * lengths if cosine else best[-1] - a * lengths
        return np.flatnonzero(products >= least - b)

    def _bounds(self, i: int, products: Vectors, lengths: Scores) -> tuple[Scores, Scores]:
        """Return what the scores of query i are at least and at most, from products that are rounded."""
        a, b = self._error(i)
        margin = a * lengths + b
        scores = products.astype(np.float64)
        if self._name == "cosine":
            whole = np.where(lengths == 0, 1, lengths)
            scores, margin = scores / whole, margin / whole
        # A product too large for float32 says nothing.
        unknown = ~np.isfinite(products)
        scores[unknown], margin[unknown] = 0, np.inf
        return scores - margin, scores + margin

    def _candidates(self, i: int, low: Any, high: Any) -> NDArray[np.int64]:
        """Return the rows that may be among query i's best, whose scores are from `low` to `high`."""
        best = self.found[i][1]
        least = best[-1] if len(best) == self._count else -np.inf
        new = np.flatnonzero(high >= least)
        if len(new) > self._count:
            new = new[high[new] >= np.partition(low[new], -self._count)[-self._count]]
        return new


def compile_scans() -> None:
    """Compile the kernel of a search for each kind of rows, or load it from the cache."""
    one, ranges = np.ones((1, 1), np.float32), np.array([[0], [1]], np.float32)
    for precision in ("float32", "int8", "uint8"):
        Nearest(one, 1, "cosine", (precision, ranges)).scanned(one.astype(precision))


@cache
def _threads() -> int:
    """Return how many blocks are read at a time; looking takes a millisecond."""
    return thread_count()


def numba_is_off() -> bool:
    """Whether Numba is told not to compile: its functions then run as Python."""
    import numba

    config: Any = numba.config
    return bool(config.DISABLE_JIT)


def hamming(queries: Vectors, corpus: Any) -> Vectors:
    """Return minus the number of dimensions whose signs differ, [Q, N].

    Args:
        queries: Float vectors [Q, dim].
        corpus: Packed rows [N, dim / 8].
    """
    bits = np.ascontiguousarray(as_bits(np.asarray(corpus)))
    packed = np.packbits(queries > 0, axis=1)
    if bits.shape[1] % 8 == 0:  # eight bytes at a time
        bits, packed = bits.view(np.uint64), packed.view(np.uint64)
    scores = np.empty((len(queries), len(bits)), np.float32)
    for i, query in enumerate(packed):
        scores[i] = -np.bitwise_count(bits ^ query).sum(axis=1, dtype=np.int32)
    return scores
