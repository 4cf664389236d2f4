"""How long a search of a million vectors takes, a query at a time and a hundred, and what it finds.

    python benchmarks/search.py          a million rows of 1024 and 256 dimensions; writes results/search.json
    python benchmarks/search.py 50000    so many rows; only prints

The corpus is generated: rows near 1000 centres, with variances that fall off as those of embeddings do. It is
a memory-mapped file (4 GB, removed at the end) that the page cache holds: the first search of a process reads
a file from disk, or maps its pages, and is not timed. usearch's graph is built of the first 100,000 rows at
most, which takes a minute; its rows of the table are of so many.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import about, describe
from report import markdown

from qwen3np import quantization_ranges, quantize_embeddings, semantic_search
from qwen3np.runtime.cores import usable_cores
from qwen3np.similarity import unit

RESULTS = Path(__file__).parent / "results" / "search.json"
ROWS, DIMS, QUERIES, TOP_K, GRAPH_ROWS = 1_000_000, (1024, 256), 100, 10, 100_000
HEADER = ["corpus", "dimensions", "rows", "GB", "ms, one query", "ms a query of 100", "of the 10 nearest"]
PACKAGES = ("qwen3np", "numpy", "numba", "usearch")
Search = Callable[[np.ndarray], list[list[dict[str, Any]]]]


def rows_of(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    dim = centres.shape[1]
    noise = rng.standard_normal((count, dim), np.float32)
    spread = np.float32(1) / np.sqrt(1 + np.arange(dim, dtype=np.float32) / 32)
    return unit(centres[rng.integers(len(centres), size=count)] + noise * spread)


def generate(path: Path, rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The queries, and the corpus in a file."""
    rng = np.random.default_rng(dim)
    centres = rng.standard_normal((1000, dim), np.float32)
    corpus = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    for start in range(0, rows, 1 << 14):
        corpus[start : start + (1 << 14)] = rows_of(rng, centres, min(1 << 14, rows - start))
    return rows_of(rng, centres, QUERIES), np.load(path, mmap_mode="r")


def corpora(corpus: np.ndarray) -> Iterator[tuple[str, int, float, Search]]:
    """Name, rows, gigabytes that a query reads, and the search."""
    rows = len(corpus)
    yield "float32, exact", rows, corpus.nbytes / 1e9, lambda q: semantic_search(q, corpus, TOP_K)
    ranges = quantization_ranges(corpus[:100_000])
    for precision in ("int8", "ubinary"):
        blocks = [
            quantize_embeddings(corpus[start : start + (1 << 16)], precision, ranges)
            for start in range(0, rows, 1 << 16)
        ]
        packed = np.concatenate(blocks)
        del blocks
        options: dict[str, Any] = {"corpus_precision": precision, "ranges": ranges}
        size = packed.nbytes / 1e9
        yield precision, rows, size, lambda q: semantic_search(q, packed, TOP_K, **options)  # noqa: B023
        options = options | {"rescore_embeddings": corpus}
        yield f"{precision}, rescored", rows, size, lambda q: semantic_search(q, packed, TOP_K, **options)  # noqa: B023
    yield graph(corpus[:GRAPH_ROWS])


def graph(corpus: np.ndarray) -> tuple[str, int, float, Search]:
    from usearch.index import Index

    index = Index(ndim=corpus.shape[1], metric="cos", dtype="f32")
    index.add(np.arange(len(corpus)), np.asarray(corpus))

    def search(queries: np.ndarray) -> list[list[dict[str, Any]]]:
        return [[{"corpus_id": int(key)} for key in index.search(query, TOP_K).keys] for query in queries]

    return "usearch, f32", len(corpus), corpus.nbytes / 1e9, search


def milliseconds(search: Search, queries: np.ndarray, times: int) -> float:
    """The median, for all of the queries."""
    found = []
    for i in range(times + 1):
        begun = time.perf_counter()
        search(queries[i : i + 1] if len(queries) > times else queries)
        found.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(found[1:])


def ids(results: list[list[dict[str, Any]]]) -> list[set[int]]:
    return [{hit["corpus_id"] for hit in hits} for hits in results]


def measure(rows: int, dim: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        queries, corpus = generate(Path(folder) / "corpus.npy", rows, dim)
        exact: dict[int, list[set[int]]] = {}
        for name, count, size, search in corpora(corpus):
            if count not in exact:
                exact[count] = ids(semantic_search(queries, corpus[:count], TOP_K))
            begun = time.perf_counter()
            results = search(queries)
            batch = 1e3 * (time.perf_counter() - begun) / QUERIES
            hits = [len(a & b) / TOP_K for a, b in zip(exact[count], ids(results), strict=True)]
            one = milliseconds(search, queries, 9)
            yield {
                "corpus": name, "dim": dim, "rows": count, "GB": size, "one": one, "batch": batch,
                "found": statistics.mean(hits),
            }  # fmt: skip


def lines(results: dict[str, Any]) -> Iterator[list[str]]:
    for row in results["rows"]:
        yield [
            row["corpus"], str(row["dim"]), f"{row['rows']:,}", f"{row['GB']:.2f}", f"{row['one']:.1f}",
            f"{row['batch']:.1f}", f"{row['found']:.1%}",
        ]  # fmt: skip


def table(results: dict[str, Any]) -> str:
    return f"{markdown(HEADER, lines(results))}\n\n{describe(results['about'], PACKAGES)}"


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    measured = []
    for dim in DIMS:
        for row in measure(rows, dim):
            measured.append(row)
            print(*next(lines({"rows": [row]})), sep="  ", flush=True)
    results = {"about": about(usable_cores()), "rows": measured}
    if rows == ROWS:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
