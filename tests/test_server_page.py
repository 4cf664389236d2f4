"""The pages of the server, in a real browser: /ui, and the documentation of the API."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from serving import serve

from qwen3np import Embedder, Reranker

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")]

KEY = "a key"
QUERIES = ["What is the capital of China?", "Explain gravity", "apples"]
DOCUMENTS = ["The capital of China is Beijing.", 'It\'s <b>1 & 2</b> \\ "3" 🍎', "重力使苹果落下。", "a"]
INSTRUCTION = "Find what's about the same thing"
RESULTS = """[...document.querySelectorAll(".query")].map((query) => ({
  query: query.querySelector("h2 span").textContent,
  tokens: parseInt(query.querySelector("h2 small").textContent),
  documents: [...query.querySelectorAll(".document")].map((document) => ({
    text: document.querySelector("p").textContent,
    about: document.querySelector(".text small").textContent,
    scores: Object.fromEntries([...document.querySelectorAll(".score")].map((score) => [
      score.querySelector("small").textContent,
      {shown: score.querySelector("b").textContent, value: Number(score.querySelector("b").title),
       width: score.querySelector(".bar").style.width}])),
  })),
}))"""


class Page(Chromium):
    """The page at /ui."""

    @property
    def status(self) -> str:
        return self.js("$('status').textContent")

    def press(self) -> None:
        self.js("$('run').click()")

    def idle(self) -> None:
        self.wait("(({textContent, disabled}) => textContent === 'Compare' && !disabled)($('run'))")

    def compare(self, queries: list[str], documents: list[str]) -> list[dict[str, Any]]:
        """Type texts, press Ctrl+Enter, and read the results."""
        self.type("#queries", "\n".join(queries))
        self.type("#documents", "\n".join(documents))
        self.key("Enter", modifiers=2)
        self.idle()
        return self.js(RESULTS)


@pytest.fixture(scope="module")
def url(tiny, tiny_reranker, tmp_path_factory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp("server") / "log", tiny, tiny_reranker, seconds=300) as url:
        yield url


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("chromium"))
    yield page
    page.close()


@pytest.fixture
def page(chromium, url) -> Page:
    """/ui, just opened."""
    chromium.faked = {}
    chromium.open(f"{url}/ui")
    chromium.idle()
    return chromium


def bits(array: Any) -> list[int]:
    return np.asarray(array, np.float32).view(np.uint32).tolist()


def check(results: list[dict[str, Any]], cosines: np.ndarray, scores: np.ndarray, by: str) -> None:
    """All pairs are there, best first, with these values."""
    assert [result["query"] for result in results] == QUERIES
    for n, result in enumerate(results):
        values = {"similarity": cosines[n], "reranker": scores[n]}
        order = [int(i) for i in np.argsort(-values[by], kind="stable")]
        assert [document["text"] for document in result["documents"]] == [DOCUMENTS[i] for i in order]
        for document, i in zip(result["documents"], order, strict=True):
            assert document["scores"].keys() == values.keys()
            for name, score in document["scores"].items():
                assert score["value"] == pytest.approx(values[name][i], rel=1e-7, abs=1e-12)
                assert score["shown"] == f"{score['value']:.4f}"
                assert float(score["width"].rstrip("%")) == pytest.approx(abs(100 * score["value"]), abs=1e-3)


@pytest.mark.parametrize("instruction, dimensions", [(None, None), (INSTRUCTION, 64)])
def test_it_shows_what_the_models_give(page, url, tiny, tiny_reranker, instruction, dimensions):
    """Numbers and order are those of Embedder and Reranker, and its curl commands give the same bits."""
    embedder, reranker = Embedder(tiny), Reranker(tiny_reranker)
    asked = {"instruction": instruction} if instruction else {"prompt_name": "query"}
    queries = embedder.encode(QUERIES, truncate_dim=dimensions, **asked)
    documents = embedder.encode_document(DOCUMENTS, truncate_dim=dimensions)
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    scores = reranker.predict(pairs, prompt=instruction).reshape(len(QUERIES), -1)
    cosines = queries.astype(np.float64) @ documents.T.astype(np.float64)
    cosines /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(documents, axis=1)

    page.type("#instruction", instruction or "")
    page.js(f"$('dimensions').value = {json.dumps(str(dimensions or ''))}")
    results = page.compare(QUERIES, DOCUMENTS)
    check(results, cosines, scores, "similarity")
    page.js("document.querySelector('[value=reranker]').click()")
    check(page.js(RESULTS), cosines, scores, "reranker")

    prompt = f"Instruct: {instruction}\nQuery:" if instruction else embedder.prompts["query"]
    assert [result["tokens"] for result in results] == [
        len(ids) for ids in embedder.tokenizer.encode(QUERIES, embedder.max_seq_length, prompt)
    ]
    lengths = map(len, embedder.tokenizer.encode(DOCUMENTS, embedder.max_seq_length))
    about = {f"document {n}, {length} tokens" for n, length in enumerate(lengths, 1)}
    assert all({document["about"] for document in result["documents"]} == about for result in results)
    rows = "[...document.querySelectorAll('#times tr')]"
    times = page.js(f"{rows}.map((row) => [...row.children].map((cell) => cell.textContent))")
    assert [row[0] for row in times] == ["Queries", "Documents", "Reranker 1", "Reranker 2", "Reranker 3"]
    assert all(cell.isdecimal() for row in times for cell in row[1:])
    assert {part for part in page.urls if not part.startswith((f"{url}/", "data:"))} == set()
    assert page.errors == []

    if shutil.which("curl") and shutil.which("bash"):
        commands = page.js("$('curl').textContent").split("\n\n")
        answers = [
            json.loads(subprocess.run(["bash", "-c", f"{c} -sS"], check=True, capture_output=True).stdout)
            for c in commands
        ]
        for answer, vectors in zip(answers, (queries, documents), strict=False):
            assert [bits(entry["embedding"]) for entry in answer["data"]] == bits(vectors)
        for answer, expected in zip(answers[2:], scores, strict=True):
            ranked = sorted(answer["results"], key=lambda result: result["index"])
            assert bits([result["relevance_score"] for result in ranked]) == bits(expected)


def test_the_example_is_one_press_away(page):
    """The model card's texts; nothing in them, or in others, is taken for HTML."""
    page.press()
    page.idle()
    assert "4 pairs in" in page.status
    assert [result["query"] for result in page.js(RESULTS)] == QUERIES[:2]
    hostile = "<img src=x onerror=\"document.title='lost'\"><script>document.title='lost'</script>"
    [result] = page.compare([hostile], [hostile, "a"])
    assert hostile in (result["query"], *(document["text"] for document in result["documents"]))
    assert page.js("document.querySelectorAll('#results img, #results script').length") == 0
    assert page.js("document.title") != "lost" and page.errors == []


