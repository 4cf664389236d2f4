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
CUT = "%d of %d texts cut to max_seq_length = %d tokens (the longest had %d)"


class EmbeddingTokenizer:
    """The tokenizer of an embedding model: `<|endoftext|>`, whose state becomes the vector, ends every text.

    It is appended here and not by the file's post-processor, which copies older than June 2025 lack: without
    it similarities move by up to 0.1. (tokenizer_config.json's eos, `<|im_end|>`, is not the token that is
    meant.)
    """

    def __init__(self, path: str | Path, vocab_size: int) -> None:
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; an embedding model needs its tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.encode("").ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and panics that are not even that
            raise CheckpointError(f"{path}: is not a tokenizer ({error}); download it again") from error
        end = self._tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise CheckpointError(f"{path}: has no token {END_OF_TEXT}, which must end every text")
        self.end_of_text: int = end
        if added not in ([], [end]):
            raise CheckpointError(
                f"{path}: adds the tokens {added} to every text; only {END_OF_TEXT} is expected"
            )
        # Not the count of tokens: ids may have gaps.
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise CheckpointError(
                f"{path}: has token id {largest}, but config.json's vocab_size is {vocab_size}; "
                "the files are of two models"
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
            _check_unicode(f"text {i}", text)
        _check_unicode("the prompt", prompt)
        encodings = self._tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        cut = [len(i) + 1 for i in ids if len(i) >= max_length]
        if cut:
            logger.warning(
                CUT,
                len(cut),
                len(ids),
                max_length,
                max(cut),
            )
        return [i[: max_length - 1] + [self.end_of_text] for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is not valid Unicode: lone surrogate {text[error.start]!r} at character {error.start}"
        ) from None
