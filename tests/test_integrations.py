"""Adapters in the frameworks that they are for: what those return has the bits of encode and rank.

Every function imports its framework itself: CI installs all of them (extra `integrations`), a user one.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3np import Embedder, Reranker

pytestmark = pytest.mark.integrations

ROOT = Path(__file__).parent.parent
MODEL, RERANKER = "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"
PROGRAMS = {
    re.findall(r"^(?:from|import) qwen3np.integrations.(\w+)", block, re.M)[0]: block
    for block in re.findall(
        r"```py\n(.*?)```", (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8"), re.S
    )
}
TEXTS = ["The capital of China is Beijing.", "重力使苹果落下。", "Bread rises because yeast makes gas.", ""]
QUERY = "Why do things fall?"
INSTRUCTION = "Find the passage that explains it"


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    """Nothing is reported to anyone."""
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "False")


@pytest.fixture(scope="module")
def reranker(tiny_reranker) -> Reranker:
    return Reranker(tiny_reranker)


@pytest.fixture(scope="module")
def documents(model) -> Any:
    """What every adapter must return for TEXTS."""
    return model.encode_document(TEXTS)


@pytest.fixture(scope="module")
def queries(model) -> Any:
    """And for QUERY: with the model's own prompt, and with INSTRUCTION."""
    vectors = {
        None: model.encode_query(QUERY),
        INSTRUCTION: model.encode(QUERY, instruction=INSTRUCTION),
    }
    assert len({v.tobytes() for v in (*vectors.values(), model.encode(QUERY))}) == 3
    return vectors


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


def assert_ranked(found: Any, reranker: Reranker, top_k: int | None) -> None:
    """Texts and scores, best first."""
    expected = reranker.rank(QUERY, TEXTS, top_k)
    assert [text for text, _ in found] == [TEXTS[hit["corpus_id"]] for hit in expected]
    same([score for _, score in found], [hit["score"] for hit in expected])


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_the_page(name, tiny, tiny_reranker, tmp_path, monkeypatch):
    """In a folder of its own; the Hub ids stand for generated models here."""
    monkeypatch.chdir(tmp_path)
    program = PROGRAMS[name].replace(MODEL, str(tiny)).replace(RERANKER, str(tiny_reranker))
    exec(compile(program, name, "exec", dont_inherit=True), {})  # not this file's annotations


def test_the_page_has_a_program_for_every_adapter():
    modules = {path.stem for path in (ROOT / "qwen3np" / "integrations").glob("*.py")}
    assert modules - {"__init__", "models", "mteb", "ray", "spark", "llm"} == set(PROGRAMS)


@pytest.mark.parametrize(
    "module", ["langchain", "llama_index", "haystack", "chroma", "lancedb", "llm", "mteb"]
)
def test_a_missing_library_is_named_with_its_extra(module):
    """In a process of its own, where none of them can be imported."""
    program = (
        "import sys\n"
        "for name in ('langchain_core', 'llama_index', 'haystack', 'chromadb', 'lancedb', 'llm', 'mteb'):\n"
        "    sys.modules[name] = None\n"
        f"import qwen3np.integrations.{module}\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    extra = module.replace("_", "-")
    assert run.returncode == 1 and f"not installed: pip install 'qwen3np[{extra}]'" in run.stderr
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf"^{extra} = \[", text, re.M)


# LangChain


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_langchain_embeddings(instruction, model, tiny, documents, queries):
    from qwen3np.integrations.langchain import Qwen3Embeddings

    for embeddings in Qwen3Embeddings(model, instruction=instruction), Qwen3Embeddings(tiny):
        same(embeddings.embed_documents(TEXTS), documents)
        same(asyncio.run(embeddings.aembed_documents(TEXTS)), documents)
        same(embeddings.embed_query(QUERY), queries[embeddings.instruction])
        same(asyncio.run(embeddings.aembed_query(QUERY)), queries[embeddings.instruction])
        assert embeddings.embed_documents([]) == []
    with pytest.raises(TypeError, match="num_threads: Embedder.*is loaded already"):
        Qwen3Embeddings(model, num_threads=1)


def test_langchain_compressor(reranker, tiny_reranker):
    from langchain_core.documents import Document

    from qwen3np.integrations.langchain import Qwen3Reranker

    found = [Document(text, metadata={"row": row}) for row, text in enumerate(TEXTS)]
    for compressor, top_n in (Qwen3Reranker(reranker, top_n=2), 2), (Qwen3Reranker(tiny_reranker), 3):
        for kept in (
            compressor.compress_documents(found, QUERY),
            asyncio.run(compressor.acompress_documents(found, QUERY)),
        ):
            ranked = [(d.page_content, d.metadata["relevance_score"]) for d in kept]
            assert_ranked(ranked, reranker, top_n)
            assert all(TEXTS[d.metadata["row"]] == d.page_content for d in kept)
    assert all(d.metadata.keys() == {"row"} for d in found)  # they are the caller's
    assert compressor.compress_documents([], QUERY) == []


