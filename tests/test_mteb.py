"""mteb in process: its own tasks, filled with small data, have the scores that its own models have.

Those are mteb's entries of the published models, with sentence-transformers and transformers under them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3np import Embedder
from qwen3np.synth.checkpoints import LIKE, synthesize

pytestmark = pytest.mark.mteb

mteb = pytest.importorskip("mteb", reason='needs the extras: pip install ".[hf,mteb]"')
datasets, sentence_transformers, torch = map(
    pytest.importorskip, ("datasets", "sentence_transformers", "torch")
)
ours = pytest.importorskip("qwen3np.integrations.mteb")

PAGE = Path(__file__).parent.parent / "docs" / "mteb.md"
MODEL, RERANKER = "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"
FLOAT32 = {"dtype": "float32"}  # else transformers loads the stored bfloat16, and computes in it
WORDS = "planet yeast gravity capital bread orbit river light stone music 重力 café".split()


def sentences(count: int, seed: int, words: int = 9) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, words))) + f" {i}." for i in range(count)]


def retrieval(instructions: bool = False, ranked: bool = False) -> dict[str, Any]:
    """Queries with two relevant documents each; some documents have titles."""
    queries, documents = sentences(8, 1), sentences(30, 2, 20)
    asked: dict[str, list[str]] = {"id": [f"q{i}" for i in range(8)], "text": queries}
    if instructions:
        asked["instruction"] = [f"Relevant is what names {WORDS[i // 3]}." for i in range(8)]
    ids = [f"d{i}" for i in range(30)]
    return {
        "queries": datasets.Dataset.from_dict(asked),
        "corpus": datasets.Dataset.from_dict(
            {"id": ids, "title": sentences(15, 3) + [""] * 15, "text": documents}
        ),
        "relevant_docs": {f"q{i}": {f"d{i}": 1, f"d{29 - 2 * i}": 1} for i in range(8)},
        "top_ranked": {f"q{i}": ids[i % 3 :: 4] for i in range(8)} if ranked else None,
    }


def labelled(count: int, seed: int) -> Any:
    return datasets.Dataset.from_dict(
        {"text": sentences(count, seed), "label": [i % 3 for i in range(count)]}
    )


# Name of the task -> its data. Their types differ in how mteb calls a model.
DATA: dict[str, Callable[[], Any]] = {
    "SciFact": lambda: {"default": {"test": retrieval()}},
    "AskUbuntuDupQuestions": lambda: {"default": {"test": retrieval(ranked=True)}},
    "STS12": lambda: datasets.DatasetDict(
        test=datasets.Dataset.from_dict(
            {
                "sentence1": sentences(20, 4),
                "sentence2": sentences(20, 5),
                "score": np.linspace(0, 5, 20).tolist(),
            }
        )
    ),
    "Banking77Classification": lambda: datasets.DatasetDict(train=labelled(60, 6), test=labelled(30, 7)),
    "TwentyNewsgroupsClustering.v2": lambda: datasets.DatasetDict(
        test=datasets.Dataset.from_dict({"sentences": sentences(60, 8), "labels": [i % 4 for i in range(60)]})
    ),
    "BUCC.v2": lambda: {
        "de-en": datasets.DatasetDict(
            test=datasets.Dataset.from_dict({"sentence1": sentences(20, 9), "sentence2": sentences(20, 10)})
        )
    },
}


def task(name: str, data: Any = None) -> Any:
    """A task of mteb's as it is once its data was loaded."""
    subsets = {"hf_subsets": ["de-en"]} if name == "BUCC.v2" else {}
    made = mteb.get_task(name, **subsets)
    made.dataset = DATA[name]() if data is None else data
    made.data_loaded = True
    made.max_fraction_of_documents_to_embed, made.n_clusters = None, 3  # clustering: all texts, three times
    return made


