"""The documents' snippets and examples/: run as a user would, on a generated model."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from qwen3np import Embedder, semantic_search

ROOT = Path(__file__).parent.parent
MODEL, RERANKER = "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"
SNIPPETS = [
    pytest.param(snippet, id=f"{path.stem}-{number}")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, snippet in enumerate(
        re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    )
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet(tiny, tiny_reranker, tmp_path, monkeypatch, snippet):
    """In a folder of its own; the Hub ids stand for generated models here."""
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace(MODEL, str(tiny)).replace(RERANKER, str(tiny_reranker)), {})


@pytest.mark.examples
def test_langchain_finds_what_exact_search_finds(tiny):
    pytest.importorskip("langchain_core", reason='needs the extra: pip install ".[examples]"')
    example = runpy.run_path(str(ROOT / "examples" / "langchain_embeddings.py"))
    found = example["main"](str(tiny))
    model = Embedder(tiny)
    [best] = semantic_search(model.encode_query("Why do things fall?"), model.encode_document(found))
    assert [r["corpus_id"] for r in best] == [0, 1, 2]
    np.testing.assert_array_equal(
        np.float32(example["Qwen3Embeddings"](model).embed_query("a")), model.encode_query("a")
    )


@pytest.mark.examples
def test_lancedb_finds_what_exact_search_finds(tiny):
    pytest.importorskip("lancedb", reason='needs the extra: pip install ".[examples]"')
    example = runpy.run_path(str(ROOT / "examples" / "lancedb_search.py"))
    model = Embedder(tiny)
    [best] = semantic_search(
        model.encode_query("Why do things fall?"), model.encode_document(example["DOCUMENTS"])
    )
    assert example["main"](str(tiny)) == [example["DOCUMENTS"][r["corpus_id"]] for r in best]
