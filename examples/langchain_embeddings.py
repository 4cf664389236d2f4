"""qwen3np as LangChain's embedding model: pip install qwen3np langchain-core

python examples/langchain_embeddings.py [MODEL]
"""

from __future__ import annotations

import sys

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from qwen3np import Embedder


class Qwen3Embeddings(Embeddings):
    """Queries get the model's query prompt, documents its document prompt, which is empty."""

    def __init__(self, model: Embedder) -> None:
        self.model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.encode_document(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.model.encode_query(text).tolist()


def main(model_name: str = "Qwen/Qwen3-Embedding-0.6B") -> list[str]:
    store = InMemoryVectorStore(Qwen3Embeddings(Embedder(model_name)))
    store.add_texts(
        [
            "The capital of China is Beijing.",
            "Gravity is a force that attracts two bodies towards each other.",
            "Bread rises because yeast makes gas.",
        ]
    )
    found = store.similarity_search("Why do things fall?", k=3)
    return [document.page_content for document in found]


if __name__ == "__main__":
    print(*main(*sys.argv[1:2]), sep="\n")
