"""Text -> token ids, on the `tokenizers` library: NFC, a split regex, byte-level BPE, all as
tokenizer.json says."""

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
CUT = "%d of %d %s cut to %s = %d tokens (the longest had %s)"
BATCH = 1 << 18  # characters that are tokenised at a time: the library's results take 100 bytes a token

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
    """tokenizer.json, of a model with `vocab_size` rows, with the settings of the files beside it.

    Args:
        config: those of tokenizer_config.json.
        lower_case: texts are put in lower case first (sentence-transformers' do_lower_case).
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
        """Ids that stand around every text."""
        return self.before + self.after

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def ids(self, texts: Sequence[str], escape_special_tokens: bool = False) -> list[list[int]]:
        """Token ids of each text and nothing else. With escape_special_tokens "<|im_end|>" and its like are
        text: none of the ids is that of a special or added token. Raises TypeError for a text that is no str
        and ValueError for one that is not valid Unicode, with its index."""
        for i, text in enumerate(texts):
            _check_text(f"text {i}", text)
        return [leading.ids for leading in self.leading(texts, sys.maxsize, escape_special_tokens)]

    def leading(
        self, texts: Sequence[str], most: int, escape_special_tokens: bool = False
    ) -> Iterator[Leading]:
        """The first `most` token ids of each text: those of the whole text, of which no more is tokenised
        than they need."""
        tokenizer, pieces = self._escaping if escape_special_tokens else self._as_it_is
        for batch in batches(texts):
            short = iter(_encode_batch(tokenizer, [text for text in batch if len(text) <= PIECE]))
            for text in batch:
                if len(text) > PIECE:
                    yield _leading_of_pieces(pieces, text, most)
                else:
                    ids = next(short)
                    yield Leading(ids[:most], len(ids), True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def cut(self, ids: list[int], length: int) -> list[int]:
        """At most `length` of them, on the side that truncation_side leaves."""
        length = max(length, 0)
        if self.truncation_side == "left":
            return ids[max(len(ids) - length, 0) :]
        return ids[:length]

    def _without_added_tokens(self) -> tokenizers.Tokenizer:
        """The same vocabulary, shared, for which "<think>" is text as any other. encode_special_tokens=True
        of the library would do so for the special tokens alone, and "<think>" is none."""
        plain = tokenizers.Tokenizer(self._tokenizer.model)
        plain.normalizer, plain.pre_tokenizer = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        return plain

    @cached_property
    def _escaping(self) -> tuple[tokenizers.Tokenizer, Pieces]:
        plain = self._without_added_tokens()
        return plain, Pieces(plain)

    def _check_pieces(self, config: TokenizerConfig) -> None:
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
        """Qwen2Tokenizer takes the added tokens from added_tokens_decoder, if there is one, and not from
        tokenizer.json; the other classes add them to those of tokenizer.json."""
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
            else:  # an error in transformers, once a text has it
                logger.debug("%s: %s has no row in the weights: it is text", config.path, token.content)
        if config.is_qwen:  # adds special tokens once more, without flags such as lstrip
            special = [token.content for token in config.tokens if token.id is None]
            plain = [tokenizers.AddedToken(t, special=True) for t in special if known[t][0] < vocab_size]
            self._tokenizer.add_tokens(plain)

    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that the file's post-processor puts before and behind a text."""
        probe = "a"
        inner = self._tokenizer.encode(probe, add_special_tokens=False).ids
        whole = self._tokenizer.encode(probe).ids
        for i in range(len(whole) - len(inner) + 1):
            before, after = whole[:i], whole[i + len(inner) :]
            if whole[i : i + len(inner)] == inner and self._tokenizer.encode("").ids == before + after:
                return before, after
        raise CheckpointError(f"{self._path}: its post_processor does more than to put tokens around a text")


class EmbeddingTokenizer(Tokenizer):
    """The tokenizer of an embedding model. The state of a text's last token becomes the vector: the published
    models' tokenizer.json ends every text with `<|endoftext|>` for it (tokenizer_config.json's eos,
    `<|im_end|>`, is not the token that is meant); another file's with what it appends, or with nothing.

    Args:
        appends_end: `<|endoftext|>` ends every text where the file appends nothing. So it has to be with
        copies of the published models from before June 2025: without it similarities move by up to 0.1.
        escape_special_tokens: special tokens in texts and prompts are text.
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
        self, texts: Sequence[str], max_length: int, prompt: str = "", cut: Cut | None = None
    ) -> list[list[int]]:
        """Token ids of prompt + text, one string, between those that the tokenizer puts around a text; at
        most `max_length` ids in all.

        The prompt is not tokenised apart: "Query:" and "What" share the token ":What". A text that is too
        long loses its end (or its beginning, if truncation_side says so), never the appended token, and one
        warning a call says how many were cut; with `cut` they are counted there instead. Raises TypeError for
        a text that is no str, ValueError for one that is not valid Unicode, and for an empty one where the
        tokenizer appends nothing, with its index.
        """
        check_unicode("the prompt", prompt)
        for i, text in enumerate(texts):
            _check_text(f"text {i}", text)
        count = cut or Cut("texts", "max_seq_length", max_length)
        around = len(self.added)
        room = max(max_length - around, 0)
        needed = sys.maxsize if self.truncation_side == "left" else room
        encoded: list[list[int]] = []
        leading = self.leading([prompt + text for text in texts], needed, self.escape_special_tokens)
        for inner, length, whole in leading:
            count.add(length + around, whole)
            ids = self.before + self.cut(inner, room) + self.after
            if not ids:
                raise ValueError(
                    f"text {count.texts - 1} is empty, and this model's tokenizer appends no token whose "
                    "state could become the vector: leave it out"
                )
            encoded.append(ids)
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
        cut: Cut | None = None,
    ) -> list[list[int]]:
        """Token ids of each (query, document): system + body + answer, `max_length` at the most.

        The body is tokenised as one string. What is too long is its end: the document's, and only when the
        query alone is too long, the query's; the system's part and the answer's are never cut. One warning a
        call says how many were; with `cut` they are counted there instead. With escape_special_tokens the
        body's special tokens are text, so that no document can close the conversation and answer itself.
        Raises TypeError for what is no str, ValueError for what is not valid Unicode."""
        for i, (query, document) in enumerate(pairs):
            _check_text(f"the query of pair {i}", query)
            _check_text(f"the document of pair {i}", document)
        check_unicode("the instruction", instruction)
        bodies = [self.BODY.format(instruction=instruction, query=q, document=d) for q, d in pairs]
        around = len(self.system) + len(self.answer)
        count = cut or Cut("pairs", "max_length", max_length)
        encoded = []
        for ids, length, whole in self.leading(bodies, max_length - around, escape_special_tokens):
            count.add(length + around, whole)
            encoded.append(self.system + ids + self.answer)
        if cut is None:
            count.warn()
        return encoded


def _encode_batch(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _leading_of_pieces(pieces: Pieces, text: str, most: int) -> Leading:
    ids: list[int] = []
    read = 0
    for piece in pieces(text):
        ids += pieces.ids(piece)
        read += len(piece)
        if len(ids) > most:
            break
    return Leading(ids[:most], len(ids), read == len(text))


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is {type(text).__name__}, expected str")
    check_unicode(what, text)


def _piece(piece: Any) -> Any:
    """A normaliser or pre-tokenizer without what only moves offsets."""
    value = state_of(piece)
    if value is not None:
        for inner in [value, *value.get("pretokenizers", [])]:
            inner.pop("trim_offsets", None)
    return value
