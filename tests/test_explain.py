"""qwen3np explain: its numbers are the reference's, and the page shows them."""

from __future__ import annotations

import base64
import doctest
import html
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from tolerances import channel

from qwen3np import Embedder, reference
from qwen3np.explain import explain, page
from qwen3np.explain.numbers import MOST_PROBABILITIES

ROOT = Path(__file__).parent.parent
TEXT, OTHER = "What is <b>the capital</b> of {{data}}?", "中国的首都是北京。</script> 😀\n\tyes"
MOST_BYTES = 2_000_000


def truth(model: Embedder, ids: list[int], monkeypatch) -> tuple[list, np.ndarray, np.ndarray]:
    """The residual stream behind each layer, the vector and all probabilities: the reference in float64."""
    c, w, kept = model.config, model.checkpoint.weights(np.float64), []
    softmax = reference.softmax
    with monkeypatch.context() as patch:
        patch.setattr(reference, "softmax", lambda x: kept.append(softmax(x)) or kept[-1])
        stream = [reference.embed(ids, w.embed_tokens)]
        cos, sin = reference.rope_table(len(ids), c.head_dim, c.rope_theta)
        for layer in w.layers:
            stream.append(reference.block(stream[-1], layer, cos, sin, c.rms_norm_eps))
    settings = (c.rms_norm_eps, c.rope_theta, c.head_dim)
    [states] = reference.forward([ids], w.embed_tokens, w.layers, w.norm, *settings)
    probabilities = np.reshape(kept, (c.num_hidden_layers, c.num_attention_heads, len(ids), len(ids)))
    return stream, reference.normalize(reference.pool(states)), probabilities


@pytest.fixture(scope="module")
def explanation(model):
    return explain(model, TEXT, OTHER, prompt=model.prompts["query"])


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_every_number_is_the_references(tiny, backend, monkeypatch):
    model = Embedder(tiny, backend=backend)
    c, close = model.config, 16 * channel(model.backend, model.config.hidden_size)
    found = explain(model, TEXT, OTHER, prompt=model.prompts["query"])
    norm, vectors, all_ids = model.checkpoint.weights(np.float64).norm, [], []
    for reading, text, prompt in zip(found.texts, (TEXT, OTHER), ("query", "document"), strict=True):
        [ids] = model.tokenize([text], prompt_name=prompt)
        assert reading.ids == ids and reading.text == model.prompts[prompt] + text
        stream, vector, probabilities = truth(model, ids, monkeypatch)
        sizes = np.array([np.linalg.norm(x_TD, axis=1) for x_TD in stream])
        np.testing.assert_allclose(reading.sizes, sizes, rtol=close)
        np.testing.assert_allclose(reading.peaks, [np.abs(x).max(axis=0) for x in stream], rtol=close)
        layer, token, massive = reading.massive
        values = np.abs(stream)
        assert values[layer, token, massive] == pytest.approx(values.max(), rel=close)
        assert reading.share == pytest.approx((values.max() / sizes[layer, token]) ** 2, rel=close)
        assert sorted(reading.probabilities) == list(range(c.num_hidden_layers))
        for i, found_NTT in reading.probabilities.items():
            np.testing.assert_allclose(found_NTT, probabilities[i], atol=close)
        as_if_last = [
            reference.normalize(reference.pool(reference.rms_norm(x, norm, c.rms_norm_eps))) for x in stream
        ]
        np.testing.assert_allclose(reading.vectors, as_if_last, atol=close)
        np.testing.assert_allclose(reading.vector, vector, atol=close)
        np.testing.assert_allclose(reading.nearness, [v @ vector for v in as_if_last], atol=close)
        np.testing.assert_array_equal(reading.vector, model.encode(text, prompt_name=prompt))
        vectors.append((as_if_last, vector))
        all_ids.append(ids)
    (first, a), (second, b) = vectors
    np.testing.assert_allclose(
        found.by_layer, [v @ w for v, w in zip(first, second, strict=True)], atol=close
    )
    assert found.dims[0] == 32 and found.dims[-1] == c.hidden_size
    truncated = [reference.normalize(a, d) @ reference.normalize(b, d) for d in found.dims]
    np.testing.assert_allclose(found.by_dims, truncated, atol=close)


def test_tokens_are_the_text(explanation):
    """Those that share a character show it once, at the last of them."""
    for reading in explanation.texts:
        assert "".join(t for t in reading.tokens if t != "…") == reading.text + "<|endoftext|>"


def data_of(written: str) -> dict:
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', written, re.S)
    return json.loads(data)


