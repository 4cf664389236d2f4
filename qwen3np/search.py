"""Similarity of vectors, and exact search in many of them.

Memory is bounded: a corpus is read in blocks of rows, so it may be a memory-mapped array larger than RAM
(`np.load(path, mmap_mode="r")`). Which rows are the best depends neither on the blocks nor on where in them a
row stands: products of float32 matrices, whose rounding does depend on it, only find the candidates; those
are scored in float64, one by one. Equal rows have equal scores.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .quantization import STORED_AS, VECTOR_PRECISIONS, as_bits, origins_and_steps, values_of
from .runtime.cores import thread_count

Vectors = NDArray[np.float32]
Scores = NDArray[np.float64]
Stored = tuple[str, Any]  # precision, and the ranges of int8 and uint8
Candidates = tuple[NDArray[np.int64], Scores]  # rows and their scores

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
BLOCK_ROWS = 16384  # rows of a corpus read at a time: 64 MB of 1024 float32 dimensions
QUERIES = 256  # queries at a time: their scores of a block are 16 MB
# So many queries read a block from memory once each, in several threads; more are one matrix product. Below
# so many values NumPy is as fast as that, and needs nothing compiled.
FEW_QUERIES, MANY_VALUES = 4, 1 << 20
EXACT_ROWS = 1024  # rows scored in float64 at a time
EPSILON = 2.0**-24  # largest relative rounding error of float32


def similarity(a: ArrayLike, b: ArrayLike, name: str = "cosine") -> Vectors:
    """Compare every vector of `a` [A, dim] with every one of `b` [B, dim] -> [A, B].

    Larger is more alike: euclidean and manhattan distances are negated. A zero vector has the cosine 0.
    """
    a, b = as_matrix(a), as_matrix(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"vectors of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared")
    if name == "cosine":
        return unit(a) @ unit(b).T
    if name == "dot":
        return a @ b.T
    scores = np.empty((len(a), len(b)), np.float32)
    for i, row in enumerate(a):  # row by row: the differences of all pairs would take len(a) times the memory
        scores[i] = exact_scores(name, row, b)
    return scores


def similarity_pairwise(a: ArrayLike, b: ArrayLike, name: str = "cosine") -> Vectors:
    """Compare vector i of `a` with vector i of `b` -> [len(a)]."""
    a, b = as_matrix(a), as_matrix(b)
    if a.shape != b.shape:
        raise ValueError(
            f"pairs need as many vectors on both sides, found {list(a.shape)} and {list(b.shape)}"
        )
    return exact_scores(name, a, b).astype(np.float32)


def check_similarity(name: str) -> str:
    """Return the name, or raise ValueError for one that is not in SIMILARITIES."""
    if name not in SIMILARITIES:
        raise ValueError(f"similarity {name!r} is not one of {', '.join(SIMILARITIES)}")
    return name


def as_matrix(x: ArrayLike, what: str = "vectors") -> Vectors:
    """Return one vector or many as a float32 matrix.

    Raises TypeError for what is not an array of real numbers; errors call it `what`.
    """
    found = _array(x, what)
    if found.dtype.kind not in "fiu" or found.dtype.itemsize == 1:
        hint = " (quantised vectors are searched by semantic_search with corpus_precision)"
        raise TypeError(
            f"{what} are {found.dtype}, expected floats{hint if found.dtype.itemsize == 1 else ''}"
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as such
        matrix = np.atleast_2d(found.astype(np.float32, copy=False))
    if matrix.ndim != 2:
        raise ValueError(f"expected one vector or a matrix of vectors, found shape {list(matrix.shape)}")
    return matrix


def unit(x: Vectors) -> Vectors:
    """Divide each vector by its length, however large or small; a zero vector stays zero."""
    lengths = _lengths(x)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        units = x / lengths.astype(np.float32)[:, None]
    odd = ~_usual(lengths)
    if odd.any():
        length = lengths[odd, None]
        units[odd] = x[odd].astype(np.float64) / np.where(length == 0, 1, length)
    return units


def _lengths(x: Vectors) -> Scores:
    """Return the vectors' lengths.

    They are computed in float32 where it can hold the squares, else in float64, which holds those
    of every float32.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", x, x)).astype(np.float64)
        odd = ~_usual(lengths)
        if odd.any():
            lengths[odd] = np.sqrt(np.sum(x[odd].astype(np.float64) ** 2, axis=1))
    return lengths


