"""The routes: what they compute is what Embedder and Reranker compute, and what they refuse they explain."""

from __future__ import annotations

import base64
import threading
from typing import Any

import numpy as np
import pytest
from asgi import ask

from qwen3np import Embedder, Reranker
from qwen3np.server.app import create_app
from qwen3np.server.service import ClientGone, Service
from qwen3np.server.settings import Settings

TEXTS = [
    "The capital of China is Beijing.",
    "Gravity is a force.",
    "",
    "中国 😀 \u0000 new\nline",
    "Gravity is a force.",
]
QUERY = "What is the capital of China?"
SECRET = "xyzzy-secret"


def served(*models: Any, **settings: Any) -> Any:
    service = Service(Settings(models=tuple(map(str, models)), **settings))
    loaded = threading.Event()
    service.load(loaded.set)
    assert loaded.wait(120)
    if service.error:
        raise service.error
    return create_app(service)


@pytest.fixture(scope="module")
def app(tiny, tiny_reranker):
    made = served(tiny, tiny_reranker)
    yield made
    made.state.service.close()


@pytest.fixture(scope="module")
def embedder(tiny):
    return Embedder(tiny)


@pytest.fixture(scope="module")
def reranker(tiny_reranker):
    return Reranker(tiny_reranker)


def floats(rows: Any) -> np.ndarray:
    return np.array(rows, np.float64).astype(np.float32)


# ---- the same numbers

HOW = [
    ({}, {}),
    ({"prompt_name": "query"}, {"prompt_name": "query"}),
    ({"instruction": "Find answers"}, {"instruction": "Find answers"}),
    ({"dimensions": 40}, {"truncate_dim": 40}),
    ({"dimensions": 40, "prompt_name": "query"}, {"truncate_dim": 40, "prompt_name": "query"}),
]


@pytest.mark.parametrize("fields, arguments", HOW)
def test_vectors_have_the_bits_of_encode(app, embedder, fields, arguments):
    expected = embedder.encode(TEXTS, **arguments)
    answers = {path: ask(app, path, {"inputs": TEXTS, **fields}) for path in ("/embed", "/", "/invocations")}
    for path, answer in answers.items():
        assert answer.status == 200, (path, answer)
        assert (floats(answer.json()) == expected).all()
    for path in ("/v1/embeddings", "/embeddings"):
        answer = ask(app, path, {"input": TEXTS, "model": "any", **fields}).json()
        assert [entry["index"] for entry in answer["data"]] == list(range(len(TEXTS)))
        assert (floats([entry["embedding"] for entry in answer["data"]]) == expected).all()
    answer = ask(app, "/v1/embeddings", {"input": TEXTS, "encoding_format": "base64", **fields}).json()
    decoded = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]]
    assert (np.array(decoded) == expected).all()
    asked = {name: value for name, value in arguments.items() if name != "truncate_dim"}
    tokens = sum(map(len, embedder.tokenize(TEXTS, **asked)))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = ask(app, "/api/embed", {"model": "m", "input": TEXTS, **fields}).json()
    assert (floats(answer["embeddings"]) == expected).all() and answer["prompt_eval_count"] == tokens


def test_one_text_is_a_list_of_one(app, embedder):
    expected = embedder.encode([QUERY])
    assert (floats(ask(app, "/embed", {"inputs": QUERY}).json()) == expected).all()
    assert len(ask(app, "/v1/embeddings", {"input": QUERY}).json()["data"]) == 1
    messages = [{"role": "user", "content": [{"type": "text", "text": QUERY}]}]
    answer = ask(app, "/v1/embeddings", {"messages": messages}).json()
    assert (floats([answer["data"][0]["embedding"]]) == expected).all()


def test_states_are_as_pooled_and_of_every_token(app, embedder):
    pooled = ask(app, "/embed", {"inputs": TEXTS, "normalize": False})
    assert (floats(pooled.json()) == embedder.backend.forward(embedder.tokenize(TEXTS))).all()
    every = ask(app, "/embed_all", {"inputs": TEXTS}).json()
    for states, expected in zip(every, embedder.encode(TEXTS, output_value="token_embeddings"), strict=True):
        assert (floats(states) == expected).all()


