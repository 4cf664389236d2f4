"""What every request passes first and last: its key, size, number and time; headers, log and metrics.

Plain ASGI: Starlette's BaseHTTPMiddleware hides from a route that its client has left.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import sys
import traceback
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import answers
from .failures import BACKEND, INVALID, SLOW_BODY, TOO_LARGE, UNAUTHORIZED, Failure
from .metrics import Metrics
from .service import ClientGone, Service, Times
from .settings import Settings

logger = logging.getLogger("qwen3np.server")

# What probes and people ask for before they have the key; the folder is that of fastapi-offline.
OPEN = ("/", "/health", "/ping", "/ui", "/docs", "/redoc", "/openapi.json")
OPEN_FOLDER = "/static-offline-docs/"
SMALL = 1 << 16  # bytes of a body that uvicorn skips behind an answer, so that the connection can go on
LINGER = 2.0  # seconds for which a refused body is skipped: closing at once would reset the connection, and
# most clients would see that and not the answer
CLIENT_GONE = 499  # in the log and the metrics, as nginx has it: nobody got an answer
LONGEST_ID = 128  # characters of a request id that is taken over


class Exchange:
    """A request and its answer, as they pass.

    Attributes:
        scope: Of ASGI.
        headers: Of the request.
        times: What it has cost.
        id: What log and answer call it.
        status: Of the answer; CLIENT_GONE until that begins.
        unread: Whether bytes of the body would be left if the connection were closed.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, added: Callable[[Exchange], Mapping[str, str]]
    ) -> None:
        """Begin one; `added` gives the headers that the answer gets when it begins."""
        self.scope, self._receive, self._send, self._added = scope, receive, send, added
        self.headers = Headers(scope=scope)
        self.times = Times()
        self.id = _request_id(self.headers.get("x-request-id", ""))
        self.status = CLIENT_GONE
        self.length = int(self.headers.get("content-length", 0))
        self.chunked = "transfer-encoding" in self.headers
        self.unread = self.chunked or self.length > SMALL
        self._body: bytes | None = None

    async def read(self, most: int) -> None:
        """Read the body; raise Failure for one of more bytes, or one that ends early."""
        self.unread = True
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise too_large(most)
            more = message.get("more_body", False)
        self.unread = False
        if self.scope["state"].get("incomplete"):
            raise Failure(INVALID, f"the connection was closed {size} bytes into the body, before its end")
        self._body = b"".join(parts)

    async def receive(self) -> Message:
        """Give the body in one piece, and then what the server says of the connection."""
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [(name.encode(), value.encode("latin-1")) for name, value in self._added(self).items()]
            message["headers"] = [*message.get("headers", []), *added]
        await self._send(message)

    async def refuse(self, failure: Failure) -> None:
        """Answer with a failure, unless an answer has begun; where a body is left, `linger` must follow."""
        if self.status != CLIENT_GONE:
            return
        response = answers.failed(failure, self.scope["path"])
        if failure.kind is UNAUTHORIZED:
            response.headers["www-authenticate"] = "Bearer"
        if self.unread or failure.kind is INVALID:  # of the guard's own, that is a body that was cut
            response.headers["connection"] = "close"
        headers = response.raw_headers
        await self.send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        body = bytes(response.body)
        await self.send({"type": "http.response.body", "body": body, "more_body": self.unread})

    async def linger(self) -> None:
        """Skip what is left of the body while the client reads its answer, and close the connection."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._skip(), LINGER)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _skip(self) -> None:
        while (await self._receive()).get("more_body"):
            pass


class Guard:
    """Middleware around the application.

    Args:
        app: The application.
        settings: The limits.
        service: Whose state and queue matter.
        metrics: Told of every request.
    """

    def __init__(self, app: ASGIApp, settings: Settings, service: Service, metrics: Metrics) -> None:
        self._app, self._settings, self._service, self._metrics = app, settings, service, metrics
        self._running = 0  # POSTs
        self._handler: ASGIApp = self._handle
        if settings.cors_allow_origin:  # around the key: a browser asks without it
            self._handler = CORSMiddleware(
                self._handle,
                allow_origins=settings.cors_allow_origin,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),
                expose_headers=("*",),
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        await (self._handler if scope["type"] == "http" else self._app)(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._added)
        scope.setdefault("state", {})["times"] = exchange.times
        try:
            await self._pass(exchange)
        except ClientGone:
            exchange.status, exchange.unread = CLIENT_GONE, False
        except Failure as failure:
            await exchange.refuse(failure)
        except Exception as error:
            await self._failed(exchange, error)
        finally:
            self._record(exchange)
        if exchange.unread:
            await exchange.linger()

    async def _pass(self, exchange: Exchange) -> None:
        self._check_key(exchange)
        if exchange.length > self._settings.payload_limit:
            raise too_large(self._settings.payload_limit)
        if exchange.scope["method"] != "POST":
            await self._read_and_answer(exchange)
            return
        if self._running >= self._settings.max_concurrent_requests:
            raise self._service.overloaded()
        self._running += 1
        try:
            with self._metrics.running_requests.track_inprogress():
                await self._read_and_answer(exchange)
        finally:
            self._running -= 1

    async def _read_and_answer(self, exchange: Exchange) -> None:
        seconds = self._settings.body_timeout
        if exchange.chunked or exchange.length:
            try:
                await asyncio.wait_for(exchange.read(self._settings.payload_limit), seconds)
            except asyncio.TimeoutError:
                message = f"the body was not complete within {seconds:g} seconds (--body-timeout)"
                raise Failure(SLOW_BODY, message) from None
        await self._app(exchange.scope, exchange.receive, exchange.send)

    def _added(self, exchange: Exchange) -> Mapping[str, str]:
        headers = {"x-request-id": exchange.id}
        if exchange.status == 200 and exchange.times.tokens:
            headers |= exchange.times.headers(self._service.served[0].model.backend.name)
        if self._service.state == "draining":
            headers["connection"] = "close"
        return headers

    def _check_key(self, exchange: Exchange) -> None:
        key, path = self._settings.api_key, exchange.scope["path"]
        if key is None:
            return
        if exchange.scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith(OPEN_FOLDER)):
            return
        scheme, _, given = exchange.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
        if scheme.lower() != "bearer" or not same:
            raise Failure(UNAUTHORIZED, "this server wants its API key: send Authorization: Bearer KEY")

    async def _failed(self, exchange: Exchange, error: Exception) -> None:
        """Answer where the application broke. The log gets no message: it could hold a text."""
        stack = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        name = type(error).__name__
        logger.error("%s in request %s to %s\n%s", name, exchange.id, self._route(exchange.scope), stack)
        message = f"the server failed at this request; its log says more of {exchange.id}"
        await exchange.refuse(Failure(BACKEND, message))
        exchange.status = BACKEND.status

    def _record(self, exchange: Exchange) -> None:
        times, scope = exchange.times, exchange.scope
        method, path, status = scope["method"], self._route(scope), exchange.status
        rerank = "rerank" in path or all(served.kind == "reranker" for served in self._service.served)
        self._metrics.request(method, path, status, times, "predict" if rerank else "embed")
        if not self._settings.json_output or sys.stdout is None:
            return
        line: dict[str, Any] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "method": method,
            "path": path,
            "status": status,
            "texts": times.texts,
            "tokens": times.tokens,
            "total_ms": round(1000 * times.total, 1),
            "tokenization_ms": round(1000 * times.tokenization, 1),
            "queue_ms": round(1000 * times.queue, 1),
            "inference_ms": round(1000 * times.inference, 1),
            "request_id": exchange.id,
            "client": "{}:{}".format(*scope.get("client") or ("", "")),
        }
        with suppress(OSError):  # nobody reads the log, or the disk is full: requests go on
            print(orjson.dumps(line).decode(), flush=True)

    def _route(self, scope: Scope) -> str:
        """Return the route's path: that of a request for none could hold anything, a text too."""
        path: str = scope["path"]
        app = scope.get("app")
        if path in OPEN or (app is not None and path in app.openapi()["paths"]):
            return path
        return getattr(scope.get("route"), "path", "other")


def too_large(most: int) -> Failure:
    """Return what a body of too many bytes gets."""
    return Failure(
        TOO_LARGE,
        f"the body is larger than {most} bytes (--payload-limit): send fewer texts per request",
    )


def _request_id(given: str) -> str:
    usable = 0 < len(given) <= LONGEST_ID and given.isascii() and given.isprintable()
    return given if usable else uuid.uuid4().hex
