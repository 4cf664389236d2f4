"""Asks an ASGI application without a network, for tests of the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

from qwen3np.server.service import Times


class Answer(NamedTuple):
    """What an application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(app: Any, path: str, body: Any = None, method: str | None = None, leave_after: float = 60) -> Answer:
    """Send one request; a body that is not bytes becomes JSON. The client leaves after some seconds."""
    return asyncio.run(ask_async(app, path, body, method, leave_after))


async def ask_async(
    app: Any, path: str, body: Any = None, method: str | None = None, leave_after: float = 60
) -> Answer:
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]
    status, headers, answered = 0, {}, b""

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(leave_after)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, headers, answered
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answered += message.get("body", b"")

    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
        "method": method or ("GET" if body is None else "POST"), "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "", "client": ("127.0.0.1", 1), "server": ("here", 80),
        "headers": [(b"content-type", b"application/json"), (b"host", b"here")],
        "state": {"times": Times()},
    }  # fmt: skip
    await app(scope, receive, send)
    return Answer(status, headers, answered)
