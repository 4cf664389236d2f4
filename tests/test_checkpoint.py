"""Checkpoints: every layout gives exactly what was stored; files that are not the whole model are refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from qwen3np import CheckpointError, Embedder
from qwen3np.loading.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, tensor_shapes
from qwen3np.loading.config import Config
from qwen3np.synth.checkpoints import LIKE, bfloat16_header, shards

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
SHAPES = tensor_shapes(Config.from_dict(CONFIG))
BITS = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "I8": np.dtype("i1")}
Stored = dict[str, tuple[str, np.ndarray]]


def random_tensors(dtypes=("BF16",), shapes=SHAPES) -> Stored:
    """Every finite bit pattern of its dtype is likely: subnormals, -0.0 and the largest values among them."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i, (name, shape) in enumerate(shapes.items()):
        dtype = dtypes[i % len(dtypes)]
        bits = rng.integers(0, 256, (*shape, BITS[dtype].itemsize), np.uint8).view(BITS[dtype])[..., 0]
        tensors[name] = dtype, np.where(np.isfinite(as_float32(dtype, bits)), bits, 0).astype(BITS[dtype])
    return tensors


def as_float32(dtype: str, bits: np.ndarray) -> np.ndarray:
    return (bits.astype("<u4") << 16).view("<f4") if dtype == "BF16" else bits.astype("<f4")