def test_the_page_has_the_numbers(explanation):
    written = page(explanation)
    data, texts = data_of(written), explanation.texts
    assert data["layers"] == explanation.layers == [0, 1, 2, 3]
    lists = re.findall(r'<ol class="ids".*?</ol>', written, re.S)
    for shown, reading, ids in zip(data["texts"], texts, lists, strict=True):
        assert list(map(int, re.findall(r"<small>(\d+)</small>", ids))) == reading.ids
        lower = np.tril_indices(len(reading.ids))
        for i, packed in zip(data["layers"], shown["probabilities"], strict=True):
            values = np.frombuffer(base64.b64decode(packed), "<u2").reshape(shown["heads"], -1) / 65535
            np.testing.assert_allclose(values, reading.probabilities[i][:, lower[0], lower[1]], atol=1e-5)
    tables = [
        np.array([re.findall(r"<td>(.*?)</td>", row) for row in table.split("</tr>")[1:-1]], float)
        for table in re.findall(r"<table>.*?</table>", written, re.S)
    ]
    sizes, nearness, dims = tables
    for i, reading in enumerate(texts):
        longest, massive = reading.sizes.max(axis=1), reading.peaks[:, reading.massive[2]]
        expected = np.stack([reading.sizes[:, -1], longest, massive], axis=1)
        np.testing.assert_allclose(sizes[:, 3 * i : 3 * i + 3], expected, rtol=1e-5)
        np.testing.assert_allclose(nearness[:, i], reading.nearness, rtol=1e-5)
    np.testing.assert_allclose(nearness[:, 2], explanation.by_layer, rtol=1e-5)
    np.testing.assert_allclose(dims[:, 0], explanation.by_dims, rtol=1e-5)


def test_the_page_has_the_code_as_it_is(explanation):
    """The lines that compute a picture, by their numbers in reference.py."""
    source = inspect.getsource(reference).splitlines(keepends=True)
    figures = re.findall(
        r"<figcaption>(\S+), lines (\d+) to (\d+)</figcaption><pre.*?><code>(.*?)</code>",
        page(explanation),
        re.S,
    )
    for file, first, last, code in figures:
        assert file == "qwen3np/reference.py"
        shown = html.unescape(re.sub(r'<i class="\w+">|</i>', "", code))
        assert shown == "".join(source[int(first) - 1 : int(last)])
    names = {re.search(r'<i class="name">(\w+)</i>', code)[1] for *_, code in figures}
    assert names >= {"embed", "block", "attention", "softmax", "forward", "pool", "normalize"}


def test_a_long_text_shows_the_layers_that_have_room(model):
    """Evenly spread, the last among them; of a longer text not one has room. The page stays below 2 MB."""
    heads, text = model.config.num_attention_heads, " a" * 1000
    most = int((2 * MOST_PROBABILITIES / heads) ** 0.5) - 1
    short = model.tokenizer.decode(model.tokenize([text])[0][: most // 2 - 2])
    found = explain(model, short)
    assert found.layers == [0, 1, 2, 3]
    whole = explain(model, model.tokenizer.decode(model.tokenize([text])[0][: most - 1]))
    assert len(whole.texts[0].ids) == most and whole.layers == [3]
    written = page(whole)
    assert len(written.encode()) < MOST_BYTES and "Of 4 layers 3 is here" in written
    with pytest.raises(ValueError, match="too many for a page: it has room for the attention of 1 layers"):
        explain(model, model.tokenizer.decode(model.tokenize([text])[0][: most - 1]), layers=[0, 1])
    with pytest.raises(
        ValueError, match=f"with {heads} heads it has room for the attention of {most} tokens"
    ):
        explain(model, text)


def test_the_command_writes_the_page(embed, model, tmp_path):
    """And replaces nothing unless it is asked to."""
    command = ["explain", TEXT, "--query", "--with", OTHER, "--layers", "0,2-3"]
    code, out, err = embed(*command[1:], "--output", "page.html", command="explain")
    assert (code, out) == (0, "") and "page.html: " in err and " MB" in err
    expected = explain(model, TEXT, OTHER, prompt=model.prompts["query"], layers=[0, 2, 3])
    assert (tmp_path / "page.html").read_text("utf-8") == page(expected)
    (tmp_path / "page.html").write_text("mine")
    code, _, err = embed("a", "--output", "page.html", command="explain")
    assert code == 2 and "page.html: exists; --overwrite replaces it" in err
    assert (tmp_path / "page.html").read_text() == "mine"
    assert embed("a", "--output", "page.html", "--overwrite", command="explain")[0] == 0
    assert "<title>a - " in (tmp_path / "page.html").read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a"], "the following arguments are required: -o/--output"),
        (["a", "-o", "page.txt"], "the name must end in .html or .htm"),
        (["a", "-o", "none/page.html"], "there is no folder none"),
        (["a", "-o", "folder.html"], "is a folder"),
        (["a", "-o", "page.html", "--layers", "0,4"], "the model has the layers 0 to 3"),
        (["a", "-o", "page.html", "--layers", "x"], "'x' is neither a layer, as 5, nor a range, as 5-8"),
        (["a", "-o", "page.html", "--layers", "1,3-2"], "'3-2' is neither a layer"),
        (["notes.txt", "-o", "page.html"], "notes.txt: there is no such file; if it is a text: --literal"),
        (["a " * 3000, "-o", "page.html"], "are too many for a page"),
    ],
)
def test_what_cannot_be_is_refused(embed, tmp_path, arguments, message):
    (tmp_path / "folder.html").mkdir()
    code, out, err = embed(*arguments, command="explain")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_reranker_is_refused(run, tiny_reranker, tmp_path):
    code, _, err = run("explain", "a", "--model", tiny_reranker, "--output", tmp_path / "page.html")
    assert code == 2 and "is a reranker" in err


