"""Quantised vectors, and search that is exact whatever the blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3np import (
    nearest,
    quantization_ranges,
    quantize_embeddings,
    reference,
    search,
    semantic_search,
    similarity,
)


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


@pytest.mark.parametrize("name", similarity.SIMILARITIES)
@pytest.mark.parametrize("top_k", [1, 10, 1000])
def test_search_is_a_sort_of_all_scores(vectors, monkeypatch, name, top_k):
    queries, corpus = vectors
    scores = similarity.similarity(queries, corpus, name)
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
    found = semantic_search(corpus[:20], packed, 1, **options)
    assert ids(found) == [[i] for i in range(20)]


def test_hamming_counts_signs(vectors):
    queries, corpus = vectors
    expected = -((queries[:, None] > 0) != (corpus[None] > 0)).sum(axis=2)
    for precision in ("binary", "ubinary"):
        np.testing.assert_array_equal(
            nearest.hamming(queries, quantize_embeddings(corpus, precision)), expected
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
            r"queries of 32 dimensions need a float32 corpus \[N, 32\], found \[500, 64\]",
        ),
        ((queries, corpus, 0), "top_k must be a positive integer"),
        ((queries, bits), "need a float32 corpus"),
    ):
        with pytest.raises(ValueError, match=message):
            semantic_search(*arguments)
    for options, message in (
        ({"corpus_precision": "int4"}, "'int4' is not one of"),
        ({"corpus_precision": "ubinary"}, "8"),
        ({"score_function": "jaccard"}, "'jaccard' is not one of"),
        ({"corpus_precision": "int8", "score_function": "euclidean"}, "not by euclidean"),
        ({"rescore_embeddings": corpus[:5]}, "500, 64"),
    ):
        with pytest.raises(ValueError, match=message):
            semantic_search(queries, corpus, **options)
    with pytest.raises(ValueError, match="two vectors or more"):
        quantize_embeddings(corpus[0], "int8")
    with pytest.raises(TypeError, match="the vectors to quantise are uint8, expected floats"):
        quantize_embeddings(bits, "int8")
    with pytest.raises(ValueError, match="'int4' is not one of"):
        quantize_embeddings(corpus, "int4")


def true_scores(name, queries, corpus):
    """In float64, as written, and rounded to float32."""
    a, b = queries[:, None].astype(np.float64), corpus[None].astype(np.float64)
    if name == "euclidean":
        return -np.sqrt(((a - b) ** 2).sum(axis=-1)).astype(np.float32)
    if name == "manhattan":
        return -np.abs(a - b).sum(axis=-1).astype(np.float32)
    scores = (a * b).sum(axis=-1)
    if name == "cosine":
        scores /= np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return scores.astype(np.float32)


@pytest.mark.parametrize("name", similarity.SIMILARITIES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_search_is_exact_whatever_the_blocks_and_equal_rows_are_equal(name, data):
    """Rows that are there many times, nearly equal ones, and vectors of any size.

    The order is that of float64, equal scores in the order of the corpus.
    """
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, count = draw(st.integers(1, 300)), draw(st.integers(1, 120))
    distinct = rng.standard_normal((draw(st.integers(1, 40)), dim))
    distinct[1:] += draw(st.sampled_from([0, 1e3, 1e6])) * distinct[0]  # nearly parallel
    corpus = (distinct * 10.0 ** draw(st.integers(-30, 30)))[rng.integers(len(distinct), size=count)]
    corpus = corpus.astype(np.float32)
    queries = (corpus[rng.integers(count, size=3)] * rng.uniform(0.5, 2, (3, dim))).astype(np.float32)
    top_k = draw(st.integers(1, count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK_ROWS", draw(st.integers(1, count + 1)))
        patch.setattr(similarity, "EXACT_ROWS", draw(st.integers(1, 50)))
        patch.setattr(search, "QUERIES", draw(st.integers(1, 4)))
        results = semantic_search(queries, corpus, top_k, score_function=name)
    with np.errstate(over="ignore"):
        true = true_scores(name, queries, corpus)
    for row, found in zip(true, results, strict=True):
        scores = {r["corpus_id"]: r["score"] for r in found}
        assert len(scores) == top_k
        ranked = sorted(scores, key=lambda i: (-scores[i], i))
        assert [r["corpus_id"] for r in found] == ranked
        for i in scores:  # the scores that the same row has elsewhere
            same = [j for j in scores if (corpus[i] == corpus[j]).all()]
            assert len({scores[j] for j in same}) == 1
            assert all(j in scores for j in range(i) if (corpus[i] == corpus[j]).all())
        if np.isfinite(row).all():
            expected = np.sort(-row)[:top_k]
            tolerance = 3e-7 * np.abs(expected).max() if name != "dot" else 3e-7 * np.abs(row).max()
            np.testing.assert_allclose([-r["score"] for r in found], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("query, row", [(0, 1e30), (1e25, 1e-30), (1e-30, 1e30), (1e30, 1e30), (1, 1)])
def test_a_dot_product_search_is_exact_whatever_the_lengths(monkeypatch, query, row, order):
    """Squares beyond float32, or lost below it, bound no rounding.

    A zero query has all rows for its best, and nearly equal rows come in the order of float64.
    """
    rng = np.random.default_rng(0)
    base = np.abs(rng.standard_normal(200))
    corpus = base * (row * (1 + 1e-7 * rng.integers(0, 20, (60, 200))))
    corpus = np.asarray(np.concatenate([corpus, corpus[:20], 0 * corpus[:5]]), np.float32, order=order)
    queries = (query * base[None]).astype(np.float32)
    wide = corpus.astype(np.float64, order="C")
    scores = np.array([math.fsum(a * b for a, b in zip(queries[0].tolist(), r, strict=True)) for r in wide])
    with np.errstate(over="ignore"):
        if np.isfinite(scores.astype(np.float32)).all():
            scores = scores.astype(np.float32)
    monkeypatch.setattr(search, "BLOCK_ROWS", 7)
    [found] = semantic_search(queries, corpus, 12, score_function="dot")
    np.testing.assert_allclose([r["score"] for r in found], -np.sort(-scores)[:12], rtol=2e-7)
    assert [r["corpus_id"] for r in found] == np.argsort(-scores, kind="stable")[:12].tolist()


@pytest.mark.parametrize("a, b", [(1e30, 1e30), (1e-30, 1e-30), (1e38, 1e-38), (1, 1e-42)])
def test_a_cosine_does_not_depend_on_the_lengths(vectors, a, b):
    queries, corpus = vectors
    expected = semantic_search(queries, corpus, 5)
    scaled = [(x * np.float64(by)).astype(np.float32) for x, by in ((queries, a), (corpus, b))]
    true = true_scores("cosine", *scaled)
    np.testing.assert_allclose(similarity.similarity(*scaled), true, atol=1e-6)
    np.testing.assert_allclose(
        similarity.similarity_pairwise(scaled[0], scaled[1][:7]), np.diag(true[:, :7]), atol=1e-6
    )
    found = semantic_search(*scaled, 5)
    if b > 1e-40:  # below, a float32 has few digits
        assert ids(found) == ids(expected)
    for row, best in zip(true, found, strict=True):
        np.testing.assert_allclose([r["score"] for r in best], -np.sort(-row)[:5], atol=1e-6)
    assert similarity.similarity([[0.0, 0.0]], [[1.0, 2.0]]).tolist() == [[0.0]]


@pytest.mark.parametrize("name", similarity.SIMILARITIES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_row_that_is_not_finite_hides_no_other(vectors, monkeypatch, name, value):
    queries, corpus = vectors
    monkeypatch.setattr(search, "BLOCK_ROWS", 64)
    for row in (0, 63, 64, 499):
        damaged = corpus.astype(np.float64)
        damaged[row, 5] = value
        with pytest.raises(ValueError, match=f"corpus row {row} holds a NaN, an infinity"):
            semantic_search(queries, damaged, 3, score_function=name)
    damaged = queries.astype(np.float64)
    damaged[4, 0] = value
    with pytest.raises(ValueError, match="query 4 holds"):
        semantic_search(damaged, corpus, score_function=name)
    bits = quantize_embeddings(corpus, "ubinary")
    damaged = corpus.astype(np.float64)
    damaged[7] = value
    with pytest.raises(ValueError, match="row of rescore_embeddings 7 holds"):
        semantic_search(corpus[7], bits, 1, corpus_precision="ubinary", rescore_embeddings=damaged)


@pytest.mark.parametrize(
    "change, precision, error",
    [
        (lambda x: x.astype(np.complex64), "float32", "complex64, expected floats"),
        (lambda x: x > 0, "float32", "bool, expected floats"),
        (lambda x: x.astype(object), "float32", "object, expected floats"),
        (lambda x: x.astype(str), "float32", "<U32, expected floats"),
        (lambda x: np.ma.masked_less(x, 0), "float32", "are a masked array"),
        (lambda x: quantize_embeddings(x, "int8"), "float32", "int8, expected floats .*corpus_precision"),
        (lambda x: quantize_embeddings(x, "int8"), "uint8", "uint8 is an array of uint8, found int8"),
        (lambda x: quantize_embeddings(x, "uint8"), "int8", "int8 is an array of int8, found uint8"),
        (lambda x: x, "int8", "a corpus of int8 is an array of int8, found float32"),
        (lambda x: quantize_embeddings(x, "binary"), "ubinary", "array of uint8, found int8"),
        (lambda x: quantize_embeddings(x, "ubinary"), "binary", "array of int8, found uint8"),
    ],
)
def test_arrays_of_another_type_are_refused(vectors, change, precision, error):
    queries, corpus = vectors
    options = {"corpus_precision": precision, "ranges": quantization_ranges(corpus)}
    with pytest.raises(TypeError, match=error):
        semantic_search(queries, change(corpus), **options)


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda r: r[::-1], r"ranges are reversed: dimension 0 goes from"),
        (lambda r: r[:1], r"ranges must be \[2, 64\], .* found \[1, 64\]"),
        (lambda r: r[0], r"found \[64\]"),
        (lambda r: r[:, :32], r"found \[2, 32\]"),
        (lambda r: r * np.nan, "ranges hold nan"),
        (lambda r: r * np.float64(1e300), "ranges hold -?inf"),
        (lambda r: r.astype(int), "ranges are int64, expected floats"),
        (lambda r: None, "needs the ranges"),
    ],
)
def test_ranges_that_are_none_are_refused(vectors, change, error):
    queries, corpus = vectors
    ranges = change(quantization_ranges(corpus))
    packed = quantize_embeddings(corpus, "int8")
    with pytest.raises((TypeError, ValueError), match=error):
        semantic_search(queries, packed, corpus_precision="int8", ranges=ranges)
    if ranges is not None:
        with pytest.raises((TypeError, ValueError), match=error):
            quantize_embeddings(corpus, "int8", ranges=ranges)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_vectors_that_are_not_finite_are_not_quantised(vectors, precision):
    _, corpus = vectors
    damaged = corpus.copy()
    damaged[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"hold nan at \[3, 5\]"):
        quantize_embeddings(damaged, precision)
    if "int8" in precision:
        with pytest.raises(ValueError, match=r"hold nan at \[3, 5\]"):
            quantize_embeddings(corpus, precision, calibration_embeddings=damaged)


def test_sizes_may_be_numpy_integers(vectors):
    queries, corpus = vectors
    assert semantic_search(queries, corpus, np.int64(3)) == semantic_search(queries, corpus, 3)
    for top_k in (0, -1, 2.0, True, "3", None):
        with pytest.raises(ValueError, match="top_k must be a positive integer"):
            semantic_search(queries, corpus, top_k)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_the_compiled_search_finds_what_numpys_does(monkeypatch, dtype, name):
    """Blocks read by threads; odd dimensions; rows that are equal, zero or huge."""
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((3000, 67)).astype(np.float32)
    corpus[500:520], corpus[7] = corpus[3], 0
    ranges = np.stack([corpus.min(axis=0), corpus.max(axis=0)])
    if dtype == "float32":
        corpus[10:12], corpus[12] = corpus[10:12] * 1e25, corpus[12] * 1e-30
    options = {"score_function": name, "corpus_precision": dtype, "ranges": ranges}
    rows = quantize_embeddings(corpus, dtype, ranges)
    queries = np.concatenate([corpus[2:4], rng.standard_normal((2, 67)).astype(np.float32)])
    expected = semantic_search(queries, rows, 30, **options)
    monkeypatch.setattr(nearest, "MANY_VALUES", 0)
    monkeypatch.setattr(search, "BLOCK_ROWS", 700)
    assert semantic_search(queries, rows, 30, **options) == expected
    if dtype == "float32":
        rows[2100, 5] = np.nan
        with pytest.raises(ValueError, match="corpus row 2100 holds a NaN"):
            semantic_search(queries, rows, 30, **options)
