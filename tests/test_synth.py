"""Generated checkpoints: the published layout to the byte, traits of real weights, whole or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from qwen3np import CheckpointError, Embedder, reference
from qwen3np.loading.checkpoint import INDEX_FILE, Checkpoint
from qwen3np.loading.config import Config
from qwen3np.synth import checkpoints as synth
from qwen3np.synth.checkpoints import (
    LIKE,
    bfloat16_header,
    massive_channel,
    massive_token_ids,
    shards,
    synthesize,
)

# like -> parameters, bytes of each published weight file
PUBLISHED = {
    "0.6B": (595776512, [1191586416]),
    "4B": (4021774336, [4965826464, 3077765624]),
    "8B": (7567295488, [4900037024, 4915959512, 4983067656, 335570376]),
    "reranker-0.6B": (595776512, [1191588280]),
    "reranker-4B": (4021784576, [4058781760, 3984833200]),
    "reranker-8B": (8188548096, [4027618768, 4060268160, 4043508680, 3003274088, 1242472576]),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def small_shards(monkeypatch):
    """Files of at most half a megabyte, so that a tiny model has several."""
    monkeypatch.setattr(synth, "EMBEDDING_SHARD", 500_000)
    monkeypatch.setattr(synth, "RERANKER_SHARD", 500_000)


@pytest.mark.parametrize("like", PUBLISHED)
def test_files_are_as_large_as_the_published_ones(like):
    """Same tensors, names, dtype, order, split and header: else some file would differ in size."""
    parameters, sizes = PUBLISHED[like]
    files = shards(like, LIKE[like])
    counts = [sum(math.prod(shape) for shape in shapes.values()) for shapes in files]
    assert sum(counts) == parameters
    assert [len(bfloat16_header(f)) + 2 * n for f, n in zip(files, counts, strict=True)] == sizes


@pytest.mark.parametrize(
    "like, name",
    [("0.6B", "Embedding-0.6B"), ("4B", "Embedding-4B"), ("reranker-0.6B", "Reranker-0.6B")],
)
def test_configs_are_the_published_ones(assets, like, name):
    assert LIKE[like] == Config.load(assets / "model_files" / f"Qwen3-{name}.config.json")


def test_the_untied_reranker_has_its_lm_head_alone_in_the_last_file():
    assert list(shards("reranker-8B", LIKE["reranker-8B"])[-1]) == ["lm_head.weight"]
    assert not any("lm_head.weight" in shapes for shapes in shards("reranker-4B", LIKE["reranker-4B"]))


def test_the_same_seed_gives_the_same_bytes(tiny, tmp_path):
    """In every file; another seed changes the weights and nothing else."""
    assert contents(synthesize(tmp_path / "same", "tiny")) == contents(tiny)
    other = contents(synthesize(tmp_path / "other", "tiny", seed=1))
    assert [name for name, data in contents(tiny).items() if other[name] != data] == ["model.safetensors"]


def test_the_split_into_files_does_not_change_a_weight(tiny, tmp_path, small_shards):
    one, many = Checkpoint(tiny), Checkpoint(synthesize(tmp_path / "many", "tiny"))
    assert len(many.files) == 3 and (tmp_path / "many" / INDEX_FILE).is_file()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor.data, many.tensors[name].data, name)


def test_the_weights_have_the_traits_that_make_real_ones_hard(tiny):
    """A massive activation in one channel of some tokens, small gammas there, the others far from one."""
    checkpoint = Checkpoint(tiny)
    c = checkpoint.config
    values = {name: tensor.widen() for name, tensor in checkpoint.tensors.items()}
    channel, embed_tokens = massive_channel(c), values.pop("embed_tokens.weight")
    massive = np.flatnonzero(embed_tokens[:, channel] > 5600)
    assert sorted(massive_token_ids(c, seed=0)) == list(massive) and 2 <= len(massive) <= 300
    assert Embedder(tiny).tokenizer.end_of_text not in massive
    assert np.abs(np.delete(embed_tokens, channel, axis=1)).max() < 10
    for name, gamma in values.items():
        assert np.isfinite(gamma).all()
        if "norm" in name:
            assert np.log(gamma).std() > 0.3
        if name.endswith("layernorm.weight") or name == "norm.weight":
            assert gamma[channel] == pytest.approx(0.05, rel=2**-8)
    gammas = [gamma.tobytes() for name, gamma in values.items() if "norm" in name]
    assert len(set(gammas)) == len(gammas)


class Projection:
    """A weight that shows what it multiplies to `read`, and multiplies what that returns."""

    __array_ufunc__ = None  # so that x @ weight.T asks it

    def __init__(self, weight: np.ndarray, read) -> None:
        self.weight, self.read, self.T = weight, read, self

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        return self.read(x, self.weight) @ self.weight.T


def vectors(folder: Path, read) -> np.ndarray:
    """Of two texts, by the reference, whose projections read through `read`."""
    checkpoint, layers = Checkpoint(folder), []
    c, w = checkpoint.config, checkpoint.weights(np.float32)
    for layer in w.layers:
        for part in (layer["self_attn"], layer["mlp"]):
            part.update({n: Projection(t, read) for n, t in part.items() if n.endswith("proj")})
        layers.append(layer)
    args = (w.embed_tokens, layers, w.norm, c.rms_norm_eps, c.rope_theta, c.head_dim)
    texts = [np.arange(7, 60), np.arange(900, 930)]
    return reference.normalize(np.stack([reference.pool(x) for x in reference.forward(texts, *args)]))


def in_8_bits(x: np.ndarray, channels: int | None) -> np.ndarray:
    """Rounded with a scale a token and so many channels, or (None) with one, as dynamic int8 often is."""
    blocks = x.reshape(len(x), -1, channels) if channels else x[None]
    scales = np.abs(blocks).max(axis=-1 if channels else None, keepdims=True) / 127
    return (np.rint(blocks / scales) * scales).reshape(x.shape)


def test_outlier_channels_cost_what_they_do_in_real_models(tiny, tmp_path):
    """With them, one scale a tensor ruins vectors, and one a few channels does not."""
    folder = synthesize(tmp_path / "outliers", "tiny", outliers=True)

    def lost(folder: Path, channels: int | None) -> float:
        exact = vectors(folder, lambda x, weight: x)
        rounded = vectors(folder, lambda x, weight: in_8_bits(x, channels))
        return float((1 - (rounded * exact).sum(axis=1)).max())

    assert lost(tiny, None) < 0.005 and lost(folder, None) > 0.03
    assert lost(folder, 16) < 0.01


def test_outlier_channels_are_those_of_every_projection(tiny, tmp_path):
    """Where weights read less, inputs are larger; both by powers of two, in few rows and columns."""
    folder = synthesize(tmp_path / "outliers", "tiny", outliers=True)

    def read(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        size, columns = np.square(x).mean(axis=0) ** 0.5, np.median(np.abs(weight), axis=0)
        outliers = columns < np.median(columns) / 2
        assert 0 < outliers.sum() < len(outliers) / 5
        assert size[outliers].mean() > 8 * size[~outliers].mean()
        return x

    vectors(folder, read)
    plain = Checkpoint(tiny).tensors
    for name, tensor in Checkpoint(folder).tensors.items():
        factors = np.unique(tensor.widen() / plain[name].widen())
        assert set(np.frexp(factors)[0]) == {0.5}, name
        assert (len(factors) > 1) == (name.endswith("proj.weight") or "_layernorm" in name), name
    assert synth.is_generated(Checkpoint(folder))


def test_the_layers_option_makes_a_shallower_model(tmp_path):
    model = Embedder(synthesize(tmp_path / "two", "tiny", layers=2))
    assert model.config == replace(LIKE["tiny"], num_hidden_layers=2)


def test_other_readers_open_a_generated_reranker(tmp_path, monkeypatch, small_shards):
    """The safetensors library reads it, under the names of a causal LM: `model.`, and lm_head without."""
    monkeypatch.setitem(LIKE, "reranker-tiny", replace(LIKE["tiny"], tie_word_embeddings=False))
    folder = synthesize(tmp_path / "reranker", "reranker-tiny")
    weight_map = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            assert {name for name, where in weight_map.items() if where == path.name} == set(file.keys())
            assert file.metadata() == {"format": "pt"}
    assert {name for name in weight_map if not name.startswith("model.")} == {"lm_head.weight"}
    checkpoint = Checkpoint(folder)
    assert checkpoint.tensors["lm_head.weight"].shape == (2048, 96)
    assert checkpoint.num_parameters == 652384 + 2048 * 96
    with pytest.raises(CheckpointError, match="is a reranker"):
        Embedder(folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch, error, exists):
    """Not half a model, and no temporary files; an empty folder that was there stays and stays empty."""
    if exists:
        (tmp_path / "model").mkdir()

    def fail(done: int, total: int) -> None:
        assert any(tmp_path.rglob("*.safetensors"))
        if done > total // 2:
            raise error

    with pytest.raises(type(error)):
        synthesize(tmp_path / "model", "tiny", progress=fail)
    assert [p.name for p in tmp_path.rglob("*")] == (["model"] if exists else [])
    synthesize(tmp_path / "model", "tiny")


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="nothing was written"):
            synthesize(target, "tiny")
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"like": "7B"}, "'7B' is not one of 0.6B, 4B, 8B"),
        ({"layers": 0}, "layers = 0"),
        ({"seed": -1}, "non-negative"),
        ({"tokenizer": "missing.json"}, "missing.json: no such file"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        synthesize(tmp_path / "model", **options)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_does_not_fit_is_refused(assets, tmp_path):
    """A real tokenizer has more tokens than the tiny model has embeddings."""
    with pytest.raises(CheckpointError, match="does not fit.*151668.*2048"):
        synthesize(tmp_path / "m", "tiny", tokenizer=assets / "tokenizers" / "qwen3_base.tokenizer.json")


def test_progress_counts_every_byte(tmp_path):
    seen = []
    synthesize(tmp_path / "model", "tiny", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * 652384, 2 * 652384)
    assert seen == sorted(set(seen))


def test_bfloat16_is_rounded_to_the_nearest_ties_to_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-7, 0.0, -0.0], np.float32)
    expected = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF81, 0x0000, 0x8000]
    assert synth.to_bfloat16(values).tolist() == expected
