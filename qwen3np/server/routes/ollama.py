"""The routes of Ollama's clients."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import answers
from ..schemas import OllamaEmbeddings, OllamaRequest
from .common import embedded, json_list
from .json_route import JsonRoute

NANOSECONDS = 1_000_000_000
router = APIRouter(route_class=JsonRoute, tags=["Ollama"])


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