# LlamaIndex


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_llama_index_embedding(instruction, tiny, documents, queries):
    from qwen3np.integrations.llama_index import Qwen3Embedding

    made = Qwen3Embedding(str(tiny), instruction=instruction, options={"num_threads": 1})
    stored = Qwen3Embedding.from_json(made.to_json())
    assert stored._model is made._model  # the weights are in memory once
    for embedding in made, stored:
        same(embedding.get_query_embedding(QUERY), queries[instruction])
        same(asyncio.run(embedding.aget_query_embedding(QUERY)), queries[instruction])
        same(embedding.get_text_embedding_batch(TEXTS), documents)
        same(asyncio.run(embedding.aget_text_embedding_batch(TEXTS)), documents)
        same(asyncio.run(embedding.aget_text_embedding(TEXTS[0])), documents[0])
    assert Qwen3Embedding(str(tiny), options={"truncate_dim": 40})._model.dimension == 40


def test_llama_index_rerank(reranker, tiny_reranker):
    from llama_index.core.schema import NodeWithScore, TextNode

    from qwen3np.integrations.llama_index import Qwen3Rerank

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
    made = Qwen3Rerank(str(tiny_reranker), top_n=2)
    for rerank in made, Qwen3Rerank.from_dict(made.to_dict()):
        for kept in (
            rerank.postprocess_nodes(nodes, query_str=QUERY),
            asyncio.run(rerank.apostprocess_nodes(nodes, query_str=QUERY)),
        ):
            assert_ranked([(node.text, node.score) for node in kept], reranker, 2)
    assert all(node.score == 0.5 for node in nodes)
    with pytest.raises(ValueError, match="needs the query"):
        made.postprocess_nodes(nodes)


# Haystack


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_haystack_embedders(instruction, model, tiny, documents, queries):
    from haystack import Document, Pipeline

    from qwen3np.integrations.haystack import Qwen3DocumentEmbedder, Qwen3TextEmbedder

    pipeline = Pipeline()
    pipeline.add_component("text", Qwen3TextEmbedder(str(tiny), instruction))
    pipeline.add_component("documents", Qwen3DocumentEmbedder(str(tiny)))
    given = [Document(content=text) for text in TEXTS]
    data = {"text": {"text": QUERY}, "documents": {"documents": given}}
    for one in pipeline, Pipeline.loads(pipeline.dumps()):
        for found in one.run(data), asyncio.run(one.run_async(data)):
            same(found["text"]["embedding"], queries[instruction])
            same([d.embedding for d in found["documents"]["documents"]], documents)
    assert all(d.embedding is None for d in given)  # they are the caller's
    titled = Qwen3DocumentEmbedder(str(tiny), ["title", "none"], ": ")
    [found] = titled.run([Document(content="text", meta={"title": "Title"})])["documents"]
    same(found.embedding, model.encode_document("Title: text"))
    assert titled.run([]) == {"documents": []}


def test_haystack_ranker(reranker, tiny_reranker):
    from haystack import Document

    from qwen3np.integrations.haystack import Qwen3Ranker

    given = [Document(content=text) for text in TEXTS]
    made = Qwen3Ranker(str(tiny_reranker), top_k=3)
    for ranker in made, Qwen3Ranker.from_dict(made.to_dict()):
        for top_k in None, 2:
            found = ranker.run(QUERY, given, top_k)
            assert asyncio.run(ranker.run_async(QUERY, given, top_k)) == found
            assert_ranked([(d.content, d.score) for d in found["documents"]], reranker, top_k or 3)


# Chroma


