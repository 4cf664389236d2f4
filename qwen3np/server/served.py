"""A served model: texts to token ids before the queue, states to vectors or scores behind it.

What it refuses, it refuses here, before a text is queued.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..embedder import Embedder
from ..loading.texts import check_unicode
from ..loading.tokenizer import Tokenizer, TruncationCount
from ..reranker import Reranker
from ..runtime.soundness import check_states
from .failures import EMPTY, VALIDATION, Failure
from .scheduler import States, Target
from .settings import Settings

Model = TypeVar("Model", Embedder, Reranker)
Text: TypeAlias = "str | list[int]"
Vectors = NDArray[np.float32]
UNLIMITED = sys.maxsize
UNCOUNTED = TruncationCount("texts", "", UNLIMITED)
TOO_LONG = (
    '{field} has {found} tokens, and {model} takes {most}: send less, or truncate with "truncate": true '
    "(--auto-truncate truncates always)"
)


class Truncation(NamedTuple):
    """What becomes of a text that is too long."""

    truncate: bool = False
    direction: str | None = None  # the side that is cut: "left" or "right"; None: the model's
    most: int | None = None  # tokens to keep; None: the model's


class Token(NamedTuple):
    """A token of a text: characters start to stop of it, or None for one that was added."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Served(Generic[Model]):
    """What embedding models and rerankers share.

    Attributes:
        model: The model.
        name: What /v1/models and answers call it.
        kind: "embedding" or "reranker".
        target: The model as the scheduler sees it.
    """

    kind = ""

    def __init__(self, model: Model, name: str, settings: Settings) -> None:
        self.model: Model = model
        self.name, self.settings = name, settings
        checkpoint, backend = model.checkpoint, model.backend
        self.target = Target(backend, lambda states, ids: check_states(states, ids, checkpoint, backend))

    @property
    def names(self) -> set[str]:
        """Whatever a request may call it: the served name, and the folder's or the Hub id's last part."""
        return {self.name, self.name.rstrip("/").rsplit("/", 1)[-1], str(self.model.checkpoint.folder)}

    def check_count(self, texts: Sequence[object], field: str) -> None:
        """Raise Failure if there are no texts, or more than the server takes in one request."""
        if not texts:
            raise Failure(EMPTY, f"{field} is empty: send at least one text", field)
        most = self.settings.max_client_batch_size
        if most is not None and len(texts) > most:
            raise Failure(
                VALIDATION,
                f"{field} has {len(texts)} texts, and this server takes {most} per request "
                "(--max-client-batch-size)",
                field,
            )

    def checked(self, ids: list[int], field: str, n: int) -> list[int]:
        """Return a request's token ids; raise Failure where there are none, or unknown ones."""
        size = self.model.config.vocab_size
        if not ids:
            raise Failure(EMPTY, f"{field}[{n}] has no token ids", field)
        if bad := [i for i in ids if not 0 <= i < size]:
            raise Failure(
                VALIDATION, f"{field}[{n}] has token id {bad[0]}, and {self.name} has 0 to {size - 1}", field
            )
        return ids

    def tokens(self, text: str, add_special_tokens: bool) -> list[Token]:
        """Return the tokens of a text, and with add_special_tokens those that the model's tokenizer adds."""
        tokenizer: Tokenizer = self.model.tokenizer
        check_unicode("inputs", text)
        spans = tokenizer.spans(text, bool(self.settings.model_arguments.get("escape_special_tokens")))
        found: list[Token] = [
            Token(i, text[start:stop], tokenizer.is_special(i), start, stop) for i, start, stop in spans
        ]
        if not add_special_tokens:
            return found

        def added(ids: list[int]) -> list[Token]:
            return [Token(i, tokenizer.decode([i]), tokenizer.is_special(i), None, None) for i in ids]

        return [*added(tokenizer.before), *found, *added(tokenizer.after)]


