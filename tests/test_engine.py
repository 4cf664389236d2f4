"""The engine: the reference's numbers, the same bits in any company, safe with threads, forks, interrupts."""

from __future__ import annotations

import dataclasses
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tolerances import channel

from qwen3np import engine, reference
from qwen3np.kernels import isa
from qwen3np.loading.checkpoint import Checkpoint
from qwen3np.loading.config import Config
from qwen3np.runtime import prefix_cache
from qwen3np.runtime.numba_backend import NumbaBackend
from qwen3np.synth import checkpoints as synth

LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 100, 5, 300, 1, 1, 257)
# Unit vectors against float64, times sqrt(1024 / hidden_size): the fewer channels, the larger they are. The
# promise for the 0.6B. "medium" rounds activations to 8 bits: what it costs depends on the model.

ODD = {
    "tiny": synth.LIKE["tiny"],
    "hidden 48, 6 heads of 10": Config(48, 80, 3, 6, 2, 10, 131, 4096, 3e-3, 7000.0, True),
    "hidden 50, 3 heads of 64": Config(50, 70, 2, 3, 1, 64, 131, 4096, 1e-5, 1e5, True),
    "group of 4, heads of 18": Config(40, 100, 2, 8, 2, 18, 131, 4096, 1e-6, 1e6, True),
    "no groups": Config(33, 47, 2, 5, 5, 6, 131, 4096, 1e-6, 1e6, True),
}


def checkpoint_of(config: Config, folder: Path) -> Checkpoint:
    """A generated checkpoint of any shape."""
    like, synth.LIKE["odd"] = "odd", config
    try:
        synth.synthesize(folder, like, tokenizer=None) if config.vocab_size >= 2000 else _without_tokenizer(
            folder
        )
    finally:
        del synth.LIKE["odd"]
    return Checkpoint(folder)


def _without_tokenizer(folder: Path) -> None:
    """The vocabulary is too small for a tokenizer: the weights and config.json are enough here."""
    folder.mkdir()
    synth._write_side_files(folder, "odd", synth.LIKE["odd"], synth.BUILT_IN_TOKENIZER)
    synth._write_weights(folder, "odd", synth.LIKE["odd"], 0, lambda done, total: None)


def random_texts(config: Config, lengths=LENGTHS, seed=0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]
    for text in texts[::2]:
        text[0] = int(synth.massive_token_ids(config, 0)[0])
    return texts


@pytest.fixture(scope="module", params=ODD)
def odd(request, tmp_path_factory) -> tuple[Checkpoint, list[list[int]], np.ndarray]:
    """A checkpoint, texts, and their vectors in float64."""
    checkpoint = checkpoint_of(ODD[request.param], tmp_path_factory.mktemp("odd") / "model")
    texts = random_texts(checkpoint.config)
    return checkpoint, texts, truth(checkpoint, texts)


@pytest.fixture(scope="module")
def small(tiny) -> Checkpoint:
    return Checkpoint(tiny)


def truth(checkpoint: Checkpoint, texts: list[list[int]]) -> np.ndarray:
    c, w = checkpoint.config, checkpoint.weights(np.float64)
    states = reference.forward(
        texts, w.embed_tokens, w.layers, w.norm, c.rms_norm_eps, c.rope_theta, c.head_dim
    )
    return reference.normalize(np.stack([reference.pool(x_TD) for x_TD in states]))


def test_it_is_the_reading_copy(odd, kernel):
    path, precision = kernel
    checkpoint, texts, expected = odd
    run = NumbaBackend(checkpoint, precision)
    assert run.isa == path
    error = np.abs(reference.normalize(run.forward(texts)) - expected).max(axis=1)
    tolerance = channel(run, checkpoint.config.hidden_size)
    assert error.max() <= tolerance, f"{dict(zip(LENGTHS, error, strict=False))}"