def test_the_tour_runs(tiny, monkeypatch):
    """docs/architecture.md from text to vector: every step gives what the page says it gives."""
    monkeypatch.chdir(tiny.parent)
    tour = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    session = "\n".join(re.findall(r"```pycon\n(.*?)```", tour, re.S))
    steps = doctest.DocTestParser().get_doctest(session, {}, "architecture.md", None, 0)
    assert len(steps.examples) > 20
    told: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(steps, out=told.append).failed
    assert not failed, "".join(told)


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
def test_the_page_in_a_browser(explanation, tmp_path):
    """Nothing is loaded, nothing fails; what is shown is what was computed; the keyboard is enough."""
    (tmp_path / "page.html").write_text(page(explanation), encoding="utf-8")
    chromium = Chromium(tmp_path / "profile")
    try:
        chromium.open((tmp_path / "page.html").as_uri())
        assert chromium.urls == [(tmp_path / "page.html").as_uri()] and chromium.errors == []
        shown = chromium.js(
            "[...document.querySelectorAll('blockquote')].map((q) => q.lastChild.textContent)"
        )
        assert shown == [reading.text for reading in explanation.texts]

        def reads() -> list[float]:
            told = "[...$('strip').children].map((b) => b.lastChild.textContent)"
            return [float(p.rstrip("%") or 0) / 100 for p in chromium.js(told)]

        def check(text: int, layer: int, head: int | None, token: int) -> None:
            heads = explanation.texts[text].probabilities[layer]
            row = heads[:, token].mean(axis=0) if head is None else heads[head, token]
            np.testing.assert_allclose(reads(), row, atol=5.1e-3)
            assert np.argmax(reads()) in np.flatnonzero(row > row.max() - 1e-2)

        last = len(explanation.texts[0].ids) - 1
        check(0, 3, None, last)
        chromium.js("$('strip').children[pinned].focus()")
        for _ in range(2):
            chromium.command("Input.dispatchKeyEvent", type="rawKeyDown", key="ArrowLeft", code="ArrowLeft",
                             windowsVirtualKeyCode=37)  # fmt: skip
        check(0, 3, None, last - 2)
        for id, value, event in (("layer", 1, "input"), ("head", 4, "change")):
            chromium.js(f"$('{id}').value = {value}; $('{id}').dispatchEvent(new Event('{event}'))")
        check(0, 1, 4, last - 2)
        chromium.js("$('text').value = 1; $('text').dispatchEvent(new Event('change'))")
        check(1, 1, 4, len(explanation.texts[1].ids) - 1)
        pictures = chromium.js(
            "[...document.querySelectorAll('svg, canvas')].map((p) => p.getBoundingClientRect().width > 50 "
            "&& (p.getAttribute('role') === 'img') && Boolean(p.getAttribute('aria-label') || "
            "p.querySelector('title').textContent && p.querySelector('desc').textContent))"
        )
        assert pictures == [True] * 7
        for width in (390, 1440):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            chromium.command("Emulation.setDeviceMetricsOverride", **size)
            assert chromium.js("document.documentElement.scrollWidth <= innerWidth")
        assert chromium.errors == []
    finally:
        chromium.close()