def write_file(path: Path, tensors: Stored) -> None:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, bits) in tensors.items():
        offsets = [len(data), len(data) + bits.nbytes]
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": offsets}
        data += bits.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_model(folder: Path, tensors: Stored, files: int = 1, prefix: str = "") -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if files == 1:
        write_file(folder / SINGLE_FILE, {prefix + name: t for name, t in tensors.items()})
        return folder
    weight_map = {}
    for k in range(files):
        shard = {prefix + name: tensors[name] for name in list(tensors)[k::files]}
        write_file(folder / f"model-{k + 1:05}-of-{files:05}.safetensors", shard)
        weight_map |= dict.fromkeys(shard, f"model-{k + 1:05}-of-{files:05}.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refusal(folder: Path) -> str:
    """The message with which both the checkpoint and the embedder refuse the folder."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    with pytest.raises(CheckpointError):
        Embedder(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtypes", [("BF16",), ("F16",), ("F32",), ("BF16", "F32", "F16")], ids="+".join)
@pytest.mark.parametrize("files, prefix", [(1, ""), (1, "model."), (3, ""), (3, "model.")])
@pytest.mark.parametrize("lm_head", [False, True], ids=["tied", "lm_head"])
def test_every_layout_gives_exactly_the_stored_values(tmp_path, dtypes, files, prefix, lm_head):
    shapes = SHAPES | ({"lm_head.weight": (50, 12)} if lm_head else {})
    stored = random_tensors(dtypes, shapes)
    checkpoint = Checkpoint(write_model(tmp_path, stored, files, prefix))
    assert checkpoint.tensors.keys() == stored.keys() and len(checkpoint.files) == files
    for name, (dtype, bits) in stored.items():
        values = checkpoint.tensors[name].widen()
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values.view("<u4"), as_float32(dtype, bits).view("<u4"), name)
    assert checkpoint.num_parameters == sum(bits.size for _, bits in stored.values())
    assert checkpoint.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_reading_copy_gets_every_weight_under_its_own_name(tmp_path, dtype):
    stored = random_tensors()
    w = Checkpoint(write_model(tmp_path, stored)).weights(dtype)
    nested = {f"layers.{i}.{k}.weight": v for i, layer in enumerate(w.layers) for k, v in flat(layer)}
    nested |= {"embed_tokens.weight": w.embed_tokens[np.arange(50)], "norm.weight": w.norm}
    assert nested.keys() == stored.keys()
    for name, values in nested.items():
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, as_float32(*stored[name]), name)


def flat(layer: dict, prefix: str = ""):
    for key, value in layer.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def test_opening_a_model_does_not_read_it(tmp_path):
    """The 1.2 GB of a 0.6B model (a sparse file here) are mapped: opening allocates a thousandth of that."""
    [shapes] = shards("0.6B", LIKE["0.6B"])
    numbers = {k: v for k, v in vars(LIKE["0.6B"]).items()}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **numbers}))
    with open(tmp_path / SINGLE_FILE, "wb") as file:
        file.write(bfloat16_header(shapes))
        start = file.tell()
        file.truncate(1191586416)
        for entry in json.loads(bfloat16_header(shapes)[8:]).values():
            if end := entry.get("data_offsets"):
                file.seek(start + end[1] - 2)
                file.write(b"\x80\x3f")  # 1.0: a tensor of nothing but zeros is no tensor
    tracemalloc.start()
    try:
        checkpoint = Checkpoint(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert checkpoint.num_parameters == 595776512
    for tensor in checkpoint.tensors.values():
        assert not tensor.data.flags.owndata and not tensor.data.flags.writeable


def test_all_wrong_tensors_are_reported_together_with_their_shapes(tmp_path):
    tensors = random_tensors()
    del tensors["layers.1.self_attn.q_norm.weight"]
    tensors["layers.2.input_layernorm.weight"] = "BF16", np.zeros(12, np.uint16)
    tensors["layers.0.self_attn.o_proj.weight"] = "BF16", np.zeros((24, 12), np.uint16)
    tensors["norm.weight"] = "I8", np.zeros(12, np.int8)
    message = refusal(write_model(tmp_path, tensors))
    for problem in (
        "missing: layers.1.self_attn.q_norm.weight [4]",
        "unexpected: layers.2.input_layernorm.weight [12]",
        "wrong shape: layers.0.self_attn.o_proj.weight is [24, 12], config.json asks for [12, 24]",
        "wrong dtype: norm.weight is I8",
    ):
        assert problem in message
    assert message.count("\n") == 4


def test_a_tensor_stored_twice_is_reported_with_its_file(tmp_path):
    folder = write_model(tmp_path, random_tensors(), files=2)
    second = folder / "model-00002-of-00002.safetensors"
    write_file(second, random_tensors())
    assert "stored twice: embed_tokens.weight (again in model-00002-of-00002.safetensors)" in refusal(folder)


@pytest.mark.parametrize(
    "index, reason",
    [
        ({"weight_map": {"norm.weight": "model-00009-of-00009.safetensors"}}, "not there: model-00009"),
        ({"weight_map": {"norm.weight": "x" * 300}}, "not there"),
        ({"weight_map": {"norm.weight": "a\0b"}}, "not there"),
        ({"weight_map": {"norm.weight": ""}}, "not there"),
        ({"weight_map": {"norm.weight": "../elsewhere.safetensors"}}, "not a file of this folder"),
        ({"weight_map": {"norm.weight": "/etc/passwd"}}, "not a file of this folder"),
        ({"weight_map": {}}, "not a file of this folder"),
        ({"weight_map": ["model.safetensors"]}, "no weight_map"),
        ({"weight_map": {"norm.weight": 5}}, "no weight_map"),
        (["model.safetensors"], "no weight_map"),
    ],
)
def test_an_index_that_does_not_name_files_of_the_folder_is_refused(tmp_path, index, reason):
    """Also one that points outside, where a file is waiting to be read."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_file(tmp_path / "elsewhere.safetensors", random_tensors())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / INDEX_FILE).write_text(json.dumps(index))
    message = refusal(folder)
    assert INDEX_FILE in message and reason in message


@pytest.mark.parametrize(
    "files, reason",
    [
        ({}, "holds no config.json"),
        ({"config.json": "{"}, "config.json: is not valid JSON"),
        ({"config.json": json.dumps(CONFIG)}, "holds neither model.safetensors nor"),
        ({"config.json": json.dumps(CONFIG), "pytorch_model.bin": "x"}, "found pytorch_model.bin"),
        ({"config.json": json.dumps(CONFIG), SINGLE_FILE: ""}, f"{SINGLE_FILE}: is truncated"),
        (
            {
                "config.json": json.dumps(CONFIG),
                SINGLE_FILE: "version https://git-lfs.github.com/spec/v1\noid sha256:0437e45c\nsize 1191\n",
            },
            "git lfs pull",
        ),
    ],
)
def test_a_folder_without_weights_says_what_is_missing(tmp_path, files, reason):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert reason in refusal(tmp_path)
