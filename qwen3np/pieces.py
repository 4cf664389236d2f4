"""A long text in pieces whose token ids, one piece's after the other's, are those of the whole text: so that
the first tokens of a text can be had without tokenising all of it, and all of them in little memory.

The tokenizer takes added tokens (`<|im_end|>`) out of the text, brings the rest into NFC, splits it with a
regular expression and merges bytes within each part. A cut changes nothing where none of the four reaches
across it:

- added tokens: none stands across the cut;
- NFC: the character behind the cut neither composes with what is before it nor is reordered (white space,
  digits and punctuation do not);
- the expression has six kinds of parts: 's and its like, letters with one other character before them, one
  digit, a run of symbols with a space before and line ends behind, white space up to a line end, other white
  space. A part never goes on from anything but white space to a space, a tab or a digit, nor from a letter or
  a digit to a line end or a symbol; and what stands behind such a place has no part in what is matched before
  it, for only white space is looked beyond.

A long run of letters or of pictures has no such place. It is cut between two of them where no token of the
vocabulary stands across: whatever is merged is such a token, so that nothing can be merged across the cut.
What remains whole is a run like "aaaa".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from unicodedata import normalize

import tokenizers

PIECE = 1 << 15  # characters: some 8,000 tokens, which take the library 20 ms and 4 MB

# The only ones the reasoning above holds for. All published Qwen3 tokenizers have them.
NORMALIZER = {"type": "NFC"}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Letters (ASCII, kana, Chinese, Hangul) that are letters in every version of Unicode, and that NFC leaves.
LETTER = r"a-zA-Z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
SYMBOL = r"!-/:-@\[-`{-~\u3001\u3002\u300a-\u300d\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
PICTURE = r"\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u200d\ufe0f"
RUN = re.compile(rf"[{LETTER}]+|[{PICTURE}]+")
TRIED = 200  # places in a run
BEFORE_CUT = re.compile(rf"\S(?=[ \t0-9])|[{LETTER}0-9](?=[\r\n{SYMBOL}])")


class Pieces:
    """Cuts texts for one tokenizer. Those of a tokenizer that works in another way stay whole."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model = tokenizer.model
        self._merges = isinstance(model, tokenizers.models.BPE) and not (
            model.continuing_subword_prefix or model.end_of_word_suffix
        )
        added = tokenizer.get_added_tokens_decoder().values()
        self._added = [token.content for token in added]
        self._reach = max(map(len, self._added), default=1) - 1
        self.possible = (
            _state(tokenizer.normalizer) == NORMALIZER
            and _splits_as_known(_state(tokenizer.pre_tokenizer))
            and not any(token.lstrip or token.rstrip or token.single_word for token in added)
            and all(content.isascii() for content in self._added)
        )

    def __call__(self, text: str, size: int = PIECE) -> Iterator[str]:
        """The pieces of a text, `size` characters each at the most, or up to the first place behind them
        where it can be cut."""
        start = 0
        while self.possible and len(text) - start > size:
            most = start + size
            end = self._last_cut(text, start, most) or self._cut_in_run(text, start, most)
            end = end or self._next_cut(text, most)
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]

    def _last_cut(self, text: str, start: int, end: int) -> int | None:
        first = end
        while first > start:  # from the end, in windows: most texts have a place in the last few characters
            first, last = max(start, first - 256), first
            places = [match.end() for match in BEFORE_CUT.finditer(text, first, min(last + 1, len(text)))]
            for at in reversed(places):
                if start < at <= end and not self._added_token_across(text, at):
                    return at
        return None

    def _cut_in_run(self, text: str, start: int, end: int) -> int | None:
        if not self._merges:
            return None
        reach = self._longest + 1
        for at in range(end, max(start + reach, end - TRIED), -1):
            left, right = text[at - reach : at], text[at : at + reach]
            if not RUN.fullmatch(left + right) or self._added_token_across(text, at):
                continue
            if not self._token_across(left, right):
                return at
        return None

    def _token_across(self, left: str, right: str) -> bool:
        a, b = (self._bytes.pre_tokenize_str(part)[0][0] for part in (left, right))
        return any(
            a[-i:] + b[: length - i] in self._vocabulary
            for length in range(2, self._longest + 1)
            for i in range(1, length)
        )

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        """The tokens as the model has them, a character a byte."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=False)
        return vocabulary

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._vocabulary))

    def _next_cut(self, text: str, start: int) -> int:
        places = (match.end() for match in BEFORE_CUT.finditer(text, start))
        return next((at for at in places if not self._added_token_across(text, at)), len(text))

    def _added_token_across(self, text: str, at: int) -> bool:
        """Some are looked for in the text as it is, some in NFC."""
        left, right = text[max(0, at - self._reach) : at], text[at : at + self._reach]
        for a, b in ((left, right), (normalize("NFC", left), normalize("NFC", right))):
            for token in self._added:
                if 0 <= (a + b).find(token, max(0, len(a) - len(token) + 1)) < len(a):
                    return True
        return False


def _state(part: Any) -> Any:
    """A part of a tokenizer as tokenizer.json has it."""
    return None if part is None else json.loads(part.__getstate__())


def _splits_as_known(state: Any) -> bool:
    try:
        split, byte_level = state["pretokenizers"]
        return (
            (split["type"], split["pattern"]) == ("Split", {"Regex": SPLIT})
            and (split["behavior"], split["invert"]) == ("Isolated", False)
            and (byte_level["type"], byte_level["add_prefix_space"]) == ("ByteLevel", False)
            and byte_level["use_regex"] is False
        )
    except (TypeError, KeyError, ValueError):
        return False
