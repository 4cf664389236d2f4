"""Long texts -> chunks of at most so many tokens, which overlap, and together hold every character.

A chunk is a slice of its text, text[start:end], and is embedded as if it were the whole text. It begins and
ends between two of the text's own tokens: never within a character, nor between a letter and its accent.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from .rows import BadRow, Row

if TYPE_CHECKING:
    from ..loading.tokenizer import EmbeddingTokenizer

FEWEST_TOKENS = 8
REMEMBERED = 1 << 23  # places, in 64 MB
# Where a chunk rather ends: after a line, after a sentence, between words.
ENDS = [re.compile(end) for end in (r"(?<=\n)", r"(?<=[.!?])(?=\s)|(?<=[。！？])", r"(?<=\s)|(?=\s)")]
WORD = ENDS[-1]


@dataclass(frozen=True)
class Chunks:
    """How texts are cut.

    Args:
        tokens: The most tokens of a chunk, neither the prompt's nor the appended one among them. A chunk
            gives up to a quarter of them to end after a line, else after a sentence, else between words.
        overlap: The most tokens that a chunk repeats of the one before it.

    Raises:
        ValueError: `tokens` is below 8, or `overlap` is negative or more than half of it.
    """

    tokens: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.tokens < FEWEST_TOKENS:
            raise ValueError(f"--chunk-tokens {self.tokens}: must be {FEWEST_TOKENS} or more")
        if not 0 <= self.overlap <= self.tokens // 2:
            raise ValueError(
                f"--overlap {self.overlap}: must be between 0 and {self.tokens // 2}, half of --chunk-tokens"
            )

    def spans(self, text: str, tokenizer: EmbeddingTokenizer) -> Iterator[tuple[int, int]]:
        """Yield where each chunk starts and ends, in characters.

        The first starts at 0, the last ends at the text's end, and no character is between two. Only what
        cannot be cut, as a letter with a hundred accents, may have more tokens than a chunk should.
        """
        escape = tokenizer.escape_special_tokens
        places, counts = array("q"), array("q")  # where it can be cut, and how many tokens are before that
        for place, count in tokenizer.cuts(text, escape):
            places.append(place)
            counts.append(count)
        begin, last = 0, len(places) - 1
        while True:
            end = max(bisect_right(counts, counts[begin] + self.tokens) - 1, min(begin + 1, last))
            if end < last:
                lowest = max(bisect_left(counts, counts[begin] + self.tokens * 3 // 4), begin + 1)
                near = range(end, lowest - 1, -1)
                ends = (i for pattern in ENDS for i in near if pattern.match(text, places[i]))
                end = next(ends, end)
            # A slice may have other tokens than the text has there: rarely, and hardly ever more of them.
            while end > begin + 1 and _length(text[places[begin] : places[end]], tokenizer) > self.tokens:
                end -= 1
            yield places[begin], places[end]
            if end == last:
                return
            first = max(bisect_left(counts, counts[end] - self.overlap), begin + 1)
            words = (i for i in range(first, (first + end) // 2 + 1) if WORD.match(text, places[i]))
            begin = next(words, first)


class Cutter:
    """Cuts the texts of rows, which a run reads several times: it remembers where.

    Args:
        chunks: How texts are cut.
        tokenizer: The model's tokenizer.
    """

    def __init__(self, chunks: Chunks, tokenizer: EmbeddingTokenizer) -> None:
        self._chunks, self._tokenizer = chunks, tokenizer
        self._counts, self._places = array("L"), array("L")  # of the first texts: chunks, and their places

    def __call__(self, entries: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
        """Yield a row per chunk, which says its number within its text, its start and its end."""
        texts = places = 0
        for entry in entries:
            if isinstance(entry, BadRow):
                yield entry
                continue
            if texts < len(self._counts):
                flat = self._places[places : places + 2 * self._counts[texts]]
            else:
                flat = array("L", chain(*self._chunks.spans(entry.text, self._tokenizer)))
                if len(self._places) < REMEMBERED and texts == len(self._counts):
                    self._counts.append(len(flat) // 2)
                    self._places.extend(flat)
            texts, places = texts + 1, places + len(flat)
            for number, (start, end) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
                where = {**(entry.where or {}), "chunk": number, "start": start, "end": end}
                yield replace(entry, text=entry.text[start:end], where=where)


def _length(text: str, tokenizer: EmbeddingTokenizer) -> int:
    [ids] = tokenizer.ids([text], tokenizer.escape_special_tokens)
    return len(ids)
