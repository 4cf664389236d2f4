"""Reranker: the card's prompt and scores, the promises of the interface, on tiny generated models."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tolerances import logit

from qwen3np import CheckpointError, Reranker, reference
from qwen3np.loading.tokenizer import RerankerTokenizer
from qwen3np.reranker import DEFAULT_INSTRUCTION, sigmoid
from qwen3np.synth.checkpoints import LIKE, synthesize

QUERY = "Which planet is known as the Red Planet?"
DOCUMENTS = [
    "Venus is Earth's twin.",
    "Mars is the Red Planet.",
    "",
    "木星 is large. " * 20,
    "a\x00b {query}\n",
]


@pytest.fixture(scope="module")
def folder(tiny_reranker):
    return tiny_reranker


@pytest.fixture(scope="module")
def model(folder):
    return Reranker(folder)


def exact(folder, pairs):
    """yes - no in float64: the reading copy and all of lm_head."""
    model = Reranker(folder, backend="numpy")
    c, w = model.config, model.checkpoint.weights(np.float64)
    states = reference.forward(
        model.tokenize(pairs), w.embed_tokens, w.layers, w.norm, c.rms_norm_eps, c.rope_theta, c.head_dim
    )
    name = "embed_tokens" if c.tie_word_embeddings else "lm_head"
    head_VD = model.checkpoint.tensors[f"{name}.weight"].widen(np.float64)
    logits = np.stack([x_TD[-1] @ head_VD.T for x_TD in states])
    ids = json.loads((folder / "1_LogitScore/config.json").read_text())
    return logits[:, ids["true_token_id"]] - logits[:, ids["false_token_id"]], np.abs(logits).max()


@pytest.mark.parametrize("kind", ["tiny_reranker", "untied_reranker"])
def test_scores_are_the_logits_difference(request, kind):
    folder = request.getfixturevalue(kind)
    pairs = [(QUERY, d) for d in DOCUMENTS] + [("", DOCUMENTS[0])]
    expected, scale = exact(folder, pairs)
    for precision in ("highest", "high"):
        model = Reranker(folder, matmul_precision=precision)
        tolerance = logit(model.backend)
        raw = model.predict(pairs, raw_scores=True)
        assert raw.dtype == np.float32
        np.testing.assert_allclose(raw, expected, atol=tolerance * scale)
        np.testing.assert_array_equal(model.predict(pairs, activation_fn=lambda x: x), raw)
        np.testing.assert_allclose(model.predict(pairs), 1 / (1 + np.exp(-expected)), atol=tolerance * scale)
        np.testing.assert_array_equal(model.predict(pairs, activation_fn=lambda x: 2 * x), 2 * raw)


def test_sigmoid_has_no_overflow():
    x = np.float32([-1e4, -50, -1, 0, 1, 50, 1e4])
    np.testing.assert_allclose(
        sigmoid(x), [0, np.exp(-50), 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1, 1], rtol=1e-6
    )


def test_the_prompt_is_the_cards(model, assets):
    """Prefix, body as one string, suffix; with the real tokenizer, the ids of shared/model_facts.md."""
    [ids] = model.tokenize([("q {x}", "d")])
    text = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        f"<Instruct>: {DEFAULT_INSTRUCTION}\n<Query>: q {{x}}\n<Document>: d<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert model.tokenizer.decode(ids) == text
    [other] = model.tokenize([("q", "d")], instruction="Be {kind}")
    assert "<Instruct>: Be {kind}\n" in model.tokenizer.decode(other)
    real = RerankerTokenizer(assets / "tokenizers" / "qwen3_base.tokenizer.json", 151669)
    assert len(real.system) == 39
    assert real.answer == [151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
    assert (real.token_id("yes"), real.token_id("no")) == (9693, 2152)


def test_a_pair_has_the_same_bits_in_any_company(model):
    """Alone, among 100, in any order and batch, with other queries between, with the system's part kept."""
    documents = [f"{d} {i}" for i in range(20) for d in DOCUMENTS]
    pairs = [(QUERY if i % 3 else f"query {i}", d) for i, d in enumerate(documents)]
    alone = np.float32([model.predict([pair], raw_scores=True)[0] for pair in pairs])
    np.testing.assert_array_equal(model.predict(pairs, raw_scores=True), alone)
    order = np.random.default_rng(0).permutation(len(pairs))
    for size in (None, 1, 7):
        shuffled = model.predict([pairs[i] for i in order], batch_size=size, raw_scores=True)
        np.testing.assert_array_equal(shuffled, alone[order])


