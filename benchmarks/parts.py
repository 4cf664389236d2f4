"""Generated parts of documents: the text between `<!-- NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


def fill(name: str, document: str, parts: Mapping[str, str]) -> str:
    """The document with these parts. Raises SystemExit if it lacks one."""
    for part, text in parts.items():
        pattern = re.compile(rf"(<!-- {part} -->\n).*?(<!-- end -->)", re.S)
        if not pattern.search(document):
            raise SystemExit(f"{name} has no part <!-- {part} -->")
        document = pattern.sub(lambda match, text=text: match[1] + text + "\n" + match[2], document)
    return document
