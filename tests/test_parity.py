"""The comparison of stages, and the published values against the collection they are from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qwen3np.loading import model_cards
from qwen3np.runtime.stages import Stage
from qwen3np.verify import published
from qwen3np.verify.compare import compare_stages


def stage(values) -> list[Stage]:
    return [("a", np.array(values, np.float64))]


def test_a_massive_token_does_not_excuse_another():
    expected = [[5700.0, 1.0], [1.0, 0.5]]
    [row] = compare_stages(stage(expected), stage([[5700.0, 1.0], [1.0, 0.51]]), 1e-3)
    assert row.first == (1, 1) and row.relative == pytest.approx(0.01)
    [row] = compare_stages(stage(expected), stage([[5700.0, 1.01], [1.0, 0.5]]), 1e-3)
    assert row.ok


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_beyond_every_tolerance(value):
    for a, b in ((value, 1.0), (1.0, value), (value, value)):
        [row] = compare_stages(stage([[2.0, a]]), stage([[2.0, b]]), 1e9)
        assert not row.ok


@pytest.mark.parametrize("lost", [5.0, np.inf, np.nan])
def test_a_float32_that_lost_everything_excuses_nothing(lost):
    [row] = compare_stages(stage([[4.0, 1.0]]), stage([[4.0, 2.1]]), 8, stage([[4.0, lost]]))
    assert not row.ok


def test_tolerance_counts_in_what_float32_loses():
    expected, got, float32 = stage([[4.0, 1.0]]), stage([[4.0, 1.08]]), stage([[4.04, 1.0]])
    for tolerance, ok in ((1.9, False), (2.1, True)):
        [row] = compare_stages(expected, got, tolerance, float32)
        assert row.ok is ok and row.float32 == pytest.approx(0.01)


def test_equal_zeros_are_alike():
    [row] = compare_stages(stage([[0.0, 0.0]]), stage([[0.0, 0.0]]), 1e-6)
    assert row.ok and (row.relative, row.cosine) == (0, 1)


def test_stages_that_do_not_correspond_are_refused():
    with pytest.raises(ValueError, match=r"stages differ: a \[1, 2\], a \[1, 1\]"):
        compare_stages(stage([[1, 2]]), stage([[1]]), 1)


def test_published_values_are_the_collected_ones(assets):
    """Every value of golden.json for these models (int8 weights are another model)."""
    golden = json.loads((assets / "golden" / "golden.json").read_text())
    ours = [
        (name, s.queries, s.documents, s.scores, s.tolerance)
        for name, all_scores in published.COSINES.items()
        for s in all_scores
    ]
    theirs = [
        (s["model"], s["queries"], s["documents"], s["matrix"], s["tol"])
        for s in golden["embedding_similarity"]
    ]
    assert sorted(map(repr, ours)) == sorted(map(repr, theirs))
    leading = published.LEADING_VALUES[published.CARD_MODEL]
    heads = [(v.text, v.query, v.values, v.tolerance) for v in leading]
    assert heads == [
        (h["text"], h["query_prompt"], h["first"], h["tol"])
        for h in golden["embedding_vector_heads"]
        if h["model"] == published.CARD_MODEL
    ]
    rerankers = [
        (name, s.query, s.documents, s.differences, s.tolerance)
        for name, all_scores in published.LOGIT_DIFFERENCES.items()
        for s in all_scores
    ]
    assert rerankers == [
        (s["model"], s["query"], s["documents"], s["yes_minus_no"], s["tol"])
        for s in golden["reranker_logit_diff"]
    ]
    ids = json.loads((assets / "golden" / "token_ids_computed.json").read_text()).values()
    ours = {model_cards.QUERY_PROMPT * query + text: ids for text, query, ids in published.TOKEN_IDS}
    known = [e for e in ids if e["text"] in ours]
    assert len(known) == len(ours) - 1 and all(ours[e["text"]] == e["ids"] for e in known)  # all but Mizzen