def test_chroma(tiny, model, documents, queries, tmp_path):
    import chromadb
    from chromadb.utils.embedding_functions import known_embedding_functions
    from chromadb.utils.embedding_functions.chroma_cloud_qwen_embedding_function import (
        CHROMA_CLOUD_QWEN_DEFAULT_INSTRUCTIONS as DEFAULT,
    )

    from qwen3np.integrations.chroma import Qwen3EmbeddingFunction

    assert known_embedding_functions["qwen3np"] is Qwen3EmbeddingFunction
    task = {"explain": {"documents": "A passage", "query": INSTRUCTION}}
    for name, function, texts, query in [
        ("own", Qwen3EmbeddingFunction(str(tiny)), documents, queries[None]),
        (
            "task",
            Qwen3EmbeddingFunction(str(tiny), "explain", task),
            model.encode(TEXTS, instruction="A passage"),
            queries[INSTRUCTION],
        ),
    ]:
        client = chromadb.PersistentClient(str(tmp_path))
        client.create_collection(name, embedding_function=function).add(
            ids=[str(i) for i in range(4)], documents=[text or " " for text in TEXTS]
        )
        same(function(TEXTS), texts)
        same(function.embed_query([QUERY]), query[None])
        # Another day: the collection knows its function.
        collection = chromadb.PersistentClient(str(tmp_path)).get_collection(name)
        stored = collection.get(["0", "1"], include=["embeddings"])["embeddings"]
        np.testing.assert_allclose(stored, texts[:2], atol=1e-7)  # Chroma normalises once more
        found = collection.query(query_texts=[QUERY], n_results=3)
        assert collection.configuration["hnsw"]["space"] == "cosine"
        vectors = collection.get(found["ids"][0], include=["embeddings"])
        exact = {i: 1 - v @ query for i, v in zip(vectors["ids"], vectors["embeddings"], strict=True)}
        np.testing.assert_allclose(found["distances"][0], [exact[i] for i in found["ids"][0]], atol=1e-5)
    cloud = Qwen3EmbeddingFunction(str(tiny), "nl_to_code")
    [text] = {v for k, v in DEFAULT["nl_to_code"].items() if k.value == "query"}
    same(cloud.embed_query([QUERY])[0], model.encode(QUERY, instruction=text))
    same(cloud(TEXTS), documents)
    with pytest.raises(ValueError, match=r"task 'none' is not one of \['nl_to_code'\]"):
        Qwen3EmbeddingFunction(str(tiny), "none")
    config = cloud.get_config()
    cloud.validate_config_update(config, config)
    with pytest.raises(ValueError, match="task cannot change.*nl_to_code.*another collection"):
        cloud.validate_config_update(config, config | {"task": None})


# LanceDB


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_lancedb(instruction, tiny, documents, queries, tmp_path):
    import lancedb
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    import qwen3np.integrations.lancedb  # noqa: F401

    options = {"name": str(tiny), "instruction": instruction, "options": {"num_threads": 1}}
    function = get_registry().get("qwen3np").create(**options)

    class Row(LanceModel):
        text: str | None = function.SourceField()
        vector: Vector(function.ndims()) | None = function.VectorField(default=None)

    table = lancedb.connect(tmp_path).create_table("rows", schema=Row)
    table.add([{"text": text} for text in [*TEXTS, None]], on_bad_vectors="null")
    # Another day: the table knows its function.
    table = lancedb.connect(tmp_path).open_table("rows")
    assert table.embedding_functions["vector"].function.safe_model_dump() == options
    rows = table.to_arrow().to_pylist()
    same([row["vector"] for row in rows[:-1]], documents)
    assert rows[-1]["vector"] is None
    found = table.search(QUERY).distance_type("dot").limit(4).to_list()
    exact = {text: 1 - v @ queries[instruction] for text, v in zip(TEXTS, documents, strict=True)}
    np.testing.assert_allclose(
        [row["_distance"] for row in found], [exact[row["text"]] for row in found], atol=1e-5
    )


# llm


def test_llm_plugin(tiny, documents, tmp_path):
    """As its user calls it, with a generated model in place of the published one in the Hub cache."""
    pytest.importorskip("llm")
    cache = tmp_path / "hub" / "models--Qwen--Qwen3-Embedding-0.6B"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / ("a" * 40)).symlink_to(tiny, target_is_directory=True)
    home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "LLM_USER_PATH": str(tmp_path / "llm")}
    command = [sys.executable, "-m", "llm", "embed", "-m", "qwen3-embedding-0.6b", "-c", TEXTS[0]]
    run = subprocess.run(command, env=os.environ | home, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    same(eval(run.stdout), documents[0])


# What they share


def test_threads_load_a_model_once(tiny, model):
    from qwen3np.integrations.models import shared

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: shared(Embedder, tiny, {"max_seq_length": 77}), range(16)))
        assert len({id(one) for one in found}) == 1
        texts = [f"{text} {i}" for i, text in enumerate(TEXTS * 4)]
        same(list(pool.map(found[0].encode, texts)), model.encode(texts))
    assert shared(Embedder, tiny) is not found[0]
    with pytest.raises(TypeError, match="cannot be stored as JSON"):
        shared(Embedder, tiny, {"max_seq_length": {77}})
