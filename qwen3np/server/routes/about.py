"""What the server says of itself: its models, its health, its metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ... import __version__
from .. import answers
from ..failures import UNHEALTHY, Failure
from ..served import ServedEmbedder, ServedReranker
from .common import service_of

router = APIRouter(tags=["about"])


@router.get("/health")
@router.get("/ping")
@router.get("/")
async def health(request: Request) -> Response:
    """Answer 200 once the models are loaded and compiled, and 503 before that and while the server ends."""
    service = service_of(request)
    if service.state == "ready":
        return answers.json({"status": "ready"})
    failure = Failure(UNHEALTHY, f"the server is {service.state}", retry_after=2)
    return answers.failed(failure, request.url.path)


@router.get("/info")
async def info(request: Request) -> Response:
    """Describe the models and limits, with the fields of text-embeddings-inference."""
    service = service_of(request)
    service.check_ready()
    settings, first = service.settings, service.served[0]
    folder, backend = first.model.checkpoint.folder, first.model.backend
    return answers.json(
        {
            "model_id": settings.models[0],
            "model_sha": folder.name if folder.parent.name == "snapshots" else None,
            "model_dtype": "int8" if backend.weights == "int8" else backend.arithmetic,
            "served_model_name": first.name,
            "model_type": _type(first),
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_input_length": first.max_input_length,
            "max_batch_tokens": service.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": settings.auto_truncate,
            "tokenization_workers": first.model.backend.num_threads,
            "version": __version__,
            "models": [_about(served) for served in service.served],
        }
    )


def _type(served: ServedEmbedder | ServedReranker) -> dict[str, Any]:
    if isinstance(served, ServedEmbedder):
        return {"embedding": {"pooling": "last_token"}}
    return {"reranker": {"id2label": {"0": "yes"}, "label2id": {"yes": 0}}}


def _about(served: ServedEmbedder | ServedReranker) -> dict[str, Any]:
    about: dict[str, Any] = {
        "id": served.name,
        "kind": served.kind,
        "max_input_length": served.max_input_length,
        "backend": repr(served.model.backend),
    }
    if isinstance(served, ServedEmbedder):
        return {**about, "dimension": served.dimension, "prompts": served.model.prompts}
    return {**about, "instruction": served.model.instruction}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Give the metrics of Prometheus."""
    content, content_type = request.app.state.metrics.render()
    return Response(content, media_type=content_type)
