"""config.json: published files are read as published; what this package does not compute is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen3np import CheckpointError
from qwen3np.loading.config import INTEGERS, SUPPORTED, Config

VALID = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 10,
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 56,
    "max_position_embeddings": 128,
    "model_type": "qwen3",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 199,
}
EXPECTED = Config(24, 56, 3, 6, 2, 10, 199, 128, 1e-5, 5e5, True)

NO_POSITIVE_NUMBER = (0, -1e-6, math.nan, math.inf, 10**400, None, "1e-6", True, [1.0])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def config(**changes) -> Config:
    return Config.from_dict({**VALID, **changes}, "folder/config.json")


def without(*keys: str) -> dict:
    return {key: value for key, value in VALID.items() if key not in keys}


@pytest.mark.parametrize(
    "name, numbers",
    [
        ("Qwen3-Embedding-0.6B", (1024, 3072, 28, 16, 8, 128, 151669, 32768)),
        ("Qwen3-Embedding-4B", (2560, 9728, 36, 32, 8, 128, 151665, 40960)),
        ("Qwen3-Reranker-0.6B", (1024, 3072, 28, 16, 8, 128, 151669, 40960)),
    ],
)
def test_published_files_give_the_published_numbers(assets, name, numbers):
    expected = Config(*numbers, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True)
    assert Config.load(assets / "model_files" / f"{name}.config.json") == expected


@pytest.mark.parametrize(
    "raw",
    [
        VALID,
        {**without("rope_theta"), "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {**VALID, "rope_parameters": {"rope_theta": 500000, "rope_type": "default"}},
        {**without("torch_dtype"), "dtype": "bfloat16"},
        {**VALID, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False},
        {**VALID, "layer_types": ["full_attention"] * 3},
        without("attention_bias", "hidden_act"),
        {**VALID, "hidden_act": "swish", "attention_bias": None},
        {**VALID, "sliding_window": 4096, "max_window_layers": 2},
        {**VALID, "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 3},
        {**VALID, "rope_scaling": {"rope_type": "default", "factor": None, "partial_rotary_factor": 1.0}},
        {**VALID, "is_causal": True, "auto_map": {}, "quantization_config": None, "architectures": None},
        # What transformers does not know it ignores.
        {**VALID, "_attn_implementation_autoset": True, "unsloth_fixed": True, "unsloth_version": "5"},
        {**VALID, "gradient_checkpointing": False, "sentence_transformers": {}, "num_labels": 2},
        {**VALID, "_commit_hash": "0a1b", "my_own_key": [1]},
    ],
)
def test_every_spelling_of_one_model_gives_the_same_config(raw):
    """transformers 4 and 5 write the same model differently; what is left out has transformers' default."""
    assert Config.from_dict(raw) == EXPECTED


@pytest.mark.parametrize(
    "key, value",
    [
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", "default"),
        ("rope_parameters", {"rope_theta": 5e5, "rope_type": "linear"}),
        ("rope_parameters", {"rope_theta": 5e5, "partial_rotary_factor": 0.5}),
        ("rope_scaling", {"rope_type": "default", "mrope_section": [1, 2, 2]}),
        ("is_causal", False),
        ("use_bidirectional_attention", True),
        ("auto_map", {"AutoModel": "modeling.Model"}),
        ("architectures", ["Qwen3MoeForCausalLM"]),
        ("architectures", "Qwen3ForCausalLM"),
        ("partial_rotary_factor", 0.5),
        ("logit_scale", 0.5),
        ("final_logit_softcapping", 30.0),
        ("use_qk_norm", False),
        ("text_config", {"hidden_size": 8}),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("model_type", "qwen2"),
        ("model_type", None),
        ("quantization_config", {"bits": 4}),
        ("layer_types", ["full_attention", "sliding_attention", "full_attention"]),
        ("layer_types", 5),
        ("num_experts", 128),
        ("tie_word_embeddings", "true"),
        *((key, value) for key in INTEGERS for value in (0, -1, 2.0, True, "8", None, [8])),
        *(("rms_norm_eps", value) for value in NO_POSITIVE_NUMBER),
        *(("rope_theta", value) for value in NO_POSITIVE_NUMBER),
    ],
)
def test_a_value_it_cannot_honour_is_named_with_file_and_key(key, value):
    """A model computed with one wrong number gives vectors that look like vectors."""
    with pytest.raises(CheckpointError) as caught:
        config(**{key: value})
    message = str(caught.value)
    assert message.startswith("folder/config.json: ")
    assert key in message and json.dumps(value) in message
    assert ";" not in message, "one mistake, one problem"


