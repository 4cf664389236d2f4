"""The reference against transformers' states, frozen by make_fixtures.py, at every stage; planted errors."""

from __future__ import annotations

import inspect
import json
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from qwen3np import reference
from qwen3np.loading.checkpoint import Checkpoint, Tensor, Weights
from qwen3np.loading.config import Config
from qwen3np.runtime.stages import reference_stages
from qwen3np.verify.compare import Row, compare_stages, stage_table

FROZEN = np.load(Path(__file__).parent / "fixtures" / "states.npz")
CONFIG = json.loads(str(FROZEN["config"]))
LENGTHS = [int(name.removesuffix("/ids")) for name in FROZEN.files if name.endswith("/ids")]
FLOAT32_EPS = 2.0**-23

# The frozen states are rounded to float32 and transformers' softmax and rotary table are float32 in any
# precision: a few roundings a stage, relative to its largest value.
TOLERANCE = {np.float64: 16 * FLOAT32_EPS, np.float32: 64 * FLOAT32_EPS}


@dataclass
class Frozen(Checkpoint):
    """A checkpoint that never was a file."""

    def __init__(self) -> None:
        self.config = Config.from_dict(CONFIG)
        self.tensors = {
            name.removeprefix("weights/"): Tensor(name, "BF16", FROZEN[name])
            for name in FROZEN.files
            if name.startswith("weights/")
        }


def frozen_stages(length: int):
    states = {
        name.removeprefix(f"{length}/"): FROZEN[name]
        for name in FROZEN.files
        if name.startswith(f"{length}/")
    }
    yield "embed_tokens", states["embed_tokens"]
    for i in range(CONFIG["num_hidden_layers"]):
        for name in (f"layers.{i}.self_attn", f"layers.{i}.mlp", f"layers.{i}"):
            yield name, states[name]
    yield "norm", states["norm"]
    pooled = states["norm"][-1:].astype(np.float64)
    yield "pooled", pooled / np.linalg.norm(pooled)


def compare(length: int, dtype=np.float64, ref: types.ModuleType = reference) -> list[Row]:
    stages = reference_stages([FROZEN[f"{length}/ids"]], Weights(Frozen(), np.dtype(dtype)), ref)
    return compare_stages(frozen_stages(length), stages, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_stage_is_transformers(length, dtype):
    rows = compare(length, dtype)
    assert all(row.ok for row in rows), "\n" + stage_table(rows)


def test_encode_is_the_stages_in_one_go():
    """`encode`, several texts at once, ends in the bits of the stage-by-stage pass of each."""
    weights = Weights(Frozen(), np.dtype(np.float32))
    texts = [FROZEN[f"{length}/ids"] for length in LENGTHS]
    c = weights.checkpoint.config
    states = reference.forward(
        texts, weights.embed_tokens, weights.layers, weights.norm, c.rms_norm_eps, c.rope_theta, c.head_dim
    )
    for ids, x_TD in zip(texts, states, strict=True):
        np.testing.assert_array_equal(x_TD, dict(reference_stages([ids], weights))["norm"])


# One line of the reading copy changed: what it says, what it becomes, the first stage that must be found
# wrong.
ATTENTION, MLP = "layers.0.self_attn", "layers.0.mlp"
PLANTED = {
    "interleaved RoPE": ("np.split(x_TNH, 2, axis=-1)", "(x_TNH[..., ::2], x_TNH[..., 1::2])", ATTENTION),
    "RoPE the other way round": ("a * cos - b * sin", "a * cos + b * sin", ATTENTION),
    "RoPE before the norm": (
        "apply_rope(rms_norm(q_TNH, q_norm, eps), cos, sin)",
        "rms_norm(apply_rope(q_TNH, cos, sin), q_norm, eps)",
        ATTENTION,
    ),
    "keys not normalised": (
        "apply_rope(rms_norm(k_SKH, k_norm, eps), cos, sin)",
        "apply_rope(k_SKH, cos, sin)",
        ATTENTION,
    ),
    "wrong GQA mapping": ("k = n // G ", "k = n % K ", ATTENTION),
    "scale of hidden_size": ("type(H**-0.5)", "type(x_TD.shape[1]**-0.5)", ATTENTION),
    "no causal mask": ("k=1)  # a token", "k=T)  # a token", ATTENTION),
    "unit gammas": (" + eps) * weight", " + eps)", ATTENTION),
    "no eps": (" + eps) * weight", ") * weight", ATTENTION),
    "another theta": ("np.power(theta,", "np.power(10000.0,", ATTENTION),
    "gate and up swapped": ("silu(gate_TF) * up_TF", "silu(up_TF) * gate_TF", MLP),
    "gelu": ("x / (1 + np.exp(np.minimum(-x, 88)))", "x / (1 + np.exp(np.minimum(-1.702 * x, 88)))", MLP),
    "post-norm": (
        """h_TD = rms_norm(x_TD, layer["input_layernorm"], eps)
    x_TD = x_TD + attention(h_TD, cos, sin, eps, **layer["self_attn"])""",
        """h_TD = attention(x_TD, cos, sin, eps, **layer["self_attn"])
    x_TD = x_TD + rms_norm(h_TD, layer["input_layernorm"], eps)""",
        "layers.0",
    ),
    "first token pooled": ("x_TD[-1]", "x_TD[0]", "pooled"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found_at_its_stage(name):
    right, wrong, stage = PLANTED[name]
    source = inspect.getsource(reference)
    assert right in source, "the line to change is gone: update this test"
    module = types.ModuleType("planted")
    exec(source.replace(right, wrong), module.__dict__)
    bad = [row.stage for row in compare(LENGTHS[1], np.float32, module) if not row.ok]
    assert bad and bad[0] == stage


def test_one_flipped_weight_is_found():
    checkpoint = Frozen()
    name = "layers.1.mlp.up_proj.weight"
    bits = checkpoint.tensors[name].data.copy()
    bits[3, 5] ^= 0x8000  # the sign of one of 3,840 weights
    checkpoint.tensors[name] = Tensor(name, "BF16", bits)
    stages = reference_stages([FROZEN["18/ids"]], Weights(checkpoint, np.dtype(np.float32)))
    rows = compare_stages(frozen_stages(18), stages, TOLERANCE[np.float32])
    assert next(row.stage for row in rows if not row.ok) == "layers.1.mlp"


def test_a_missing_last_token_is_another_vector():
    """Without the appended token another state is pooled."""
    weights = Weights(Frozen(), np.dtype(np.float64))
    ids = FROZEN["18/ids"]
    whole, cut = (dict(reference_stages([i], weights))["pooled"] for i in (ids, ids[:-1]))
    assert np.abs(whole - cut).max() > 0.01


def test_it_can_be_read_in_one_sitting():
    """At most 200 lines, NumPy the only import, and no class, flag or loop over texts hidden in a kernel."""
    source = inspect.getsource(reference)
    assert len(source.splitlines()) <= 200
    assert [line for line in source.splitlines() if line.startswith(("import", "from"))] == [
        "import numpy as np"
    ]
    assert "class " not in source