def _usual(lengths: Scores) -> NDArray[np.bool_]:
    return (lengths > 1e-15) & (lengths < 1e15)


def exact_scores(name: str, query: Vectors, rows: Vectors) -> Scores:
    """Score rows [N, dim] in float64 against one query [dim] or against one per row [N, dim].

    A row's score depends on nothing but the row and its query.
    """
    scores = np.empty(len(rows))
    for start in range(0, len(rows), EXACT_ROWS):
        # In C order: NumPy adds the values of other layouts in another order.
        b = rows[start : start + EXACT_ROWS].astype(np.float64, order="C")
        a = (query[start : start + EXACT_ROWS] if query.ndim == 2 else query[None]).astype(np.float64)
        if name == "euclidean":
            score = -np.sqrt(np.sum((a - b) ** 2, axis=-1))
        elif name == "manhattan":
            score = -np.sum(np.abs(a - b), axis=-1)
        else:
            score = np.sum(a * b, axis=-1)
            if name == "cosine":
                length = np.sqrt(np.sum(a * a, axis=-1)) * np.sqrt(np.sum(b * b, axis=-1))
                score /= np.where(length == 0, 1, length)
        scores[start : start + EXACT_ROWS] = score
    # Rounded to float32 where it can hold them: cosines that only rounding tells apart are equal.
    with np.errstate(over="ignore"):
        rounded = scores.astype(np.float32).astype(np.float64)
    return np.where(np.isfinite(rounded), rounded, scores)


def semantic_search(
    queries: ArrayLike,
    corpus: ArrayLike,
    top_k: int = 10,
    *,
    score_function: str = "cosine",
    corpus_precision: str = "float32",
    ranges: ArrayLike | None = None,
    rescore_embeddings: Any = None,
    rescore_multiplier: int = 4,
) -> list[list[dict[str, Any]]]:
    """Find the most similar rows of a corpus for each query, best first.

    Args:
        queries: Float vectors [Q, dim], or one [dim].
        corpus: The vectors to search, [N, dim], read in blocks: an array, or a memory-mapped file. Rows of
            "binary" and "ubinary" hold 8 dimensions per byte.
        top_k: Number of results per query; all N if there are fewer.
        score_function: "cosine", "dot", "euclidean" or "manhattan". Quantised corpora are searched by
            "cosine" or "dot".
        corpus_precision: How the corpus was quantised (see `quantize_embeddings`). int8 and uint8 rows are
            scored with the middle of each step. binary rows are searched by Hamming distance; the nearest
            rescore_multiplier * top_k are scored again as rows of +1 and -1.
        ranges: The ranges [2, dim] that an int8 or uint8 corpus was quantised with.
        rescore_embeddings: Float vectors [N, dim], such as a memory-mapped file, to score the nearest
            rescore_multiplier * top_k rows of a quantised search again.
        rescore_multiplier: See corpus_precision and rescore_embeddings.

    Returns:
        One list per query of {"corpus_id": row, "score": number}. Equal scores keep the corpus' order.

    Raises:
        TypeError: The corpus has another dtype than corpus_precision says.
        ValueError: Shapes do not fit, or vectors are not finite.
    """
    queries_QD = as_matrix(queries, "queries")
    corpus_ND = _sliceable(corpus)
    rescore = None if rescore_embeddings is None else _sliceable(rescore_embeddings)
    _check_search(queries_QD, corpus_ND, score_function, corpus_precision, rescore)

    def blocks() -> Iterator[Any]:
        rows = BLOCK_ROWS
        return (corpus_ND[first : first + rows] for first in range(0, len(corpus_ND), rows))

    return search_blocks(
        queries_QD,
        blocks,
        top_k,
        score_function,
        (corpus_precision, ranges),
        corpus_ND.__getitem__,
        None if rescore is None else rescore.__getitem__,
        rescore_multiplier,
    )