def test_a_sliding_window_in_use_is_refused():
    """From layer max_window_layers on, 28 by default, where layer_types is silent."""
    window = {"use_sliding_window": True, "sliding_window": 64}
    config(**window)  # all three layers are in front of layer 28
    config(**window, max_window_layers=0, layer_types=["full_attention"] * 3)
    config(use_sliding_window=True, sliding_window=None, max_window_layers=0)
    with pytest.raises(CheckpointError, match="use_sliding_window = true .* max_window_layers = 2 on"):
        config(**window, max_window_layers=2)


def test_untied_is_the_default_as_in_transformers():
    assert Config.from_dict(without("tie_word_embeddings")) == dataclasses.replace(
        EXPECTED, tie_word_embeddings=False
    )


def test_what_is_ignored_is_named_in_one_line_of_the_debug_log(caplog):
    with caplog.at_level(logging.DEBUG, "qwen3np"):
        config(unsloth_fixed=True, my_own_key=1)
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage() == (
        "folder/config.json: keys that change no vector are ignored: my_own_key, torch_dtype, unsloth_fixed"
    )


@pytest.mark.parametrize("key", [*INTEGERS, "rms_norm_eps", "rope_theta", "model_type"])
def test_a_missing_value_is_named(key):
    with pytest.raises(CheckpointError, match=key):
        Config.from_dict(without(key))


@pytest.mark.parametrize(
    "changes, found",
    [
        ({"num_key_value_heads": 4}, ["num_attention_heads = 6", "num_key_value_heads = 4"]),
        ({"head_dim": 9}, ["head_dim = 9"]),
        ({"layer_types": ["full_attention"] * 2}, ["2 entries", "num_hidden_layers = 3"]),
        ({"rope_parameters": {"rope_theta": 1e6}}, ["rope_theta", "500000.0", "1000000.0"]),
        ({"rope_parameters": {"rope_theta": 0}}, ["rope_theta", "found 0"]),
    ],
)
def test_values_that_contradict_each_other_are_both_named(changes, found):
    with pytest.raises(CheckpointError) as caught:
        config(**changes)
    assert all(part in str(caught.value) for part in found)


def test_all_problems_come_in_one_message():
    with pytest.raises(CheckpointError) as caught:
        config(
            hidden_act="gelu", hidden_size=0, num_experts=128, rope_scaling={"type": "yarn"}, rms_norm_eps=-1
        )
    assert str(caught.value).count(";") == 4
    for key in ("hidden_act", "hidden_size", "num_experts", "rope_scaling", "rms_norm_eps"):
        assert key in str(caught.value)


KEYS = st.sampled_from([*VALID, *SUPPORTED, "layer_types", "rope_scaling", "rope_parameters"])


@given(key=KEYS, value=JSON)
@example(key="layer_types", value=[[1]])
@example(key="layer_types", value=[1, "a"])
@example(key="rope_parameters", value={"rope_type": []})
def test_any_json_value_parses_or_is_refused(key, value):
    """Whatever a key holds: a Config with positive numbers, or CheckpointError; no other exception."""
    try:
        parsed = config(**{key: value})
    except CheckpointError as error:
        assert str(error).startswith("folder/config.json: ")
    else:
        assert all(getattr(parsed, name) > 0 for name in INTEGERS)
        assert parsed.rms_norm_eps > 0 and parsed.rope_theta > 0


@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(content=b"")
@example(content=b"[" * 100_000)
@example(content=b"\xef\xbb\xbf{}")
@example(content=b"9" * 5000)
def test_any_file_content_parses_or_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:  # no short content is a whole config
        Config.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="config.json: cannot be read"):
        Config.load(tmp_path / "config.json")