def test_token_ids_are_taken_as_they_are(app, embedder):
    ids = embedder.tokenize([QUERY, TEXTS[0]])
    assert (floats(ask(app, "/embed", {"inputs": ids}).json()) == embedder.encode([QUERY, TEXTS[0]])).all()
    assert (floats(ask(app, "/embed", {"inputs": ids[0]}).json()) == embedder.encode([QUERY])).all()
    prompted = ask(app, "/embed", {"inputs": [ids[0], TEXTS[0]], "prompt_name": "query"}).json()
    assert (floats(prompted) == embedder.encode_query([QUERY, TEXTS[0]])).all()


def test_similarity_is_the_models(app, embedder):
    answer = ask(app, "/similarity", {"inputs": {"source_sentence": QUERY, "sentences": TEXTS}})
    expected = embedder.similarity(embedder.encode([QUERY]), embedder.encode(TEXTS))[0]
    np.testing.assert_allclose(answer.json(), expected, atol=3e-7)
    assert ask(app, "/", {"inputs": {"source_sentence": QUERY, "sentences": TEXTS}}).body == answer.body
    body = {"inputs": {"source_sentence": QUERY, "sentences": TEXTS}, "parameters": {"prompt_name": "query"}}
    expected = embedder.similarity(embedder.encode_query([QUERY]), embedder.encode_query(TEXTS))[0]
    np.testing.assert_allclose(ask(app, "/similarity", body).json(), expected, atol=3e-7)


