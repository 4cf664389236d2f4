"""The side files of an embedding model: what is not last-token pooling of one transformer is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3np import CheckpointError, Embedder
from qwen3np.loading.st_config import Modules, load_modules, load_reranker_modules
from qwen3np.loading.tokenizer_config import load_tokenizer_config

POOLING, SETTINGS = "1_Pooling/config.json", "config_sentence_transformers.json"
MAX_LENGTH = "sentence_bert_config.json"
TRANSFORMER, POOL, NORMALIZE = (
    {"type": f"sentence_transformers.models.{kind}", "path": path}
    for kind, path in [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
)
DENSE, LOGITS = ({"type": f"sentence_transformers.models.{kind}"} for kind in ("Dense", "LogitScore"))
FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}
QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def change(folder: Path, name: str, content: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
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
        (SETTINGS, {"prompts": {"query": None}, "default_prompt_name": "document"}),
        (POOLING, {"pooling_mode": "lasttoken", "pooling_mode_cls_token": True}),
        ("2_Normalize/config.json", {"module_input_name": "sentence_embedding"}),
        (MAX_LENGTH, {"max_seq_length": 512}),
        (MAX_LENGTH, {"max_seq_length": None, "do_lower_case": False}),
        (MAX_LENGTH, {"model_args": {"torch_dtype": "bfloat16"}}),
        (MAX_LENGTH, {"transformer_task": "feature-extraction", "modality_config": {"text": FORWARD}}),
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
        (POOLING, {"pooling_mode": "cls", "pooling_mode_lasttoken": True}, "pooling mode cls"),
        (POOLING, {"pooling_mode": ["lasttoken", "mean"]}, "pooling mode lasttoken, mean"),
        (POOLING, {"pooling_mode": "lasttoken", "embedding_dimension": 64}, "embedding_dimension is 64"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        (POOLING, {"pooling_mode_lasttoken": True, "include_prompt": False}, "include_prompt = False"),
        (POOLING, [], "expected a JSON object, found list"),
        ("modules.json", [TRANSFORMER, POOL, DENSE], "Pooling -> Dense"),
        ("modules.json", [TRANSFORMER, POOL, LOGITS], "is a reranker"),
        ("modules.json", [TRANSFORMER], "is a reranker"),
        ("modules.json", [{"type": "custom.Transformer", "path": ""}, POOL], "code of the model's own"),
        ("modules.json", [{**TRANSFORMER, "path": "../other"}, POOL], "not a folder inside the model's"),
        ("modules.json", [POOL, TRANSFORMER], "Pooling -> Transformer"),
        ("modules.json", [], "not supported"),
        ("modules.json", {}, "not a list of modules"),
        ("modules.json", [TRANSFORMER, 5], "not a list of modules"),
        (SETTINGS, {"similarity_fn_name": "angular"}, "similarity_fn_name = 'angular'"),
        (SETTINGS, {"prompts": {"query": 5}}, "prompts must map names to strings"),
        (SETTINGS, {"prompts": {"query": ""}, "default_prompt_name": "p"}, "default_prompt_name = 'p'"),
        (SETTINGS, {"default_prompt_name": ["query"]}, "default_prompt_name = ['query']"),
        (SETTINGS, {"model_type": "CrossEncoder"}, "model_type = 'CrossEncoder' is no"),
        (SETTINGS, {"truncate_dim": "64"}, "truncate_dim must be a positive integer"),
        (MAX_LENGTH, {"query_length": 32}, "query_length = 32"),
        (MAX_LENGTH, {"processor_kwargs": {"truncation_side": "left"}}, "with 'truncation_side'"),
        (MAX_LENGTH, {"unknown": 1}, "unknown = 1"),
        (MAX_LENGTH, {"do_lower_case": "yes"}, "do_lower_case must be"),
        (MAX_LENGTH, {"transformer_task": "fill-mask"}, "transformer_task = 'fill-mask'"),
        (MAX_LENGTH, {"modality_config": {"text": FORWARD, "message": FORWARD}}, "chat template (message)"),
        (MAX_LENGTH, {"modality_config": {"image": FORWARD}}, "only text and message"),
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
KEYS = st.sampled_from(
    "type path prompts default_prompt_name similarity_fn_name truncate_dim model_type max_seq_length "
    "do_lower_case "
    "modality_config processor_kwargs pooling_mode embedding_dimension module_input_name "
    "added_tokens_decoder "
    "extra_special_tokens pad_token model_max_length tokenizer_class truncation_side chat_template 7".split()
)
NAMES = ["modules.json", POOLING, SETTINGS, MAX_LENGTH, "2_Normalize/config.json", "tokenizer_config.json"]
NAMES += ["added_tokens.json", "special_tokens_map.json", "processor_config.json"]


@given(
    name=st.sampled_from(NAMES),
    content=JSON | st.dictionaries(KEYS, JSON) | st.lists(st.dictionaries(KEYS, JSON), max_size=3),
)
def test_any_side_file_loads_or_is_refused(tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("modules")
    change(folder, POOLING, {"pooling_mode": "lasttoken"})
    change(folder, "modules.json", [TRANSFORMER, POOL, NORMALIZE])
    change(folder, name, content)
    for load in (load_modules, load_reranker_modules, load_tokenizer_config):
        try:
            load(folder)
        except CheckpointError as error:
            assert str(folder) in str(error)
