"""config.json -> Config.

Keys that change the computation are used or refused; others are ignored, as in transformers.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .int8 import METHOD

logger = logging.getLogger("qwen3np")

ROPE = ("rope_theta", "rope_scaling", "rope_parameters")

# Keys that change what is computed, in Qwen3's own configuration and in those of models derived from it, with
# the values that this package computes; None, or no such key, stands for the same.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen3",),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_bias": (False,),
    # Code or weights of another kind
    "auto_map": ({},),
    "quantization_config": ({}, METHOD),
    "compression_config": ({},),
    "text_config": (),
    "vision_config": (),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "pruned_heads": ({},),
    # Who sees whom
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "bidirectional": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "attention_chunk_size": (),
    "num_kv_shared_layers": (0,),
    # Positions
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "mrope_section": ([],),
    "no_rope_layers": ([],),
    # Biases, norms, scales
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "use_qk_norm": (True,),
    "qk_norm": (True,),
    "qk_layernorm": (True,),
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
}

ARCHITECTURES = ("Qwen3Model", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification")

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


SLIDING = ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers")
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
        """Read a config.json; errors name the file, the key and the value that is not supported."""
        path = Path(path)
        raw = load_json(path)
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path}: expected a JSON object, found {type(raw).__name__}")
        return cls.from_dict(raw, str(path))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = "config") -> Config:
        """Check and take the values of a parsed config.json; errors call it `where`."""
        problems = []
        for key, allowed in SUPPORTED.items():
            if key in raw and raw[key] not in allowed and (raw[key] is not None or key == "model_type"):
                names = " or ".join(json.dumps(a) for a in allowed) or "null"
                problems.append(f"{key} = {json.dumps(raw[key])} is not supported (only {names})")
        if "model_type" not in raw:
            problems.append('model_type is missing (expected "qwen3")')
        architectures = raw.get("architectures") or []
        if not isinstance(architectures, list) or any(a not in ARCHITECTURES for a in architectures):
            names = ", ".join(ARCHITECTURES)
            problems.append(f"architectures = {json.dumps(architectures)} is not supported (only {names})")
        layer_types = raw.get("layer_types") or []
        if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
            problems.append(
                f'layer_types = {json.dumps(layer_types)} is not supported (only a list of "full_attention")'
            )
        theta = _rope_theta(raw, problems)
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
        tied = raw.get("tie_word_embeddings", False)  # transformers' default for Qwen3
        if type(tied) is not bool:
            problems.append(f"tie_word_embeddings must be true or false, found {json.dumps(tied)}")
        if not problems:
            _check_sliding_window(raw, layer_types, problems)
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
        others = ("architectures", "rms_norm_eps", "tie_word_embeddings")
        if ignored := sorted(set(raw) - {*SUPPORTED, *INTEGERS, *ROPE, *SLIDING, *others}):
            logger.debug("%s: keys that change no vector are ignored: %s", where, ", ".join(ignored))
        return cls(
            **{key: raw[key] for key in INTEGERS},
            rms_norm_eps=float(raw["rms_norm_eps"]),
            rope_theta=theta,
            tie_word_embeddings=tied,
        )


def load_json(path: Path) -> Any:
    """Parse a JSON file; raise CheckpointError that names it where it is unreadable or not JSON."""
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


def load_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} without one; raise CheckpointError for another JSON value."""
    value = load_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _positive_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def _check_sliding_window(raw: dict[str, Any], layer_types: list[str], problems: list[str]) -> None:
    """Add a problem if some layer would attend to a window only.

    A window counts where use_sliding_window is true and there are no layer_types: from layer
    max_window_layers on (28 by default).
    """
    if not raw.get("use_sliding_window", False) or raw.get("sliding_window", 4096) is None or layer_types:
        return
    first = raw.get("max_window_layers", 28)
    if type(first) is not int or first < raw["num_hidden_layers"]:
        problems.append(
            f"use_sliding_window = {json.dumps(raw['use_sliding_window'])} is not supported (only false): "
            f"layers from max_window_layers = {json.dumps(first)} on would see "
            f"{raw.get('sliding_window', 4096)} tokens"
        )


def _rope_theta(raw: dict[str, Any], problems: list[str]) -> float:
    """Return `rope_theta`, or since transformers 5 that of `rope_parameters: {rope_theta, rope_type}`."""
    thetas = []
    if "rope_theta" in raw:
        thetas.append(raw["rope_theta"])
    for key in ("rope_scaling", "rope_parameters"):
        value = raw.get(key)
        if isinstance(value, dict):
            value = {name: v for name, v in value.items() if v is not None}
            if value.get("partial_rotary_factor") == 1:
                del value["partial_rotary_factor"]
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
