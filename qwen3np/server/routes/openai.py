"""The routes of OpenAI's clients."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from .. import answers
from ..schemas import Embeddings, EmbeddingsRequest
from ..service import named
from .common import embedded, json_list, service_of
from .json_route import JsonRoute
from .rerank import ERRORS

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"], responses=ERRORS)


@router.post("/v1/embeddings", response_model=Embeddings)
@router.post("/embeddings", response_model=Embeddings)
async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
    """Embed texts: one unit vector per text; `prompt_name: "query"` or `instruction` for what searches."""
    texts = body.texts(service_of(request).settings.accept_token_ids)
    vectors, served, tokens = await embedded(request, body, texts, "input", body.dimensions)
    base64 = body.encoding_format == "base64"

    def entry(n: int, vector: NDArray[np.float32]) -> dict[str, Any]:
        value: Any = answers.base64_of(vector) if base64 else vector
        return {"object": "embedding", "embedding": value, "index": n}

    return answers.json(
        {
            "object": "list",
            "data": await json_list(vectors, entry),
            "model": served.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """List the models that are served."""
    service = service_of(request)
    service.check_ready()
    return answers.json({"object": "list", "data": [_model(service, served) for served in service.served]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """Describe a model that is served."""
    service = service_of(request)
    service.check_ready()
    return answers.json(_model(service, named(name, service.served)))


def _model(service: Any, served: Any) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "qwen3np",
        "max_model_len": served.max_input_length,
    }