def test_what_pairs_share_is_computed_once(folder, monkeypatch):
    model = Reranker(folder)
    computed = []
    run = model.backend._pooled

    def counting(job, texts, known, saved):
        computed.append(sum(len(text) - len(known) for text in texts))
        return run(job, texts, known, saved)

    monkeypatch.setattr(model.backend, "_pooled", counting)
    pairs = [(QUERY, f"number {i}") for i in range(40)]
    lengths = [len(ids) for ids in model.tokenize(pairs)]
    model.predict(pairs)
    assert sum(computed) < 0.5 * sum(lengths)
    computed.clear()
    [ids, first] = model.tokenize([("another query", "document"), (QUERY, "document")])
    model.predict(("another query", "document"))  # alone: what comes before the query is still there
    assert sum(computed) == len(ids) - next(i for i in range(len(ids)) if ids[i] != first[i])


def test_a_query_is_computed_once_for_pairs_that_come_one_a_call(folder, monkeypatch):
    model = Reranker(folder)
    computed = []
    run = model.backend._pooled

    def counting(job, texts, known, saved):
        computed.append(sum(len(text) - len(known) for text in texts))
        return run(job, texts, known, saved)

    monkeypatch.setattr(model.backend, "_pooled", counting)
    pairs = [(QUERY, f"{i} is a number") for i in range(8)]
    scores = [model.predict(pair) for pair in pairs]
    np.testing.assert_array_equal(scores, Reranker(folder).predict(pairs))
    [ids] = model.tokenize([(QUERY, "")])
    behind = len(ids) - len(os.path.commonprefix(model.tokenize(pairs)))
    assert len(computed) == len(pairs)  # keeping it is no pass of its own
    assert max(computed[2:]) <= behind + len("8 is a number") < len(ids) / 2


def test_rank(model):
    ranked = model.rank(QUERY, DOCUMENTS, return_documents=True)
    scores = model.predict([(QUERY, d) for d in DOCUMENTS])
    assert [r["corpus_id"] for r in ranked] == np.argsort(-scores, kind="stable").tolist()
    assert [r["text"] for r in ranked] == [DOCUMENTS[r["corpus_id"]] for r in ranked]
    assert [r["score"] for r in ranked] == sorted(scores.tolist(), reverse=True)
    assert model.rank(QUERY, DOCUMENTS, top_k=2) == [
        {k: r[k] for k in ("corpus_id", "score")} for r in ranked[:2]
    ]
    assert model.rank(QUERY, []) == []
    assert [r["corpus_id"] for r in model.rank(QUERY, ["same", "same"])] == [0, 1]


def test_one_pair_gives_one_number(model):
    one = model.predict((QUERY, DOCUMENTS[0]))
    assert np.ndim(one) == 0 and one == model.predict([(QUERY, DOCUMENTS[0])])[0]
    assert model.predict([]).shape == (0,)
    assert model.predict([[QUERY, "a"]]).shape == (1,)


def test_only_the_body_is_cut(folder, caplog):
    """The document first, then the query; the answer's part always stands at the end. It is reported."""
    model = Reranker(folder, max_length=400)
    around = len(model.tokenizer.system) + len(model.tokenizer.answer)
    with caplog.at_level(logging.WARNING, logger="qwen3np"):
        whole, long_document, long_query = model.tokenize(
            [("q", "d"), ("q", "word " * 100_000), ("word " * 1000, "the document")]
        )
    assert "2 of 3 pairs cut to max_length = 400" in caplog.text
    for ids in (long_document, long_query):
        assert len(ids) == 400
        assert ids[: len(model.tokenizer.system)] == model.tokenizer.system
        assert ids[-len(model.tokenizer.answer) :] == model.tokenizer.answer
    assert whole[:around] == long_document[:around] and "the document" not in model.tokenizer.decode(
        long_query
    )


