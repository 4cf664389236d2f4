"""The package's own documentation as texts to search: pieces of its paragraphs and list items."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent
SHORTEST, LONGEST = (
    60,
    220,
)  # characters of a paragraph that says something, and of a piece with some sentences
SENTENCE = re.compile(r"(?<=[.!?:;])\s+")
LEFT_OUT = re.compile(r"^```.*?^```$|<!-- (?!end).*?<!-- end -->", re.M | re.S)  # code; generated tables
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


class Piece(NamedTuple):
    """Some sentences of a page, without Markdown.

    Args:
        page: The page's file name.
        heading: What stands above it.
        text: The sentences, in one line.
    """

    page: str
    heading: str
    text: str


def folder() -> Path:
    """Return the folder of the pages: inside the package, or beside it in a source checkout."""
    inside = PACKAGE / "docs"
    return inside if inside.is_dir() else PACKAGE.parent / "docs"


def pieces() -> Iterator[Piece]:
    """Yield the pieces of all pages but the index, in order."""
    for path in sorted(folder().glob("[a-z]*.md")):
        heading = ""
        for block in re.split(r"\n\s*\n|\n(?=[-#] )", LEFT_OUT.sub("", path.read_text(encoding="utf-8"))):
            line = LINK.sub(r"\1", " ".join(block.split())).replace("`", "").replace("**", "")
            if line.startswith("#"):
                heading = line.lstrip("# ")
            elif not line.startswith(("|", "<", "!")) and len(line) >= SHORTEST:
                yield from (Piece(path.name, heading, part) for part in _split(line.removeprefix("- ")))


def _split(line: str) -> Iterator[str]:
    """Yield as many sentences at a time as LONGEST holds, at least one."""
    part, *rest = SENTENCE.split(line)
    for sentence in rest:
        if len(part) + len(sentence) < LONGEST:
            part += f" {sentence}"
        else:
            yield part
            part = sentence
    yield part
