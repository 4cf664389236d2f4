"""LanceDB: the embedding function "qwen3np" of its registry, which tables store and use by themselves."""

from __future__ import annotations

from typing import Any

from ..embedder import Embedder
from .models import EMBEDDER, extra, shared

with extra("lancedb"):
    from lancedb.embeddings import TextEmbeddingFunction, register


@register("qwen3np")
class Qwen3Embeddings(TextEmbeddingFunction):
    """LanceDB's embedding function: queries have the query prompt, documents the document prompt.

    Example:
        function = get_registry().get("qwen3np").create(name="Qwen/Qwen3-Embedding-0.6B")

    Attributes:
        name: A Hub id, or the path of a folder.
        instruction: What queries ask for, in a sentence. Default: the model's own query prompt.
        options: The further arguments of Embedder.
        max_retries: Of LanceDB: how often it tries again after an error.
    """

    name: str = EMBEDDER
    instruction: str | None = None
    options: dict[str, Any] = {}
    max_retries: int = 0  # no network, no second try
    _model: Embedder | None = None

    @property
    def model(self) -> Embedder:
        """The model, loaded at the first use."""
        if self._model is None:
            self._model = shared(Embedder, self.name, self.options)
        return self._model

    def ndims(self) -> int:
        """Return the number of dimensions of the vectors."""
        return self.model.dimension

    def generate_embeddings(self, texts: Any, *arguments: Any, **named: Any) -> list[Any]:
        """Encode the texts of a column, all in one call; a missing text has no vector.

        Args:
            texts: The texts.
            *arguments: As LanceDB gives them; there are none.
            **named: The same by name.
        """
        texts = list(texts)
        there = [text for text in texts if text is not None]
        vectors = iter(self.model.encode_document(there))
        return [None if text is None else next(vectors) for text in texts]

    def compute_query_embeddings(self, query: Any, *arguments: Any, **named: Any) -> list[Any]:
        """Encode a query.

        Args:
            query: The query, or a list of them.
            *arguments: As LanceDB gives them; there are none.
            **named: The same by name.
        """
        queries = self.sanitize_input(query)
        return list(self.model.encode_query(queries, instruction=self.instruction))