def test_an_embedding_model_without_modules_json_is_refused(assets, tmp_path, monkeypatch):
    """By its tokenizer, which ends every text; a reranker without the file has the tokenizer's answers."""
    monkeypatch.setitem(LIKE, "tiny", replace(LIKE["tiny"], vocab_size=151669))
    tokenizers = assets / "tokenizers"
    file = tokenizers / "qwen3_embedding_0.6b.tokenizer.json"
    folder = synthesize(tmp_path / "m", layers=1, tokenizer=file)
    (folder / "modules.json").unlink()
    with pytest.raises(CheckpointError, match="no modules.json says that it is a reranker: use qwen3np.Emb"):
        Reranker(folder, backend="numpy")
    shutil.copy(tokenizers / "qwen3_base.tokenizer.json", folder / "tokenizer.json")
    assert Reranker(folder, backend="numpy").answers == (9693, 2152)


def test_pairs_may_come_in_any_form(model):
    """Lists, rows of an array, a generator, str subclasses; documents too."""

    class Text(str):
        pass

    pairs = [(QUERY, d) for d in DOCUMENTS]
    expected = model.predict(pairs)
    for inputs in (
        [list(pair) for pair in pairs],
        np.array([(q, d.replace("\x00", "")) for q, d in pairs])[:4],  # an array's str end at a NUL
        (pair for pair in pairs),
        [(Text(q), Text(d)) for q, d in pairs],
        tuple(pairs),
    ):
        scores = model.predict(inputs)
        np.testing.assert_array_equal(scores, expected[: len(scores)])
    for one in ([QUERY, DOCUMENTS[0]], np.array([QUERY, DOCUMENTS[0]])):
        assert model.predict(one) == expected[0] and np.ndim(model.predict(one)) == 0
    assert model.predict(pairs[:2]).shape == (2,)
    ranked = model.rank(Text(QUERY), DOCUMENTS)
    assert model.rank(QUERY, (d for d in DOCUMENTS)) == ranked
    assert model.rank(QUERY, np.array(DOCUMENTS[:3])) == model.rank(QUERY, DOCUMENTS[:3])


def test_identical_pairs_are_computed_once(model, monkeypatch):
    encode, computed = model.backend.forward, []
    monkeypatch.setattr(
        model.backend, "forward", lambda texts, *args: computed.extend(texts) or encode(texts, *args)
    )
    documents = ["a", "b", "a", "a", "b", ""]
    scores = model.predict([("q", d) for d in documents])
    assert len(computed) == 3
    assert scores[0] == scores[2] == scores[3] and scores[1] == scores[4] and scores[0] != scores[1]
    order = [r["corpus_id"] for r in model.rank("q", documents)]
    assert order.index(0) < order.index(2) < order.index(3)


def test_empty_texts_and_an_empty_instruction_are_scored_as_they_are(model, folder):
    for query, document in (("", ""), ("", "d"), ("q", "")):
        [ids] = model.tokenize([(query, document)])
        end = f"\n<Query>: {query}\n<Document>: {document}{RerankerTokenizer.ANSWER}"
        assert model.tokenizer.decode(ids).endswith(end)
        assert 0 <= model.predict((query, document)) <= 1
    [ids] = Reranker(folder, instruction="").tokenize([("q", "d")])
    assert model.tokenize([("q", "d")], instruction="") == [ids]
    assert "<Instruct>: \n<Query>" in model.tokenizer.decode(ids)


def test_an_activation_gives_a_number_a_score(model):
    """Anything that holds one: a list, integers that could not be negated."""
    pairs = [("q", d) for d in "abc"]
    raw = model.predict(pairs, raw_scores=True)
    np.testing.assert_array_equal(model.predict(pairs, activation_fn=lambda x: x.tolist()), raw)
    ranked = model.rank("q", ["a", "b", "c"], activation_fn=lambda x: np.uint8(x.argsort().argsort()))
    assert [r["corpus_id"] for r in ranked] == np.argsort(-raw).tolist() and ranked[0]["score"] == 2.0
