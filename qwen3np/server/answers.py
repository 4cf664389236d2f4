"""Answers: JSON from float32 arrays, vectors as base64, failures in the form of their route."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from .failures import Failure, body


def json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON; arrays of float32 get the fewest digits that give the same float32."""
    content = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, headers, media_type="application/json")


def failed(failure: Failure, path: str) -> Response:
    """Answer with a failure, in the words that clients of the path read."""
    return json(body(failure, path), failure.kind.status, failure.headers())


def base64_of(vector: NDArray[np.float32]) -> str:
    """Encode a vector as OpenAI does: little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode("ascii")
