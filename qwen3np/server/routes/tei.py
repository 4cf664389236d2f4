"""The routes of text-embeddings-inference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from .. import answers, schemas
from ..failures import VALIDATION, Failure
from ..schemas import (
    DecodeRequest,
    EmbedAllRequest,
    EmbedRequest,
    ErrorOf,
    Prompted,
    Rank,
    Ranking,
    RerankRequest,
    SimilarityRequest,
    TokenizeRequest,
)
from ..served import Token, refusing
from .common import embedded, embedding_ids, fragment, json_list, reranked, service_of, tokenized
from .json_route import JsonRoute
from .rerank import ranking

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOf} for status in (400, 401, 408, 413, 422, 424, 429, 503, 504)
}
TOKENS = 4096  # that become JSON at a time
router = APIRouter(route_class=JsonRoute, tags=["text-embeddings-inference"], responses=ERRORS)


@router.post("/embed", response_model=list[list[float]])
async def embed(request: Request, body: EmbedRequest) -> Response:
    """Embed texts: one unit vector per text."""
    result = await embedded(request, body, body.inputs, "inputs", body.dimensions, body.normalize)
    return answers.json(await json_list(result.vectors, lambda n, row: row))


@router.post("/embed_all", response_model=list[list[list[float]]])
async def embed_all(request: Request, body: EmbedAllRequest) -> Response:
    """Compute the final state of every token of every text, neither truncated nor normalised."""
    service = service_of(request)
    served = service.embedder(body.model)
    prompt = served.prompt(body.prompt_name, body.instruction)
    ids = await embedding_ids(request, served, body, body.inputs, prompt, "inputs")
    states = await service.states(request, served, ids, every_token=True)
    return answers.json([await json_list(np.ascontiguousarray(s), lambda n, row: row) for s in states])


@router.post("/similarity", response_model=list[float])
async def similarity(request: Request, body: SimilarityRequest) -> Response:
    """Compare a sentence with others, as the model does: by the cosine of their vectors."""
    how: Prompted = body.parameters or body
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    service_of(request).embedder(how.model).check_count(body.inputs.sentences, "inputs.sentences")
    result = await embedded(request, how, texts, "inputs")
    scores = result.served.model.similarity(result.vectors[:1], result.vectors[1:])[0]
    return answers.json(scores)


@router.post("/rerank", response_model=list[Rank] | Ranking)
async def rerank(request: Request, body: RerankRequest) -> Response:
    """Score documents for a query, best first: `texts` as TEI's clients send, `documents` as others do."""
    if body.documents is not None:
        return await ranking(request, body)
    if body.texts is None:
        raise Failure(VALIDATION, "give texts: a list of documents", "texts")
    scores, order, _, _ = await reranked(request, body, body.texts, "texts")
    ranks: list[dict[str, Any]] = [{"index": i, "score": scores[i]} for i in order]
    if body.return_text:
        for rank in ranks:
            rank["text"] = body.texts[rank["index"]]
    return answers.json(ranks)


@router.post("/tokenize", response_model=list[list[schemas.Token]])
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """Tokenise texts; start and stop count characters."""
    service = service_of(request)
    service.check_ready()
    served = service.any(body.model)
    served.check_count(body.inputs, "inputs")
    prompt = ""
    if body.prompt_name is not None or body.instruction is not None:
        prompt = service.embedder(body.model).prompt(body.prompt_name, body.instruction)

    served.check_repeated("the characters of the prompt", len(prompt), body.inputs, "inputs")

    def tokens() -> list[orjson.Fragment]:
        """Write the JSON, some tokens at a time: as objects a million of them are half a gigabyte."""
        with refusing("inputs"):
            return [_json_of(served.tokens(prompt + text, body.add_special_tokens)) for text in body.inputs]

    repeated = len(prompt) * len(body.inputs)
    return answers.json(await tokenized(request, sum(map(len, body.inputs)), tokens, repeated))


def _json_of(tokens: Iterator[Token]) -> orjson.Fragment:
    parts = []
    while some := [token._asdict() for token in islice(tokens, TOKENS)]:
        parts.append(orjson.dumps(some)[1:-1])
    return fragment(parts)


@router.post("/decode", response_model=list[str])
async def decode(request: Request, body: DecodeRequest) -> Response:
    """Turn token ids into text."""
    service = service_of(request)
    service.check_ready()
    served = service.any(body.model)
    served.check_count(body.ids, "ids")

    def texts() -> list[str]:
        checked = [served.checked(ids, "ids", n) for n, ids in enumerate(body.ids)]
        return [served.model.tokenizer.decode(ids, body.skip_special_tokens) for ids in checked]

    return answers.json(await tokenized(request, sum(map(len, body.ids)), texts))


@router.post("/", response_model=Any)
@router.post("/invocations", response_model=Any)
async def invocations(request: Request, body: dict[str, Any]) -> Response:
    """Do what the body asks for: embed `inputs`, compare a `source_sentence`, or rerank for a `query`."""
    if "query" in body:
        return await rerank(request, _validated(RerankRequest, body))
    if isinstance(body.get("inputs"), dict):
        return await similarity(request, _validated(SimilarityRequest, body))
    return await embed(request, _validated(EmbedRequest, body))


def _validated(model: type[Any], body: dict[str, Any]) -> Any:
    try:
        made: BaseModel = model.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from None
    return made