def test_it_fits_a_phone_and_every_field_has_a_label(page):
    page.command(
        "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True
    )
    try:
        page.compare(QUERIES, [*DOCUMENTS, "long" * 100])
        assert page.js("document.documentElement.scrollWidth") == 360
    finally:
        page.command("Emulation.clearDeviceMetricsOverride")
    fields = "[...document.querySelectorAll('textarea, select, input')]"
    assert page.js(f"{fields}.filter((field) => field.labels.length === 0).map((field) => field.id)") == []


def test_failures_are_said_in_words(page):
    page.compare([" "], ["a"])
    assert page.status == "Type at least one query."
    page.compare(["a"], [])
    assert page.status == "Type at least one document."

    error = {"error": {"message": "input[0] has 9 tokens, 8 are the most"}}
    page.faked["/v1/embeddings"] = (422, error)
    page.compare(["a"], ["b"])
    assert page.status == "The server says: input[0] has 9 tokens, 8 are the most"
    page.faked["/v1/embeddings"] = (429, error)
    page.press()
    page.idle()
    assert page.status == "The server is busy. Try again in a moment."

    page.faked["/v1/embeddings"] = None
    page.press()
    page.wait("$('run').textContent === 'Stop'")
    page.press()
    page.idle()
    assert page.status == "Stopped."

    page.faked = {"/v1/rerank": (504, error)}
    [result] = page.compare(["a"], ["b"])
    scores = result["documents"][0]["scores"]
    assert scores["similarity"]["value"] != 0 and scores["reranker"]["shown"] == "–"
    assert "did not finish in time" in page.status


def test_it_waits_until_the_model_is_loaded(page, url):
    page.faked["/info"] = (503, {"error": "loading", "error_type": "Unhealthy"})
    page.open(f"{url}/ui")
    page.wait("$('status').textContent.includes('loading its model')")
    assert page.js("$('run').disabled")
    page.faked = {}
    page.idle()
    assert page.status == "" and not page.js("$('run').disabled")


def test_it_asks_for_a_key_and_keeps_it_in_its_tab(chromium, tiny_reranker, tmp_path):
    """And does with a reranker alone."""
    with serve(tmp_path / "log", tiny_reranker, "--api-key", KEY, seconds=300) as url:
        chromium.faked = {}
        chromium.open(f"{url}/ui")
        chromium.idle()
        assert chromium.status == "This server asks for an API key."
        chromium.type("#key", "another")
        chromium.press()
        chromium.idle()
        assert chromium.status == "The server does not know this API key."
        chromium.type("#key", KEY)
        [result] = chromium.compare(["a"], ["b", "c"])
        assert [*result["documents"][0]["scores"]] == ["reranker"]
        command = chromium.js("$('curl').textContent")
        assert '-H "Authorization: Bearer $API_KEY"' in command and KEY not in command
        chromium.open(f"{url}/ui")
        chromium.idle()
        assert chromium.status == ""


@pytest.mark.parametrize("path, ready", [("docs", ".opblock"), ("redoc", "a[href*=redocly]")])
def test_the_documentation_of_the_api_needs_no_network(chromium, url, path, ready):
    chromium.faked = {}
    chromium.open(f"{url}/{path}")
    chromium.wait(f"document.querySelector({ready!r})")
    # ReDoc asks for its maker's logo, is not let, and removes it.
    chromium.wait("[...document.images].every((image) => !image.src.startsWith('https:'))")
    assert [part for part in chromium.urls if not part.startswith((f"{url}/", "data:", "blob:"))] == []
    assert [error for error in chromium.errors if "cdn.redoc.ly" not in error] == []
