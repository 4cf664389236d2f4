"""The side files of an embedding model: what is not last-token pooling of one transformer is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3np import CheckpointError, Embedder
from qwen3np.modules import Modules, load_modules

POOLING, SETTINGS = "1_Pooling/config.json", "config_sentence_transformers.json"
MAX_LENGTH = "sentence_bert_config.json"
TRANSFORMER, POOL, NORMALIZE = (
    {"type": f"sentence_transformers.models.{kind}", "path": path}
    for kind, path in [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
)
QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def change(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def test_published_side_files(assets, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    for published, name in [
        ("Qwen3-Embedding.modules.json", "modules.json"),
        ("Qwen3-Embedding.config_sentence_transformers.json", SETTINGS),
        ("Qwen3-Embedding-0.6B.1_Pooling.config.json", POOLING),
    ]:
        shutil.copy(assets / "model_files" / published, tmp_path / name)
    assert load_modules(tmp_path) == Modules({"query": QUERY, "document": ""}, None, "cosine", None)


def test_the_published_reranker_is_refused_as_one(assets, tmp_path):
    shutil.copy(assets / "model_files" / "Qwen3-Reranker.modules.json", tmp_path / "modules.json")
    with pytest.raises(CheckpointError, match="is a reranker"):
        load_modules(tmp_path)


def test_a_folder_without_side_files_has_the_defaults(tmp_path):
    assert load_modules(tmp_path) == Modules({}, None, "cosine", None)


@pytest.mark.parametrize(
    "name, content",
    [
        (POOLING, {"pooling_mode_lasttoken": True}),
        (POOLING, {"pooling_mode": "lasttoken", "include_prompt": True, "embedding_dimension": 96}),
        (POOLING, {"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}),
        ("modules.json", [TRANSFORMER, POOL]),
        (SETTINGS, {"__version__": {"transformers": "5"}, "similarity_fn_name": None, "prompts": {}}),
        (SETTINGS, {"prompts": {"query": "q: "}, "default_prompt_name": "query"}),
        (MAX_LENGTH, {"max_seq_length": 512}),
    ],
)
def test_both_spellings_of_what_is_supported_load(tiny_copy, name, content):
    """sentence-transformers 5 writes `pooling_mode: "lasttoken"` where older versions wrote a flag a mode."""
    change(tiny_copy, name, content)
    Embedder(tiny_copy)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        (POOLING, {"pooling_mode_mean_tokens": True}, "mean_tokens"),
        (POOLING, {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, "lasttoken, mean"),
        (POOLING, {"pooling_mode_mean_tokens": 1, "pooling_mode_lasttoken": True}, "lasttoken, mean"),
        (POOLING, {"pooling_mode": "mean"}, "pooling mode mean"),
        (POOLING, {"pooling_mode": "cls", "pooling_mode_lasttoken": True}, "cls, lasttoken"),
        (POOLING, {"pooling_mode": ["lasttoken", "mean"]}, "pooling mode none"),
        (POOLING, {"pooling_mode_lasttoken": True, "include_prompt": False}, "include_prompt = False"),
        (POOLING, [], "expected a JSON object, found list"),
        ("modules.json", [TRANSFORMER, POOL, {"type": "models.Dense"}], "Pooling -> Dense"),
        ("modules.json", [TRANSFORMER, POOL, {"type": "x.LogitScore"}], "is a reranker"),
        ("modules.json", [POOL, TRANSFORMER], "Pooling -> Transformer"),
        ("modules.json", [], "not supported"),
        ("modules.json", {}, "not a list of modules"),
        ("modules.json", [TRANSFORMER, 5], "not a list of modules"),
        (SETTINGS, {"similarity_fn_name": "angular"}, "similarity_fn_name = 'angular'"),
        (SETTINGS, {"prompts": {"query": None}}, "prompts must map names to strings"),
        (SETTINGS, {"prompts": {"query": ""}, "default_prompt_name": "p"}, "default_prompt_name = 'p'"),
        (SETTINGS, {"default_prompt_name": ["query"]}, "default_prompt_name = ['query']"),
        (MAX_LENGTH, {"max_seq_length": 0}, "max_seq_length must be a positive integer, found 0"),
        (MAX_LENGTH, {"max_seq_length": "512"}, "found '512'"),
    ],
)
def test_what_is_not_computed_is_refused_with_file_and_value(tiny_copy, name, content, reason):
    change(tiny_copy, name, content)
    with pytest.raises(CheckpointError) as caught:
        Embedder(tiny_copy)
    assert reason in str(caught.value)
    assert name in str(caught.value) or "reranker" in reason


def test_a_pooling_file_that_modules_json_names_must_be_there(tiny_copy):
    (tiny_copy / POOLING).unlink()
    with pytest.raises(CheckpointError, match="1_Pooling"):
        Embedder(tiny_copy)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from("type path prompts default_prompt_name similarity_fn_name max_seq_length".split())


@given(
    name=st.sampled_from(["modules.json", POOLING, SETTINGS, MAX_LENGTH]),
    content=JSON | st.dictionaries(KEYS, JSON) | st.lists(st.dictionaries(KEYS, JSON), max_size=3),
)
def test_any_side_file_loads_or_is_refused(tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "1_Pooling").mkdir()
    change(folder, POOLING, {"pooling_mode": "lasttoken"})
    change(folder, "modules.json", [TRANSFORMER, POOL, NORMALIZE])
    change(folder, name, content)
    try:
        load_modules(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)
