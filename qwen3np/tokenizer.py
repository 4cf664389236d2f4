"""Text -> token ids, on the `tokenizers` library: NFC, a split regex, byte-level BPE, all as
tokenizer.json says."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tokenizers

from .errors import CheckpointError
from .pieces import PIECE, Pieces

logger = logging.getLogger("qwen3np")

END_OF_TEXT = "<|endoftext|>"
CUT = "%d of %d %s cut to %s = %d tokens (the longest had %s)"
BATCH = 1 << 18  # characters that are tokenised at a time: the library's results take 100 bytes a token


class Leading(NamedTuple):
    """The first token ids of a text; its tokens in all, or where it is not `whole` those that were counted
    of more."""

    ids: list[int]
    length: int
    whole: bool


@dataclass
class Cut:
    """Counts the texts of a call that have more than `most` tokens, for one warning.

    what: "texts". limit: the name of the argument that cuts them.
    """

    what: str
    limit: str
    most: int
    texts: int = 0
    cut: int = 0
    longest: int = 0
    whole: bool = True  # each of them was tokenised to its end

    def add(self, length: int, whole: bool) -> None:
        self.texts += 1
        self.cut += length > self.most
        self.longest = max(self.longest, length)
        self.whole &= whole

    def warn(self) -> None:
        if self.cut:
            longest = f"{'' if self.whole else 'at least '}{self.longest}"
            logger.warning(CUT, self.cut, self.texts, self.what, self.limit, self.most, longest)


def batches(texts: Iterable[str], characters: int = BATCH) -> Iterator[list[str]]:
    """The texts in order, in lists that are closed once they have so many characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Tokenizer:
    """tokenizer.json, of a model with `vocab_size` rows."""

    def __init__(self, path: str | Path, vocab_size: int) -> None:
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; a model needs its tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self.added: list[int] = self._tokenizer.encode("").ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and panics that are not even that
            raise CheckpointError(f"{path}: is not a tokenizer ({error}); download it again") from error
        self._path = path
        self._pieces = Pieces(self._tokenizer)
        # Not the count of tokens: ids may have gaps.
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise CheckpointError(
                f"{path}: has token id {largest}, but config.json's vocab_size is {vocab_size}; "
                "the files are of two models"
            )

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text and nothing else. Raises TypeError for a text that is no str and ValueError
        for one that is not valid Unicode, with its index."""
        for i, text in enumerate(texts):
            _check_text(f"text {i}", text)
        return [leading.ids for leading in self.leading(texts, sys.maxsize)]

    def leading(self, texts: Sequence[str], most: int) -> Iterator[Leading]:
        """The first `most` token ids of each text: those of the whole text, of which no more is tokenised
        than they need."""
        for batch in batches(texts):
            short = iter(self._encode_batch([text for text in batch if len(text) <= PIECE]))
            for text in batch:
                if len(text) > PIECE:
                    yield self._leading_of_pieces(text, most)
                else:
                    ids = next(short)
                    yield Leading(ids[:most], len(ids), True)

    def _leading_of_pieces(self, text: str, most: int) -> Leading:
        ids: list[int] = []
        read = 0
        for piece in self._pieces(text):
            ids += self._encode_batch([piece])[0]
            read += len(piece)
            if len(ids) > most:
                break
        return Leading(ids[:most], len(ids), read == len(text))

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


class EmbeddingTokenizer(Tokenizer):
    """The tokenizer of an embedding model: `<|endoftext|>`, whose state becomes the vector, ends every text.

    It is appended here and not by the file's post-processor, which copies older than June 2025 lack: without
    it similarities move by up to 0.1. (tokenizer_config.json's eos, `<|im_end|>`, is not the token that is
    meant.)
    """

    def __init__(self, path: str | Path, vocab_size: int) -> None:
        super().__init__(path, vocab_size)
        end = self.token_id(END_OF_TEXT)
        if end is None:
            raise CheckpointError(f"{path}: has no token {END_OF_TEXT}, which must end every text")
        self.end_of_text: int = end
        if self.added not in ([], [end]):
            raise CheckpointError(
                f"{path}: adds the tokens {self.added} to every text; only {END_OF_TEXT} is expected"
            )

    def encode(
        self, texts: Sequence[str], max_length: int, prompt: str = "", cut: Cut | None = None
    ) -> list[list[int]]:
        """Token ids of prompt + text, one string, then `<|endoftext|>`; at most `max_length` ids in all.

        The prompt is not tokenised apart: "Query:" and "What" share the token ":What". A text that is too
        long loses its end, never the appended token, and one warning a call says how many were cut; with
        `cut` they are counted there instead. Raises TypeError for a text that is no str and ValueError for
        one that is not valid Unicode, with its index.
        """
        _check_unicode("the prompt", prompt)
        for i, text in enumerate(texts):
            _check_text(f"text {i}", text)
        count = cut or Cut("texts", "max_seq_length", max_length)
        encoded = []
        for ids, length, whole in self.leading([prompt + text for text in texts], max_length - 1):
            count.add(length + 1, whole)
            encoded.append([*ids, self.end_of_text])
        if cut is None:
            count.warn()
        return encoded


class RerankerTokenizer(Tokenizer):
    """The tokenizer of a reranker: a query and a document in the model's conversation. Source: model card of
    Qwen3-Reranker, whose texts these are."""

    SYSTEM = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    BODY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def __init__(self, path: str | Path, vocab_size: int) -> None:
        super().__init__(path, vocab_size)
        missing = [
            t for t in ("<|im_start|>", "<|im_end|>", "<think>", "</think>") if self.token_id(t) is None
        ]
        if missing:
            raise CheckpointError(
                f"{path}: has no token {', '.join(missing)}, which every reranker prompt needs"
            )
        self.system, self.answer = self.ids([self.SYSTEM, self.ANSWER])

    def encode(
        self, pairs: Sequence[tuple[str, str]], instruction: str, max_length: int, cut: Cut | None = None
    ) -> list[list[int]]:
        """Token ids of each (query, document): system + body + answer, `max_length` at the most.

        The body is tokenised as one string. What is too long is its end: the document's, and only when the
        query alone is too long, the query's; the system's part and the answer's are never cut. One warning a
        call says how many were; with `cut` they are counted there instead. Raises TypeError for what is no
        str, ValueError for what is not valid Unicode."""
        for i, (query, document) in enumerate(pairs):
            _check_text(f"the query of pair {i}", query)
            _check_text(f"the document of pair {i}", document)
        _check_unicode("the instruction", instruction)
        bodies = [self.BODY.format(instruction=instruction, query=q, document=d) for q, d in pairs]
        around = len(self.system) + len(self.answer)
        count = cut or Cut("pairs", "max_length", max_length)
        encoded = []
        for ids, length, whole in self.leading(bodies, max_length - around):
            count.add(length + around, whole)
            encoded.append(self.system + ids + self.answer)
        if cut is None:
            count.warn()
        return encoded


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is {type(text).__name__}, expected str")
    _check_unicode(what, text)


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is not valid Unicode: lone surrogate {text[error.start]!r} at character {error.start}"
        ) from None
