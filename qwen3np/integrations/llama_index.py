"""LlamaIndex: an embedding model, and a postprocessor that reranks nodes.

Both compute off the event loop where they are awaited.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..embedder import Embedder
from ..reranker import Reranker
from .models import EMBEDDER, RERANKER, extra, shared

with extra("llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle


class Qwen3Embedding(BaseEmbedding):
    """LlamaIndex's embedding model: queries have the query prompt, nodes the document prompt.

    Args:
        model_name: A Hub id, or the path of a folder.
        instruction: What queries ask for, in a sentence. Default: the model's own query prompt.
        options: The further arguments of Embedder.
        embed_batch_size: Number of texts that LlamaIndex gives at a time, at most 2048.
        **others: The further fields of BaseEmbedding.
    """

    instruction: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    _model: Embedder

    def __init__(
        self,
        model_name: str = EMBEDDER,
        *,
        instruction: str | None = None,
        options: dict[str, Any] | None = None,
        embed_batch_size: int = 2048,
        **others: Any,
    ) -> None:
        super().__init__(
            model_name=model_name,
            instruction=instruction,
            options=options or {},
            embed_batch_size=embed_batch_size,
            **others,
        )
        self._model = shared(Embedder, model_name, self.options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex stores the class."""
        return "Qwen3Embedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._model.encode_query(query, instruction=self.instruction).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._model.encode_document(text).tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._model.encode_document(texts).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class Qwen3Rerank(BaseNodePostprocessor):
    """A node postprocessor: the best nodes for a query, best first.

    The score of a node is the probability that it answers the query.

    Args:
        model: A Hub id, or the path of a folder.
        top_n: Number of nodes to keep; None keeps all.
        options: The further arguments of Reranker, such as {"instruction": "..."}.
        **others: The further fields of BaseNodePostprocessor.
    """

    model: str = RERANKER
    top_n: int | None = 3
    options: dict[str, Any] = Field(default_factory=dict)
    _model: Reranker

    def __init__(
        self,
        model: str = RERANKER,
        *,
        top_n: int | None = 3,
        options: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model=model, top_n=top_n, options=options or {}, **others)
        self._model = shared(Reranker, model, self.options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex stores the class."""
        return "Qwen3Rerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("Qwen3Rerank needs the query: give query_bundle or query_str")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        ranked = self._model.rank(query_bundle.query_str, texts, self.top_n)
        return [NodeWithScore(node=nodes[hit["corpus_id"]].node, score=hit["score"]) for hit in ranked]
