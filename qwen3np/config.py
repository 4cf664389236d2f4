"""config.json -> Config. Every key is used, known to change nothing in an encoder, or refused."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError

# Keys that change nothing in the encoder's arithmetic.
IGNORED = frozenset(
    "architectures auto_map bos_token_id eos_token_id pad_token_id chunk_size_feed_forward id2label label2id "
    "initializer_range is_encoder_decoder max_window_layers output_attentions output_hidden_states "
    "problem_type return_dict tokenizer_class transformers_version use_cache "
    "attention_dropout _name_or_path _attn_implementation name_or_path "
    "dtype torch_dtype".split()  # each tensor's own dtype, in the safetensors header, is what counts
)

# Keys that would change the arithmetic, with the values that leave it as this package computes it.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen3",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}

INTEGERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


MAX_LAYERS = 1000  # the 8B has 36; a damaged number must not become a list of billions of tensor names


@dataclass(frozen=True)
class Config:
    """The numbers that define a Qwen3 encoder, under the names of config.json.

    `head_dim` is independent of `hidden_size / num_attention_heads` (0.6B: 128, not 64).
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read a config.json. Raises CheckpointError naming the file, the key and the value it cannot
        honour."""
        path = Path(path)
        raw = load_json(path)
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path}: expected a JSON object, found {type(raw).__name__}")
        return cls.from_dict(raw, str(path))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = "config") -> Config:
        """Check and take the values of a parsed config.json; `where` names it in errors."""
        problems = []
        for key, allowed in SUPPORTED.items():
            if key in raw and raw[key] not in allowed:
                names = " or ".join(json.dumps(a) for a in allowed)
                problems.append(f"{key} = {json.dumps(raw[key])} is not supported (only {names})")
        if "model_type" not in raw:
            problems.append('model_type is missing (expected "qwen3")')
        layer_types = raw.get("layer_types") or []
        if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
            problems.append(
                f'layer_types = {json.dumps(layer_types)} is not supported (only a list of "full_attention")'
            )
        theta = _rope_theta(raw, problems)
        known = {
            *IGNORED,
            *SUPPORTED,
            *INTEGERS,
            "layer_types",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "tie_word_embeddings",
        }
        for key in sorted(set(raw) - known):
            problems.append(
                f"{key} = {json.dumps(raw[key])} is unknown and may change what the model computes"
            )
        for key in INTEGERS:
            value = raw.get(key)
            if type(value) is not int or value <= 0:
                problems.append(f"{key} must be a positive integer, found {json.dumps(value)}")
        if not problems and raw["num_hidden_layers"] > MAX_LAYERS:
            problems.append(
                f"num_hidden_layers = {raw['num_hidden_layers']} is more than {MAX_LAYERS}: damaged?"
            )
        eps = raw.get("rms_norm_eps")
        if not _positive_number(eps):
            problems.append(f"rms_norm_eps must be a positive number, found {json.dumps(eps)}")
        tied = raw.get("tie_word_embeddings", True)
        if type(tied) is not bool:
            problems.append(f"tie_word_embeddings must be true or false, found {json.dumps(tied)}")
        if not problems:
            if raw["num_attention_heads"] % raw["num_key_value_heads"]:
                problems.append(
                    f"num_attention_heads = {raw['num_attention_heads']} is not a multiple of "
                    f"num_key_value_heads = {raw['num_key_value_heads']}"
                )
            if raw["head_dim"] % 2:
                problems.append(f"head_dim = {raw['head_dim']} is odd; RoPE rotates pairs of channels")
            if layer_types and len(layer_types) != raw["num_hidden_layers"]:
                problems.append(
                    f"layer_types has {len(layer_types)} entries for "
                    f"num_hidden_layers = {raw['num_hidden_layers']}"
                )
        if problems:
            raise CheckpointError(f"{where}: " + "; ".join(problems))
        return cls(
            **{key: raw[key] for key in INTEGERS},
            rms_norm_eps=float(raw["rms_norm_eps"]),
            rope_theta=theta,
            tie_word_embeddings=tied,
        )


def load_json(path: Path) -> Any:
    """Parse a JSON file. Raises CheckpointError naming the file where it is unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise CheckpointError(f"{path}: is not valid JSON ({error}); download it again") from error
    except RecursionError as error:
        raise CheckpointError(
            f"{path}: is nested too deeply to be a model file; download it again"
        ) from error


def _positive_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def _rope_theta(raw: dict[str, Any], problems: list[str]) -> float:
    """`rope_theta`, or since transformers 5 `rope_parameters: {rope_theta, rope_type}`."""
    thetas = []
    if "rope_theta" in raw:
        thetas.append(raw["rope_theta"])
    for key in ("rope_scaling", "rope_parameters"):
        value = raw.get(key)
        if value is None:
            continue
        if (
            not isinstance(value, dict)
            or value.get("rope_type", value.get("type", "default")) != "default"
            or set(value) - {"rope_type", "type", "rope_theta"}
        ):
            problems.append(
                f'{key} = {json.dumps(value)} is not supported (only null or rope_type "default")'
            )
        elif "rope_theta" in value:
            thetas.append(value["rope_theta"])
    if not thetas:
        problems.append("rope_theta is missing (neither rope_theta nor rope_parameters.rope_theta)")
    elif wrong := [theta for theta in thetas if not _positive_number(theta)]:
        problems.append(f"rope_theta must be a positive number, found {json.dumps(wrong[0])}")
    elif len({float(theta) for theta in thetas}) > 1:
        problems.append(f"rope_theta is given twice with different values: {thetas[0]} and {thetas[1]}")
    else:
        return float(thetas[0])
    return 0.0
