"""Reranking as Cohere, Jina and vLLM do it."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import answers
from ..failures import VALIDATION, Failure
from ..schemas import OpenAIErrorOf, Ranking, RerankRequest
from .common import reranked
from .json_route import JsonRoute

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIErrorOf} for status in (400, 401, 404, 408, 413, 422, 424, 429, 503, 504)
}
router = APIRouter(route_class=JsonRoute, tags=["rerank"], responses=ERRORS)


@router.post("/v1/rerank", response_model=Ranking)
@router.post("/v2/rerank", response_model=Ranking)
async def ranking(request: Request, body: RerankRequest) -> Response:
    """Score documents for a query with the reranker's own conversation around them, best first."""
    documents = body.texts if body.documents is None else body.documents
    if documents is None:
        raise Failure(VALIDATION, "give documents: a list of texts", "documents")
    scores, order, served, tokens = await reranked(request, body, documents, "documents")
    results = []
    for i in order[: body.top_n]:
        entry: dict[str, Any] = {"index": i, "relevance_score": scores[i]}
        if body.return_documents:
            entry["document"] = {"text": documents[i]}
        results.append(entry)
    return answers.json(
        {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": served.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": results,
        }
    )
