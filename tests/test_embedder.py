"""Embedder: the promises of the public interface, on a tiny generated model."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from qwen3np import Embedder, quantization_ranges, quantize_embeddings, reference
from qwen3np.verify.published import CARD_DOCUMENTS, CARD_QUERIES

TEXTS = ["", " ", "a", "The capital of China is Beijing.", "中国的首都是北京。", "😀" * 20, "word " * 60]
UNIT = 4 * 2.0**-23


@pytest.fixture(scope="module")
def model(tiny):
    return Embedder(tiny)


def test_vectors_are_the_reading_copy(tiny):
    """encode = reference.encode of the token ids, pooled, cut, normalised; in the caller's order."""
    model = Embedder(tiny, matmul_precision="highest")
    c, w = model.config, model.checkpoint.weights(np.float64)
    states = reference.forward(
        model.tokenize(TEXTS), w.embed_tokens, w.layers, w.norm, c.rms_norm_eps, c.rope_theta, c.head_dim
    )
    exact = reference.normalize(np.stack([x_TD[-1] for x_TD in states]))
    vectors = model.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), c.hidden_size)
    np.testing.assert_allclose(vectors, exact, atol=2e-6)


def test_one_text_gives_one_vector_and_none_gives_an_empty_matrix(model):
    assert model.encode("a").shape == (model.dimension,)
    assert model.encode([]).shape == (0, model.dimension)
    np.testing.assert_array_equal(model.encode("a"), model.encode(["a"])[0])


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_neither_batch_nor_order_changes_a_bit(model, batch_size):
    alone = np.stack([model.encode(text) for text in TEXTS])
    np.testing.assert_array_equal(model.encode(TEXTS, batch_size=batch_size), alone)
    np.testing.assert_array_equal(
        model.encode(TEXTS[::-1] + TEXTS, batch_size=batch_size)[: len(TEXTS)], alone[::-1]
    )


def test_prompts(model):
    """`prompt` beats `prompt_name`; prompt and text are one string.

    encode_query and encode_document pick their own.
    """
    prompt = model.prompts["query"]
    query = model.encode(CARD_QUERIES, prompt_name="query")
    np.testing.assert_array_equal(model.encode_query(CARD_QUERIES), query)
    np.testing.assert_array_equal(model.encode([prompt + q for q in CARD_QUERIES]), query)
    np.testing.assert_array_equal(model.encode(CARD_QUERIES, prompt_name="document", prompt=prompt), query)
    np.testing.assert_array_equal(model.encode_document(CARD_DOCUMENTS), model.encode(CARD_DOCUMENTS))
    assert np.abs(model.encode(CARD_QUERIES) - query).max() > 0.01
    with pytest.raises(ValueError, match=r"prompt name 'quary' is not one of \['document', 'query'\]"):
        model.encode("a", prompt_name="quary")
    with pytest.raises(TypeError, match="prompt is int"):
        model.encode("a", prompt=3)


def test_own_prompts_come_to_the_models(tiny, tiny_copy):
    """As in sentence-transformers, "query" and "document" are always there.

    No default prompt stands in for them.
    """
    own = Embedder(tiny, prompts={"passage": "P:", "document": "D:"}, default_prompt_name="passage")
    np.testing.assert_array_equal(own.encode("a"), own.encode("P:a", prompt=""))
    np.testing.assert_array_equal(own.encode_document("a"), own.encode("D:a", prompt=""))
    np.testing.assert_array_equal(own.encode_query("a"), Embedder(tiny).encode_query("a"))
    (tiny_copy / "config_sentence_transformers.json").write_text('{"prompts": {"passage": "P:"}}')
    bare = Embedder(tiny_copy, default_prompt_name="passage")
    np.testing.assert_array_equal(bare.encode_query("a"), bare.encode("a", prompt=""))
    np.testing.assert_array_equal(bare.encode_document("a"), bare.encode("a", prompt=""))
    with pytest.raises(ValueError, match="'quary' is not one of"):
        Embedder(tiny, prompts={}, default_prompt_name="quary")