def test_a_text_has_the_same_bits_in_any_company(small, kernel, monkeypatch):
    """Alone, in 50 random batches with any neighbours, reversed, doubled, with one and two threads."""
    monkeypatch.setattr(prefix_cache, "SMALL_CALL", 0)  # nothing is kept: every call computes its texts whole
    texts = random_texts(small.config)
    run = NumbaBackend(small, kernel[1])
    alone = np.concatenate([run.forward([text]) for text in texts])
    single = NumbaBackend(small, kernel[1], num_threads=1)
    rng = np.random.default_rng(1)
    for trial in range(50):
        chosen = rng.integers(0, len(texts), rng.integers(1, 30))
        chosen = chosen[::-1] if trial % 2 else np.repeat(chosen, 2)
        encode = (single if trial % 3 == 0 else run).forward
        np.testing.assert_array_equal(encode([texts[i] for i in chosen]), alone[chosen])


def test_a_shared_prefix_changes_no_bit(small, kernel, monkeypatch):
    """Beginnings computed once, kept, built on one another, and forgotten: each text as if it were alone."""
    plain, sharing = NumbaBackend(small, kernel[1]), NumbaBackend(small, kernel[1])
    rng = np.random.default_rng(2)
    long = rng.integers(0, small.config.vocab_size, 600).tolist()
    computed: list[int] = []
    run = sharing._pooled

    def counting(job, texts, known, saved):
        computed.append(sum(len(text) - len(known) for text in texts))
        return run(job, texts, known, saved)

    monkeypatch.setattr(sharing, "_pooled", counting)
    for length in (8, 15, 16, 17, 31, 32, 33, 100, 257, 512, 600, 40):
        own = [
            rng.integers(0, small.config.vocab_size, n).tolist() for n in (1, 2, 17, 40, 1, 300, *[1] * 20)
        ]
        texts = [long[:length] + text for text in own]
        alone = np.concatenate([plain.forward([text]) for text in texts])
        computed.clear()
        np.testing.assert_array_equal(sharing.forward(texts), alone)
        assert sum(computed) < sum(map(len, texts)) - 20 * min(length, 512) + 512
        np.testing.assert_array_equal(sharing.forward(texts[:1], long[: length - 3]), alone[:1])
    assert sharing.pool.call(lambda job: len(job.workspace.prefixes)) <= prefix_cache.CAPACITY
    # A beginning that is kept is not computed again; one that the texts do not have is no beginning.
    computed.clear()
    np.testing.assert_array_equal(sharing.forward([long[:50]], long[:20]), plain.forward([long[:50]]))
    np.testing.assert_array_equal(sharing.forward([long[:50]], long[1:20]), plain.forward([long[:50]]))
    assert all(count <= 30 for count in computed)


def test_prefixes_kept_across_calls_change_no_bit(small, kernel, monkeypatch):
    """Random calls of texts that begin like those of other calls: fewer tokens, the same bits, in order."""
    rng = np.random.default_rng(3)
    instruction, *ends = random_texts(small.config, (40, 30, 90, 150, 260, 500), seed=4)
    queries = [instruction, ends[3], *[instruction + end for end in ends], instruction + ends[1] + ends[2]]
    kept = NumbaBackend(small, kernel[1])
    computed, sizes = [], []
    run = kept._pooled

    def counting(team, texts, cached, saved):
        computed.append(sum(len(text) - len(cached) for text in texts))
        sizes.append(len(texts))
        return run(team, texts, cached, saved)

    monkeypatch.setattr(kept, "_pooled", counting)
    calls = [
        [
            queries[rng.integers(len(queries))] + random_texts(small.config, [rng.integers(1, 40)], seed)[0]
            for seed in range(100 * call, 100 * call + rng.choice([1, 1, 2, 5, 16]))
        ]
        for call in range(60)
    ]
    results = []
    for i, texts in enumerate(calls):
        sizes.clear()
        most, advanced = (None, 3)[i % 2], []
        results.append(kept.forward(texts, instruction[: i % 3 * 15], most, advanced.append))
        assert sum(advanced) == len(texts) and (most is None or max(sizes) <= most)
    assert sum(computed) < 0.6 * sum(len(text) for texts in calls for text in texts)
    monkeypatch.setattr(prefix_cache, "SMALL_CALL", 0)
    fresh = NumbaBackend(small, kernel[1])
    for texts, states in zip(calls, results, strict=True):
        np.testing.assert_array_equal(states, np.concatenate([fresh.forward([text]) for text in texts]))


