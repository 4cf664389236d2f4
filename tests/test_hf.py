"""Live against PyTorch and transformers at the full width and depth of the 0.6B: pytest -m hf"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from tolerances import channel

from qwen3np import Embedder, quantize_embeddings, reference
from qwen3np.cli import main
from qwen3np.loading.checkpoint import Checkpoint, Tensor
from qwen3np.runtime.numba_backend import NumbaBackend
from qwen3np.synth.checkpoints import massive_token_ids, synthesize
from qwen3np.verify.report import verify
from qwen3np.verify.transformers import transformers_vectors

pytestmark = pytest.mark.hf

torch = pytest.importorskip("torch", reason='the live comparison needs the extra: pip install ".[hf]"')
LENGTHS = (1, 2, 17, 64, 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, assets):
    tokenizer = assets / "tokenizers" / "qwen3_embedding_0.6b.tokenizer.json"
    return synthesize(tmp_path_factory.mktemp("hf") / "0.6B", "0.6B", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def model(folder):
    return Embedder(folder)


@pytest.fixture(scope="module")
def texts(model):
    """Random token ids, all ended properly.

    Most texts have massive activations at the first and at inner tokens.
    """
    rng = np.random.default_rng(1)
    massive = massive_token_ids(model.config, seed=0)
    texts = []
    for length in LENGTHS:
        ids = rng.integers(0, 151643, length)
        ids[rng.integers(0, length, length // 8)] = massive[: length // 8]
        ids[0] = massive[-1]
        ids[-1] = model.tokenizer.end_of_text
        texts.append(ids.tolist())
    return texts


@pytest.fixture(scope="module")
def float32(folder, texts):
    return transformers_vectors(folder, texts, "float32")


@pytest.fixture(scope="module")
def float64(folder, texts):
    return transformers_vectors(folder, texts, "float64")


@pytest.mark.parametrize(
    ("backend", "precision"), [("numpy", "highest"), ("numba", "highest"), ("numba", "high")]
)
def test_vectors_are_transformers(folder, texts, float32, float64, backend, precision):
    """Within 1e-6 of float32.

    Where products are of float32, no further from float64 than twice PyTorch's float32 is.
    """
    model = Embedder(folder, backend=backend, matmul_precision=precision)
    vectors = reference.normalize(model.backend.forward(texts))
    ours, theirs = (np.abs(v - float64).max() for v in (vectors, float32))
    print(
        f"\n{model.backend!r}: from float32 {np.abs(vectors - float32).max():.2e},"
        " "
        f"from float64 {ours:.2e} (PyTorch {theirs:.2e})"
    )
    assert ours <= channel(model.backend, model.dimension)
    if model.backend.arithmetic == "float32":
        assert np.abs(vectors - float32).max() <= 1e-6
        assert ours <= 2 * theirs


def test_medium_is_closer_than_bfloat16(folder, texts, float64):
    """bfloat16 activations, float32 everything else: 2.5 times closer than PyTorch's bfloat16 or more."""
    model = Embedder(folder, matmul_precision="medium")
    ours = np.abs(reference.normalize(model.backend.forward(texts)) - float64).max()
    theirs = np.abs(transformers_vectors(folder, texts, "bfloat16") - float64).max()
    print(f"\n{model.backend!r}: from float64 {ours:.2e} (PyTorch bfloat16 {theirs:.2e})")
    assert ours <= theirs / 2.5


def sentence_transformer(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})


@pytest.fixture(scope="module")
def peer(tiny):
    return sentence_transformer(tiny)


TEXTS = ["", "What is the capital of China?", "中国的首都是北京。", "a\x00b\n\n  c 😀", "word " * 60]
PROMPTS = ({}, {"prompt_name": "query"}, {"prompt": "Query: "}, {"prompt": "x", "prompt_name": "document"})
CALLS = [
    (method, {**prompt, **more})
    for method in ("encode", "encode_query", "encode_document")
    for prompt in PROMPTS
    for more in (
        {},
        {"batch_size": 1, "show_progress_bar": False},
        {"truncate_dim": 64, "normalize_embeddings": True},
        {"truncate_dim": 32, "normalize_embeddings": False},
    )
]


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_sentence_transformers_gives_the_same(tiny, peer, method):
    """From text to vectors, the same call on the same folder.

    48 combinations of arguments, for one text and for many.
    """
    model = Embedder(tiny, matmul_precision="highest")
    for name, arguments in CALLS:
        if name == method:
            for inputs in (TEXTS, TEXTS[1]):
                ours, theirs = (getattr(m, method)(inputs, **arguments) for m in (model, peer))
                assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), arguments
                np.testing.assert_allclose(ours, theirs, atol=2e-6, err_msg=str(arguments))
    queries = peer.encode_query(TEXTS)
    np.testing.assert_allclose(
        model.similarity(queries, queries), peer.similarity(queries, queries), atol=2e-6
    )


