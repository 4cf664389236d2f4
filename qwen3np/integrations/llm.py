"""llm (https://llm.datasette.io), a plugin: `llm embed -m qwen3-embedding-0.6b -c "some text"`.

llm does not say whether a text is a query or a document. None has a prompt, as they are compared with one
another: `llm similar` takes the vector of a stored item, or of a text that it encodes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .models import extra, shared

with extra("llm"):
    import llm

SIZES = ("0.6B", "4B", "8B")


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """Tell llm of the published models; the weights are loaded at the first text.

    Args:
        register: What llm gives.
    """
    for size in SIZES:
        register(Qwen3Embedding(size))


class Qwen3Embedding(llm.EmbeddingModel):
    """An embedding model of llm's.

    Args:
        size: That of the published model.
    """

    batch_size = 4096

    def __init__(self, size: str) -> None:
        self.name = f"Qwen/Qwen3-Embedding-{size}"
        self.model_id = f"qwen3-embedding-{size.lower()}"
        self._model: Any = None

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """Encode texts, all in one call.

        Args:
            items: The texts.
            key: As llm gives it; there is none.
        """
        from ..embedder import Embedder

        if self._model is None:
            self._model = shared(Embedder, self.name)
        yield from self._model.encode_document(list(items)).tolist()
