"""What routes share: from a request's texts to vectors and scores, with the time of each part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
from anyio import to_thread
from numpy.typing import NDArray
from starlette.requests import Request

from ..schemas import Prompted, RerankRequest
from ..served import ServedEmbedder, ServedReranker, Text, Truncation
from ..service import Service, Times

SHORT = 4096  # characters that are tokenised where they are: a thread's turn costs more
ROWS = 64  # vectors that become JSON before others have a turn: 5 ms for 1024 dimensions

Result = TypeVar("Result")


class Embedded(NamedTuple):
    """The vectors of a request, and what it cost."""

    vectors: NDArray[np.float32]
    served: ServedEmbedder
    tokens: int


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def tokenized(
    request: Request, characters: int, function: Callable[[], Result], repeated: int = 0
) -> Result:
    """Call a function that tokenises, on a thread where texts are long; add its time to the request's.

    Args:
        request: The request.
        characters: Of its texts.
        function: What tokenises.
        repeated: Characters of prompts, which the request's are not counted with.
    """
    times: Times = request.state.times
    times.characters += characters
    start = time.monotonic()
    ids = function() if characters + repeated <= SHORT else await to_thread.run_sync(function)
    times.tokenization += time.monotonic() - start
    return ids


async def embedded(
    request: Request,
    body: Prompted,
    texts: Sequence[Text],
    field: str,
    dimensions: int | None = None,
    normalize: bool | None = None,
) -> Embedded:
    """Compute the vectors of a request's texts."""
    served = service_of(request).embedder(body.model)
    dimensions = served.check_dimensions(dimensions)
    prompt = served.prompt(body.prompt_name, body.instruction)
    ids = await embedding_ids(request, served, body, texts, prompt, field)
    states = await service_of(request).states(request, served, ids, served.prefix(prompt))
    return Embedded(served.vectors(states, dimensions, normalize), served, sum(map(len, ids)))


async def embedding_ids(
    request: Request, served: ServedEmbedder, body: Prompted, texts: Sequence[Text], prompt: str, field: str
) -> list[list[int]]:
    """Tokenise texts for an embedding model."""
    truncation = body.truncation(served.settings.auto_truncate)
    function = partial(served.ids, texts, prompt, truncation, field)
    return await tokenized(request, sum(map(len, texts)), function, len(prompt) * len(texts))


async def reranked(
    request: Request, body: RerankRequest, documents: Sequence[str], field: str
) -> tuple[NDArray[np.float32], list[int], ServedReranker, int]:
    """Compute the scores of a query's documents: the scores, their order (best first), model and tokens."""
    served = service_of(request).reranker(body.model)
    truncation: Truncation = body.truncation(served.settings.auto_truncate)
    fields = ("query", field)
    function = partial(served.ids, body.query, documents, body.instruction, truncation, fields)
    characters = len(body.query) * len(documents) + sum(map(len, documents))
    repeated = len(body.instruction or "") * len(documents)
    ids = await tokenized(request, characters, function, repeated)
    states = await service_of(request).states(request, served, ids, served.prefix)
    scores = served.scores(states, body.raw_scores)
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    return scores, [int(i) for i in order], served, sum(map(len, ids))


def fragment(parts: Sequence[bytes]) -> orjson.Fragment:
    """Join the entries of a JSON list, some in each part."""
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")


async def json_list(rows: Sequence[Any] | NDArray[Any], entry: Callable[[int, Any], Any]) -> orjson.Fragment:
    """Write a JSON list, some rows at a time: others have their turn between.

    Args:
        rows: What to write.
        entry: Called with number and row; returns what orjson writes.
    """
    parts = []
    for first in range(0, len(rows), ROWS):
        some = [entry(first + i, row) for i, row in enumerate(rows[first : first + ROWS])]
        parts.append(orjson.dumps(some, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        await asyncio.sleep(0)
    return fragment(parts)
