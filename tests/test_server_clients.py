"""The server under the clients of other projects: nothing of theirs is changed but the URL."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clients
import numpy as np
import pytest
from serving import TIMEOUT, serve

from qwen3np import Embedder, Reranker

pytestmark = pytest.mark.clients

KEY = "a key"
LIMIT = 96  # tokens of the longest text
LONG = " ".join(f"word{i}" for i in range(200))
TEXTS = ["Beijing is the capital.", "重力使苹果落下。", 'A "quoted" naïve text \\ 🙂', LONG[:100], "a"]
QUERY = "What is the capital of China?"
INSTRUCTION = "Find the passage with the same author"


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    """Of an embedding model that reads at most LIMIT tokens."""
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("clients") / "limited"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LIMIT}))
    return folder


@pytest.fixture(scope="module")
def embedder(folder) -> Embedder:
    return Embedder(folder)


@pytest.fixture(scope="module")
def reranker(tiny_reranker) -> Reranker:
    return Reranker(tiny_reranker)


@pytest.fixture(scope="module")
def url(folder, tiny_reranker, tmp_path_factory) -> Iterator[str]:
    """A server of both models."""
    with serve(tmp_path_factory.mktemp("server") / "log", folder, tiny_reranker) as url:
        yield url


@pytest.fixture(scope="module")
def locked(folder, tmp_path_factory) -> Iterator[str]:
    """A server that asks for KEY."""
    with serve(tmp_path_factory.mktemp("locked") / "log", folder, "--api-key", KEY) as url:
        yield url


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    """Nothing is reported to anyone, and HF_HUB_OFFLINE, which CI sets, is not meant for our server."""
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("client", clients.TEXTS.values(), ids=clients.TEXTS)
def test_vectors_have_the_bits_of_encode(client, url, embedder):
    np.testing.assert_array_equal(np.float32(client(url, TEXTS)), embedder.encode(TEXTS))


@pytest.mark.parametrize("client", clients.QUERIES.values(), ids=clients.QUERIES)
def test_queries_have_the_query_prompt(client, url, embedder):
    np.testing.assert_array_equal(np.float32(client(url, QUERY)), embedder.encode_query(QUERY))


def test_instruction_and_dimensions(url, embedder):
    vectors = clients.openai_vectors(url, TEXTS, extra_body={"instruction": INSTRUCTION})
    np.testing.assert_array_equal(np.float32(vectors), embedder.encode(TEXTS, instruction=INSTRUCTION))
    expected = embedder.encode(TEXTS, truncate_dim=40)
    for vectors in [
        clients.openai_vectors(url, TEXTS, dimensions=40),
        clients.ollama_vectors(url, TEXTS, dimensions=40),
        clients.huggingface_hub(url).feature_extraction(TEXTS, dimensions=40, normalize=True),
    ]:
        np.testing.assert_array_equal(np.float32(vectors), expected)


def test_tokens_are_counted_as_the_model_reads_them(url, embedder):
    expected = sum(map(len, embedder.tokenize(TEXTS)))
    usage = clients.openai(url).embeddings.create(model="qwen3", input=TEXTS).usage
    assert (usage.prompt_tokens, usage.total_tokens) == (expected, expected)
    assert clients.ollama(url).embed("qwen3", TEXTS).prompt_eval_count == expected
    assert clients.haystack_openai_documents(url, TEXTS)["meta"]["usage"]["total_tokens"] == expected


def test_many_requests_at_once(url, embedder):
    from openai import AsyncOpenAI

    texts = [f"text {i} of many, {'long ' * (i % 9)}" for i in range(64)]

    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=clients.NO_KEY, max_retries=0) as client:
            asked = [client.embeddings.create(model="qwen3", input=text) for text in texts]
            return [answer.data[0].embedding for answer in await asyncio.gather(*asked)]

    np.testing.assert_array_equal(np.float32(asyncio.run(ask())), embedder.encode(texts))


def test_a_large_batch_is_not_refused(url, embedder):
    """LlamaIndex sends up to 2048 texts, LangChain 1000."""
    texts = [f"{i} {i % 7}" for i in range(2048)]
    np.testing.assert_array_equal(np.float32(clients.openai_vectors(url, texts)), embedder.encode(texts))


def test_truncation(url, embedder):
    """Ollama truncates by default, LlamaIndex asks for it always, huggingface_hub when told to."""
    hub, cut = clients.huggingface_hub(url), embedder.encode(LONG)
    for vector in [
        clients.ollama_vectors(url, LONG)[0],
        clients.llama_index_tei(url).get_text_embedding(LONG),
        hub.feature_extraction(LONG, truncate=True)[0],
        hub.feature_extraction(LONG, truncate=True, truncation_direction="right")[0],
    ]:
        np.testing.assert_array_equal(np.float32(vector), cut)
    [ids] = Embedder(embedder.checkpoint.folder, max_seq_length=10 * LIMIT).tokenize(LONG)
    end = embedder.tokenizer.decode(ids[-LIMIT:-1])
    [vector] = hub.feature_extraction(LONG, truncate=True, truncation_direction="left")
    np.testing.assert_array_equal(vector, embedder.encode(end))


def test_sentence_similarity(url, embedder):
    vectors = embedder.encode([QUERY, *TEXTS])
    found = clients.huggingface_hub(url).sentence_similarity(QUERY, TEXTS)
    np.testing.assert_allclose(found, vectors[1:] @ vectors[0], atol=1e-6)


def assert_ranked(found: clients.Ranked, reranker: Reranker, **options: Any) -> None:
    expected = reranker.rank(QUERY, TEXTS, **options)
    assert [index for index, _ in found] == [r["corpus_id"] for r in expected]
    np.testing.assert_array_equal(np.float32([s for _, s in found]), [r["score"] for r in expected])


@pytest.mark.parametrize("client", clients.RANKINGS.values(), ids=clients.RANKINGS)
def test_rankings_are_those_of_rank(client, url, reranker):
    assert_ranked(client(url, QUERY, TEXTS), reranker)


def test_rankings_with_top_n_and_instruction(url, reranker):
    assert_ranked(clients.cohere_ranking(url, QUERY, TEXTS, top_n=2), reranker, top_k=2)
    found = clients.haystack_vllm_ranking(url, QUERY, TEXTS, instruction=INSTRUCTION)
    assert_ranked(found, reranker, instruction=INSTRUCTION)


# What is too long: the name of the client's own exception, and where it keeps the server's words.
TOO_LONG = 20 * f"{LONG} "  # for the reranker too
REFUSALS = {
    "openai": (
        lambda url: clients.openai_vectors(url, [LONG]),
        "UnprocessableEntityError",
        lambda error: error.body["message"],
    ),
    "huggingface_hub": (
        lambda url: clients.huggingface_hub(url).feature_extraction(LONG),
        "HfHubHTTPError",
        str,
    ),
    "ollama": (
        lambda url: clients.ollama_vectors(url, LONG, truncate=False),
        "ResponseError",
        lambda error: error.error,
    ),
    "cohere": (
        lambda url: clients.cohere_ranking(url, QUERY, [TOO_LONG]),
        "UnprocessableEntityError",
        lambda error: error.body["message"],
    ),
    **{
        name: (lambda url, rank=clients.RANKINGS[name]: rank(url, QUERY, [TOO_LONG]), "RuntimeError", str)
        for name in ("haystack, tei", "haystack, vllm", "llama-index, jina")
    },
}


@pytest.mark.parametrize("client, exception, words", REFUSALS.values(), ids=REFUSALS)
def test_a_text_that_is_too_long_is_refused_in_words(client, exception, words, url):
    with pytest.raises(Exception) as error:
        client(url)
    assert error.type.__name__ == exception
    assert re.search(r"has \d+ tokens.*truncate", words(error.value))
    assert "word17" not in words(error.value)  # no text of a request


@pytest.mark.parametrize("embed", [lambda c: c.embed_documents(TEXTS), lambda c: c.embed_query(QUERY)])
def test_ids_of_another_tokenizer_are_refused(embed, url, monkeypatch):
    """LangChain's default. They exist in Qwen's vocabulary too: nobody would see that vectors are wrong."""
    import openai
    import tiktoken

    # Its vocabulary is downloaded at first use; any will do.
    encoding = tiktoken.Encoding(
        "cl100k_base",
        pat_str=r"\S+|\s+",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embed(clients.langchain(url))


@pytest.mark.parametrize(
    "options, hint",
    [
        ({"extra_body": {"prompt_name": "question"}}, "document, query"),
        ({"dimensions": 7}, "dimensions = 7 must be between 32 and 96"),
        ({"encoding_format": "hex"}, "base64"),
        ({"input": []}, "at least one text"),
    ],
)
def test_what_cannot_be_is_explained_to_openai(options, hint, url):
    import openai

    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)) as error:
        clients.openai(url).embeddings.create(**{"model": "qwen3", "input": QUERY} | options)
    assert hint in error.value.body["message"]


def test_models_are_listed(url, folder, tiny_reranker):
    models = clients.openai(url).models
    assert {model.id for model in models.list()} == {folder.name, tiny_reranker.name}
    assert models.retrieve(folder.name).max_model_len == LIMIT


@pytest.mark.parametrize("client, exception", clients.KEYS.values(), ids=clients.KEYS)
def test_keys(client, exception, locked, embedder):
    np.testing.assert_array_equal(np.float32(client(locked, QUERY, KEY)), embedder.encode(QUERY))
    with pytest.raises(Exception) as error:
        client(locked, QUERY, "another key")
    assert error.type.__name__ == exception
    assert KEY not in str(error.value)


def test_curl_of_the_model_card(url, embedder, assets):
    """The section on text-embeddings-inference, word by word but for the port.

    It has a space after "Query:", which the prompt has not: these are not the vectors of encode_query.
    """
    if not shutil.which("curl"):
        pytest.skip("no curl")
    card = (assets / "model_card_qwen3_embedding_0.6b.txt").read_text(encoding="utf-8")
    card = re.sub(r"^\d+ ", "", card, flags=re.M)  # the line numbers of that file
    [command] = re.findall(r"^curl http://localhost:8080/embed .*?\n(?=```)", card, re.M | re.S)
    command = command.replace("http://localhost:8080", url)
    answer = subprocess.run(["bash", "-c", command], capture_output=True, timeout=TIMEOUT, check=True)
    queries = [f"{clients.PROMPT} {query}" for query in ("What is the capital of China?", "Explain gravity")]
    np.testing.assert_array_equal(np.float32(json.loads(answer.stdout)), embedder.encode(queries))


def test_mteb(url, folder, embedder, reranker):
    """Its clients send conversations by default, and one document per request to a reranker."""
    mteb = pytest.importorskip("mteb", reason="needs PyTorch; .ci/run installs it last")
    from datasets import Dataset
    from torch.utils.data import DataLoader

    task = {"task_metadata": mteb.get_task("STS12").metadata, "hf_split": "test", "hf_subset": "default"}

    def loader(texts: list[str]) -> Any:
        return DataLoader(Dataset.from_dict({"text": texts}), batch_size=2)

    texts = [*TEXTS, LONG]
    for conversations in (True, False):
        model = mteb.models.OpenAIAPIEncodeWrapper(url, folder.name, use_chat_template=conversations)
        vectors = model.encode(loader(texts), **task, show_progress_bar=False)
        np.testing.assert_array_equal(vectors, embedder.encode(texts))
    model = mteb.models.OpenAIAPIRerankWrapper(url, "reranker")
    scores = model.predict(loader([QUERY] * len(TEXTS)), loader(TEXTS), **task, show_progress_bar=False)
    np.testing.assert_array_equal(np.float32(scores), reranker.predict([(QUERY, text) for text in TEXTS]))


def test_answers_are_as_the_schema_says(url, tmp_path):
    """To more than a thousand requests that schemathesis makes of it, many of them not meant well: no 5xx.

    Nor a request that breaks the server, of which its log would tell.
    """
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", checks]
    command += ["--seed", "1", "--max-examples", "10", "--phases", "examples,coverage,fuzzing"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=5 * TIMEOUT)
    assert run.returncode == 0, run.stdout + run.stderr
