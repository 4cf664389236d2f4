"""What the model learns from: pairs of a query and the document that answers it, split by whole origins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

HELD_OUT = 10  # one origin in so many is never trained on


@dataclass(frozen=True)
class Pair:
    """A query and its document.

    Args:
        kind: Where they come from: "gloss", "name", "example", "question", "sentence".
        origin: The synset, or the document, that both are taken from. All pairs of an origin are on one side
            of the split, so nothing of a held-out one is ever trained on.
        query: The query, without its instruction.
        document: The document.
    """

    kind: str
    origin: str
    query: str
    document: str

    @property
    def held_out(self) -> bool:
        """Whether the pair is for the evaluation alone."""
        return hashed(self.origin) % HELD_OUT == 0


def hashed(text: str) -> int:
    """Return a number that depends on the text alone: of no seed, and of no order of the texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def choice(key: str, options: list[str]) -> str:
    """Return one of the options, the same for the same key."""
    return options[hashed(key) % len(options)]


def write(pairs: Iterable[Pair], path: Path) -> None:
    """Write pairs, one JSON object a line."""
    lines = (json.dumps(asdict(pair), ensure_ascii=False) for pair in pairs)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> Iterator[Pair]:
    """Yield the pairs of a file."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield Pair(**json.loads(line))
