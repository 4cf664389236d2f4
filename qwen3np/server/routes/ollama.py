"""The routes of Ollama's clients."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import answers
from ..schemas import OllamaEmbeddings, OllamaErrorOf, OllamaRequest
from .common import embedded, json_list
from .json_route import JsonRoute

NANOSECONDS = 1_000_000_000
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OllamaErrorOf} for status in (400, 401, 404, 408, 413, 422, 424, 429, 503, 504)
}
router = APIRouter(route_class=JsonRoute, tags=["Ollama"], responses=ERRORS)


@router.post("/api/embed", response_model=OllamaEmbeddings)
async def embed(request: Request, body: OllamaRequest) -> Response:
    """Embed texts; too long ones are truncated unless `truncate` is false."""
    result = await embedded(request, body, body.input, "input", body.dimensions)
    return answers.json(
        {
            "model": body.model or result.served.name,
            "embeddings": await json_list(result.vectors, lambda n, row: row),
            "total_duration": round(request.state.times.total * NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": result.tokens,
        }
    )
