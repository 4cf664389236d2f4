"""Text -> token ids, on the `tokenizers` library: NFC, a split regex, byte-level BPE, all as
tokenizer.json says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from .errors import CheckpointError

logger = logging.getLogger("qwen3np")

END_OF_TEXT = "<|endoftext|>"
CUT = "%d of %d %s cut to %s = %d tokens (the longest had %d)"


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
            if not isinstance(text, str):
                raise TypeError(f"text {i} is {type(text).__name__}, expected str")
            _check_unicode(f"text {i}", text)
        return [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

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

    def encode(self, texts: Sequence[str], max_length: int, prompt: str = "") -> list[list[int]]:
        """Token ids of prompt + text, one string, then `<|endoftext|>`; at most `max_length` ids in all.

        The prompt is not tokenised apart: "Query:" and "What" share the token ":What". A text that is too
        long loses its end, never the appended token, and one warning a call says how many were cut. Raises
        TypeError for a text that is no str and ValueError for one that is not valid Unicode, with its index.
        """
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {i} is {type(text).__name__}, expected str")
        _check_unicode("the prompt", prompt)
        ids = self.ids([prompt + text for text in texts])
        warn_of_cut("texts", "max_seq_length", max_length, [len(i) + 1 for i in ids])
        return [i[: max_length - 1] + [self.end_of_text] for i in ids]


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

    def encode(self, pairs: Sequence[tuple[str, str]], instruction: str, max_length: int) -> list[list[int]]:
        """Token ids of each (query, document): system + body + answer, `max_length` at the most.

        The body is tokenised as one string. What is too long is its end: the document's, and only when the
        query alone is too long, the query's; the system's part and the answer's are never cut. One warning a
        call says how many were. Raises TypeError for what is no str, ValueError for what is not valid
        Unicode."""
        for i, pair in enumerate(pairs):
            for what, text in zip(("query", "document"), pair, strict=True):
                if not isinstance(text, str):
                    raise TypeError(f"the {what} of pair {i} is {type(text).__name__}, expected str")
                _check_unicode(f"the {what} of pair {i}", text)
        _check_unicode("the instruction", instruction)
        bodies = self.ids([self.BODY.format(instruction=instruction, query=q, document=d) for q, d in pairs])
        around = len(self.system) + len(self.answer)
        warn_of_cut("pairs", "max_length", max_length, [len(i) + around for i in bodies])
        return [self.system + i[: max_length - around] + self.answer for i in bodies]


def warn_of_cut(what: str, limit: str, most: int, lengths: Sequence[int]) -> None:
    """One warning a call for texts of more tokens than `most`."""
    cut = [length for length in lengths if length > most]
    if cut:
        logger.warning(
            CUT,
            len(cut), len(lengths), what, limit, most, max(cut),
        )  # fmt: skip


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is not valid Unicode: lone surrogate {text[error.start]!r} at character {error.start}"
        ) from None
