"""qwen3np-tiny: the trained model in the package. Meaning, which generated weights cannot show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from tolerances import channel

from qwen3np import Embedder, quantization_ranges, quantize_embeddings, semantic_search
from qwen3np.loading.hub import PACKAGED

NAME = "qwen3np-tiny"
FOLDER = PACKAGED[NAME]
# (query, the document that answers it and three that do not), written by hand; never trained on.
GROUPS = json.loads((Path(__file__).parent / "meaning_groups.json").read_text(encoding="utf-8"))
RIGHT = 40  # of 50; chance gives 12 or 13
QUERIES = [query for query, _ in GROUPS]
DOCUMENTS = [document for _, documents in GROUPS for document in documents]


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(NAME)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def right(model: Embedder, **options) -> np.ndarray:
    """Whether each group's right document is the nearest to its query."""
    queries = model.encode_query(QUERIES, **options)
    documents = model.encode_document(DOCUMENTS, **options).reshape(len(QUERIES), 4, -1)
    return np.einsum("gd,gnd->gn", queries, documents).argmax(1) == 0


def test_the_name_needs_no_network_and_a_folder_of_that_name_comes_first(monkeypatch, tmp_path, tiny):
    monkeypatch.chdir(tmp_path)
    assert Embedder(NAME, backend="numpy").checkpoint.folder == FOLDER
    (tmp_path / NAME).symlink_to(tiny, target_is_directory=True)
    assert Embedder(NAME, backend="numpy").checkpoint.folder == tmp_path / NAME


def test_the_right_document_is_the_nearest(model):
    found = right(model)
    assert found[:2].all(), "the model card's two queries"
    assert found.sum() >= RIGHT, [QUERIES[i] for i in np.flatnonzero(~found)]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({"matmul_precision": "medium"}, {}),
        ({"weights": "int8"}, {}),
        pytest.param({"matmul_precision": "low"}, {}, marks=pytest.mark.slow),  # it compiles for seconds
        ({}, {"truncate_dim": 128}),
    ],
    ids=str,
)
def test_what_saves_time_or_memory_keeps_the_ranks(model, arguments, options):
    cheaper = Embedder(NAME, **arguments) if arguments else model
    assert right(cheaper, **options).sum() >= right(model).sum() - 2


@pytest.mark.parametrize(("precision", "least"), [("int8", 49), ("ubinary", 45)])
def test_quantised_vectors_keep_the_ranks_with_rescoring(model, precision, least):
    """The nearest of 200 documents is that in float32; the nearest four by bits hold it less often."""
    queries, documents = model.encode_query(QUERIES), model.encode_document(DOCUMENTS)
    ranges = quantization_ranges(documents)
    quantised = quantize_embeddings(documents, precision, ranges)
    options = {"corpus_precision": precision, "ranges": ranges, "rescore_embeddings": documents}
    exact = semantic_search(queries, documents, 1)
    found = semantic_search(queries, quantised, 1, **options)
    assert sum(a[0]["corpus_id"] == b[0]["corpus_id"] for a, b in zip(exact, found, strict=True)) >= least


def test_the_instruction_makes_a_query_nearer_to_its_answer(model):
    """Queries were trained with it: without it more of the right documents are missed, or none fewer."""
    plain = model.encode_document(QUERIES)
    documents = model.encode_document(DOCUMENTS).reshape(len(QUERIES), 4, -1)
    assert right(model).sum() >= (np.einsum("gd,gnd->gn", plain, documents).argmax(1) == 0).sum()


def test_the_kernels_agree_with_the_reference(model):
    texts = [*QUERIES, *DOCUMENTS[:60], "", "A" * 3000, "Ünïcödé 🙂 in no training text"]
    expected = Embedder(NAME, backend="numpy").encode(texts)
    assert np.abs(model.encode(texts) - expected).max() < channel(model.backend, model.dimension)


def test_the_package_stays_small():
    """Of 7 MB in all, 6 are weights."""
    sizes = {path.name: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert sizes["model.safetensors"] <= 6_000_000
    assert sum(sizes.values()) <= 7_000_000


@pytest.mark.hf
def test_sentence_transformers_gives_the_same_vectors(model):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(FOLDER), model_kwargs={"dtype": "float32"})
    for name, texts in {"query": QUERIES, "document": DOCUMENTS}.items():
        assert np.abs(theirs.encode(texts, prompt_name=name) - model.encode(texts, name)).max() < 1e-5
