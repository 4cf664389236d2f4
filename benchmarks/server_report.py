"""The tables of benchmarks/results/server.json, and what the server has to hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pairs
from report import markdown, number
from server_runs import TOKENS

FEW, MANY, LONG = 16, 64, 4096  # clients; tokens of the text that queries meet
ONE, NOTHING, NEW = "one query", "one query, nothing kept", "a new instruction each"
BARS = {"of encode": 0.85, "overhead, ms": 3.0, "throughput": 2.0, "latency": 2.0, "kept prefix": 3.0}


def against(row: dict[str, Any]) -> str:
    return "; ".join(f"{ours.split(',')[0]} {pairs.Ratio(*r)}" for ours, r in row["ratios"].items())


def latency(found: dict[str, float]) -> list[str]:
    return [number(found["median"]), number(found["p95"])]


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Title -> table, of results as they are in the file."""
    made = {}
    lines = []
    for row in results["throughput"]:
        served = [*latency(row["latency"]), f"{row['client, ms']:.2f}"] if "latency" in row else ["", "", ""]
        far = "same bits" if row["contender"].startswith("qwen3np") else f"1 - cosine {row['1 - cosine']:.0e}"
        rate = number(row["texts"] / row["median"])
        lines.append([row["contender"], rate, *served, against(row), str(len(row["seconds"])), far])
    header = [
        f"{TOKENS}-token queries", "texts/s", "latency, ms: median", "95 %", "client's core, ms/request",
        f"{FEW} clients are so many times as fast", "rounds", "vectors",
    ]  # fmt: skip
    made["Throughput"] = markdown(header, lines)
    lines = []
    for row in results["alone"]:
        over = "{:.2f} ({:.2f} to {:.2f})".format(*row["overhead"]) if "overhead" in row else ""
        lines.append([row["contender"], *latency(row["latency"]), over, against(row), str(row["requests"])])
    header = [
        "one at a time",
        "ms: median",
        "95 %",
        "over encode, ms",
        "ours is so many times as fast",
        "texts",
    ]
    made["One client"] = markdown(header, lines)
    if mixed := results.get("mixed"):
        long = f"with {mixed['long texts']} texts of {LONG} tokens, {mixed['a long text, s']:.1f} s each"
        lines = [
            [n, *latency(mixed[k]), number(mixed[k]["max"])] for k, n in (("alone", "alone"), ("with", long))
        ]
        header = [f"{mixed['queries per second']:.1f} queries per second", "ms: median", "95 %", "longest"]
        made["Queries beside long texts"] = markdown(header, lines)
    if "rerank" in results:
        lines = []
        for row in results["rerank"]:
            shown = [str(row["document"]), f"{row['tokens']:.0f}"]
            shown += [number(1e3 * statistics.median(row["seconds"][kind])) for kind in (ONE, NOTHING, NEW)]
            shown += [str(pairs.Ratio(*row["ratios"][kind])) for kind in (NOTHING, NEW)]
            lines.append([*shown, f"{len(row['seconds'][ONE])} of {row['requests']}"])
        header = [
            "tokens of a document", "of its pair", f"ms per request: {ONE}", NOTHING, NEW,
            "times as fast as with nothing kept", "as with new instructions", "rounds of requests",
        ]  # fmt: skip
        made["Reranking, one document per request"] = markdown(header, lines)
    made["Bars"] = markdown(["", "wanted", "measured", ""], list(bars(results)))
    return made


def bars(results: dict[str, Any]) -> Iterator[list[str]]:
    """What the server was made to hold."""

    def line(what: str, key: str, measured: float, shown: str, holds: bool) -> list[str]:
        wanted = f"{'below' if key == 'overhead, ms' else 'at least'} {BARS[key]:g}"
        return [what, wanted, shown, "holds" if holds else "FALLS SHORT"]

    def of(rows: list[dict[str, Any]], keep: Callable[[str], bool]) -> Iterator[tuple[str, str, pairs.Ratio]]:
        for row in rows:
            if keep(row["contender"]):
                yield from ((row["contender"], o, pairs.Ratio(*r)) for o, r in row["ratios"].items())

    for name, mine, ratio in of(results["throughput"], lambda n: n.endswith("encode")):
        if name.split(",")[0] == mine.split(",")[0]:
            yield line(
                f"{mine} / encode", "of encode", ratio.median, str(ratio), ratio.median >= BARS["of encode"]
            )
    for row in results["alone"]:
        if "overhead" in row:
            over = row["overhead"]
            shown = "{:.2f} ({:.2f} to {:.2f})".format(*over)
            what = f"{row['contender']}: over encode, ms"
            yield line(what, "overhead, ms", over[0], shown, over[0] < BARS["overhead, ms"])
    for part, key in (("throughput", "throughput"), ("alone", "latency")):
        for name, mine, ratio in of(results[part], lambda n: not n.startswith("qwen3np")):
            yield line(f"{mine} / {name}", key, ratio.median, str(ratio), ratio.median >= BARS[key])
    for row in results.get("rerank", [])[:1]:
        ratio = pairs.Ratio(*row["ratios"][NOTHING])
        what = f"reranking documents of {row['document']} tokens: the prefix kept / {NOTHING}"
        yield line(what, "kept prefix", ratio.median, str(ratio), ratio.median >= BARS["kept prefix"])
