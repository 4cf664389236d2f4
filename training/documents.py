"""Documentation -> pairs: a heading and the paragraph below it; a sentence and what follows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from pairs import Pair

LEAST, MOST = 60, 320  # characters of a paragraph; longer ones are cut at a sentence's end
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
HEADINGS, PARAGRAPHS = ("h1", "h2", "h3", "h4", "title"), ("p", "dd")
SKIPPED = ("script", "style", "pre", "nav", "table", "footer")


class _Page(HTMLParser):
    """Collects a page's headings and paragraphs, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._open, self._skip, self._text = "", 0, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED:
            self._skip += 1
        elif tag in HEADINGS + PARAGRAPHS:
            self._close()
            self._open = "heading" if tag in HEADINGS else "paragraph"

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self._skip -= 1
        elif tag in HEADINGS + PARAGRAPHS:
            self._close()

    def handle_data(self, data: str) -> None:
        if self._open and self._skip <= 0:
            self._text += data

    def _close(self) -> None:
        text = " ".join(self._text.replace("¶", "").split())
        if self._open and text:
            self.found.append((self._open, text))
        self._open = self._text = ""


def html(path: Path) -> list[tuple[str, str]]:
    """Return ("heading" or "paragraph", text) of a page, in order."""
    page = _Page()
    page.feed(path.read_text(encoding="utf-8", errors="replace"))
    return page.found


def markdown(path: Path) -> list[tuple[str, str]]:
    """Return ("heading" or "paragraph", text) of a Markdown file, without code, tables and lists."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = []
    for block in re.split(r"\n\s*\n", text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block.split())).replace("`", "")
        if block.startswith("#"):
            found.append(("heading", plain.lstrip("# ")))
        elif not block.lstrip().startswith(("|", "<", "!", "-", "*", "    ")):
            found.append(("paragraph", plain))
    return found


def pairs(name: str, found: list[tuple[str, str]]) -> Iterator[Pair]:
    """Yield the pairs of a document.

    The first paragraph below a heading answers the heading; of the others, what follows the first sentence
    answers that sentence.
    """
    title = heading = ""
    fresh = False
    for kind, text in found:
        if kind == "heading":
            name_only = re.split(r" — | – | - Apache HTTP Server| \| Django", text)[0]
            heading = re.sub(r"^((Chapter|Appendix|Part) )?[\w.]*\d[\w.]*\s+", "", name_only).strip("# ")
            title, fresh = title or heading, True
            continue
        sentences = SENTENCE.split(text)
        body = shortened(sentences)
        if fresh and len(body) >= LEAST:
            fresh = False
            query = heading if len(heading.split()) > 2 or title == heading else f"{title}: {heading}"
            yield Pair("question", name, query, body)
        elif len(sentences) > 1 and 30 <= len(sentences[0]) <= 150:
            if len(rest := shortened(sentences[1:])) >= LEAST:
                yield Pair("sentence", name, sentences[0], rest)


def shortened(sentences: list[str]) -> str:
    """Return the first sentences, as many as fit in MOST characters; "" if not even one does."""
    text = ""
    for sentence in sentences:
        if len(text) + len(sentence) > MOST:
            break
        text = f"{text} {sentence}".strip()
    return text
