"""reproducible=True: the same bits on every CPU.

A tiny model's stages, vectors and scores have the hashes of fixtures/bits.json, whatever computes them;
`python tests/test_reproducible.py` prints that file anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from numpy.typing import NDArray
from safetensors.numpy import save_file

from qwen3np import Embedder, Reranker, reference
from qwen3np.cli import main
from qwen3np.kernels import isa
from qwen3np.loading.config import Config
from qwen3np.reranker import sigmoid
from qwen3np.runtime.rope import rope_table
from qwen3np.synth import checkpoints as synth

GOLDEN = Path(__file__).parent / "fixtures" / "bits.json"
# No two sizes the same, N * H != D, three query heads a key/value head, more than SUM_BLOCK rows of a weight.
CONFIG = Config(80, 176, 3, 6, 2, 24, 2048, 4096, 3e-6, 1e5, True)
# Of one panel and of several, of one chunk of 256 keys and of several.
TEXTS = ["", "a", "Gravity is a force.", "The capital of China is Beijing. " * 5, "Why do things fall? " * 60]
PAIRS = [("Explain gravity", text) for text in TEXTS] + [("", "Bread rises.")]


def values(name: str, shape: tuple[int, ...], bits: int) -> NDArray[np.float32]:
    """A tensor of numbers of so many bits, from a hash: integers, scaled by powers of two."""
    bits -= 2 * (len(shape) == 1)
    random = np.frombuffer(hashlib.shake_128(name.encode()).digest(4 * math.prod(shape)), "<i4")
    uniform = (random.reshape(shape) >> (32 - bits)) * 2.0 ** (1 - bits)  # -1 .. 1
    if len(shape) == 1:
        uniform = 1 + uniform / 2
    elif name != "embed_tokens.weight":
        uniform *= 2.0 ** (1 - (shape[1].bit_length() + 1) // 2)
    return uniform.astype(np.float32)


def write_model(folder: Path, like: str, stored: str) -> Path:
    """A checkpoint whose every byte is the same on every machine."""
    folder.mkdir()
    synth._write_side_files(folder, like, CONFIG, synth.BUILT_IN_TOKENIZER)
    [shapes] = synth.shards(like, CONFIG)
    bits = {"bfloat16": 8, "float32": 24}[stored]
    tensors = {name: values(name.removeprefix("model."), shape, bits) for name, shape in shapes.items()}
    if stored == "float32":
        save_file(tensors, folder / "model.safetensors")
    else:
        data = b"".join(synth.to_bfloat16(tensors[name]).tobytes() for name in sorted(tensors))
        (folder / "model.safetensors").write_bytes(synth.bfloat16_header(shapes) + data)
    return folder


def results(folder: Path, stored: str) -> Iterator[tuple[str, NDArray]]:
    """What is promised, in the order in which it is computed."""
    yield "RoPE of the 0.6B", np.concatenate(rope_table(40960, 128, 1e6))
    embedder = Embedder(write_model(folder / "embedder", "tiny", stored), reproducible=True)
    ids = embedder.tokenize(TEXTS)
    yield "token ids", np.concatenate(ids)
    yield from embedder.backend.stages(ids)
    yield "encode", embedder.encode(TEXTS)
    yield "encode, 40 channels", embedder.encode(TEXTS, truncate_dim=40)
    yield "token_embeddings", np.concatenate(embedder.encode(TEXTS, output_value="token_embeddings"))
    reranker = Reranker(write_model(folder / "reranker", "reranker-tiny", stored), reproducible=True)
    states = reranker.backend.forward(reranker.tokenize(PAIRS))
    yield "logits", reranker.logits(states)
    yield "raw_scores", reranker.predict(PAIRS, raw_scores=True)
    yield "probabilities", sigmoid(np.arange(-104, 20, 0.125, np.float32))


def hashes(folder: Path, stored: str) -> dict[str, str]:
    return {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in results(folder, stored)}


def check(found: dict[str, str], stored: str) -> None:
    expected = json.loads(GOLDEN.read_text())[stored]
    assert list(found) == list(expected)
    other = [name for name in expected if found[name] != expected[name]]
    assert not other, f"other bits from {other[0]!r} on: {other}"


@pytest.fixture(autouse=True)
def no_other_path(monkeypatch):
    """QWEN3NP_ISA may ask for one that reproducible=True refuses."""
    if not isa.ONLY_AVX2:
        monkeypatch.delenv("QWEN3NP_ISA", raising=False)


@pytest.mark.parametrize("stored", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_the_bits_are_those_of_every_cpu(tmp_path, stored):
    check(hashes(tmp_path, stored), stored)


# What the kernels are told about the CPU, so that blocks and registers are another's; and the CPU that LLVM
# compiles for.
REGISTERS = {"avx512f": False, "avx2": False}
OTHERS = {
    "registers of 4": (REGISTERS, {}),
    "registers of 8": (REGISTERS | {"avx2": True}, {}),
    "registers of 16": (REGISTERS | {"avx512f": True}, {}),
    "no FMA": (REGISTERS, {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}),
}
COMPUTE = """
import runpy, sys
from qwen3np.kernels import isa
found = isa.features() | {0}
isa.features = lambda: found
runpy.run_path({1!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_another_cpu(tmp_path, other):
    """As far as one machine can be another: its blocks, its registers, and NumPy's code for the oldest."""
    if other == "no FMA" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("not an x86 CPU")
    features, environment = OTHERS[other]
    dispatched = " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
    environment |= {"NPY_DISABLE_CPU_FEATURES": dispatched, "XDG_CACHE_HOME": str(tmp_path)}
    code = COMPUTE.format(features, __file__)
    done = subprocess.run(
        [sys.executable, "-c", code, "bfloat16"], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout)["bfloat16"], "bfloat16")


def test_it_goes_along(tiny, capsys):
    """From the command line to the model, and to other processes."""
    assert main(["info", str(tiny), "--reproducible"]) == 0
    assert "matmul_precision highest, reproducible" in capsys.readouterr().out
    model = pickle.loads(pickle.dumps(Embedder(tiny, reproducible=True)))
    assert "reproducible" in repr(model.backend)


def test_rope_is_the_reading_copys():
    """The frequencies are right to the bit, or the largest angles would be far off.

    Cosines and sines are the nearest float32, where np.cos is not.
    """
    for T, H, theta in ((40960, 128, 1e6), (500, 10, 7000.0), (500, 64, 1e4), (500, 96, 5e6)):
        exponents = np.arange(0, H, 2, dtype=np.float32) / np.float32(H)
        inv_freq = np.float32(1) / np.power(theta, exponents, dtype=np.float64).astype(np.float32)
        angles = (np.arange(T, dtype=np.float32)[:, None] * inv_freq).astype(np.float64)
        for ours, theirs, exact in zip(
            rope_table(T, H, theta),
            reference.rope_table(T, H, theta),
            (np.cos(angles), np.sin(angles)),
            strict=True,
        ):
            unit = np.spacing(np.abs(exact).astype(np.float32))
            assert (np.abs(ours - exact) <= 0.500001 * unit).all()
            assert (np.abs(ours - theirs) <= 4 * unit).all()


if __name__ == "__main__":
    golden = {}
    for kind in sys.argv[1:] or ["bfloat16", "float32"]:
        with tempfile.TemporaryDirectory() as folder:
            golden[kind] = hashes(Path(folder), kind)
    print(json.dumps(golden, indent=1))
