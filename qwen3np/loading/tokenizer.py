"""Text -> token ids, on the `tokenizers` library: NFC, a split regex and byte-level BPE.

All is as tokenizer.json says.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from ..errors import CheckpointError
from .pieces import NORMALIZER, PIECE, SPLIT, Pieces, state_of
from .texts import check_unicode
from .tokenizer_config import FLAGS, TokenizerConfig

logger = logging.getLogger("qwen3np")

END_OF_TEXT = "<|endoftext|>"
TRUNCATED = "%d of %d %s cut to %s = %d tokens (the longest had %s)"
BATCH = 1 << 18  # characters tokenised at a time: the library's results take 100 bytes per token

# What transformers' Qwen2Tokenizer is made of, whatever tokenizer.json says.
PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ],
}
BPE_OPTIONS = (
    "unk_token continuing_subword_prefix end_of_word_suffix fuse_unk byte_fallback ignore_merges".split()
)


class Leading(NamedTuple):
    """The first token ids of a text.

    `length` counts its tokens; where it was not tokenised to its end (`whole`), only those up to there.
    """

    ids: list[int]
    length: int
    whole: bool


@dataclass
class TruncationCount:
    """Counts the truncated texts of a call, for one warning.

    Args:
        what: What the warning calls the texts: "texts" or "pairs".
        limit: The name of the argument that truncates them.
        most: Its value, in tokens.
    """

    what: str
    limit: str
    most: int
    texts: int = 0
    truncated: int = 0
    longest: int = 0
    whole: bool = True  # whether each of them was tokenised to its end

    def add(self, length: int, whole: bool) -> None:
        """Count a text of so many tokens."""
        self.texts += 1
        self.truncated += length > self.most
        self.longest = max(self.longest, length)
        self.whole &= whole

    def warn(self) -> None:
        """Log the warning, if texts were truncated."""
        if self.truncated:
            longest = f"{'' if self.whole else 'at least '}{self.longest}"
            logger.warning(TRUNCATED, self.truncated, self.texts, self.what, self.limit, self.most, longest)


def batches(texts: Iterable[str], characters: int = BATCH) -> Iterator[list[str]]:
    """Yield the texts in order, in lists that end once they have so many characters."""
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
    """tokenizer.json, with the settings of the files beside it.

    Args:
        path: The path of tokenizer.json.
        vocab_size: The number of rows of the model's embedding.
        config: The settings of tokenizer_config.json.
        lower_case: Put texts in lower case first (sentence-transformers' do_lower_case).
    """

    def __init__(
        self,
        path: str | Path,
        vocab_size: int,
        config: TokenizerConfig | None = None,
        *,
        lower_case: bool = False,
    ) -> None:
        path = Path(path)
        config = config or TokenizerConfig()
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; a model needs its tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            saved = self._tokenizer.truncation or {}
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except BaseException as error:
            # The library raises bare Exception, and panics; another class is that of a signal handler.
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(f"{path}: is not a tokenizer ({error}); download it again") from error
        self._path = path
        # Not the count of tokens: ids may have gaps.
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise CheckpointError(
                f"{path}: has token id {largest}, but config.json's vocab_size is {vocab_size}; "
                "the files are of two models"
            )
        self._check_pieces(config)
        self._add_tokens(config, vocab_size)
        if lower_case:
            before = self._tokenizer.normalizer
            steps = [tokenizers.normalizers.Lowercase(), *([] if before is None else [before])]
            self._tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
        self.truncation_side: str = config.truncation_side or str(saved.get("direction", "right")).lower()
        self.before, self.after = self._around()
        self._as_it_is = self._tokenizer, Pieces(self._tokenizer)

    @property
    def added(self) -> list[int]:
        """The ids that stand around every text."""
        return self.before + self.after

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return self._tokenizer.token_to_id(token)

    def ids(self, texts: Sequence[str], escape_special_tokens: bool = False) -> list[list[int]]:
        """Return the token ids of each text and nothing else.

        With escape_special_tokens "<|im_end|>" and its like are plain text: none of the ids is that of a
        special or added token. Raises TypeError for a text that is not a str and ValueError for one that is
        not valid Unicode, with its index.
        """
        for i, text in enumerate(texts):
            _check_text(f"text {i}", text)
        return [leading.ids for leading in self.leading(texts, sys.maxsize, escape_special_tokens)]

    def leading(
        self, texts: Sequence[str], most: int, escape_special_tokens: bool = False
    ) -> Iterator[Leading]:
        """Yield the first `most` token ids of each text, tokenising no more of it than they need.

        They are those of the whole text.
        """
        tokenizer, pieces = self._escaping if escape_special_tokens else self._as_it_is
        for batch in batches(texts):
            short = iter(_encode_batch(tokenizer, [text for text in batch if len(text) <= PIECE]))
            for text in batch:
                if len(text) > PIECE:
                    yield _leading_of_pieces(pieces, text, most)
                else:
                    ids = next(short)
                    yield Leading(ids[:most], len(ids), True)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def spans(self, text: str, escape_special_tokens: bool = False) -> list[tuple[int, int, int]]:
        """Return the tokens of a text as (id, start, stop); start and stop count its characters.

        What normalisation joins to the character before it, as an accent to its letter, is in its token.
        """
        tokenizer = self._escaping[0] if escape_special_tokens else self._tokenizer
        [encoding] = tokenizer.encode_batch([text], add_special_tokens=False)  # encode would keep the GIL
        spans: list[tuple[int, int, int]] = []
        start = end = len(text)  # of the token behind, and of the first one behind that begins later
        for i, (first, stop) in zip(reversed(encoding.ids), reversed(encoding.offsets), strict=True):
            if first < start:
                start, end = first, start
            spans.append((i, first, max(stop, end)))
        return spans[::-1]

    def cuts(self, text: str, escape_special_tokens: bool = False) -> Iterator[tuple[int, int]]:
        """Yield where a text can be cut between two tokens, and the number of tokens before that.

        Places count characters, and are in order; the first is 0, the last the text's end.
        """
        tokenizer, pieces = self._escaping if escape_special_tokens else self._as_it_is
        begin = tokens = 0
        yield 0, 0
        for piece in pieces(text):
            [encoding] = tokenizer.encode_batch([piece], add_special_tokens=False)
            reach = 0  # where the tokens so far end: several may make one character
            for number, (start, stop) in enumerate(encoding.offsets, tokens):
                if start >= reach and begin + start > 0:
                    yield begin + start, number
                if stop > reach:
                    reach = stop
            begin += len(piece)
            tokens += len(encoding)
        if text:
            yield begin, tokens

    def is_special(self, token_id: int) -> bool:
        """Return whether a token is one of the special ones, which `skip_special_tokens` leaves out."""
        return token_id in self._special

    def truncate(self, ids: list[int], length: int) -> list[int]:
        """Return at most `length` of the ids, from the side that truncation_side keeps."""
        length = max(length, 0)
        if self.truncation_side == "left":
            return ids[max(len(ids) - length, 0) :]
        return ids[:length]

    def _without_added_tokens(self) -> tokenizers.Tokenizer:
        """Return a tokenizer with the same vocabulary, shared, that takes "<think>" for plain text.

        The library's encode_special_tokens=True would do so for the special tokens only, and "<think>"
        is not one.
        """
        plain = tokenizers.Tokenizer(self._tokenizer.model)
        plain.normalizer, plain.pre_tokenizer = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        return plain

    @cached_property
    def _escaping(self) -> tuple[tokenizers.Tokenizer, Pieces]:
        plain = self._without_added_tokens()
        return plain, Pieces(plain)

    def _check_pieces(self, config: TokenizerConfig) -> None:
        """Raise CheckpointError where transformers would replace a part of tokenizer.json."""
        model = self._tokenizer.model
        if dropout := getattr(model, "dropout", None):
            raise CheckpointError(f"{self._path}: model.dropout = {dropout} makes ids random; set it to null")
        if not config.is_qwen:
            return
        found = {
            "normalizer": (_piece(self._tokenizer.normalizer), NORMALIZER),
            "pre_tokenizer": (_piece(self._tokenizer.pre_tokenizer), PRE_TOKENIZER),
            "model": ({o: v for o in BPE_OPTIONS if (v := getattr(model, o, None))}, {}),
        }
        for name, (have, want) in found.items():
            if have != want:
                raise CheckpointError(
                    f"{self._path}: its {name} is not Qwen's ({json.dumps(have)[:200]}), which transformers "
                    "would use all the same; if the file is meant, set tokenizer_class to "
                    f"PreTrainedTokenizerFast in {config.path}"
                )

    def _add_tokens(self, config: TokenizerConfig, vocab_size: int) -> None:
        """Add the tokens that the files beside tokenizer.json name.

        Qwen2Tokenizer takes the added tokens from added_tokens_decoder, if there is one, and not from
        tokenizer.json; the other classes add them to those of tokenizer.json.
        """
        if config.is_complete and config.is_qwen:
            file, self._tokenizer = self._tokenizer, self._without_added_tokens()
            self._tokenizer.decoder, self._tokenizer.post_processor = file.decoder, file.post_processor
        known = {t.content: (i, t) for i, t in self._tokenizer.get_added_tokens_decoder().items()}
        last = self._tokenizer.get_vocab_size(with_added_tokens=False) - 1
        free = max([last, *(i for i, _ in known.values())]) + 1
        for token in config.tokens:
            if token.content in known:
                i, have = known[token.content]
                flags = {name: getattr(have, name) for name in FLAGS}
                if token.id is not None and (token.id, dict(token.flags)) != (i, flags):
                    raise CheckpointError(
                        f"{config.path}: {token.content} is id {token.id}, {dict(token.flags)}, but in "
                        f"tokenizer.json id {i}, {flags}; the files are of two models"
                    )
                continue
            existing = self._tokenizer.token_to_id(token.content)
            i = free if existing is None else existing
            free += existing is None
            if token.id not in (None, i):
                raise CheckpointError(
                    f"{config.path.parent}: the added token {token.content} has id {token.id}, but "
                    f"tokenizer.json leaves {i} for it; the files are of two models"
                )
            added = tokenizers.AddedToken(token.content, special=token.special, **token.flags)
            known[token.content] = i, added
            if i < vocab_size:
                self._tokenizer.add_tokens([added])
            else:  # in transformers an error, once a text has it
                logger.debug("%s: %s has no row in the weights: it is text", config.path, token.content)
        if config.is_qwen:  # adds special tokens once more, without flags such as lstrip
            special = [token.content for token in config.tokens if token.id is None]
            plain = [tokenizers.AddedToken(t, special=True) for t in special if known[t][0] < vocab_size]
            self._tokenizer.add_tokens(plain)

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def _around(self) -> tuple[list[int], list[int]]:
        """Return the ids that the file's post-processor puts before and after a text."""
        probe = "a"
        inner = self._tokenizer.encode(probe, add_special_tokens=False).ids
        whole = self._tokenizer.encode(probe).ids
        for i in range(len(whole) - len(inner) + 1):
            before, after = whole[:i], whole[i + len(inner) :]
            if whole[i : i + len(inner)] == inner and self._tokenizer.encode("").ids == before + after:
                return before, after
        raise CheckpointError(f"{self._path}: its post_processor does more than put tokens around a text")


class EmbeddingTokenizer(Tokenizer):
    """The tokenizer of an embedding model.

    The state of a text's last token becomes the vector. The published models' tokenizer.json ends every text
    with `<|endoftext|>` for it (tokenizer_config.json's eos, `<|im_end|>`, is not meant); another file may
    append another token, or nothing.

    Args:
        path: The path of tokenizer.json.
        vocab_size: As for Tokenizer.
        config: As for Tokenizer.
        lower_case: As for Tokenizer.
        appends_end: End every text with `<|endoftext|>` where the file appends nothing. Copies of the
            published models from before June 2025 need it: without it similarities move by up to 0.1.
        escape_special_tokens: Treat special tokens in texts and prompts as plain text.
    """

    def __init__(
        self,
        path: str | Path,
        vocab_size: int,
        config: TokenizerConfig | None = None,
        *,
        lower_case: bool = False,
        appends_end: bool = False,
        escape_special_tokens: bool = False,
    ) -> None:
        super().__init__(path, vocab_size, config, lower_case=lower_case)
        self.escape_special_tokens = escape_special_tokens
        self.appends_end = appends_end and not self.added
        if self.appends_end:
            end = self.token_id(END_OF_TEXT)
            if end is None:
                raise CheckpointError(f"{path}: has no token {END_OF_TEXT}, which must end every text")
            self.after = [end]

    @property
    def end_of_text(self) -> int | None:
        """The id of the token that ends every text, if one does."""
        return self.after[-1] if self.after else None

    def encode(
        self, texts: Sequence[str], max_length: int, prompt: str = "", counter: TruncationCount | None = None
    ) -> list[list[int]]:
        """Return the token ids of prompt + text, as one string, with what stands around every text.

        The prompt is not tokenised apart: "Query:" and "What" share the token ":What". A text that is too
        long loses its end (or its beginning, if truncation_side says so), never the appended token.

        Args:
            texts: The texts.
            max_length: Most ids per text, all included.
            prompt: What is put before each text.
            counter: Counts the truncated texts. Default: one warning per call says how many there were.

        Raises:
            TypeError: A text is not a str.
            ValueError: A text is not valid Unicode, or is empty where the tokenizer appends nothing; the
                message has its index.
        """
        check_unicode("the prompt", prompt)
        for i, text in enumerate(texts):
            _check_text(f"text {i}", text)
        count = counter or TruncationCount("texts", "max_seq_length", max_length)
        around = len(self.added)
        room = max(max_length - around, 0)
        needed = sys.maxsize if self.truncation_side == "left" else room
        encoded: list[list[int]] = []
        leading = self.leading([prompt + text for text in texts], needed, self.escape_special_tokens)
        for inner, length, whole in leading:
            count.add(length + around, whole)
            ids = self.before + self.truncate(inner, room) + self.after
            if not ids:
                raise ValueError(
                    f"text {count.texts - 1} is empty, and this model's tokenizer appends no token whose "
                    "state could become the vector: leave it out"
                )
            encoded.append(ids)
        if counter is None:
            count.warn()
        return encoded


class RerankerTokenizer(Tokenizer):
    """The tokenizer of a reranker: a query and a document in the model's conversation.

    Its words are those of Qwen3-Reranker's model card.
    """

    SYSTEM = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    BODY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def __init__(
        self,
        path: str | Path,
        vocab_size: int,
        config: TokenizerConfig | None = None,
        *,
        lower_case: bool = False,
    ) -> None:
        super().__init__(path, vocab_size, config, lower_case=lower_case)
        if self.truncation_side == "left":
            raise CheckpointError(
                f"{path}: truncation_side = 'left' would cut the conversation's beginning, not the "
                "document's end; set it to 'right' in tokenizer_config.json"
            )
        missing = [
            t for t in ("<|im_start|>", "<|im_end|>", "<think>", "</think>") if self.token_id(t) is None
        ]
        if missing:
            raise CheckpointError(
                f"{path}: has no token {', '.join(missing)}, which every reranker prompt needs"
            )
        self.system, self.answer = self.ids([self.SYSTEM, self.ANSWER])

    def encode(
        self,
        pairs: Sequence[tuple[str, str]],
        instruction: str,
        max_length: int,
        escape_special_tokens: bool = False,
        counter: TruncationCount | None = None,
    ) -> list[list[int]]:
        """Return the token ids of each (query, document): system + body + answer.

        The body is tokenised as one string. What is too long loses the body's end: the document's, and only
        when the query alone is too long, the query's. The system's and the answer's part are never truncated.

        Args:
            pairs: The (query, document) pairs.
            instruction: What makes a document a good one.
            max_length: Most ids per pair, all included.
            escape_special_tokens: Treat the body's special tokens as plain text, so that no document can
                close the conversation and answer itself.
            counter: Counts the truncated pairs. Default: one warning per call says how many there were.

        Raises:
            TypeError: A query or document is not a str.
            ValueError: One is not valid Unicode; the message has the pair's index.
        """
        for i, (query, document) in enumerate(pairs):
            _check_text(f"the query of pair {i}", query)
            _check_text(f"the document of pair {i}", document)
        check_unicode("the instruction", instruction)
        bodies = [self.BODY.format(instruction=instruction, query=q, document=d) for q, d in pairs]
        around = len(self.system) + len(self.answer)
        count = counter or TruncationCount("pairs", "max_length", max_length)
        encoded = []
        for ids, length, whole in self.leading(bodies, max_length - around, escape_special_tokens):
            count.add(length + around, whole)
            encoded.append(self.system + ids + self.answer)
        if counter is None:
            count.warn()
        return encoded


def _encode_batch(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _leading_of_pieces(pieces: Pieces, text: str, most: int) -> Leading:
    """Return the first `most` token ids of a long text, tokenised piece by piece."""
    ids: list[int] = []
    read = 0
    for piece in pieces(text):
        ids += pieces.ids(piece)
        read += len(piece)
        if len(ids) > most:
            break
    return Leading(ids[:most], len(ids), read == len(text))


def _check_text(what: str, text: object) -> None:
    """Raise TypeError for what is not a str, ValueError for what is not valid Unicode."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is {type(text).__name__}, expected str")
    check_unicode(what, text)


def _piece(piece: Any) -> Any:
    """Return a normaliser or pre-tokenizer without what only moves offsets."""
    value = state_of(piece)
    if value is not None:
        for inner in [value, *value.get("pretokenizers", [])]:
            inner.pop("trim_offsets", None)
    return value
