"""The server's process: its address, its signals, and connections that take too long."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI

from .app import create_app
from .guard import LINGER, SMALL, Guard
from .metrics import Metrics
from .service import Service
from .settings import Settings

KEEP_ALIVE = 75  # seconds that an idle connection is kept: longer than load balancers keep theirs (60)
MOST_HEAD = 2 * SMALL  # bytes of a request's head, behind what uvicorn skips of the last one's body
GRACE = 0.1  # seconds for requests that were on their way when the server stopped listening
# A parser that sees it takes the body for another protocol's. Java's client asks for HTTP/2 like that.
UPGRADE, IGNORED = re.compile(rb"\r\nupgrade:", re.IGNORECASE), b"\r\nignored:"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(settings: Settings) -> int:
    """Serve until a signal ends it; return the exit code.

    Raises:
        OSError: The address cannot be listened on.
        Exception: What loading a model raises.
    """
    started = time.monotonic()
    listener = listen(settings.hostname, settings.port)
    app, service = assemble(settings)
    config = uvicorn.Config(
        app,
        http=protocol(settings.body_timeout),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = Server(config, service)

    def loaded() -> None:
        if service.error is not None:
            server.should_exit = True
            return
        models = "; ".join(f"{served.name} ({served.model.backend!r})" for served in service.served)
        say(f"ready in {time.monotonic() - started:.1f} s: {models}")

    with listener, server.capture_signals():
        say(f"listening on {url(listener)} (loading {', '.join(settings.models)})")
        service.load(loaded)
        app.openapi()  # 0.2 s that the first request would wait for: the guard looks paths up
        server.run(sockets=[listener])
    if service.error is not None:
        raise service.error
    if not service.loaded or (service.scheduler and service.scheduler.load().running):
        # Nobody waits for what is loaded or computed now. It cannot be stopped, and Python's own end would
        # take the kernels away under its threads.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(0)
    service.close()
    return 0


def assemble(settings: Settings) -> tuple[FastAPI, Service]:
    """Make the application with all around it, and its service, which is to `load` its models."""
    metrics = Metrics()
    service = Service(settings, metrics.step)
    metrics.watch(lambda: service.scheduler.load() if service.scheduler else None)
    app = create_app(service, metrics)
    app.add_middleware(Guard, settings=settings, service=service, metrics=metrics)
    return app, service


def listen(hostname: str, port: int) -> socket.socket:
    """Listen on an address: clients may connect, and wait, before anything is loaded."""
    try:
        found = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found)  # IPv4 first
        dual = hostname == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=2048, dualstack_ipv6=dual)
    except OSError as error:
        raise OSError(f"cannot listen on {hostname}, port {port}: {_what_to_do(error, port)}") from None


def _what_to_do(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"the port is in use; take another, as --port {port % 65535 + 1}, or a free one with --port 0"
    if error.errno == errno.EACCES:
        return "ports below 1024 are the system's; take another with --port"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return "no address of this machine; --hostname 127.0.0.1 is for this machine, 0.0.0.0 for its network"
    return error.strerror or str(error)


def url(listener: socket.socket) -> str:
    """Return where a socket listens, as http://HOST:PORT."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def say(message: str) -> None:
    """Print a line on stderr, if that is open."""
    if sys.stderr is not None:
        print(f"qwen3np: {message}", file=sys.stderr, flush=True)


class Server(uvicorn.Server):
    """uvicorn's server: the first signal finishes what was accepted, the second ends the process.

    Args:
        config: Of uvicorn.
        service: Whose state tells /health.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._signal: int | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals; uvicorn would raise the first one again at the end, and exit with its number."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.signal(number, self.handle_exit) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end."""
        if self._signal is not None:
            os._exit(128 + sig)
        self._signal = sig
        self._service.state = "draining"
        self.should_exit = True

    async def shutdown(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Take no more connections, and return when all answers are given.

        Every request ends by --body-timeout and --request-timeout; a client that does not read its answer
        has --body-timeout for that.
        """
        for server in self.servers:
            server.close()
        tasks, connections = self.server_state.tasks, self.server_state.connections
        if self._signal is not None:
            number = f"{len(tasks)} request{'' if len(tasks) == 1 else 's'}"
            say(f"{signal.Signals(self._signal).name}: finishing {number}; a second signal ends at once")
        await asyncio.sleep(GRACE)
        for connection in list(connections):
            connection.shutdown()  # idle ones are closed, others after their answer
        while tasks:
            await asyncio.sleep(0.02)
        end = time.monotonic() + self._service.settings.body_timeout
        while connections and time.monotonic() < end:
            await asyncio.sleep(0.02)


def protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with limits to heads: their size, and the seconds until one is complete."""
    base: Any
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as base
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as base

    class Protocol(base):
        """A connection. It waits for a head unless `cycle`, a request and its answer, is not complete."""

        _timer: asyncio.TimerHandle | None = None
        _head = 0  # bytes
        _refused = False

        @property
        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            if not self._answering:
                data = UPGRADE.sub(IGNORED, data, 1)
            super().data_received(data)
            self._head = 0 if self._answering else self._head + len(data)
            if self._head > MOST_HEAD and not self._refused:
                self._refuse("431 Request Header Fields Too Large", f"the head is over {SMALL} bytes")
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_watching()

        def eof_received(self) -> bool:
            """Have the guard answer a client that stops within a body; another one that stops has left."""
            if not self._answering or not self.cycle.more_body:
                return False
            self.scope["state"]["incomplete"] = True
            self.cycle.more_body = self.cycle.keep_alive = False
            self.cycle.message_event.set()
            return True

        def send_400_response(self, msg: str) -> None:
            self._refuse("400 Bad Request", "this is not HTTP as this server knows it")

        def _watch(self) -> None:
            if self._answering:
                self._stop_watching()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.close)

        def _stop_watching(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _refuse(self, status: str, message: str) -> None:
            """Answer what is not a request, and linger as the guard does. No path tells the answer's form."""
            self._refused = True
            body = orjson.dumps({"error": message, "error_type": "Validation"})
            head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.close)

    return Protocol
