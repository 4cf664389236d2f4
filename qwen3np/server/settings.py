"""Everything that can be set about a server, with its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOKENS_PER_THREAD = 256  # of a step: enough to be bound by arithmetic, not by reading the weights
MOST_TOKENS = 16384  # of a step by default, as in text-embeddings-inference


@dataclass(frozen=True)
class Settings:
    """What `qwen3np serve` was asked for; its flags have the same names.

    Attributes:
        models: Hub ids or folders, of embedding models and rerankers.
        model_arguments: Arguments of Embedder and Reranker: revision, backend, matmul_precision and so on.
        served_model_names: What the models are called, in their order. Default: their ids or folders.
        hostname: The address to listen on.
        port: The port; 0 takes a free one.
        api_key: What `Authorization: Bearer` must hold; None asks for nothing.
        max_concurrent_requests: Requests in the server at a time; more are refused with 429.
        max_batch_tokens: Tokens of a step. Default: 256 per thread, at most 16384. A text of more is
            computed beside the steps.
        max_client_batch_size: Texts of one request; None: as many as the payload holds.
        auto_truncate: Cut texts that are too long where the request does not say; otherwise they are refused.
        default_prompt_name: The prompt of requests that name none.
        default_prompt: The same, by its text.
        payload_limit: Bytes of a request's body.
        request_timeout: Seconds until a request that waits or is computed gets 504.
        body_timeout: Seconds that a client may take to send a request.
        json_output: Log a JSON line per request.
        cors_allow_origin: Origins whose pages may call this server.
        accept_token_ids: Take integers on /v1/embeddings for this model's token ids.
    """

    models: tuple[str, ...] = ("Qwen/Qwen3-Embedding-0.6B",)
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    served_model_names: tuple[str, ...] = ()
    hostname: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    max_concurrent_requests: int = 512
    max_batch_tokens: int | None = None
    max_client_batch_size: int | None = None
    auto_truncate: bool = False
    default_prompt_name: str | None = None
    default_prompt: str | None = None
    payload_limit: int = 2_000_000
    request_timeout: float = 600
    body_timeout: float = 30
    json_output: bool = False
    cors_allow_origin: tuple[str, ...] = ()
    accept_token_ids: bool = False

    def batch_tokens(self, num_threads: int) -> int:
        """Return the tokens of a step."""
        return self.max_batch_tokens or min(TOKENS_PER_THREAD * num_threads, MOST_TOKENS)
