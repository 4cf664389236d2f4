"""The documents: snippets run, links lead somewhere, the README is short and has the model card's numbers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from qwen3np.verify.published import CARD_DOCUMENTS, CARD_QUERIES, CARD_SCORES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "kernels" / "README.md",
]
MODEL, RERANKER = "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"
SNIPPETS = [
    pytest.param(snippet, id=f"{path.stem}-{number}")
    for path in [README, *sorted((ROOT / "docs").glob("*.md"))]
    for number, snippet in enumerate(
        re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    )
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet(tiny, tiny_reranker, tmp_path, monkeypatch, snippet):
    """In a folder of its own; the Hub ids stand for generated models here."""
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace(MODEL, str(tiny)).replace(RERANKER, str(tiny_reranker)), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            assert (path.parent / link).exists(), link
    for name in re.findall(r"`((?:qwen3np|kernels|tests|benchmarks|docs)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([\w-]+\.md)\)", index))


def test_the_readme_is_short_and_has_the_model_cards_numbers():
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") < 200
    [snippet] = re.findall(r"```python\n(.*?)```", text, re.S)
    texts = {node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)}
    assert {*CARD_QUERIES, *CARD_DOCUMENTS} <= texts
    rows = (", ".join(f"{score:.4f}" for score in row) for row in CARD_SCORES)
    assert f"[[{'], ['.join(rows)}]]" in snippet
