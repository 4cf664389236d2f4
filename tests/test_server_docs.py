"""What docs/server.md and deploy/ say of the server: its requests are sent, its clients are run."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import serve

from qwen3np import Embedder, Reranker
from qwen3np.cli import serve as command
from qwen3np.cli.program import Parser
from qwen3np.verify.published import CARD_MODEL, LEADING_VALUES, LOGIT_DIFFERENCES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
REQUESTS = re.findall(r"```sh\n(curl .*?)```\n\n```json\n(.*?)```", PAGE, re.S)
CLIENTS = {
    re.findall(r"^from (\w+)", block, re.M)[0]: block for block in re.findall(r"```py\n(.*?)```", PAGE, re.S)
}
ADDRESS = "localhost:8080"


@pytest.fixture(scope="module")
def address(tiny, tiny_reranker, tmp_path_factory) -> Iterator[str]:
    """Of a server of both models."""
    with serve(tmp_path_factory.mktemp("server") / "log", tiny, tiny_reranker) as url:
        yield url.removeprefix("http://")


def documented(answer: str) -> Any:
    """An answer as the page shows it, where "..." stands for further numbers."""
    return json.loads(answer.replace(", ...", ""))


def shape(value: Any) -> Any:
    """The keys and types of an answer; a list's entries are alike."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        assert value
        shapes = [shape(one) for one in value]
        assert all(one == shapes[0] for one in shapes)
        return shapes[:1]
    return type(value)


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
@pytest.mark.parametrize("request_and_answer", REQUESTS, ids=lambda pair: pair[0].split()[1])
def test_requests_have_the_answers_of_the_page(address, request_and_answer):
    request, answer = request_and_answer
    script = request.replace(ADDRESS, address)
    run = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shape(json.loads(run.stdout)) == shape(documented(answer))


def test_numbers_of_the_page_are_the_published_ones():
    [[vector], embeddings, ranking] = [documented(answer) for _, answer in REQUESTS]
    document, query = LEADING_VALUES[CARD_MODEL][:2]
    assert vector == np.round(document.values, 4).tolist()
    assert embeddings["data"][0]["embedding"] == np.round(query.values, 4).tolist()
    probabilities = LOGIT_DIFFERENCES["Qwen/Qwen3-Reranker-0.6B"][1].probabilities
    scores = [result["relevance_score"] for result in ranking["results"]]
    np.testing.assert_allclose(scores, probabilities, rtol=1e-3)


@pytest.mark.clients
@pytest.mark.parametrize("package", CLIENTS)
def test_clients(package, address, tiny, tiny_reranker, monkeypatch):
    """Run each block; what it names `vectors`, `query` and `best` is what encode and rank give."""
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # CI sets it; our server is no Hub
    texts = ["The capital of China is Beijing.", "Gravity is a force."]
    question, documents = "What is the capital of China?", [*texts, "Bread rises."]
    names = {"texts": texts, "question": question, "documents": documents}
    exec(CLIENTS[package].replace(ADDRESS, address), names)
    embedder = Embedder(tiny)
    asked = {"vectors": embedder.encode(texts), "query": embedder.encode_query(question)}
    asked["similarities"] = embedder.similarity(embedder.encode(question), asked["vectors"])[0]
    found = names.keys() & {*asked, "best"}
    assert found
    for name in found - {"best"}:
        np.testing.assert_allclose(np.float32(names[name]), asked[name], rtol=0, atol=1e-6)
    if "best" in found:
        ranked = Reranker(tiny_reranker).rank(question, documents)
        assert names["best"] == [documents[hit["corpus_id"]] for hit in ranked]


def test_the_images_health_check(address):
    [line] = re.findall(r"^HEALTHCHECK .*?CMD (\[.*?\])$", DOCKERFILE, re.M | re.S)
    check = [sys.executable, *json.loads(line.replace("\\\n", ""))[1:]]
    port = address.rpartition(":")[2]
    assert subprocess.run(check, env={"QWEN3NP_PORT": port}).returncode == 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        other = str(closed.getsockname()[1])
        assert subprocess.run(check, env={"QWEN3NP_PORT": other}, stderr=subprocess.DEVNULL).returncode != 0


def test_the_images_requirements():
    """Those of the package and of the extra, one per line."""
    pytest.importorskip("tomllib")  # of the image's Python
    [code] = re.findall(r'^RUN python -c "(.*?)" > requirements.txt', DOCKERFILE, re.M | re.S)
    run = [sys.executable, "-c", code.replace("\\\n", "")]
    lines = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    names = {re.split(r"[\[>]", line)[0] for line in lines if line}
    assert {"numpy", "numba", "huggingface_hub", "fastapi", "uvicorn", "orjson"} <= names


@pytest.mark.parametrize(
    "name", ["docs/server.md", *(f"deploy/{p.name}" for p in (ROOT / "deploy").iterdir())]
)
def test_flags_and_variables_exist(name):
    parser = Parser()
    command.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    variables = {name for flag in flags for name in command._names(flag.lstrip("-"))}
    variables |= {"QWEN3NP_ISA", "QWEN3NP_FLAG", "QWEN3NP_"}
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"\bQWEN3NP_\w*", text)) <= variables
    assert {flag for flag in re.findall(r"`(--[a-z-]+)", text)} <= flags
