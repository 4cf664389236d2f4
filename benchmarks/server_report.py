"""The tables of benchmarks/results/server.json, and what the server has to hold."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from pairs import Ratio
from report import markdown, number
from server_runs import TOKENS

FEW, MANY, LONG = 16, 64, 4096  # clients; tokens of the text that queries meet
ONE, NOTHING, NEW = "one query", "one query, nothing kept", "a new instruction each"
BARS = {"encode": 0.85, "overhead": 3.0, "throughput": 2.0, "latency": 2.0, "prefix": 3.0}
Row = dict[str, Any]


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Title -> table, of what was measured: results as they are in the file."""
    made = {"throughput": throughput, "alone": alone, "mixed": mixed, "rerank": reranking}
    titles = {
        "throughput": "Throughput", "alone": "One client", "mixed": "Queries beside long texts",
        "rerank": "Reranking, one document per request",
    }  # fmt: skip
    shown = {titles[part]: table(results[part]) for part, table in made.items() if part in results}
    return shown | {"Bars": markdown(["", "wanted", "measured", ""], list(bars(results)))}


def throughput(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        cells = [row["contender"], number(row["texts"] / row["median"])]
        cells += [*latency(row), f"{row['client, ms']:.2f}"] if "latency" in row else ["", "", ""]
        far = "same bits" if is_ours(row) else f"1 - cosine {row['1 - cosine']:.0e}"
        lines.append([*cells, against(row), str(len(row["seconds"])), far])
    header = [
        f"{TOKENS}-token queries", "texts/s", "latency, ms: median", "95 %", "client's core, ms per request",
        f"{FEW} clients of ours are so many times as fast", "rounds", "vectors",
    ]  # fmt: skip
    return markdown(header, lines)


def alone(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        over = overhead(row) if "overhead" in row else ""
        lines.append([row["contender"], *latency(row), over, against(row), str(row["requests"])])
    header = [
        "one at a time",
        "ms: median",
        "95 %",
        "over encode, ms",
        "ours, times as fast",
        "texts",
    ]
    return markdown(header, lines)


def mixed(found: dict[str, Any]) -> str:
    names = {
        "alone": "alone",
        "with": f"with {found['long texts']} texts of {LONG} tokens, {found['a long text, s']:.1f} s each",
    }
    lines = [
        [name, *latency({"latency": found[kind]}), number(found[kind]["max"]), str(found["refused"][kind])]
        for kind, name in names.items()
    ]
    header = [
        f"{found['queries per second']:.1f} queries per second",
        "ms: median",
        "95 %",
        "longest",
        "refused",
    ]
    return markdown(header, lines)


def reranking(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        cells = [str(row["document"]), f"{row['tokens']:.0f}"]
        cells += [number(1e3 * statistics.median(row["seconds"][kind])) for kind in (ONE, NOTHING, NEW)]
        cells += [str(Ratio(*row["ratios"][kind])) for kind in (NOTHING, NEW)]
        lines.append([*cells, f"{len(row['seconds'][ONE])} of {row['requests']}"])
    header = [
        "tokens of a document", "of its pair", f"ms per request: {ONE}", NOTHING, NEW,
        "times as fast as with nothing kept", "as with new instructions", "rounds of requests",
    ]  # fmt: skip
    return markdown(header, lines)


def bars(results: dict[str, Any]) -> Iterator[list[str]]:
    """Yield what the server was made to hold: (what, wanted, measured, whether it holds)."""
    for row in results.get("throughput", []):
        for mine, found in row["ratios"].items():
            same = mine.split(",")[0] == row["contender"].split(",")[0]
            if same and ", encode" in row["contender"]:
                yield at_least("encode", f"{mine} / encode", Ratio(*found))
            elif not is_ours(row):
                yield at_least("throughput", f"{mine} / {row['contender']}", Ratio(*found))
    for row in results.get("alone", []):
        if "overhead" in row:
            holds = row["overhead"][0] < BARS["overhead"]
            what, wanted = f"{row['contender']}: over encode, ms", f"below {BARS['overhead']:g}"
            yield [what, wanted, overhead(row), verdict(holds)]
        for mine, found in row["ratios"].items():
            if not is_ours(row):
                yield at_least("latency", f"latency of {row['contender']} / {mine}", Ratio(*found))
    for row in results.get("rerank", [])[:1]:
        what = f"reranking documents of {row['document']} tokens / {NOTHING}"
        yield at_least("prefix", what, Ratio(*row["ratios"][NOTHING]))


def at_least(bar: str, what: str, found: Ratio) -> list[str]:
    return [what, f"at least {BARS[bar]:g}", str(found), verdict(found.median >= BARS[bar])]


def verdict(holds: bool) -> str:
    return "holds" if holds else "FALLS SHORT"


def is_ours(row: Row) -> bool:
    return bool(row["contender"].startswith("qwen3np"))


def against(row: Row) -> str:
    return "; ".join(f"{mine.split(',')[0]} {Ratio(*found)}" for mine, found in row["ratios"].items())


def overhead(row: Row) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*row["overhead"])


def latency(row: Row) -> list[str]:
    return [number(row["latency"]["median"]), number(row["latency"]["p95"])]
