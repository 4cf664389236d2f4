"""Chroma: an embedding function, the local twin of Chroma Cloud's Qwen function.

A collection stores the function's configuration: once this module is imported, `get_collection` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..embedder import Embedder
from .models import EMBEDDER, extra, shared

with extra("chroma"):
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function
    from chromadb.utils.embedding_functions.chroma_cloud_qwen_embedding_function import (
        CHROMA_CLOUD_QWEN_DEFAULT_INSTRUCTIONS,
    )


@register_embedding_function
class Qwen3EmbeddingFunction(EmbeddingFunction[Documents]):
    """Chroma's embedding function: queries have a prompt, documents none.

    Args:
        model: A Hub id, or the path of a folder.
        task: A key of `instructions`. Default: queries have the model's own query prompt. (Chroma Cloud's
            function puts nothing before them then.)
        instructions: Task -> "documents" and "query" -> the instruction, "" for none. Default: those of
            Chroma Cloud's function.
        options: The further arguments of Embedder.
    """

    def __init__(
        self,
        model: str = EMBEDDER,
        task: str | None = None,
        instructions: Mapping[str, Mapping[Any, str]] = CHROMA_CLOUD_QWEN_DEFAULT_INSTRUCTIONS,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model: str = getattr(model, "value", model)  # a member of Chroma Cloud's enum
        self.task = task or None
        self.instructions = {
            name: {getattr(target, "value", target): text for target, text in targets.items()}
            for name, targets in instructions.items()
        }
        self.options = options or {}
        if self.task is not None and self.task not in self.instructions:
            raise ValueError(f"task {task!r} is not one of {sorted(self.instructions)}")
        self._model = shared(Embedder, self.model, self.options)

    def __call__(self, input: Documents) -> Embeddings:
        """Encode documents, all in one call."""
        return list(self._model.encode_document(input, instruction=self._instruction("documents")))

    def embed_query(self, input: Documents) -> Embeddings:
        """Encode queries."""
        if self.task is None:
            return list(self._model.encode_query(input))
        return list(self._model.encode(input, instruction=self._instruction("query")))

    def _instruction(self, target: str) -> str | None:
        return self.instructions.get(self.task or "", {}).get(target) or None

    @staticmethod
    def name() -> str:
        """Return the name by which collections store the function."""
        return "qwen3np"

    def default_space(self) -> Space:
        """Return how vectors are compared where nobody says: by cosine."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Return what a collection stores of the function."""
        names = ("model", "task", "instructions", "options")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Qwen3EmbeddingFunction:
        """Make the function of what a collection has stored."""
        return Qwen3EmbeddingFunction(**config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raise ValueError where a collection would have vectors of two models or prompts.

        Args:
            old_config: What the collection has stored.
            new_config: What it is to store.
        """
        changed = [name for name in new_config if new_config[name] != old_config.get(name)]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} cannot change: the collection's vectors were made with "
                f"{ {name: old_config.get(name) for name in changed} }; make another collection"
            )
