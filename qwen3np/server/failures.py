"""What is wrong with a request, as a status and in the words that each family of clients reads."""

from __future__ import annotations

from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of failure: the HTTP status, and its name to TEI's and to OpenAI's clients."""

    status: int
    tei: str
    openai: str


EMPTY = Kind(400, "Empty", "invalid_request_error")
INVALID = Kind(400, "Validation", "invalid_request_error")
UNAUTHORIZED = Kind(401, "Validation", "authentication_error")
NOT_FOUND = Kind(404, "Validation", "not_found_error")
WRONG_METHOD = Kind(405, "Validation", "invalid_request_error")
SLOW_BODY = Kind(408, "Validation", "invalid_request_error")
TOO_LARGE = Kind(413, "Validation", "invalid_request_error")
VALIDATION = Kind(422, "Validation", "invalid_request_error")
WRONG_MODEL = Kind(424, "Backend", "invalid_request_error")
BACKEND = Kind(424, "Backend", "server_error")
OVERLOADED = Kind(429, "Overloaded", "rate_limit_error")
UNHEALTHY = Kind(503, "Unhealthy", "server_error")
TIMEOUT = Kind(504, "Overloaded", "server_error")


class Failure(Exception):
    """Ends a request.

    Args:
        kind: One of the kinds above.
        message: What was found, where, and what to do. Never a text of the request.
        param: The field of the body.
        retry_after: Seconds after which it may work.
    """

    def __init__(
        self, kind: Kind, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.param, self.retry_after = kind, message, param, retry_after

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


OPENAI_PATHS = ("/v1/", "/v2/", "/embeddings")
OLLAMA_PATHS = ("/api/",)


def body(failure: Failure, path: str) -> dict[str, Any]:
    """Return the body that the clients of a path expect.

    openai reads error.message, Cohere's and TEI's clients of these paths `message`, Jina's `detail`, Ollama's
    `error`.
    """
    if path.startswith(OLLAMA_PATHS):
        return {"error": failure.message}
    if path.startswith(OPENAI_PATHS):
        kind = failure.kind
        error = {
            "message": failure.message,
            "type": kind.openai,
            "code": kind.status,
            "param": failure.param,
        }
        said = {"message": failure.message, "detail": failure.message}
        return {"error": error, **said, "code": kind.status, "type": kind.tei}
    return {"error": failure.message, "error_type": failure.kind.tei}
