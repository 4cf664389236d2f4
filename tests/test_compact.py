"""Weights in fewer bits: what they become, and that every product with them has a bfloat16 matrix's bits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tolerances
from kernel_cases import KINDS, MATMUL_SCRATCH, run_matmul, run_matmul_add, run_swiglu
from kernel_operands import INTEGERS, encoded, operand, packed, random
from safetensors.numpy import load_file, save_file

from qwen3np import CheckpointError, Embedder, Reranker
from qwen3np.files.identity import of_model
from qwen3np.interface import convert
from qwen3np.kernels import isa
from qwen3np.kernels.compact import COLUMNS, FORMATS, MOST_LISTED
from qwen3np.loading.checkpoint import Checkpoint, safetensors_header, widen
from qwen3np.runtime import memory
from qwen3np.runtime.packed_weights import allocate, pack, pad
from qwen3np.runtime.threads import Pool
from qwen3np.synth.checkpoints import synthesize, to_bfloat16

SHAPES = [(5, 33), (32, 128), (48, 320), (160, 256)]
TOKENS = [1, 17, 40, 130]
# Ways to multiply: how activations are stored. All are slow, each compiles for ten seconds; of the default's
# bits test_a_model_has_the_bits_of_its_decoded_weights speaks.
WAYS = ["pairs", *(kind for kind in KINDS if kind not in ("pairs", "float32", *INTEGERS))]
# Each compiles the engine for half a minute.
MODELS = [pytest.param("lossless", marks=[pytest.mark.slow]), "int8"]


def rounded_to_int8(w_NK: np.ndarray) -> np.ndarray:
    """What kernels/compact.py says of int8, in NumPy: the bfloat16 bits of every weight."""
    N, K = w_NK.shape
    padded = np.zeros((N, pad(K, COLUMNS)), np.float32)
    padded[:, :K] = w_NK
    rows = padded.reshape(N, -1, COLUMNS)
    scales = np.abs(rows).max(axis=2, keepdims=True) / np.float32(127)
    with np.errstate(invalid="ignore"):
        q = np.where(scales > 0, np.rint(rows / scales), np.float32(0)).astype(np.float32)
    bits = (q * scales).view(np.uint32) + np.uint32(0x8000)  # to the nearest bfloat16
    return (bits >> np.uint32(16)).astype(np.uint16).reshape(N, -1)[:, :K]


@pytest.mark.slow
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("way", WAYS)
def test_products_have_the_bits_of_the_decoded_matrix(weights, way):
    for seed, (N, K) in enumerate(SHAPES):
        gate, up = (to_bfloat16(random(2 * seed + i, N, K) * np.float32(0.03)) for i in (0, 1))
        gate[0, :3] = 0x0000, 0x8000, 0x0001  # zeros of both signs, and the smallest number
        same = [rounded_to_int8(widen(m)) if weights == "int8" else m for m in (gate, up)]
        compact, plain = encoded(weights, gate), packed(same[0], way)
        both_compact, both_plain = encoded(weights, gate, up), packed(same[0], way, same[1])
        for tokens in TOKENS:
            x, _ = operand(random(tokens, tokens, K), way)
            for run in (run_matmul, run_matmul_add):
                got, expected = (allocate((len(x), pad(N, 32), 16), np.float32) for _ in range(2))
                got[:] = expected[:] = 3
                run(compact, x, got)
                run(plain, x, expected)
                np.testing.assert_array_equal(got, expected)
            got, expected = (np.zeros((len(x), pad(N, 32), 16), np.float32) for _ in range(2))
            scratch = allocate((MATMUL_SCRATCH,), np.float32)
            run_swiglu(both_compact, x, got, scratch)
            run_swiglu(both_plain, x, expected, scratch)
            np.testing.assert_array_equal(got, expected)


def test_rare_exponents_are_listed_up_to_the_most():
    bits = to_bfloat16(random(0, 16, 128) * np.float32(0.03))
    identity, _ = operand(np.eye(128, dtype=np.float32), "pairs")
    out = allocate((8, 32, 16), np.float32)
    bits.ravel()[5 : 5 + 60 * MOST_LISTED : 60] = to_bfloat16(np.float32([1e30] * MOST_LISTED))
    run_matmul(encoded("lossless", bits), identity, out)
    np.testing.assert_array_equal(out.transpose(1, 0, 2).reshape(32, 128)[:16], widen(bits))
    bits[15, 127] = to_bfloat16(np.float32([1e-30]))[0]
    with pytest.raises(AssertionError):
        encoded("lossless", bits)


def rewritten(folder: Path, target: Path, change) -> Path:
    """A copy of a model whose matrices were changed."""
    shutil.copytree(folder, target)
    [path] = target.glob("*.safetensors")
    # safetensors' NumPy has no bfloat16: the file's own bytes, by its header.
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8 : 8 + size]).items():
        if name.endswith("_proj.weight"):
            begin, end = (8 + size + offset for offset in tensor["data_offsets"])
            bits = np.frombuffer(bytes(data[begin:end]), np.uint16).reshape(tensor["shape"])
            data[begin:end] = change(name, bits).tobytes()
    path.write_bytes(data)
    return target


TEXTS = ["What is the capital of China?", "", "Gravity is a force " * 40, "中国"]


@pytest.mark.parametrize("weights", MODELS)
def test_a_model_has_the_bits_of_its_decoded_weights(weights, tiny, tmp_path):
    """Lossless ones are the file's; int8 ones those of a file whose weights were rounded so."""
    same = tiny
    if weights == "int8":
        same = rewritten(tiny, tmp_path / "rounded", lambda name, bits: rounded_to_int8(widen(bits)))
    model = Embedder(tiny, weights=weights)
    vectors = model.encode(TEXTS)
    assert (vectors == Embedder(same).encode(TEXTS)).all()
    assert model.backend.weights == weights and f"{weights} weights" in repr(model.backend)
    stored = Embedder(tiny).encode(TEXTS)
    assert (vectors != stored).any() == (weights == "int8")
    assert np.einsum("ij,ij->i", vectors, stored).min() > 0.999


