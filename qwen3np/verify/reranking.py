"""The checks of a reranker: its prompt, what its scores promise, the published scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..loading import model_cards
from ..reranker import MAX_LENGTH, Reranker
from ..runtime.stages import Answers, Stage, Texts
from . import published
from .checks import (
    BAD,
    LONG,
    OK,
    OTHER_TOKENIZER,
    Check,
    close,
    count,
    library_ids,
    rare_tokens,
    same_bits,
    token_ids,
    value,
)

# What the arithmetic may add to a published difference's own tolerance. The published models' logits reach
# some 20, and PyTorch's bfloat16 is off by 0.8.
ALLOWANCE = {"float32": 0.0, "high": 4e-4, "medium": 0.3, "low": 0.5}

SIGMOID = 1e-6  # relative: eight roundings of float32


class RerankerChecks:
    """A reranker as a verification sees it (see checks.Subject)."""

    def __init__(self, model: Reranker) -> None:
        self.model = copy.copy(model)  # its max_length is raised: conversations are compared whole
        self.model.max_length = max(model.max_length, min(MAX_LENGTH, model.config.max_position_embeddings))
        self.answers: Answers = model.answers
        self.values, self.shapes = published.LOGIT_DIFFERENCES, published.RERANKER_SHAPES
        self._pairs = [(q, d) for q in published.CARD_QUERIES for d in published.CARD_DOCUMENTS] + [("", "")]

    def texts(self) -> list[list[int]]:
        checkpoint = self.model.checkpoint
        long = ("", " ".join(published.CARD_DOCUMENTS * 10))
        system, answer, *bodies = self._library_ids([*self._pairs, long])
        bodies[-1] = bodies[-1][: LONG - len(system) - len(answer)]
        return [*(system + body + answer for body in bodies), rare_tokens(checkpoint) + answer]

    def stages(self, ids: Texts) -> Iterator[Stage]:
        model = self.model
        yield from model.backend.stages(ids)
        if self.answers is None:  # a sequence classifier: the other side has no head for it
            return
        logits = model.logits(model.backend.forward(ids))
        yield "scores", np.concatenate([*logits.T, model.scores(logits)])[None]

    def token_checks(self, is_published: bool) -> Iterator[Check]:
        model, instruction = self.model, model_cards.RERANKER_INSTRUCTION
        # A query's "?" is one token with the newline after it, and so are two newlines.
        pairs = [*self._pairs, (published.PLANET_QUERY, published.PLANET_DOCUMENTS[0]), ("\n", "\n中国 😀\n")]
        ids = model.tokenize(pairs, instruction=instruction)
        texts = [model.tokenizer.decode(i) for i in ids]
        system, answer, *bodies = self._library_ids(pairs)
        starts = sum(not text.startswith(model_cards.RERANKER_SYSTEM) for text in texts)
        ends = sum(not text.endswith(model_cards.RERANKER_ANSWER) for text in texts)
        inner = sum(
            model_cards.reranker_body(*pair) not in text for pair, text in zip(pairs, texts, strict=True)
        )
        yield count("system's part of the prompt", starts, len(pairs))
        yield count("instruction, query, document", inner, len(pairs))
        yield count("answer's part of the prompt", ends, len(pairs))
        differ = sum(i != system + body + answer for i, body in zip(ids, bodies, strict=True))
        yield count("body as one string", differ, len(pairs))

        other = system[:1] != published.SYSTEM_IDS[:1]
        yield token_ids("ids of the system's part", model.tokenizer.system, published.SYSTEM_IDS, other)
        yield token_ids("ids of the answer's part", model.tokenizer.answer, published.ANSWER_IDS, other)
        for query, document, expected in published.PAIR_IDS:
            [found] = model.tokenize([(query, document)], instruction=instruction)
            whole = [*published.SYSTEM_IDS, *expected, *published.ANSWER_IDS]
            yield token_ids(f"ids of {query[:10]!r} x {document[:10]!r}", found, whole, other)
        if model.answers is None:
            return
        yes, no = (repr(model.tokenizer.decode([i])) for i in model.answers)
        verdict = OK if model.answers == published.YES_NO else BAD
        verdict = OTHER_TOKENIZER if other else verdict
        yield Check("answers", "'yes', 'no'", f"{yes}, {no}", None, None, verdict)

    def property_checks(self, ids: list[list[int]]) -> Iterator[Check]:
        model, instruction = self.model, model_cards.RERANKER_INSTRUCTION
        states = model.backend.forward(ids[: len(self._pairs)])
        raw = model.predict(self._pairs, instruction=instruction, raw_scores=True)
        yield same_bits("from text as from its ids", raw[:, None], self._scores(states)[:, None])
        query, documents = published.PLANET_QUERY, published.PLANET_DOCUMENTS + published.CARD_DOCUMENTS
        pairs = [(query, document) for document in documents]
        alone = model.backend.with_threads(model.backend.num_threads)
        apart = np.concatenate([alone.forward([i]) for i in model.tokenize(pairs)])
        together = model.predict(pairs, raw_scores=True)
        yield same_bits("a query's tokens shared or not", together[:, None], self._scores(apart)[:, None])
        other_order = model.predict(pairs[::-1], batch_size=2, raw_scores=True)[::-1]
        yield same_bits("its documents in another order", other_order[:, None], together[:, None])
        exact = 1 / (1 + np.exp(-np.append(raw, together).astype(np.float64)))
        probabilities = np.append(model.predict(self._pairs, instruction=instruction), model.predict(pairs))
        # Relative: the scores of generated weights are -40 and 40. Below 2^-126 float32 has fewer digits.
        off = np.abs(probabilities - exact) / np.maximum(exact, 2.0**-126)
        yield close("probability = sigmoid(yes - no)", float(off.max()), SIGMOID)

    def published_checks(self, name: str, compared: bool) -> Iterator[Check]:
        """Yield a row per difference, and one per probability that is published too."""
        model, extra = self.model, ALLOWANCE[self.model.backend.arithmetic]
        for s in published.LOGIT_DIFFERENCES[name]:
            pairs = [(s.query, document) for document in s.documents]
            source, instruction = f"{s.arithmetic}: {s.source}", model_cards.RERANKER_INSTRUCTION
            raw = probabilities = np.full(len(pairs), np.nan)
            if compared:
                raw = model.predict(pairs, instruction=instruction, raw_scores=True)
                probabilities = model.predict(pairs, instruction=instruction)
            labels = [f"{s.query[:10]!r} x {document[:10]!r}" for document in s.documents]
            tolerance = s.tolerance + extra
            for label, expected, got in zip(labels, s.differences, raw, strict=True):
                yield value(label, expected, float(got), tolerance, compared, source)
            for label, p, got in zip(labels, s.probabilities, probabilities, strict=False):
                slope = p * (1 - p)
                yield value(f"{label}, p", p, float(got), slope * tolerance + SIGMOID * p, compared, source)

    def _scores(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.model.scores(self.model.logits(states))

    def _library_ids(self, pairs: list[tuple[str, str]]) -> list[list[int]]:
        """Tokenise the system's part, the answer's part, and each pair's body with the library."""
        bodies = [model_cards.reranker_body(*pair) for pair in pairs]
        around = [model_cards.RERANKER_SYSTEM, model_cards.RERANKER_ANSWER]
        return library_ids(self.model.checkpoint, [*around, *bodies])