@pytest.mark.parametrize("instruction", [None, "Judge by kindness"])
def test_ranks_and_scores_are_the_rerankers(app, reranker, instruction):
    fields = {} if instruction is None else {"instruction": instruction}
    expected = reranker.rank(QUERY, TEXTS, return_documents=True, **fields)
    answer = ask(app, "/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True, **fields}).json()
    assert [(e["index"], np.float32(e["score"]), e["text"]) for e in answer] == [
        (e["corpus_id"], np.float32(e["score"]), e["text"]) for e in expected
    ]
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        documents = [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]
        body = {"query": QUERY, "documents": documents, "top_n": 2, "return_documents": True, **fields}
        ranking = ask(app, path, body).json()
        assert [
            (e["index"], np.float32(e["relevance_score"]), e["document"]["text"]) for e in ranking["results"]
        ] == [(e["corpus_id"], np.float32(e["score"]), e["text"]) for e in expected[:2]]
        tokens = sum(map(len, reranker.tokenize([(QUERY, text) for text in TEXTS], **fields)))
        assert ranking["usage"]["total_tokens"] == tokens
    raw = ask(app, "/rerank", {"query": QUERY, "texts": TEXTS[:2], "raw_scores": True, **fields}).json()
    scores = reranker.predict([(QUERY, text) for text in TEXTS[:2]], raw_scores=True, **fields)
    assert {e["index"]: np.float32(e["score"]) for e in raw} == dict(enumerate(scores))


def test_tokens_are_those_that_are_computed(app, embedder):
    texts = [*TEXTS, "<|im_end|> is special"]
    answer = ask(app, "/tokenize", {"inputs": texts, "prompt_name": "query"}).json()
    assert [[token["id"] for token in tokens] for tokens in answer] == embedder.tokenize(
        texts, prompt_name="query"
    )
    for tokens in ask(app, "/tokenize", {"inputs": texts}).json():
        assert tokens[-1]["special"] and tokens[-1]["start"] is None
    for text, tokens in zip(texts, ask(app, "/tokenize", {"inputs": texts}).json(), strict=True):
        assert all(token["text"] == text[token["start"] : token["stop"]] for token in tokens[:-1])
    plain = ask(app, "/tokenize", {"inputs": texts, "add_special_tokens": False}).json()
    ids = [[token["id"] for token in tokens] for tokens in plain]
    some = [i for i in range(len(texts)) if ids[i]]
    decoded = ask(app, "/decode", {"ids": [ids[i] for i in some], "skip_special_tokens": False}).json()
    assert decoded == [texts[i] for i in some]


@pytest.mark.parametrize(
    "text", ["e\u0301", "xe\u0301 \u1112\u1161\u11ab😀a\u0323\u0307<|im_end|>e\u0301\n\x00"]
)
def test_tokens_cover_their_text_where_normalisation_joins_characters(app, text):
    tokens = ask(app, "/tokenize", {"inputs": text, "add_special_tokens": False}).json()[0]
    places = sorted({(token["start"], token["stop"]) for token in tokens})
    assert "".join(text[start:stop] for start, stop in places) == text


def test_truncation_is_asked_for(app, embedder, reranker):
    long = "word " * 33000
    assert ask(app, "/embed", {"inputs": long}).status == 422
    body = {"inputs": long, "truncate_prompt_tokens": 12}
    cut = {side: ask(app, "/embed", {**body, "truncation_direction": side}) for side in ("left", "Right")}
    assert ask(app, "/embed", {**body, "truncation_side": "left"}).body == cut["left"].body
    ids = embedder.tokenizer.ids([long])[0]
    for side, kept in (("left", ids[-11:]), ("Right", ids[:11])):
        expected = embedder._truncate(embedder.backend.forward([kept + embedder.tokenizer.after]), 96, None)
        assert (floats(cut[side].json()) == expected).all()
    body = {"query": QUERY, "texts": ["word " * 9000]}
    assert ask(app, "/rerank", body).status == 422
    assert ask(app, "/rerank", {**body, "truncate": True, "truncate_prompt_tokens": 200}).status == 200
    auto = served(embedder.checkpoint.folder, auto_truncate=True, model_arguments={"max_seq_length": 16})
    expected = Embedder(embedder.checkpoint.folder, max_seq_length=16).encode([long])
    assert (floats(ask(auto, "/embed", {"inputs": long}).json()) == expected).all()
    assert ask(auto, "/embed", {"inputs": long, "truncate": False}).status == 422


# ---- refusals

REFUSED = [
    ("/embed", {}, 422, "inputs is missing"),
    ("/embed", {"inputs": []}, 400, "inputs is empty"),
    ("/embed", {"inputs": 3}, 422, "must be a text"),
    ("/embed", {"inputs": [SECRET, None]}, 422, "found null at [1]"),
    ("/embed", {"inputs": [SECRET, []]}, 422, "found a list without any at [1]"),
    ("/embed", {"inputs": [SECRET, [1, True]]}, 422, "found a list of other things at [1]"),
    ("/embed", {"inputs": SECRET, "truncate_prompt_tokens": True}, 422, "found a truth value"),
    ("/embed", {"inputs": SECRET, "dimensions": True}, 422, "found a truth value"),
    ("/rerank", {"query": "q", "documents": [SECRET], "top_n": True}, 422, "found a truth value"),
    ("/embed", {"inputs": [SECRET, [1, -1]]}, 422, "token id -1"),
    ("/embed", {"inputs": [[1, 99999999]]}, 422, "token id 99999999"),
    ("/embed", {"inputs": [[1, 1.5]]}, 422, "found a list"),
    ("/embed", {"inputs": SECRET, "dimensions": 7}, 422, "dimensions = 7 must be between 32 and 96"),
    ("/embed", {"inputs": SECRET, "dimensions": "many"}, 422, "dimensions"),
    ("/embed", {"inputs": SECRET, "prompt_name": "nix"}, 422, "'nix' is not one of document, query"),
    ("/embed", {"inputs": SECRET, "truncation_direction": "up"}, 422, "truncation_direction"),
    ("/embed", {"inputs": SECRET, "truncate_prompt_tokens": 0}, 422, "leaves nothing"),
    ("/embed", {"inputs": SECRET * 9000}, 422, '"truncate": true'),
    ("/embed", {"inputs": [""] * 1000, "instruction": SECRET * 1000}, 422, "each of 1000 inputs"),
    ("/tokenize", {"inputs": [""] * 1000, "instruction": SECRET * 1000}, 422, "before each of 1000 inputs"),
    ("/rerank", {"query": SECRET * 1000, "texts": [""] * 1000}, 422, "12000000 characters, and 8388608"),
    ("/v1/rerank", {"query": "", "documents": [""] * 1000, "instruction": SECRET * 1000}, 422, "of 1000 doc"),
    ("/embed_all", {"inputs": ["word " * 15000] * 9}, 422, "MB of numbers"),
    ("/similarity", {"inputs": {"source_sentence": SECRET, "sentences": []}}, 400, "sentences is empty"),
    ("/similarity", {"inputs": {"sentences": [SECRET]}}, 422, "source_sentence is missing"),
    ("/rerank", {"query": SECRET}, 422, "give texts"),
    ("/rerank", {"query": SECRET, "texts": []}, 400, "texts is empty"),
    ("/rerank", {"texts": [SECRET]}, 422, "query is missing"),
    ("/rerank", {"query": SECRET, "texts": [3]}, 422, "found a number at [0]"),
    ("/rerank", {"query": "q", "texts": [SECRET], "truncation_direction": "left"}, 422, "cut the query"),
    ("/rerank", {"query": "q", "texts": [SECRET], "truncate_prompt_tokens": 5}, 422, "leaves no room"),
    ("/v1/rerank", {"query": SECRET, "documents": [{"title": SECRET}]}, 422, "found null at [0]"),
    ("/v1/rerank", {"query": SECRET, "documents": ["a"], "top_n": 0}, 422, "top_n"),
    ("/tokenize", {"inputs": []}, 400, "inputs is empty"),
    ("/decode", {"ids": [[5, 99999999]]}, 422, "99999999"),
    ("/decode", {"ids": SECRET}, 422, "list of token ids"),
    ("/v1/embeddings", {"input": [[1, 2]]}, 400, "check_embedding_ctx_length=False"),
    ("/v1/embeddings", {"input": [1, 2]}, 400, "check_embedding_ctx_length=False"),
    ("/v1/embeddings", {"model": SECRET}, 422, "give input"),
    ("/v1/embeddings", {"input": SECRET, "encoding_format": "hex"}, 422, "encoding_format"),
    ("/v1/embeddings", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 422, "messages[0]"),
    ("/api/embed", {"model": "m"}, 422, "input is missing"),
    ("/embed", b"{", 400, "not JSON"),
    ("/embed", b"[" * 10000, 400, "not JSON"),
    ("/embed", b'{"inputs": "\\ud800"}', 400, "not JSON"),
    ("/embed", b'{"inputs": NaN}', 400, "not JSON"),
    ("/embed", b"\xff\xfe", 400, "not JSON"),
    ("/embed", b"3", 422, "JSON object"),
    ("/", {"nothing": SECRET}, 422, "inputs is missing"),
    ("/nowhere", {}, 404, "no /nowhere here"),
]  # fmt: skip


@pytest.mark.parametrize("path, body, status, words", REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said_and_no_text_repeated(app, path, body, status, words):
    answer = ask(app, path, body)
    assert answer.status == status, answer
    said = answer.json()
    if path.startswith(("/v1", "/v2")):
        assert words in said["error"]["message"] and said["message"] == said["error"]["message"]
        assert said["code"] == said["error"]["code"] == status
    else:
        assert words in said["error"] and (path.startswith("/api") or said["error_type"])
    assert SECRET not in answer.body.decode()


def test_methods_and_kinds_of_model(tiny, tiny_reranker, app):
    assert ask(app, "/embed").status == 405
    only = served(tiny)
    answer = ask(only, "/rerank", {"query": "q", "texts": ["t"]})
    assert answer.status == 424 and "no reranker model is served here, only tiny" in answer.json()["error"]
    other = served(tiny_reranker)
    assert ask(other, "/embed", {"inputs": "a"}).status == 424
    assert ask(other, "/", {"query": "q", "texts": ["t"]}).status == 200
    assert ask(other, "/tokenize", {"inputs": "a b"}).status == 200


def test_a_model_is_chosen_by_name_where_there_are_several(tiny, tmp_path):
    from qwen3np.synth.checkpoints import synthesize

    second = synthesize(tmp_path / "second", "tiny", layers=1)
    app = served(tiny, second, served_model_names=("first", "second"))
    assert [model["id"] for model in ask(app, "/v1/models").json()["data"]] == ["first", "second"]
    assert ask(app, "/v1/models/second").json()["id"] == "second"
    vectors = {
        name: floats(
            [ask(app, "/v1/embeddings", {"input": "a", "model": name}).json()["data"][0]["embedding"]]
        )
        for name in ("first", "second")
    }
    assert (vectors["first"] == Embedder(tiny).encode(["a"])).all()
    assert (vectors["second"] == Embedder(second).encode(["a"])).all()
    answer = ask(app, "/v1/embeddings", {"input": "a", "model": "third"})
    assert answer.status == 404 and "only first, second" in answer.json()["error"]["message"]


def test_settings_are_followed(tiny, embedder):
    app = served(tiny, default_prompt_name="query", max_client_batch_size=2, accept_token_ids=True)
    assert (floats(ask(app, "/embed", {"inputs": QUERY}).json()) == embedder.encode_query([QUERY])).all()
    assert ask(app, "/embed", {"inputs": ["a", "b", "c"]}).status == 422
    assert ask(app, "/v1/embeddings", {"input": embedder.tokenize([QUERY])}).status == 200
    app = served(tiny, model_arguments={"escape_special_tokens": True})
    text = "<|im_end|> is text"
    expected = Embedder(tiny, escape_special_tokens=True)
    assert (floats(ask(app, "/embed", {"inputs": text}).json()) == expected.encode([text])).all()
    [tokens] = ask(app, "/tokenize", {"inputs": text, "instruction": "Find"}).json()
    assert [token["id"] for token in tokens] == expected.tokenize([text], instruction="Find")[0]
    app = served(tiny, default_prompt="Passage: ")
    expected = embedder.encode([QUERY], prompt="Passage: ")
    assert (floats(ask(app, "/embed", {"inputs": QUERY}).json()) == expected).all()
    with pytest.raises(Exception, match="'nix' is not one of document, query"):
        served(tiny, default_prompt_name="nix")


# ---- states of the server


def test_health_is_that_of_the_models(tiny):
    service = Service(Settings(models=(str(tiny),)))
    app = create_app(service)
    for path in ("/health", "/ping", "/"):
        assert ask(app, path).status == 503
    answer = ask(app, "/embed", {"inputs": "a"})
    assert answer.status == 503 and answer.headers["retry-after"] and "being loaded" in answer.json()["error"]
    loaded = threading.Event()
    service.load(loaded.set)
    assert loaded.wait(60) and ask(app, "/health").status == 200
    service.close()
    assert ask(app, "/health").status == 503
    assert "shutting down" in ask(app, "/embed", {"inputs": "a"}).json()["error"]


def test_who_leaves_or_waits_too_long_is_taken_out_of_the_queue(tiny):
    app = served(tiny, request_timeout=2)
    service = app.state.service
    backend, let = service.served[0].target.backend, threading.Event()
    forward = backend.forward
    backend.forward = lambda *arguments: let.wait(30) and forward(*arguments)
    with pytest.raises(ClientGone):
        ask(app, "/embed", {"inputs": ["a", "b" * 2000]}, leave_after=0.1)
    answer = ask(app, "/embed", {"inputs": ["c", "d" * 2000]})
    assert answer.status == 504 and "2 seconds (--request-timeout)" in answer.json()["error"]
    assert service.scheduler.load().texts == 0
    let.set()
    service.close()


def test_an_unsound_model_is_424(tiny):
    app = served(tiny)
    backend = app.state.service.served[0].target.backend
    forward = backend.forward
    backend.forward = lambda *arguments: forward(*arguments) * np.float32(np.nan)
    answer = ask(app, "/embed", {"inputs": SECRET})
    assert answer.status == 424 and "not finite" in answer.json()["error"]
    assert SECRET not in answer.body.decode()


def test_what_is_documented_is_there(app):
    paths = ask(app, "/openapi.json").json()["paths"]
    for path in (
        "/embed /embed_all /similarity /rerank /tokenize /decode /v1/embeddings /v1/rerank /v2/rerank".split()
    ):
        assert "post" in paths[path] and paths[path]["post"]["requestBody"]
    info = ask(app, "/info").json()
    assert (
        info["model_type"] == {"embedding": {"pooling": "last_token"}} and info["max_input_length"] == 32768
    )
    assert [model["kind"] for model in info["models"]] == ["embedding", "reranker"]