# ---- products of integers

# The paths of "low"; where the CPU has no vpdpbusd, it is emulated.
LOW = [path for path in (isa.INT16, isa.INT8) if path in isa.available()]


@pytest.mark.slow  # each compiles the engine for half a minute
@pytest.mark.parametrize("path", LOW)
def test_low_is_near_its_int8_weights_and_independent_of_the_batch(path, run, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3NP_ISA", path)
    model = Embedder(tiny, matmul_precision="low")
    assert (model.backend.isa, model.backend.weights, model.backend.arithmetic) == (path, "int8", "low")
    vectors = model.encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert (model.encode(text) == vector).all()
    file = Embedder(converted(tiny, tmp_path / "int8", run), matmul_precision="low")
    assert (file.encode(TEXTS) == vectors).all()
    exact = Embedder(file.checkpoint.folder, backend="numpy").encode(TEXTS)
    # Of 16 bits, nothing is left but that the reference rounds decoded weights to bfloat16.
    assert 1 - np.einsum("ij,ij->i", vectors, exact).min() < (1e-4 if path == isa.INT16 else 2e-3)


def test_low_refuses_what_it_cannot_multiply(tiny):
    with pytest.raises(ValueError, match=r'"low" multiplies int8 weights, and weights = "lossless"'):
        Embedder(tiny, matmul_precision="low", weights="lossless")
    with pytest.raises(ValueError, match="'low' and reproducible=True contradict each other"):
        Embedder(tiny, matmul_precision="low", reproducible=True)


@pytest.mark.slow
def test_a_reranker_and_reproducible_vectors_take_them_too(tiny, tiny_reranker):
    pairs = [("query", text) for text in TEXTS]
    scores = Reranker(tiny_reranker, weights="lossless").predict(pairs)
    assert (scores == Reranker(tiny_reranker).predict(pairs)).all()
    model = Embedder(tiny, reproducible=True, weights="lossless")
    assert (model.encode(TEXTS) == Embedder(tiny, reproducible=True).encode(TEXTS)).all()


@pytest.mark.slow
def test_float32_checkpoints_become_int8_alone(tiny, tmp_path):
    folder = tmp_path / "float32"
    shutil.copytree(tiny, folder)
    [path] = folder.glob("*.safetensors")
    wide = {
        n: widen(t.raw() if hasattr(t, "raw") else t.data)
        for n, t in Embedder(tiny).checkpoint.tensors.items()
    }
    names = {n: t.name for n, t in Embedder(tiny).checkpoint.tensors.items()}
    save_file({names[n]: np.ascontiguousarray(t) for n, t in wide.items()}, path)
    assert load_file(path)
    assert (
        Embedder(folder, weights="int8").encode(TEXTS) == Embedder(tiny, weights="int8").encode(TEXTS)
    ).all()
    with pytest.raises(ValueError, match='"lossless" is for bfloat16 checkpoints'):
        Embedder(folder, weights="lossless")


@pytest.mark.parametrize("weights", MODELS)
def test_weights_that_are_none_are_found(tiny, tmp_path, weights):
    def damage(name: str, bits: np.ndarray) -> np.ndarray:
        changed = bits.copy()
        if name == "layers.1.mlp.up_proj.weight" or name.endswith("layers.1.mlp.up_proj.weight"):
            changed[3, 5] = 0x7FC0
        return changed

    folder = rewritten(tiny, tmp_path / "damaged", damage)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        Embedder(folder, weights=weights).encode("a")


def test_weights_that_do_not_compress_are_said(tiny, tmp_path):
    def spread(name: str, bits: np.ndarray) -> np.ndarray:
        exponents = np.random.default_rng(0).integers(90, 130, bits.shape)
        return (exponents << 7).astype(np.uint16)

    folder = rewritten(tiny, tmp_path / "spread", spread)
    with pytest.raises(CheckpointError, match=r"neighbouring weights have unusual exponents.*int8"):
        Embedder(folder, weights="lossless")


@pytest.mark.parametrize("weights", FORMATS)
def test_memory_is_what_is_allocated(tiny, weights):
    checkpoint = Checkpoint(tiny)
    arrays = pack(checkpoint, Pool(1), lambda layers: None, weights=weights)._asdict()
    allocated = sum(array.nbytes for name, array in arrays.items() if name.endswith("proj"))
    assert memory.packed_bytes(checkpoint, weights) == allocated


def test_what_would_fit_is_said(monkeypatch, tmp_path):
    folder = synthesize(tmp_path / "model", "0.6B", layers=1)
    monkeypatch.setattr(memory, "available_bytes", lambda: 128_000_000)
    with pytest.raises(
        MemoryError, match=r'take weights="lossless" \(0\.15 GB\), weights="int8" \(0\.14 GB\), a sm'
    ):
        Embedder(folder)


def test_a_run_is_not_resumed_with_other_weights(tiny):
    """They are part of its identity, whichever the backend."""
    models = [Embedder(tiny), Embedder(tiny, weights="int8"), Embedder(tiny, backend="numpy")]
    assert len({json.dumps(of_model(model, "", 96)["backend"]) for model in models}) == 3


# ---- files of 8 bits


def converted(folder: Path, target: Path, run) -> Path:
    code, out, err = run("convert", folder, target)
    assert code == 0 and "GB of weights, from" in out, err
    return target


def test_a_converted_model_has_the_bits_of_one_rounded_at_load(run, tiny, tiny_reranker, tmp_path):
    made = converted(tiny, tmp_path / "int8", run)
    model = Embedder(made)
    assert model.backend.weights == "int8" and "int8 weights" in repr(model.backend)
    assert (model.encode(TEXTS) == Embedder(tiny, weights="int8").encode(TEXTS)).all()
    pairs = [("query", text) for text in TEXTS]
    scores = Reranker(converted(tiny_reranker, tmp_path / "reranker", run)).predict(pairs)
    assert (scores == Reranker(tiny_reranker, weights="int8").predict(pairs)).all()
    # The reference reads the same weights: it says how exact the kernels are.
    close = np.abs(Embedder(made, backend="numpy").encode(TEXTS) - model.encode(TEXTS)).max()
    assert close < tolerances.channel(model.backend, 96)
    assert sum(p.stat().st_size for p in model.checkpoint.files) < 0.8 * Embedder(tiny).checkpoint.num_bytes


def test_shards_stay_shards(run, tiny, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(tiny, sharded)
    [path] = sharded.glob("*.safetensors")
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    weight_map = {}
    for part in (0, 1):
        names = sorted(name for name in header if ("layers.1" in name) == bool(part))
        file = f"model-{part + 1:05}-of-00002.safetensors"
        head, _ = safetensors_header({n: (header[n]["dtype"], tuple(header[n]["shape"])) for n in names})
        body = b"".join(
            data[8 + size + header[n]["data_offsets"][0] : 8 + size + header[n]["data_offsets"][1]]
            for n in names
        )
        (sharded / file).write_bytes(head + body)
        weight_map |= dict.fromkeys(names, file)
    path.unlink()
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    made = converted(sharded, tmp_path / "int8", run)
    assert len(Embedder(made).checkpoint.files) == 2
    assert (Embedder(made).encode(TEXTS) == Embedder(tiny, weights="int8").encode(TEXTS)).all()


def test_a_conversion_appears_whole_or_not_at_all(run, tiny, tmp_path, monkeypatch):
    made = converted(tiny, tmp_path / "int8", run)
    code, _, err = run("convert", made, tmp_path / "again")
    assert code == 2 and "of 8 bits already" in err
    code, _, err = run("convert", tiny, made)
    assert code == 2 and "exists" in err
    with pytest.raises(ValueError, match="the files hold int8 weights already"):
        Embedder(made, weights="lossless")

    def full(values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "quantize", full)
    code, _, err = run("convert", tiny, tmp_path / "full")
    assert code == 2 and "No space left" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8"]


@pytest.mark.parametrize("change, message", [
    (lambda h, name: h.pop(name + "_scale"), "missing: layers.0.mlp.up_proj.weight_scale"),
    (lambda h, name: h[name].update(dtype="U8"), "wrong dtype: layers.0.mlp.up_proj.weight is U8"),
    (lambda h, name: h[name + "_scale"].update(dtype="I32"), "wrong: layers.0.mlp.up_proj.weight_scale is"),
])  # fmt: skip
def test_files_of_8_bits_that_do_not_fit_are_named(run, tiny, tmp_path, change, message):
    made = converted(tiny, tmp_path / "int8", run)
    [path] = made.glob("*.safetensors")
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(n for n in header if n.endswith("layers.0.mlp.up_proj.weight"))
    before = header[name + "_scale"]["data_offsets"]
    change(header, name)
    if name + "_scale" not in header:  # the library refuses gaps: other bytes with another name
        header["model.other"] = {"dtype": "I8", "shape": [before[1] - before[0]], "data_offsets": before}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Embedder(made)