def test_cut_vectors_are_unit_vectors_of_the_leading_channels(tiny, model):
    whole, cut = model.encode(TEXTS), model.encode(TEXTS, truncate_dim=40)
    np.testing.assert_array_equal(Embedder(tiny, truncate_dim=40).encode(TEXTS), cut)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=UNIT)
    np.testing.assert_allclose(cut, reference.normalize(whole[:, :40].astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("dim", [31, 0, -1, 97, 40.0, "40", True])
def test_a_dimension_out_of_range_is_refused(tiny, model, dim):
    for call in (lambda: model.encode("a", truncate_dim=dim), lambda: Embedder(tiny, truncate_dim=dim)):
        with pytest.raises(ValueError, match="truncate_dim = .* must be between 32 and 96"):
            call()


@pytest.mark.parametrize("size", [0, -1, 2.5, "1"])
def test_a_batch_size_below_one_is_refused(model, size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        model.encode(["a"], batch_size=size)


def test_other_arguments_are_refused(tiny, model):
    with pytest.raises(TypeError):
        model.encode("a", no_such_argument=1)
    with pytest.raises(TypeError, match="text 1 is int"):
        model.encode(["a", 3])
    with pytest.raises(ValueError, match="backend = 'torch'"):
        Embedder(tiny, backend="torch")
    for length in (0, 32769, 1.5):
        with pytest.raises(ValueError, match="max_seq_length"):
            Embedder(tiny, max_seq_length=length)


def test_arguments_of_pytorch_are_refused_with_what_to_do(tiny, model):
    for arguments, instead in (
        ({"convert_to_tensor": True}, "torch.from_numpy"),
        ({"convert_to_numpy": False}, "torch.from_numpy"),
        ({"device": "cuda"}, "num_threads"),
        ({"pool": {}}, "num_threads"),
    ):
        with pytest.raises(TypeError, match=f"not possible without PyTorch: .*{instead}"):
            model.encode("a", **arguments)
    model.encode("a", convert_to_tensor=False, convert_to_numpy=True, device="cpu")
    with pytest.raises(TypeError, match="matmul_precision"):
        Embedder(tiny, model_kwargs={"torch_dtype": "bfloat16"})
    with pytest.raises(ValueError, match="output_value 'tokens' is not one of"):
        model.encode("a", output_value="tokens")
    with pytest.raises(ValueError, match="precision 'int4' is not one of"):
        model.encode("a", precision="int4")
    with pytest.raises(ValueError, match="similarity 'jaccard' is not one of"):
        Embedder(tiny, similarity_fn_name="jaccard")


def test_any_iterable_and_a_stream(model):
    """Generators, tuples, arrays; encode_stream reads no more than it needs."""
    expected = model.encode(TEXTS)
    for inputs in ((t for t in TEXTS), tuple(TEXTS), dict.fromkeys(TEXTS).keys(), np.array(TEXTS, object)):
        np.testing.assert_array_equal(model.encode(inputs), expected)
    read = []

    def reading():
        for text in TEXTS * 3:
            read.append(text)
            yield text

    chunks = model.encode_stream(reading(), chunk_size=5, truncate_dim=40)
    first = next(chunks)
    assert first.shape == (5, 40) and len(read) == 5
    vectors = np.concatenate([first, *chunks])
    np.testing.assert_array_equal(vectors, model.encode(TEXTS * 3, truncate_dim=40))
    with pytest.raises(TypeError, match="found one str"):
        next(model.encode_stream("text"))
    with pytest.raises(ValueError, match="chunk_size"):
        next(model.encode_stream(TEXTS, chunk_size=0))


def test_an_instruction_is_the_cards_prompt(model):
    prompt = "Instruct: Find the law\nQuery:"
    np.testing.assert_array_equal(
        model.encode(TEXTS, instruction="Find the law"), model.encode(TEXTS, prompt=prompt)
    )
    np.testing.assert_array_equal(
        model.encode_query(TEXTS, instruction="Find the law"), model.encode([prompt + t for t in TEXTS])
    )
    with pytest.raises(ValueError, match="give one"):
        model.encode("a", prompt="a", instruction="b")
    with pytest.raises(TypeError, match="instruction is int"):
        model.encode("a", instruction=3)


def test_what_texts_share_is_computed_once(tiny, monkeypatch):
    """Identical texts, and the tokens of a named prompt: those of a query alone, from the second call on."""
    model = Embedder(tiny)
    texts = [f"query number {i}" for i in range(40)]
    plain = np.stack([model.encode(model.prompts["query"] + text) for text in texts])
    computed = []
    run = model.backend._pooled

    def counting(job, batch, known, saved):
        computed.append(sum(len(text) - len(known) for text in batch))
        return run(job, batch, known, saved)

    monkeypatch.setattr(model.backend, "_pooled", counting)
    np.testing.assert_array_equal(model.encode_query(texts * 3), np.concatenate([plain] * 3))
    prompt = len(model.tokenize("", prompt_name="query")[0]) - 2
    lengths = [len(ids) for ids in model.tokenize(texts, prompt_name="query")]
    assert sum(computed) <= sum(lengths) - 38 * prompt
    computed.clear()
    np.testing.assert_array_equal(model.encode_query(texts[0]), plain[0])
    assert computed[0] <= lengths[0] - prompt


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_token_embeddings(tiny, backend):
    """All tokens' states after the final norm; the last one's is the text's vector."""
    model = Embedder(tiny, backend=backend)
    states = model.encode(TEXTS, output_value="token_embeddings")
    for x_TD, text, vector in zip(states, TEXTS, model.encode(TEXTS), strict=True):
        assert x_TD.shape == (len(model.tokenize(text)[0]), 96) and x_TD.dtype == np.float32
        np.testing.assert_array_equal(reference.normalize(x_TD[-1:])[0], vector)
        np.testing.assert_array_equal(model.encode(text, output_value="token_embeddings"), x_TD)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_encode_quantises(model, precision):
    whole = model.encode(TEXTS)
    np.testing.assert_array_equal(
        model.encode(TEXTS, precision=precision), quantize_embeddings(whole, precision)
    )
    ranges = quantization_ranges(whole)
    np.testing.assert_array_equal(
        model.encode(TEXTS[0], precision=precision, ranges=ranges),
        quantize_embeddings(whole, precision)[0],
    )
    np.testing.assert_array_equal(
        model.encode(TEXTS[:2], precision=precision, calibration_embeddings=whole),
        quantize_embeddings(whole, precision)[:2],
    )


def test_truncation_is_reported_and_keeps_the_last_token(tiny, caplog):
    model = Embedder(tiny, max_seq_length=8)
    with caplog.at_level(logging.WARNING, logger="qwen3np"):
        vectors = model.encode(["short", "word " * 60, "word " * 80])
    [record] = caplog.records
    assert "2 of 3 texts cut to max_seq_length = 8" in record.getMessage()
    np.testing.assert_array_equal(vectors[1], vectors[2])


def test_progress_bar_is_on_at_info_or_when_asked(model, capsys, caplog):
    model.encode(["a"])
    assert capsys.readouterr().err == ""
    model.encode(["a"], show_progress_bar=True)
    assert "1/1" in capsys.readouterr().err
    with caplog.at_level(logging.INFO, logger="qwen3np"):
        model.encode(["a"])
    assert "1/1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity(model, monkeypatch, name):
    """By the model's function; `similarity_pairwise` is its diagonal; larger is more alike."""
    monkeypatch.setattr(model, "similarity_fn_name", name)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 96)).astype(np.float32)
    scores = model.similarity(a, b)
    assert scores.shape == (5, 5)
    np.testing.assert_allclose(np.diag(scores), model.similarity_pairwise(a, b), rtol=1e-5)
    a64, b64 = a[1].astype(np.float64), b[3].astype(np.float64)
    exact = {
        "cosine": a64 @ b64 / np.linalg.norm(a64) / np.linalg.norm(b64),
        "dot": a64 @ b64,
        "euclidean": -np.linalg.norm(a64 - b64),
        "manhattan": -np.abs(a64 - b64).sum(),
    }[name]
    assert scores[1, 3] == pytest.approx(exact, rel=1e-4, abs=1e-6)
    assert model.similarity(a[0], b).shape == (1, 5)
    assert model.similarity(a[:0], b).shape == (0, 5)
    with pytest.raises(ValueError, match="96 and of 95"):
        model.similarity(a, b[:, :95])


def test_a_zero_vector_has_cosine_zero(model):
    assert model.similarity(np.zeros(96), np.ones(96))[0, 0] == 0
