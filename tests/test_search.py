"""Quantised vectors, and search that is exact whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3np import quantization_ranges, quantize_embeddings, reference, search, semantic_search


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((500, 64))
    corpus[:] += 3 * rng.standard_normal((25, 64)).repeat(20, axis=0)  # 25 topics
    queries = corpus[:490:70] + rng.standard_normal((7, 64))
    corpus[100] = corpus[7]  # equal scores
    return reference.normalize(queries.astype(np.float32)), reference.normalize(corpus.astype(np.float32))


def ids(results):
    return [[r["corpus_id"] for r in row] for row in results]


@pytest.mark.parametrize("name", search.SIMILARITIES)
@pytest.mark.parametrize("top_k", [1, 10, 1000])
def test_search_is_a_sort_of_all_scores(vectors, monkeypatch, name, top_k):
    queries, corpus = vectors
    scores = search.similarity(queries, corpus, name)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    for rows, at_once in ((16384, 256), (64, 2)):
        monkeypatch.setattr(search, "BLOCK_ROWS", rows)
        monkeypatch.setattr(search, "QUERIES", at_once)
        results = semantic_search(queries, corpus, top_k, score_function=name)
        found = np.array([[r["score"] for r in row] for row in results])
        np.testing.assert_allclose(found, np.take_along_axis(scores, expected, 1), atol=1e-6)
        assert all(len(set(row)) == min(top_k, 500) for row in ids(results))
    [one] = semantic_search(corpus[7], corpus, 2, score_function=name)
    assert [r["corpus_id"] for r in one] == [7, 100]  # equal scores, in the corpus' order


def test_a_corpus_may_be_a_file(vectors, tmp_path):
    queries, corpus = vectors
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    assert semantic_search(queries, mapped) == semantic_search(queries, corpus)
    assert semantic_search(queries, corpus[:0]) == [[]] * len(queries)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantised_search_finds_nearly_the_same_and_rescoring_the_same(vectors, precision):
    queries, corpus = vectors
    ranges = quantization_ranges(corpus)
    packed = quantize_embeddings(corpus, precision, ranges=ranges)
    assert packed.dtype == (np.uint8 if precision[0] == "u" else np.int8)
    assert packed.shape == (500, 8 if "binary" in precision else 64)
    exact = ids(semantic_search(queries, corpus))
    options = {"corpus_precision": precision, "ranges": ranges}
    found = semantic_search(queries, packed, **options)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, ids(found), strict=True)])
    assert hits >= (0.5 if "binary" in precision else 0.9)
    rescored = semantic_search(queries, packed, **options, rescore_embeddings=corpus, rescore_multiplier=50)
    assert ids(rescored) == exact
    nearest = semantic_search(corpus[:20], packed, 1, **options)
    assert ids(nearest) == [[i] for i in range(20)]


def test_hamming_counts_signs(vectors):
    queries, corpus = vectors
    expected = -((queries[:, None] > 0) != (corpus[None] > 0)).sum(axis=2)
    for precision in ("binary", "ubinary"):
        np.testing.assert_array_equal(
            search.hamming(queries, quantize_embeddings(corpus, precision)), expected
        )


def test_int8_is_within_a_step(vectors):
    _, corpus = vectors
    ranges = quantization_ranges(corpus)
    steps = (ranges[1] - ranges[0]) / 255
    for precision, offset in (("int8", 128), ("uint8", 0)):
        values = quantize_embeddings(corpus, precision).astype(np.float32) + offset
        assert (np.abs(ranges[0] + (values + 0.5) * steps - corpus) <= steps * 0.51).all()
    np.testing.assert_array_equal(
        quantize_embeddings(corpus[:3], "int8", calibration_embeddings=corpus),
        quantize_embeddings(corpus, "int8")[:3],
    )


def test_what_does_not_fit_is_refused(vectors):
    queries, corpus = vectors
    bits = quantize_embeddings(corpus, "ubinary")
    for arguments, message in (
        (
            (queries[:, :32], corpus),
            r"queries of 32 channels need a float32 corpus \[N, 32\], found \[500, 64\]",
        ),
        ((queries, corpus, 0), "top_k must be a positive integer"),
        ((queries, bits), "need a float32 corpus"),
    ):
        with pytest.raises(ValueError, match=message):
            semantic_search(*arguments)
    for options, message in (
        ({"corpus_precision": "int4"}, "'int4' is not one of"),
        ({"corpus_precision": "int8"}, "needs the ranges"),
        ({"score_function": "jaccard"}, "'jaccard' is not one of"),
        ({"corpus_precision": "int8", "score_function": "euclidean"}, "not by euclidean"),
        (
            {"corpus_precision": "int8", "ranges": np.zeros((2, 64)), "rescore_embeddings": corpus[:5]},
            "500, 64",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            semantic_search(queries, corpus, **options)
    with pytest.raises(ValueError, match="two vectors or more"):
        quantize_embeddings(corpus[0], "int8")
    with pytest.raises(ValueError, match="expected float vectors"):
        quantize_embeddings(bits, "int8")
    with pytest.raises(ValueError, match="'int4' is not one of"):
        quantize_embeddings(corpus, "int4")
