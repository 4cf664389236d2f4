"""A long text in pieces whose token ids, one after the other, are those of the whole text.

So the first tokens of a text can be had without tokenising all of it, and all of them in little memory.

The tokenizer takes added tokens (`<|im_end|>`) out of the text, brings the rest into NFC, splits it with
a regular expression and merges bytes within each part. A cut changes nothing where none of the four
reaches across it:

- added tokens: none stands across the cut;
- NFC: the character after the cut neither composes with what is before it nor is reordered (white space,
  digits and punctuation do not);
- the expression has six kinds of parts: 's and its like, letters with one other character before them, one
  digit, a run of symbols with a space before and line ends after it, white space up to a line end, other
  white space. A part never continues from anything but white space to a space, a tab or a digit, nor from a
  letter or a digit to a line end or a symbol; and what comes after such a place has no part in what matches
  before it, for only white space has a lookahead.

A long run of letters, symbols, pictures or white space has no such place: the expression makes one part of
it, whose bytes are merged. There the cut is made between two tokens, x before it and y after it, and stands
if the model makes just x and y of the bytes of both. For suppose that something were merged across such cuts,
and look at the first time. Until then each piece was merged as it is alone, and within the bytes that become
x and y in the same order as of these bytes alone: the model takes the pair of the lowest rank, and of equal
ones the leftmost, so that what comes first among all comes first among those. So from the bytes of x and y
alone it would get to the same merge across the cut, and not to x and y.

The expression has to find that part on both sides, too. Of three letters before a cut the last is none that
's and its like take; of two symbols after it the first does not join a letter; white space is cut where its
piece holds nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from unicodedata import normalize

import tokenizers

PIECE = 1 << 15  # characters: some 8,000 tokens, which take the library 20 ms and 4 MB

# The reasoning above holds for these alone. All published Qwen3 tokenizers have them.
NORMALIZER = {"type": "NFC"}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Letters (Latin, Greek, Cyrillic, Hebrew, Arabic, Thai, kana, Chinese, Hangul) that are letters in every
# version of Unicode, and that NFC leaves alone.
LETTER = (
    r"a-zA-Z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f\u03b1-\u03c9\u0400-\u045f\u05d0-\u05ea\u0621-\u063a"
    r"\u0641-\u064a\u0e01-\u0e30\u3041-\u3096\u30a1-\u30fa\u30fc\u4e00-\u9fa5\uac00-\ud7a3"
)
SYMBOL = r"!-/:-@\[-`{-~\u3001\u3002\u300a-\u300d\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
PICTURE = r"\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u200d\ufe0f"
# What stands before and after a cut within a part. White space is matched from the piece's beginning: line
# ends after a symbol belong to its part, whatever white space follows them.
WITHIN = [
    (re.compile(rf"[{LETTER}]{{3}}"), re.compile(rf"[{LETTER}]")),
    (re.compile(rf"[{SYMBOL}{PICTURE}]{{3}}"), re.compile(rf"[{SYMBOL}{PICTURE}]{{2}}")),
]
BLANK = [
    (re.compile(r"[ \t]+"), re.compile(r"[ \t]{2}")),
    (re.compile(r"[ \t\r\n]*[\r\n]"), re.compile(r"[ \t\r\n]")),
    (re.compile(rf"(?s:.*)[{SYMBOL}{PICTURE}][\r\n]+"), re.compile(r"[\r\n]+(?!\s)")),
]
TRIED = 100  # places tried for a cut within a part, token by token from the piece's end backwards
AHEAD = 512  # characters after a place: their first token is most likely that of all that follows
BEFORE_CUT = re.compile(rf"\S(?=[ \t0-9])|[{LETTER}0-9](?=[\r\n{SYMBOL}])")


class Pieces:
    """Cuts texts for one tokenizer; texts of a tokenizer that works in another way stay whole."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        model = tokenizer.model
        self._merges = isinstance(model, tokenizers.models.BPE) and not (
            model.continuing_subword_prefix or model.end_of_word_suffix or model.ignore_merges
        )
        self._ids_of = lru_cache(4)(
            lambda piece: tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids
        )
        added = tokenizer.get_added_tokens_decoder().values()
        self._added = [token.content for token in added]
        self._reach = max(map(len, self._added), default=1) - 1
        self.possible = (
            state_of(tokenizer.normalizer) == NORMALIZER
            and _splits_as_known(state_of(tokenizer.pre_tokenizer))
            and not any(token.lstrip or token.rstrip or token.single_word for token in added)
            and all(content.isascii() for content in self._added)
        )

    def __call__(self, text: str, size: int = PIECE) -> Iterator[str]:
        """Yield the pieces of a text: at most `size` characters, or up to the next possible cut."""
        start, held, most = 0, "", size
        while start < len(text):
            end, is_within = self._end(text, start, start + most)
            piece = text[start:end]
            if held and not self._stand(held, piece):
                start -= len(held)
                held, most = "", most + len(held)  # doubles, or more
                continue
            if held:
                yield held
            held = piece if is_within else ""
            if not is_within:
                yield piece
            start, most = end, size

    def ids(self, piece: str) -> list[int]:
        """Return a piece's token ids.

        Those of the last few pieces are cached: a run of one character has equal pieces.
        """
        return self._ids_of(piece)

    def _end(self, text: str, start: int, most: int) -> tuple[int, bool]:
        """Return where the piece that begins at `start` ends, and whether that is within a part."""
        if not self.possible or most >= len(text):
            return len(text), False
        if end := self._last_cut(text, start, most):
            return end, False
        if end := self._cut_within(text, start, most):
            return end, True
        return self._next_cut(text, most), False

    def _last_cut(self, text: str, start: int, end: int) -> int | None:
        """Return the last place up to `end` where the text can be cut between parts, if there is one."""
        first = end
        while first > start:  # from the end, in windows: most texts have a place in the last few characters
            first, last = max(start, first - 256), first
            places = [match.end() for match in BEFORE_CUT.finditer(text, first, min(last + 1, len(text)))]
            for at in reversed(places):
                if start < at <= end and not self._added_token_across(text, at):
                    return at
        return None

    def _cut_within(self, text: str, start: int, end: int) -> int | None:
        """Return a place between two of the last tokens where the cut seems to stand, if there is one."""
        if not self._merges:
            return None
        ids = self.ids(text[start:end])
        at, spare = end, 0  # spare: bytes of tokens after the place that are not yet characters after `at`
        for i in range(len(ids) - 1, max(0, len(ids) - TRIED), -1):
            spare += len(self._token(ids[i]))
            while at > start and spare >= (size := len(text[at - 1].encode())):
                at, spare = at - 1, spare - size
            if spare or not self._is_within(text, start, at) or self._added_token_across(text, at):
                continue
            if self._are_made(ids[i - 1], self.ids(text[at : at + AHEAD])[:1]):
                return at
        return None

    def _is_within(self, text: str, start: int, at: int) -> bool:
        return any(
            before.fullmatch(text, max(start, at - 3), at) and behind.match(text, at)
            for before, behind in WITHIN
        ) or any(before.fullmatch(text, start, at) and behind.match(text, at) for before, behind in BLANK)

    def _stand(self, left: str, right: str) -> bool:
        """Return whether a cut within a part stands: the tokens of the two are those of both together."""
        ids = self.ids(left)
        return bool(ids) and self._are_made(ids[-1], self.ids(right)[:1])

    def _are_made(self, x: int, behind: list[int]) -> bool:
        both = self._token(x) + "".join(map(self._token, behind))
        return [token.id for token in self._tokenizer.model.tokenize(both)] == [x, *behind] and bool(behind)

    def _token(self, number: int) -> str:
        """Return a token as the model has it, one character per byte."""
        return str(self._tokenizer.id_to_token(number))

    def _next_cut(self, text: str, start: int) -> int:
        """Return the next place where the text can be cut between parts, or its end."""
        places = (match.end() for match in BEFORE_CUT.finditer(text, start))
        return next((at for at in places if not self._added_token_across(text, at)), len(text))

    def _added_token_across(self, text: str, at: int) -> bool:
        """Return whether an added token, in the text as it is or in NFC, stands across a place."""
        left, right = text[max(0, at - self._reach) : at], text[at : at + self._reach]
        for a, b in ((left, right), (normalize("NFC", left), normalize("NFC", right))):
            for token in self._added:
                if 0 <= (a + b).find(token, max(0, len(a) - len(token) + 1)) < len(a):
                    return True
        return False


def state_of(part: Any) -> Any:
    """Return a part of a tokenizer as tokenizer.json has it."""
    return None if part is None else json.loads(part.__getstate__())


def _splits_as_known(state: Any) -> bool:
    """Return whether a pre-tokenizer is the one that the reasoning above holds for."""
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