class ServedEmbedder(Served[Embedder]):
    """An embedding model."""

    kind = "embedding"

    def __init__(self, model: Embedder, name: str, settings: Settings) -> None:
        super().__init__(model, name, settings)
        self.prefix = lru_cache(64)(model._kept_prefix)

    @property
    def max_input_length(self) -> int:
        """Tokens of the longest text."""
        return self.model.max_seq_length

    @property
    def dimension(self) -> int:
        return self.model.dimension

    def prompt(self, prompt_name: str | None, instruction: str | None) -> str:
        """Return what a request puts before its texts.

        Args:
            prompt_name: The key of one of the model's prompts.
            instruction: A task in words, for the model card's template; it overrides prompt_name.
        """
        default = self.settings.default_prompt
        if instruction is None and prompt_name is None and default is not None:
            return default
        if instruction is not None:
            with refusing("instruction"):
                return self.model.prompt_text(instruction=instruction)
        name = self.settings.default_prompt_name if prompt_name is None else prompt_name
        if name is not None and name not in self.model.prompts:
            known = ", ".join(sorted(self.model.prompts))
            raise Failure(VALIDATION, f"prompt_name {name[:80]!r} is not one of {known}", "prompt_name")
        return self.model.prompt_text(name)

    def ids(
        self, texts: Sequence[Text], prompt: str, truncation: Truncation, field: str = "inputs"
    ) -> list[list[int]]:
        """Return the token ids of each text, with the prompt and what the model's tokenizer adds.

        A text that is given as token ids is taken as it is; where there is a prompt, it is decoded and put
        behind that.

        Args:
            texts: Texts, or their token ids.
            prompt: What is put before each.
            truncation: What becomes of texts that are too long.
            field: What the request calls the texts.

        Raises:
            Failure: There is no text, or one cannot be computed.
        """
        self.check_count(texts, field)
        tokenizer, most = self.model.tokenizer, self.max_input_length
        given = {n: self.checked(text, field, n) for n, text in enumerate(texts) if not isinstance(text, str)}
        strings = [
            text if isinstance(text, str) else tokenizer.decode(given[n], skip_special_tokens=True)
            for n, text in enumerate(texts)
        ]
        with refusing(field):
            encoded = tokenizer.encode(strings, UNLIMITED, prompt, UNCOUNTED)
        if not prompt:
            for n, ids in given.items():
                encoded[n] = ids
        keep = most if truncation.most is None else min(most, truncation.most)
        cut = truncation.truncate or truncation.most is not None
        side = truncation.direction or tokenizer.truncation_side
        for n, ids in enumerate(encoded):
            if len(ids) > keep and not cut:
                message = TOO_LONG.format(field=f"{field}[{n}]", found=len(ids), model=self.name, most=keep)
                raise Failure(VALIDATION, message, field)
            encoded[n] = truncated(ids, keep, side, len(tokenizer.before), len(tokenizer.after))
        return encoded

    def check_dimensions(self, dimensions: int | None) -> int | None:
        """Return the dimensions to keep, None for the model's own; raise Failure for what cannot be."""
        if dimensions is None:
            return None
        with refusing("dimensions"):
            try:
                return self.model._check_dim(dimensions)
            except ValueError as error:
                raise ValueError(str(error).replace("truncate_dim", "dimensions")) from None

    def vectors(
        self, states: States, dimensions: int | None = None, normalize: bool | None = None
    ) -> Vectors:
        """Return the vectors [n, dimensions] of final states, as Embedder.encode does.

        Args:
            states: Of each text.
            dimensions: How many are kept; default: the model's own.
            normalize: True: unit vectors; False: as they were pooled; None: as the model's files say.
        """
        pooled = np.stack(states)
        if normalize is False:
            return pooled[:, : dimensions or self.dimension]
        return self.model._truncate(pooled, dimensions or self.dimension, normalize)


class ServedReranker(Served[Reranker]):
    """A reranker."""

    kind = "reranker"

    @property
    def max_input_length(self) -> int:
        """Tokens of the longest conversation."""
        return self.model.max_length

    @property
    def prefix(self) -> list[int]:
        """What every conversation begins with."""
        return self.model.tokenizer.system

    def ids(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None,
        truncation: Truncation,
        fields: tuple[str, str] = ("query", "texts"),
    ) -> list[list[int]]:
        """Return the token ids of the query with each document.

        Args:
            query: The query.
            documents: The documents.
            instruction: What makes a document a good one; default: the model's.
            truncation: What becomes of pairs that are too long; the document's end is cut.
            fields: What the request calls query and documents.

        Raises:
            Failure: There is no document, or a pair cannot be computed.
        """
        self.check_count(documents, fields[1])
        if truncation.direction == "left":
            raise Failure(
                VALIDATION,
                "truncation_direction left would cut the query: a reranker's pairs are cut at the document's "
                "end",
                "truncation_direction",
            )
        model = self.model
        keep = model.max_length if truncation.most is None else min(model.max_length, truncation.most)
        around = len(model.tokenizer.system) + len(model.tokenizer.answer)
        if keep <= around:
            raise Failure(
                VALIDATION,
                f"truncate_prompt_tokens = {keep} leaves no room: the conversation alone has {around} tokens",
                "truncate_prompt_tokens",
            )
        cut = truncation.truncate or truncation.most is not None
        pairs = [(query, document) for document in documents]
        with refusing(fields[1]):
            instruction = model._asked_instruction(None, None, instruction)
            escape, counter = model.escape_special_tokens, UNCOUNTED
            encoded = model.tokenizer.encode(pairs, instruction, keep if cut else UNLIMITED, escape, counter)
        for n, ids in enumerate(encoded):
            if len(ids) > keep:
                message = TOO_LONG.format(
                    field=f"{fields[0]} with {fields[1]}[{n}]", found=len(ids), model=self.name, most=keep
                )
                raise Failure(VALIDATION, message, fields[1])
        return encoded

    def scores(self, states: States, raw: bool) -> Vectors:
        """Return the score of each pair [n]: the probability of "yes", or the raw score it is made of."""
        scores = self.model.scores(self.model.logits(np.stack(states)))
        return scores if raw else np.asarray(self.model.activation_fn(scores), np.float32)


def truncated(ids: list[int], most: int, side: str, before: int, after: int) -> list[int]:
    """Return at most `most` ids, cut at a side; the first `before` and the last `after` stay."""
    if len(ids) <= most:
        return ids
    inner, room = ids[before : len(ids) - after], max(most - before - after, 0)
    inner = inner[len(inner) - room :] if side == "left" else inner[:room]
    return ids[:before] + inner + ids[len(ids) - after :]


@contextmanager
def refusing(param: str) -> Iterator[None]:
    """Turn the package's refusal of an argument into a Failure that names the body's field."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise Failure(VALIDATION, str(error), param) from error
