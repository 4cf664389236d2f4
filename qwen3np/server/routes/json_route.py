"""Bodies are JSON whatever their content type says, and strictly: no NaN, no half of a surrogate pair."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from ..failures import INVALID, Failure

CONTENT_TYPE = b"content-type"


class JsonRequest(Request):
    """A request whose body is JSON: `curl -d` says that it is a form."""

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route whose bodies are read by JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            coding = request.headers.get("content-encoding", "identity")
            if coding.lower() != "identity":
                message = "the body is compressed (Content-Encoding): send it as it is"
                raise Failure(INVALID, message)
            headers = [(k, v) for k, v in request.scope["headers"] if k != CONTENT_TYPE]
            scope = {**request.scope, "headers": [*headers, (CONTENT_TYPE, b"application/json")]}
            return await handler(JsonRequest(scope, request.receive))

        return handle
