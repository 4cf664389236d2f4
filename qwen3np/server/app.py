"""The application: routes, and the forms that failures take."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from . import answers
from .failures import INVALID, NOT_FOUND, VALIDATION, WRONG_METHOD, Failure, Kind
from .routes import about, ollama, openai, page, rerank, tei
from .service import Service

DESCRIPTION = (
    "Qwen3-Embedding and Qwen3-Reranker on a CPU, for clients of text-embeddings-inference, OpenAI, Cohere "
    "and Ollama. [A page to try it](ui)."
)


def create_app(service: Service, metrics: Any = None) -> FastAPI:
    """Make the application.

    Args:
        service: The models.
        metrics: What GET /metrics renders.
    """
    app = FastAPI(
        title="qwen3np", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None
    )
    app.state.service, app.state.metrics = service, metrics
    for routes in (tei, openai, rerank, ollama, about, page):
        app.include_router(routes.router)
    page.add_docs(app)
    app.add_exception_handler(Failure, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    return app


async def _failed(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, Failure)
    return answers.failed(failure, request.url.path)


async def _invalid(request: Request, error: Exception) -> Response:
    """Say which field is wrong, and how; never what it holds."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    names = [str(name) for name in first["loc"][1:]]
    field = ".".join(names)
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first['ctx']['error']}"
        failure = Failure(INVALID, message)
    elif not field:
        failure = Failure(VALIDATION, "the body must be a JSON object")
    elif first["type"] == "missing":
        failure = Failure(VALIDATION, f"{field} is missing", field)
    else:
        message = first["msg"].removeprefix("Value error, ")
        failure = Failure(VALIDATION, f"{field}: {message}", field)
    return answers.failed(failure, request.url.path)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {
        404: (NOT_FOUND, f"there is no {request.url.path[:80]} here: /docs lists the routes"),
        405: (
            WRONG_METHOD,
            f"{request.url.path[:80]} does not take {request.method}: /docs lists the routes",
        ),
    }
    kind, message = kinds.get(
        error.status_code, (Kind(error.status_code, "Validation", "invalid_request_error"), str(error.detail))
    )
    response = answers.failed(Failure(kind, message), request.url.path)
    response.headers.update(error.headers or {})
    return response