def test_sentence_transformers_gives_the_same_at_full_size(folder):
    model, peer = Embedder(folder, matmul_precision="highest"), sentence_transformer(folder)
    np.testing.assert_allclose(model.encode_query(TEXTS), peer.encode_query(TEXTS), atol=2e-6)


def test_sentence_transformers_gives_the_same_tokens(tiny, peer):
    model = Embedder(tiny, matmul_precision="highest")
    theirs = peer.encode(TEXTS, output_value="token_embeddings")
    ours = model.encode(TEXTS, output_value="token_embeddings")
    for have, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(have, want.numpy(), atol=2e-5 * np.abs(want.numpy()).max())
    one = peer.encode(TEXTS[1], output_value="token_embeddings")
    assert model.encode(TEXTS[1], output_value="token_embeddings").shape == tuple(one.shape)


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_sentence_transformers_quantises_the_same(precision):
    from sentence_transformers.util import quantize_embeddings as theirs

    rng = np.random.default_rng(0)
    vectors, calibration = rng.standard_normal((20, 64)), rng.standard_normal((200, 64))
    vectors[:, 3] = calibration[:, 3] = 0.5  # a channel without a range
    for x in (vectors.astype(np.float32), vectors.astype(np.float32)[0]):
        have = quantize_embeddings(x, precision, calibration_embeddings=calibration.astype(np.float32))
        want = theirs(x, precision, calibration_embeddings=calibration.astype(np.float32))
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        np.testing.assert_array_equal(have, want)


def test_transformers_finds_no_kernels_package():
    """transformers probes for an unrelated package named `kernels` and breaks if ours answers."""
    assert importlib.util.find_spec("kernels") is None


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory, assets):
    """Full width and vocabulary."""
    tokenizer = assets / "tokenizers" / "qwen3_embedding_0.6b.tokenizer.json"
    return synthesize(tmp_path_factory.mktemp("hf") / "two", "0.6B", layers=2, tokenizer=tokenizer)


def test_verify_holds_at_full_width_on_every_path(two_layers, kernel, capsys):
    path, precision = kernel
    code = main(["verify", str(two_layers), "--against", "transformers", "--precision", precision])
    out = capsys.readouterr().out
    assert code == 0 and f"numba, {path}" in out and "in float64 (transformers" in out, out


def test_verify_holds_at_full_width_for_the_reading_copy(two_layers, capsys):
    code = main(["verify", str(two_layers), "--against", "transformers", "--backend", "numpy"])
    out = capsys.readouterr().out
    assert code == 0 and "the reading copy" in out and "in float64 (transformers" in out, out


def test_one_flipped_weight_of_three_million_is_found_at_full_width(two_layers):
    model = Embedder(two_layers)
    name = "layers.1.mlp.gate_proj.weight"
    bits = model.checkpoint.tensors[name].data.copy()
    bits[1234, 567] ^= 0x8000
    damaged = Checkpoint(two_layers)
    damaged.tensors[name] = Tensor(name, "BF16", bits)
    model.backend = NumbaBackend(damaged)
    assert verify(model, against="transformers").bad[0] == "layers.1.mlp"


# VmHWM is this program's own; ru_maxrss would begin with that of pytest, which started it.
MEASURED = """
import json, re, sys
from qwen3np.cli import main
code = main(["verify", *sys.argv[1:]])
print(json.dumps([code, 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_verify_against_transformers_is_small(folder):
    """The full depth, under 6 GB."""
    start = time.monotonic()
    command = [sys.executable, "-c", MEASURED, str(folder), "--against", "transformers"]
    out = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    seconds, (code, most) = time.monotonic() - start, json.loads(out.splitlines()[-1])
    print(f"\n{seconds:.0f} s, {most / 1e9:.1f} GB")
    assert code == 0 and "HELD: 109 comparisons" in out, out
    assert most < 6e9
