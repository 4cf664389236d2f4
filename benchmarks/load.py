"""Clients of a server: HTTP/1.1 over asyncio's streams, which costs little of the cores that are shared.

An answer is kept as it came; what is in it is looked at after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

LARGEST = 1 << 26  # bytes of an answer's head: asyncio refuses longer lines, and none here comes near


class Reply(NamedTuple):
    """An answer, with the seconds from the request's first byte to the answer's last."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        """Return the body, decoded; raise RuntimeError for any status but 200."""
        if self.status != 200:
            raise RuntimeError(f"status {self.status}: {self.body[:300].decode(errors='replace')}")
        return json.loads(self.body)


class Connection:
    """A connection to a server on this machine, kept open between requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to a port of this machine; raise OSError where nobody listens."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=LARGEST))

    async def ask(self, request: bytes) -> Reply:
        """Send a request and wait for its answer; raise OSError or EOFError if the server hangs up."""
        start = time.perf_counter()
        self.writer.write(request)
        await self.writer.drain()
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Reply(int(first.split()[1]), headers, body, time.perf_counter() - start)

    def abort(self) -> None:
        """Hang up at once, whatever is under way."""
        self.writer.transport.abort()


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """Yield open connections, which are closed afterwards."""
    opened = await asyncio.gather(*(Connection.open(port) for _ in range(count)))
    try:
        yield opened
    finally:
        for connection in opened:
            connection.abort()


def post(path: str, value: Any) -> bytes:
    """Return a request as it is sent."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def get(path: str) -> bytes:
    """Return a request as it is sent."""
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


async def closed_loop(port: int, requests: Sequence[bytes], clients: int) -> tuple[float, list[Reply]]:
    """Let clients work through the requests, each with one at a time: (seconds, replies in order)."""
    replies: dict[int, Reply] = {}
    numbered = iter(enumerate(requests))

    async def client(connection: Connection) -> None:
        for number, request in numbered:
            replies[number] = await connection.ask(request)

    async with connections(port, clients) as opened:
        start = time.perf_counter()
        await asyncio.gather(*map(client, opened))
        seconds = time.perf_counter() - start
    return seconds, [replies[number] for number in range(len(requests))]


async def open_loop(port: int, requests: Sequence[bytes], arrivals: Sequence[float]) -> list[float | None]:
    """Send each request when it is due, however many are under way: seconds from then to its answer.

    None stands for one that was refused, as the server has too many.

    In a closed loop, clients that wait for a slow answer send nothing meanwhile: slow ones are too few.
    """
    start = time.perf_counter()

    async def client(request: bytes, due: float) -> float | None:
        await asyncio.sleep(start + due - time.perf_counter())
        async with connections(port, 1) as [connection]:
            reply = await connection.ask(request)
        if reply.status == 429:
            return None
        reply.json()
        return time.perf_counter() - start - due

    return list(await asyncio.gather(*map(client, requests, arrivals)))
