"""What server.py measures: texts, and what encodes them, in a process of its own or behind HTTP."""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from load import Connection, Reply, closed_loop, connections, open_loop, post
from servers import Server
from workers import PAUSE, Worker
from workloads import WORDS, sentences

from qwen3np.loading.tokenizer import Tokenizer

TOKENS = 20  # of a query, the appended one included
CLOSE = 0.98  # cosine of a peer's vector and ours: what is below computes something else


class Texts:
    """Texts of so many tokens, new ones in each round: the same for everybody who runs in it.

    What is sent to one server twice would be a kept prefix the second time; so kinds of rounds have texts of
    their own, and their words are so many that no two begin alike by chance.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        self.tokenizer, self.kind = tokenizer, zlib.crc32(kind.encode())

    def __call__(self, turn: int, count: int, tokens: int = TOKENS - 1) -> list[str]:
        sentence = sentences(self.tokenizer, np.random.default_rng([self.kind, turn]), MANY_WORDS)
        return [sentence(tokens) for _ in range(count)]


def many_words(count: int) -> list[str]:
    """Return WORDS, and others of two or three syllables."""
    rng = np.random.default_rng(0)
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprst", "aeiou")]
    return [*WORDS, *("".join(rng.choice(syllables, rng.integers(2, 4))) for _ in range(count))]


MANY_WORDS = many_words(2000)


class Offline:
    """encode in a process that waits while others are measured."""

    def __init__(self, worker: Worker, prompt: str = "") -> None:
        self.worker, self.prompt = worker, prompt

    def encode(self, texts: Sequence[str]) -> tuple[float, np.ndarray]:
        """(seconds, vectors); raise RuntimeError if the process failed."""
        seconds, vectors = self.worker("encode_texts", list(texts), self.prompt)
        if self.worker.error:
            raise RuntimeError(self.worker.error)
        return seconds, vectors


class Served:
    """The same of a server, by so many clients."""

    def __init__(self, server: Server, peer: bool, clients: int, prompt_name: str | None = None) -> None:
        self.server, self.peer, self.clients = server, peer, clients
        self.prompt = {"prompt_name": prompt_name} if prompt_name else {}
        self.busy, self.asked = 0.0, 0  # of the clients: seconds of a core, requests
        self.latencies: list[float] = []  # of the requests

    def request(self, text: str) -> bytes:
        """Return the request of a text's vector."""
        if self.peer:
            return post("/embeddings", {"input": [text], "model": "any"})
        return post("/embed", {"inputs": text} | self.prompt)

    def vector(self, reply: Reply) -> Any:
        """Return the vector that was answered."""
        answer = reply.json()
        return answer["data"][0]["embedding"] if self.peer else answer[0]

    def forget(self) -> None:
        """Count from here on: what came before was to warm up."""
        self.busy, self.asked, self.latencies = 0.0, 0, []

    def encode(self, texts: Sequence[str]) -> tuple[float, np.ndarray]:
        """(seconds, vectors)"""
        requests = [self.request(text) for text in texts]
        time.sleep(PAUSE)
        busy = time.process_time()
        seconds, replies = asyncio.run(closed_loop(self.server.port, requests, self.clients))
        self.busy += time.process_time() - busy
        self.asked += len(texts)
        self.latencies += [reply.seconds for reply in replies]
        return seconds, np.array([self.vector(reply) for reply in replies], np.float32)


class Rounds:
    """Runs of one contender: seconds that its round's texts would take, if there were `whole` of them."""

    def __init__(self, contender: Offline | Served, texts: Texts, count: int, whole: int) -> None:
        self.contender, self.texts, self.count, self.whole = contender, texts, count, whole
        self.vectors: list[np.ndarray] = []

    def __call__(self) -> float:
        seconds, vectors = self.contender.encode(self.texts(len(self.vectors), self.count))
        self.vectors.append(vectors)
        return seconds * self.whole / self.count

    def compare(self, offline: Offline, same_bits: bool) -> float:
        """Return the lowest cosine of the first round's vectors with offline's.

        Raise ValueError if bits differ that ought to be the same, or a peer computes something else.
        """
        mine, (_, exact) = self.vectors[0], offline.encode(self.texts(0, self.count))
        if same_bits and not np.array_equal(mine, exact):
            raise ValueError("the server's vectors are not those of encode")
        worst = float((mine * exact).sum(axis=1).min())
        if worst < CLOSE:
            raise ValueError(f"a peer computes something else: cosine {worst:.3f}")
        return worst


class RerankRounds:
    """Seconds per request of a round: one client, one document per request."""

    def __init__(
        self, port: int, texts: Texts, tokens: int, query: str, instruction: str, count: int, one: bool
    ) -> None:
        self.port, self.texts, self.tokens = port, texts, tokens
        self.query, self.instruction = query, instruction
        self.count, self.one, self.turn = count, one, 0

    def at(self, port: int, texts: Texts, count: int, one: bool) -> RerankRounds:
        """Return the same with other documents, of another server."""
        return RerankRounds(port, texts, self.tokens, self.query, self.instruction, count, one)

    def instruction_of(self, number: int) -> str:
        """Return the instruction of a request: of as many tokens for each, as digits are tokens."""
        return f"{number:04d} {self.instruction}"

    def __call__(self) -> float:
        first = 1 + self.turn * self.count
        documents = self.texts(self.turn, self.count, self.tokens)
        requests = [
            post("/rerank", {
                "query": self.query, "texts": [document], "raw_scores": True,
                "instruction": self.instruction_of(0 if self.one else (first + i) % 10000),
            })
            for i, document in enumerate(documents)
        ]  # fmt: skip
        time.sleep(PAUSE)
        seconds, replies = asyncio.run(closed_loop(self.port, requests, 1))
        self.scores = np.array([reply.json()[0]["score"] for reply in replies], np.float32)
        self.turn += 1
        return seconds / self.count


async def beside(
    port: int, queries: Sequence[bytes], arrivals: Sequence[float], long: Sequence[bytes]
) -> tuple[list[float | None], list[float]]:
    """(seconds of the queries, seconds of the long texts): one of these a second, and one at a time."""
    ended = asyncio.Event()

    async def after_another(connection: Connection) -> list[float]:
        taken: list[float] = []
        while not ended.is_set():
            reply = await connection.ask(long[len(taken)])
            reply.json()
            taken.append(reply.seconds)
            await asyncio.sleep(max(0.0, 1 - reply.seconds))
        return taken

    async with connections(port, 1) as [connection]:
        beside = asyncio.create_task(after_another(connection)) if long else None
        found = await open_loop(port, queries, arrivals)
        ended.set()
        return found, await beside if beside else []
