"""Minutes of everything at once, and every answer checked: does `qwen3np serve` stay right, whole and small?

    python benchmarks/soak.py --model DIR [--reranker DIR] [--minutes 10] [--clients 64]

Clients ask all routes at random, for one text or many, short or long; some hang up in the middle of what they
send or wait for; bursts go beyond what the server takes at a time. The vectors and scores that may come back
are computed before, offline: an answer's bits are theirs or it is wrong. A request is lost if nothing comes
back, or what no client should get. At the end comes SIGTERM while requests are under way: each of them must
be answered. Exit status 1 if anything fell short; with 10 minutes or more, writes results/soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from load import Connection, Reply, get, post
from machine import about
from report import markdown
from server import prompt_of
from server_runs import many_words
from servers import Server, ours
from workers import say
from workloads import VOCABULARY, sentences

from qwen3np import Embedder, Reranker
from qwen3np.files.atomic import write_file
from qwen3np.loading.tokenizer import EmbeddingTokenizer

RESULTS = Path(__file__).parent / "results" / "soak.json"
WHOLE = 10.0  # minutes of a run that is kept
ROOM = 50.0  # MB that the server may grow by after the first minute
AT_ONCE = 128  # requests the server takes; a burst is half as many again
SAMPLE = 5.0  # seconds between looks at its memory
PATIENCE = 900.0  # seconds until an answer counts as lost
SETTLED = 1.0  # seconds after which a request that was sent is the server's
LEAVE = 0.05  # of requests whose client hangs up
DIMENSIONS = 64
REFUSED = b"{", b'{"inputs": []}', b'{"inputs": NaN}', b'{"inputs": ["\\ud800"]}'
TEXTS, PAIRS = 120, 40
INSTRUCTION = "Find what answers the question"


class Ask(NamedTuple):
    """A request, and what says whether its answer is right."""

    route: str
    request: bytes
    right: Callable[[Reply], bool]


class Expected:
    """The texts, their vectors and scores, and requests made of them."""

    def __init__(self, model: Path, reranker: Path | None, seed: int) -> None:
        rng = np.random.default_rng(seed)
        tokenizer = EmbeddingTokenizer(model / "tokenizer.json", VOCABULARY + 669)
        sentence = sentences(tokenizer, rng, many_words(500))
        lengths = np.clip(np.exp(rng.normal(3.3, 0.9, TEXTS)), 4, 400).astype(int)
        lengths[:: TEXTS // 4] = 1200  # more than a step's tokens: a lane of its own
        self.texts = [sentence(int(length)) for length in lengths]
        self.short = [i for i, length in enumerate(lengths) if length < 40]
        embedder = Embedder(model)
        prompt = prompt_of(model, "query")
        self.vectors = {
            "": embedder.encode(self.texts), "query": embedder.encode(self.texts, prompt=prompt),
            "instruction": embedder.encode(self.texts, instruction=INSTRUCTION),
        }  # fmt: skip
        self.cut = embedder.encode(self.texts, truncate_dim=DIMENSIONS)
        short = [self.texts[i] for i in self.short]
        tokens = embedder.encode(short, output_value="token_embeddings")
        self.tokens = dict(zip(self.short, tokens, strict=True))
        self.ids = tokenizer.encode(self.texts, 32768)
        self.scores: dict[tuple[int, int], np.float32] = {}
        if reranker:
            queries, documents = self.short[: PAIRS // 10], range(PAIRS // 4, TEXTS, TEXTS // 10)
            asked = [(q, d) for q in queries for d in documents if len(self.ids[d]) < 400]
            texts = [(self.texts[q], self.texts[d]) for q, d in asked]
            self.scores = dict(zip(asked, Reranker(reranker).predict(texts, raw_scores=True), strict=True))

    def ask(self, rng: random.Random, most: int = 32) -> Ask:
        """Return a request of some kind, of up to so many texts."""
        kinds: list[Callable[[random.Random, int], Ask]] = [
            self.embed, self.embed, self.openai, self.openai, self.ollama, self.embed_all, self.similarity,
            self.tokenize, self.about, self.refused,
        ]  # fmt: skip
        if self.scores:
            kinds += [self.rerank] * 3
        return rng.choice(kinds)(rng, most)

    def some(self, rng: random.Random, most: int) -> list[int]:
        """Choose texts: mostly one, rarely many."""
        return rng.choices(range(TEXTS), k=rng.choice([1, 1, 1, rng.randint(1, most)]))

    def embed(self, rng: random.Random, most: int) -> Ask:
        chosen = self.some(rng, most)
        how = rng.choice(["", "query", "instruction", "cut"])
        more = {
            "": {}, "query": {"prompt_name": "query"}, "instruction": {"instruction": INSTRUCTION},
            "cut": {"dimensions": DIMENSIONS},
        }  # fmt: skip
        vectors = (self.cut if how == "cut" else self.vectors[how])[chosen]
        body = {"inputs": [self.texts[i] for i in chosen]} | more[how]
        return Ask("/embed", post("/embed", body), lambda reply: same(reply.json(), vectors))

    def openai(self, rng: random.Random, most: int) -> Ask:
        chosen = self.some(rng, most)
        coded = rng.random() < 0.5
        body = {"input": [self.texts[i] for i in chosen], "model": "any"}

        def right(reply: Reply) -> bool:
            found = [row["embedding"] for row in reply.json()["data"]]
            if coded:
                found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
            return same(found, self.vectors[""][chosen])

        body |= {"encoding_format": "base64" if coded else "float"}
        return Ask("/v1/embeddings", post("/v1/embeddings", body), right)

    def ollama(self, rng: random.Random, most: int) -> Ask:
        chosen = self.some(rng, most)
        body = {"input": [self.texts[i] for i in chosen], "model": "any"}
        vectors = self.vectors[""][chosen]
        return Ask("/api/embed", post("/api/embed", body), lambda r: same(r.json()["embeddings"], vectors))

    def embed_all(self, rng: random.Random, most: int) -> Ask:
        i = rng.choice(self.short)
        body = {"inputs": self.texts[i]}
        return Ask("/embed_all", post("/embed_all", body), lambda r: same(r.json()[0], self.tokens[i]))

    def similarity(self, rng: random.Random, most: int) -> Ask:
        """Products of unit vectors; their sums may be taken in another order, and are not vectors."""
        first, *others = rng.choices(range(TEXTS), k=4)
        vectors = self.vectors[""]
        inputs = {"source_sentence": self.texts[first], "sentences": [self.texts[i] for i in others]}
        return Ask(
            "/similarity", post("/similarity", {"inputs": inputs}),
            lambda r: bool(np.allclose(r.json(), vectors[others] @ vectors[first], atol=1e-5)),
        )  # fmt: skip

    def tokenize(self, rng: random.Random, most: int) -> Ask:
        i = rng.randrange(TEXTS)
        body = {"inputs": self.texts[i]}
        return Ask(
            "/tokenize", post("/tokenize", body), lambda r: [t["id"] for t in r.json()[0]] == self.ids[i]
        )

    def rerank(self, rng: random.Random, most: int) -> Ask:
        query = rng.choice(list(self.scores))[0]
        known = [d for q, d in self.scores if q == query]
        chosen = rng.choices(known, k=rng.choice([1, 1, rng.randint(1, most)]))
        body = {"query": self.texts[query], "texts": [self.texts[d] for d in chosen], "raw_scores": True}

        def right(reply: Reply) -> bool:
            found = {row["index"]: row["score"] for row in reply.json()}
            return same([found[n] for n in range(len(chosen))], [self.scores[query, d] for d in chosen])

        return Ask("/rerank", post("/rerank", body), right)

    def about(self, rng: random.Random, most: int) -> Ask:
        path = rng.choice(["/health", "/info", "/metrics", "/v1/models"])
        return Ask(path, get(path), lambda reply: reply.status == 200)

    def refused(self, rng: random.Random, most: int) -> Ask:
        """Requests that are wrong: a 4xx says so, and the connection serves the next."""
        body = rng.choice(
            [b"{", b'{"inputs": []}', b'{"inputs": NaN}', b'{"inputs": ["\\ud800"]}', b"[" * 10000]
        )
        return Ask("refused", post("/embed", body), lambda reply: 400 <= reply.status < 500)


def same(found: Any, expected: Any) -> bool:
    """Say whether the bits are the same."""
    return np.array_equal(np.asarray(found, np.float32), np.asarray(expected, np.float32))


class Soak:
    """The clients of a server, and what became of their requests."""

    def __init__(self, server: Server, expected: Expected, seed: int) -> None:
        self.server, self.expected, self.rng = server, expected, random.Random(seed)
        self.answered: Counter[str] = Counter()  # by route
        self.busy = self.left = 0
        self.lost: list[str] = []
        self.wrong: list[str] = []
        self.memory: list[tuple[float, float]] = []  # (seconds since the start, MB)
        self.longest = 0.0

    async def client(self, end: float) -> None:
        """Ask until the end, mostly on one connection; wait a little after a 429, as clients do."""
        connection = await Connection.open(self.server.port)
        while time.monotonic() < end:
            ask, busy = self.expected.ask(self.rng), self.busy
            if self.rng.random() < LEAVE:
                await self.hang_up(connection, ask)
                connection = await Connection.open(self.server.port)
            elif not await self.tell(connection, ask):
                connection.abort()
                connection = await Connection.open(self.server.port)
            if self.busy > busy:
                await asyncio.sleep(self.rng.random())
        connection.abort()

    async def hang_up(self, connection: Connection, ask: Ask) -> None:
        """Send a request, or a part of it, and leave before the answer is there."""
        whole = self.rng.random() < 0.7
        connection.writer.write(ask.request if whole else ask.request[: len(ask.request) // 2])
        with contextlib.suppress(OSError):
            await connection.writer.drain()
        await asyncio.sleep(self.rng.choice([0, 0.02, 0.5]))
        connection.abort()
        self.left += 1

    async def tell(self, connection: Connection, ask: Ask) -> bool:
        """Ask and note what came back; say whether the connection can be used again."""
        try:
            reply = await asyncio.wait_for(connection.ask(ask.request), PATIENCE)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            self.lost.append(f"{ask.route}: {type(error).__name__} {error}")
            return False
        self.longest = max(self.longest, reply.seconds)
        self.note(ask, reply)
        return reply.headers.get("connection", "").lower() != "close"

    def note(self, ask: Ask, reply: Reply) -> None:
        """Count an answer: right, wrong, 429, or one that nobody should get."""
        if reply.status == 429:
            self.busy += 1
            if "retry-after" not in reply.headers:
                self.lost.append(f"{ask.route}: 429 without Retry-After")
        elif reply.status >= 500 or (reply.status >= 400 and ask.route != "refused"):
            self.lost.append(f"{ask.route}: {reply.status} {reply.body[:200].decode(errors='replace')}")
        else:
            self.answered[ask.route] += 1
            try:
                right = ask.right(reply)
            except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
                right = False
                say(f"{ask.route}: {error}")
            if not right:
                self.wrong.append(f"{ask.route}: {reply.status} {reply.body[:200].decode(errors='replace')}")

    async def bursts(self, end: float, pause: float) -> None:
        """More requests at once than the server takes: each is answered or told to come again."""

        async def one() -> None:
            connection = await Connection.open(self.server.port)
            await self.tell(connection, self.expected.embed(self.rng, 2))
            connection.abort()

        while time.monotonic() + pause < end:
            await asyncio.sleep(pause)
            await asyncio.gather(*(one() for _ in range(AT_ONCE + AT_ONCE // 2)))

    async def watch(self, end: float) -> None:
        """Look at the server's memory every few seconds."""
        start = time.monotonic()
        while (now := time.monotonic()) < end:
            self.memory.append((now - start, self.server.memory()))
            await asyncio.sleep(min(SAMPLE, max(0.0, end - now)))

    async def load(self, seconds: float, clients: int) -> None:
        """All of them together."""
        end = time.monotonic() + seconds
        asking = [self.client(end) for _ in range(clients)]
        await asyncio.gather(self.watch(end), self.bursts(end, min(30.0, seconds / 5)), *asking)
        self.memory.append((seconds, self.server.memory()))

    async def shut_down(self, clients: int) -> tuple[int, int | None]:
        """SIGTERM while all clients wait: (how many waited, exit status).

        What they ask for takes seconds together. Others who come after the signal may be refused; whoever is
        answered gets what is right.
        """
        size = 8
        while True:  # until what a wave asks for takes some seconds
            start = time.monotonic()
            connection = await Connection.open(self.server.port)
            chosen = self.rng.choices(range(TEXTS), k=size)
            body = {"inputs": [self.expected.texts[i] for i in chosen]}
            (await connection.ask(post("/embed", body))).json()
            connection.abort()
            if size >= 2048 or (time.monotonic() - start) * clients > 8 * SETTLED:
                break
            size *= 2
        waiting = 0

        async def one() -> None:
            nonlocal waiting
            connection = await Connection.open(self.server.port)
            waiting += 1
            chosen = self.rng.choices(range(TEXTS), k=size)
            body = post("/embed", {"inputs": [self.expected.texts[i] for i in chosen]})
            vectors = self.expected.vectors[""][chosen]
            await self.tell(connection, Ask("/embed", body, lambda reply: same(reply.json(), vectors)))
            waiting -= 1
            connection.abort()

        async def late() -> None:
            with contextlib.suppress(OSError, EOFError, asyncio.TimeoutError):
                connection = await Connection.open(self.server.port)
                ask = self.expected.embed(self.rng, 2)
                reply = await asyncio.wait_for(connection.ask(ask.request), PATIENCE)
                if reply.status == 200:
                    self.note(ask, reply)

        wave = [asyncio.create_task(one()) for _ in range(clients)]
        await asyncio.sleep(SETTLED)
        under_way = waiting
        self.server.terminate()
        await asyncio.sleep(0.1)
        await asyncio.gather(*wave, *(late() for _ in range(8)))
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self.server.process.wait, 60)
        return under_way, self.server.process.poll()

    def grown(self) -> tuple[float, float, float]:
        """(MB after the first minute, the most after it, at the end); in a short run, after its half."""
        half = min(60.0, self.memory[-1][0] / 2)
        later = [mb for at, mb in self.memory if at >= half]
        return later[0], max(later), later[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--reranker", type=Path)
    parser.add_argument("--minutes", type=float, default=WHOLE)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    say("what is right")
    expected = Expected(args.model, args.reranker, args.seed)
    models = [args.model, *([args.reranker] if args.reranker else [])]
    server = Server(ours(*models, options=["--max-concurrent-requests", str(AT_ONCE)]))
    soak = Soak(server, expected, args.seed)
    try:
        say("load")
        asyncio.run(soak.load(60 * args.minutes, args.clients))
        say("SIGTERM")
        under_way, status = asyncio.run(soak.shut_down(args.clients))
        printed = server.printed()
    finally:
        server.stop()
    first, most, last = soak.grown()
    shown = {
        "requests answered": (sum(soak.answered.values()), True),
        "wrong": (len(soak.wrong), not soak.wrong),
        "lost": (len(soak.lost), not soak.lost),
        "429, with Retry-After": (soak.busy, soak.busy > 0),
        "clients that hung up": (soak.left, soak.left > 0),
        "longest answer, s": (round(soak.longest, 1), True),
        "memory after the first minute, MB": (round(first), True),
        "most after it, MB": (round(most), most - first <= ROOM),
        "at the end, MB": (round(last), last - first <= ROOM),
        "under way at SIGTERM": (under_way, under_way > 0),
        "exit status": (status, status in (0, -signal.SIGTERM)),
        "tracebacks in the log": (printed.count("Traceback"), "Traceback" not in printed),
    }
    rows = [[what, str(value), "" if holds else "FALLS SHORT"] for what, (value, holds) in shown.items()]
    title = f"{args.model.name}, {args.clients} clients, {args.minutes:g} minutes"
    print(markdown([title, "", ""], rows))
    print("\n" + ", ".join(f"{route} {count}" for route, count in sorted(soak.answered.items())))
    for kind, examples in (("wrong", soak.wrong), ("lost", soak.lost)):
        for example, count in Counter(examples).most_common(5):
            print(f"{kind}: {count} x {example}")
    if args.minutes >= WHOLE:
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found[args.model.name] = {
            "about": about(0), "minutes": args.minutes, "clients": args.clients, "memory": soak.memory,
            "figures": {what: value for what, (value, _) in shown.items()}, "routes": dict(soak.answered),
        }  # fmt: skip
        write_file(RESULTS, json.dumps(found, indent=1).encode() + b"\n")
    sys.exit(0 if all(holds for _, holds in shown.values()) else 1)


if __name__ == "__main__":
    main()