def scores(model: Any, one: Any, cache: mteb.cache.ResultCache | None = None) -> dict[str, float]:
    """All numbers of a task's result."""
    found = mteb.evaluate(model, one, cache=cache, show_progress_bar=False)[0].scores["test"][0]
    return {name: value for name, value in found.items() if isinstance(value, float)}


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    assert len({round(value, 3) for value in found.values()} - {0, 1}) >= 1  # they say something
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def reference(tiny) -> Any:
    """mteb's entry of the embedding model, with the tiny one's weights."""
    meta = mteb.get_model_meta(MODEL)
    model = meta.loader(str(tiny), revision=None, device="cpu", model_kwargs=FLOAT32)
    model.mteb_model_meta = meta
    return model


@pytest.fixture(scope="module")
def encoder(model) -> Any:
    return ours.Encoder(model)


@pytest.mark.parametrize("name", DATA)
def test_scores_are_those_of_mteb_with_sentence_transformers(name, encoder, reference):
    assert_same(scores(encoder, task(name)), scores(reference, task(name)))


@pytest.mark.parametrize("prompt_type", [None, *mteb.types.PromptType])
@pytest.mark.parametrize("name", DATA)
def test_texts_have_the_prompts_of_mteb(name, prompt_type, encoder, reference, model):
    """Scores can agree by chance; vectors do not."""
    texts = sentences(5, 11)
    call = {"task_metadata": mteb.get_task(name).metadata, "hf_split": "test", "hf_subset": "default"}
    found, expected = (
        m.encode(
            torch.utils.data.DataLoader(datasets.Dataset.from_dict({"text": texts}), batch_size=2),
            prompt_type=prompt_type,
            **call,
        )
        for m in (encoder, reference)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    bare = model.encode(texts)
    assert np.array_equal(found, bare) == (prompt_type == mteb.types.PromptType.document)
    assert np.abs(found - bare).max() > 0.01 or prompt_type == mteb.types.PromptType.document


def test_other_instructions(tiny, model):
    """By task, as Qwen's own evaluation has them; another template, as fine-tuned models have it."""
    encoder = ours.Encoder(
        tiny, prompts_dict={"STS12": "Find its twin"}, instruction_template="{instruction} >"
    )
    vectors = encoder.encode(
        [{"text": ["a"]}], task_metadata=mteb.get_task("STS12").metadata, hf_split="", hf_subset=""
    )
    np.testing.assert_array_equal(vectors, model.encode(["a"], prompt="Find its twin >"))


@pytest.fixture(scope="module")
def folder(assets, tmp_path_factory) -> Path:
    """A tiny reranker with the published tokenizer: mteb looks for its words "yes" and "no"."""
    with pytest.MonkeyPatch.context() as patch:
        config = dataclasses.replace(LIKE["reranker-tiny"], vocab_size=151_669)
        patch.setitem(LIKE, "reranker-tiny", config)
        tokenizer = assets / "tokenizers" / "qwen3_base.tokenizer.json"
        return synthesize(tmp_path_factory.mktemp("mteb") / "r", "reranker-tiny", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def entry(folder) -> Any:
    """mteb's entry of the reranker, with the tiny one's weights."""
    meta = mteb.get_model_meta(RERANKER)
    model = meta.loader(str(folder), device="cpu", **FLOAT32)
    model.mteb_model_meta = meta
    return model


def test_reranking_with_the_model_cards_instruction(folder):
    cross_encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu", model_kwargs=FLOAT32)
    expected = scores(mteb.models.CrossEncoderWrapper(cross_encoder), task("AskUbuntuDupQuestions"))
    assert_same(scores(ours.CrossEncoder(folder), task("AskUbuntuDupQuestions")), expected)


def test_reranking_with_the_instruction_of_mtebs_entry(folder, entry):
    instruction = "Given the user query, retrieval the relevant passages"
    found = scores(ours.CrossEncoder(folder, instruction=instruction), task("AskUbuntuDupQuestions"))
    expected = scores(entry, task("AskUbuntuDupQuestions"))
    # nauc sorts queries by their best probability; several are 1 to the last bits of float32.
    assert_same(*({k: v for k, v in s.items() if "nauc" not in k} for s in (found, expected)))


def test_reranking_with_an_instruction_for_each_query(folder, entry):
    """The score of such a task compares two runs: here are those of its pairs."""
    queries = torch.utils.data.DataLoader(retrieval(instructions=True)["queries"], batch_size=3)
    texts = datasets.Dataset.from_dict({"text": sentences(8, 12)})
    documents = torch.utils.data.DataLoader(texts, batch_size=3)
    metadata = mteb.get_task("Core17InstructionRetrieval").metadata
    call = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
    model = ours.CrossEncoder(folder)
    found = model.predict(queries, documents, **call)
    np.testing.assert_allclose(found, entry.predict(queries, documents, **call), rtol=1e-4)
    bare = torch.utils.data.DataLoader(retrieval()["queries"], batch_size=3)
    assert np.all(np.abs(found / model.predict(bare, documents, **call) - 1) > 1e-3)


def test_metadata_is_honest(tiny, tiny_copy, tmp_path):
    """What mteb knows of the name stays; what is computed here, and with what, is said."""
    encoder = ours.Encoder(tiny, name=MODEL, truncate_dim=48)
    meta, known = encoder.mteb_model_meta, mteb.get_model_meta(MODEL)
    assert (meta.name, meta.license, meta.training_datasets) == (
        MODEL,
        known.license,
        known.training_datasets,
    )
    assert meta.framework == ["NumPy", "safetensors"]
    assert (meta.embed_dim, meta.max_tokens) == (48, encoder.model.max_seq_length)
    assert meta.n_parameters == 652_384  # of the tiny model, as `qwen3np demo` has it
    # Other settings, other weights and mteb's own are other results.
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    others = [
        ours.Encoder(tiny, name=MODEL),
        ours.Encoder(tiny_copy, name=MODEL),
        ours.Encoder(tiny, name=MODEL, weights="int8"),
    ]
    cache = mteb.cache.ResultCache(tmp_path)
    places = {cache.get_task_result_path("STS12", m.mteb_model_meta) for m in [encoder, *others]}
    assert len(places) == 4 and cache.get_task_result_path("STS12", known) not in places
    assert all("experiments" in str(place) for place in places)
    stored = scores(encoder, task("STS12"), cache)
    assert_same(scores(encoder, task("STS12", {"not": "evaluated again"}), cache), stored)
    assert ours.Encoder(tiny).mteb_model_meta.name == tiny.name


def test_settings_of_a_loaded_model_are_refused(model):
    with pytest.raises(TypeError, match="truncate_dim: Embedder.*is loaded already"):
        ours.Encoder(model, truncate_dim=64)
    assert isinstance(ours.Encoder(model).model, Embedder)


def test_the_page(tiny, tiny_reranker, tmp_path, monkeypatch):
    """Its programs run, with one small task in place of a benchmark's."""
    monkeypatch.chdir(tmp_path)
    cache = mteb.cache.ResultCache(tmp_path / "cache")  # not the user's, the default since mteb's import
    monkeypatch.setitem(mteb.evaluate.__kwdefaults__, "cache", cache)
    data = {name: task(name) for name in ("STS12", "AskUbuntuDupQuestions")}
    benchmark = mteb.Benchmark(name="MTEB(eng, v2)", tasks=list(data.values()))
    monkeypatch.setattr(mteb, "get_benchmark", {benchmark.name: benchmark}.__getitem__)
    monkeypatch.setattr(mteb, "get_tasks", lambda names: [data[name] for name in names])
    programs = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(programs) >= 2
    for program in programs:
        exec(program.replace(MODEL, str(tiny)).replace(RERANKER, str(tiny_reranker)), {})
    stored = {path.stem for path in (tmp_path / "cache").rglob("experiments/**/*.json")}
    assert data.keys() <= stored