@pytest.mark.slow  # another engine.forward to compile
@pytest.mark.parametrize("stored", ["F32", "F16"])
def test_weights_that_are_not_bfloat16(small, stored):
    """float32 and float16 checkpoints are not rounded."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, tensor in small.tensors.items():
        data = tensor.widen()
        data = data * (1 + rng.normal(0, 1e-3, data.shape)).astype(np.float32)
        data = data.astype(np.float16) if stored == "F16" else data
        tensors[name] = dataclasses.replace(tensor, dtype=stored, data=data)
    checkpoint = Checkpoint(small.folder)
    checkpoint.tensors = tensors
    texts = random_texts(small.config, (1, 20, 40))
    vectors = reference.normalize(NumbaBackend(checkpoint).forward(texts))
    np.testing.assert_allclose(vectors, truth(checkpoint, texts), atol=2e-6)


def test_long_texts_in_many_chunks_and_blocks(small):
    """Longer than an attention chunk (256 keys), a block (256 tokens) and a step (2048 tokens)."""
    texts = random_texts(small.config, (2100, 513, 1, 255))
    vectors = reference.normalize(NumbaBackend(small).forward(texts))
    np.testing.assert_allclose(vectors, truth(small, texts), atol=5e-6)


def test_encode_from_several_threads(small):
    run, texts = NumbaBackend(small), random_texts(small.config)
    expected = run.forward(texts)
    results: list[np.ndarray | None] = [None] * 8

    def work(i: int) -> None:
        results[i] = run.forward(texts)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_idle_threads_use_no_time(small):
    run = NumbaBackend(small)
    run.forward(random_texts(small.config))
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_works(small):
    run, texts = NumbaBackend(small), random_texts(small.config)
    expected = run.forward(texts)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(run.forward(texts), expected) else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child hangs")
    assert status == 0


INTERRUPTED = """
import sys, threading, time, signal, os
import numpy as np
from qwen3np.loading.checkpoint import Checkpoint
from qwen3np.runtime.numba_backend import NumbaBackend
run = NumbaBackend(Checkpoint(sys.argv[1]))
text = [list(range(30)) * 700]
expected = run.forward([[1, 2, 3]])
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.perf_counter()
try:
    for _ in range(1000):
        run.forward(text)
    sys.exit("was not interrupted")
except KeyboardInterrupt:
    assert time.perf_counter() - start < 5
assert np.array_equal(run.forward([[1, 2, 3]]), expected)  # and goes on working
"""


def test_an_interrupt_stops_it_between_blocks(tiny):
    run = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tiny)], timeout=120, cwd=tiny)
    assert run.returncode == 0


def test_which_kernels_a_path_and_precision_use(monkeypatch):
    """Tiles take every precision, vdpbf16ps only "medium", which rounds; and both only bfloat16 weights.

    Integers are for "low" alone.
    """
    for path in isa.available():
        monkeypatch.setenv("QWEN3NP_ISA", path)
        if path in (isa.INT16, isa.INT8):
            assert isa.choose("low") == path and isa.choose("high") == isa.SIMD
            continue
        chosen = [isa.choose(precision) for precision in ("highest", "high", "medium")]
        assert chosen == ([isa.SIMD] * 2 if path == isa.AVX512_BF16 else [path] * 2) + [path]
        assert isa.choose("medium", bfloat16=False) == (isa.AVX2 if path == isa.AVX2 else isa.SIMD)


def test_shapes_never_compile(small):
    run = NumbaBackend(small)
    before = len(engine.forward.signatures)
    for lengths in ((1,), (3, 70), (16,) * 40):
        run.forward(random_texts(small.config, lengths))
    assert len(engine.forward.signatures) == before


def test_it_reads_like_the_reading_copy():
    """The functions that both have come in the same order."""
    names = [
        [name for name, _ in sorted(functions, key=lambda item: item[1])]
        for functions in (_functions(reference), _functions(engine))
    ]
    both = set(names[0]) & set(names[1])
    assert both >= {"embed", "attention", "mlp", "block", "forward", "pool"}
    assert [n for n in names[0] if n in both] == [n for n in names[1] if n in both]


def _functions(module) -> list[tuple[str, int]]:
    lines = inspect.getsource(module).splitlines()
    return [(line.split("(")[0][4:], i) for i, line in enumerate(lines) if line.startswith("def ")]
