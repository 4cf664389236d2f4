"""Vectors in LanceDB, a database in a folder: pip install qwen3np lancedb

python examples/lancedb_search.py [MODEL]
"""

from __future__ import annotations

import sys
import tempfile

import lancedb
import pyarrow as pa

from qwen3np import Embedder

DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other.",
    "Bread rises because yeast makes gas.",
    "The planets move around the sun.",
]


def main(model_name: str = "Qwen/Qwen3-Embedding-0.6B") -> list[str]:
    """Search four documents, and return their texts, best first."""
    model = Embedder(model_name)
    schema = pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32(), model.dimension))])
    with tempfile.TemporaryDirectory() as folder:
        table = lancedb.connect(folder).create_table("documents", schema=schema)
        vectors = model.encode_document(DOCUMENTS)
        table.add([{"text": text, "vector": v} for text, v in zip(DOCUMENTS, vectors, strict=True)])
        query = model.encode_query("Why do things fall?")
        return [row["text"] for row in table.search(query).distance_type("cosine").limit(4).to_list()]


if __name__ == "__main__":
    print(*main(*sys.argv[1:2]), sep="\n")