def search_blocks(
    queries: Vectors,
    blocks: Callable[[], Iterable[Any]],
    top_k: int,
    score_function: str,
    stored: Stored,
    rows: Callable[[NDArray[np.int64]], Any],
    rescore: Callable[[NDArray[np.int64]], Any] | None = None,
    rescore_multiplier: int = 4,
    what: str = "corpus row",
) -> list[list[dict[str, Any]]]:
    """Search a corpus that is read block by block, as `semantic_search` does.

    Args:
        queries: Float vectors [Q, dim].
        blocks: Returns an iterator over all rows of the corpus, in order.
        top_k: As for semantic_search.
        score_function: As for semantic_search.
        stored: The corpus' precision and ranges.
        rows: Returns the rows of the corpus with these numbers.
        rescore: Returns float vectors of the rows with these numbers, to score them again.
        rescore_multiplier: As for semantic_search.
        what: What errors call a row.
    """
    top_k, multiplier = positive("top_k", top_k), positive("rescore_multiplier", rescore_multiplier)
    precision, ranges = stored
    bits = precision.endswith("binary")
    exact = precision == "float32" or not (bits or rescore is not None)
    results = []
    for start in range(0, len(queries), QUERIES):
        some = queries[start : start + QUERIES]
        nearest = Nearest(some, top_k if exact else top_k * multiplier, score_function, stored, what)
        nearest.add_all(blocks())
        for query, (ids, scores) in zip(some, nearest.found, strict=True):
            if not exact:
                if rescore is None:
                    vectors = values_of(rows(ids), precision, ranges, len(query))
                else:
                    vectors = as_matrix(rescore(ids)).reshape(-1, len(query))
                    check_finite(vectors, "row of rescore_embeddings", numbers=ids)
                scores = exact_scores(score_function, query, vectors)
                order = np.lexsort((ids, -scores))[:top_k]
                ids, scores = ids[order], scores[order]
            results.append(
                [{"corpus_id": int(i), "score": float(s)} for i, s in zip(ids, scores, strict=True)]
            )
    return results


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
        self._sizes = np.ones(len(queries)) if cosine else _lengths(queries)
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
                return self._units @ rows.T, _lengths(rows)
        products, squares = self.scanned(block)
        lengths = np.sqrt(squares.astype(np.float64))
        if (odd := ~_usual(lengths)).any():
            lengths[odd] = _lengths(self._values(block[odd]))
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


def _check_search(queries: Vectors, corpus: Any, score_function: str, precision: str, rescore: Any) -> None:
    """Raise ValueError or TypeError for arguments of semantic_search that do not fit together."""
    check_similarity(score_function)
    if precision not in VECTOR_PRECISIONS:
        raise ValueError(f"corpus_precision {precision!r} is not one of {', '.join(VECTOR_PRECISIONS)}")
    if precision != "float32" and score_function not in ("cosine", "dot"):
        raise ValueError(f"a corpus of {precision} is searched by cosine or dot, not by {score_function}")
    dim = queries.shape[1]
    columns = -(-dim // 8) if precision.endswith("binary") else dim
    if corpus.ndim != 2 or corpus.shape[1] != columns:
        raise ValueError(
            f"queries of {dim} dimensions need a {precision} corpus [N, {columns}], "
            f"found {list(corpus.shape)}"
        )
    stored = STORED_AS[precision]
    if precision != "float32" and corpus.dtype != stored:
        raise TypeError(f"a corpus of {precision} is an array of {stored}, found {corpus.dtype}")
    if precision == "float32":
        as_matrix(corpus[:0], "the corpus' vectors")
    if rescore is not None:
        if rescore.shape != (len(corpus), dim):
            raise ValueError(
                f"rescore_embeddings must be [{len(corpus)}, {dim}], found {list(rescore.shape)}"
            )
        as_matrix(rescore[:0], "rescore_embeddings")


def _sliceable(x: Any) -> Any:
    """Return what can be sliced: arrays and files as they are, read row by row; lists as arrays."""
    return x if isinstance(getattr(x, "dtype", None), np.dtype) else np.asarray(x)


def positive(name: str, value: Any) -> int:
    """Return the value as an int, or raise ValueError that calls it `name`."""
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a positive integer, found {value!r}")
    return number


def _array(x: Any, what: str) -> NDArray[Any]:
    if np.ma.isMaskedArray(x):
        raise TypeError(f"{what} are a masked array: drop the rows that are masked, or fill them")
    return np.asarray(x)


def check_finite(rows: Vectors, what: str, first: int = 0, numbers: Any = None) -> None:
    """Raise ValueError for the first row that is not finite.

    Args:
        rows: The rows.
        what: What the error calls a row.
        first: The number of the first row.
        numbers: The numbers of all rows, if they are not consecutive.
    """
    good = np.isfinite(rows).all(axis=1)
    if not good.all():
        bad = int(np.argmin(good))
        number = first + bad if numbers is None else int(numbers[bad])
        raise ValueError(
            f"{what} {number} holds a NaN, an infinity, or a number too large for float32: drop it, or "
            "compute that vector again"
        )


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
