"""Haystack: components that embed a text, embed documents, and rank documents.

They load their models when a pipeline warms up, or at the first run, and compute off the event loop where
they are awaited.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from ..embedder import Embedder
from ..reranker import Reranker
from .models import EMBEDDER, RERANKER, extra, shared

with extra("haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.core.serialization import allow_deserialization_module

allow_deserialization_module(__name__)  # a stored pipeline loads where this module was imported


class _Loading:
    """What the components have in common: they are told to load, and stored by their arguments."""

    _kind: type[Embedder] | type[Reranker]
    model: str
    options: dict[str, Any] | None
    _model: Any = None

    def warm_up(self) -> None:
        """Load the model."""
        if self._model is None:
            self._model = shared(self._kind, self.model, self.options)

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a dictionary."""
        return default_to_dict(self, **{k: v for k, v in vars(self).items() if not k.startswith("_")})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Make the component of a dictionary."""
        return default_from_dict(cls, data)


@component
class Qwen3TextEmbedder(_Loading):
    """Embeds a query, with the query prompt.

    Args:
        model: A Hub id, or the path of a folder.
        instruction: What queries ask for, in a sentence. Default: the model's own query prompt.
        options: The further arguments of Embedder.
    """

    _kind = Embedder

    def __init__(
        self, model: str = EMBEDDER, instruction: str | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.model, self.instruction, self.options = model, instruction, options

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Encode a query."""
        self.warm_up()
        return {"embedding": self._model.encode_query(text, instruction=self.instruction).tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Encode a query, off the event loop."""
        return await asyncio.to_thread(self.run, text)


@component
class Qwen3DocumentEmbedder(_Loading):
    """Embeds documents, with the document prompt, all in one call.

    Args:
        model: A Hub id, or the path of a folder.
        meta_fields_to_embed: Names of metadata put before the content.
        embedding_separator: What stands between metadata and content.
        options: The further arguments of Embedder.
    """

    _kind = Embedder

    def __init__(
        self,
        model: str = EMBEDDER,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.options = model, options
        self.meta_fields_to_embed = meta_fields_to_embed
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of the documents that have their embeddings."""
        self.warm_up()
        fields, separator = self.meta_fields_to_embed, self.embedding_separator
        vectors = self._model.encode_document([_text(d, fields, separator) for d in documents]).tolist()
        return {"documents": [replace(d, embedding=v) for d, v in zip(documents, vectors, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of the documents that have their embeddings; computed off the event loop."""
        return await asyncio.to_thread(self.run, documents)


@component
class Qwen3Ranker(_Loading):
    """Ranks documents for a query; a score is the probability that the document answers it.

    Args:
        model: A Hub id, or the path of a folder.
        top_k: Number of documents to keep; None keeps all.
        meta_fields_to_embed: Names of metadata put before the content.
        embedding_separator: What stands between metadata and content.
        options: The further arguments of Reranker, such as {"instruction": "..."}.
    """

    _kind = Reranker

    def __init__(
        self,
        model: str = RERANKER,
        top_k: int | None = 10,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.top_k, self.options = model, top_k, options
        self.meta_fields_to_embed = meta_fields_to_embed
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """Return copies of the best documents that have their scores, best first.

        Args:
            query: The query.
            documents: What was found for it.
            top_k: Overrides the component's for this call.
        """
        self.warm_up()
        texts = [_text(d, self.meta_fields_to_embed, self.embedding_separator) for d in documents]
        ranked = self._model.rank(query, texts, self.top_k if top_k is None else top_k)
        return {"documents": [replace(documents[hit["corpus_id"]], score=hit["score"]) for hit in ranked]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """Return what `run` returns; computed off the event loop.

        Args:
            query: As for `run`.
            documents: As for `run`.
            top_k: As for `run`.
        """
        return await asyncio.to_thread(self.run, query, documents, top_k)


def _text(document: Document, fields: list[str] | None, separator: str) -> str:
    """Join the metadata of those names, as far as the document has them, and the content."""
    meta = [str(document.meta[name]) for name in fields or () if document.meta.get(name) is not None]
    return separator.join([*meta, document.content or ""])
