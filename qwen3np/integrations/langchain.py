"""LangChain: an `Embeddings`, and a document compressor that reranks.

Both compute off the event loop where they are awaited.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..embedder import Embedder
from ..reranker import Reranker
from .models import EMBEDDER, RERANKER, extra, given

with extra("langchain"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings


class Qwen3Embeddings(Embeddings):
    """LangChain's embedding model: queries have the query prompt, documents the document prompt.

    Args:
        model: A Hub id, the path of a folder, or an Embedder.
        instruction: What queries ask for, in a sentence. Default: the model's own query prompt.
        **options: The further arguments of Embedder, with the model's name or path.
    """

    def __init__(
        self, model: str | Path | Embedder = EMBEDDER, *, instruction: str | None = None, **options: Any
    ) -> None:
        self.model = given(Embedder, model, options)
        self.instruction = instruction

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Encode documents, all in one call."""
        return self.model.encode_document(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Encode a query."""
        return self.model.encode_query(text, instruction=self.instruction).tolist()


class Qwen3Reranker(BaseDocumentCompressor):
    """A document compressor: the best documents for a query, best first.

    Each is a copy, whose metadata has "relevance_score", the probability that it answers the query.

    Args:
        model: A Hub id, the path of a folder, or a Reranker.
        top_n: Number of documents to keep; None keeps all.
        **options: The further arguments of Reranker, with the model's name or path.
    """

    top_n: int | None = 3
    _model: Reranker

    def __init__(
        self, model: str | Path | Reranker = RERANKER, *, top_n: int | None = 3, **options: Any
    ) -> None:
        super().__init__(top_n=top_n)
        self._model = given(Reranker, model, options)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Rank documents for a query.

        Args:
            documents: What a retriever found.
            query: The query.
            callbacks: As LangChain gives them; there is nothing to report to them.
        """
        ranked = self._model.rank(query, [document.page_content for document in documents], self.top_n)
        kept = [documents[hit["corpus_id"]] for hit in ranked]
        return [
            document.model_copy(update={"metadata": document.metadata | {"relevance_score": hit["score"]}})
            for document, hit in zip(kept, ranked, strict=True)
        ]
