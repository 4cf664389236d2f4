"""The checks of an embedding model: its tokens, what its vectors promise, the published values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..embedder import Embedder
from ..loading import model_cards
from ..loading.hub import hub_id
from ..runtime.stages import Answers, Stage, Texts
from . import published
from .checks import (
    BAD,
    LONG,
    OK,
    Check,
    close,
    count,
    library_ids,
    rare_tokens,
    same_bits,
    token_ids,
    value,
)

# What the arithmetic may add to a published value's own tolerance: a cosine, or a value of a unit vector.
ALLOWANCE = {"float32": 0.0, "high": 2e-5, "medium": 5e-3, "low": 1e-2}
UNIT = 1e-6  # the norm of 1024 to 4096 float32 values is off by some 2^-23


class EmbedderChecks:
    """An embedding model as a verification sees it (see checks.Subject)."""

    answers: Answers = None

    def __init__(self, model: Embedder) -> None:
        self.model = model
        self.values, self.shapes = published.COSINES, published.SHAPES
        queries = [model_cards.QUERY_PROMPT + text for text in published.CARD_QUERIES]
        self._card = [*queries, *published.CARD_DOCUMENTS]

    def texts(self) -> list[list[int]]:
        checkpoint = self.model.checkpoint
        ids = self._library_ids(self._card)
        [long] = library_ids(checkpoint, [" ".join(published.CARD_DOCUMENTS * 10)])
        everything = [*ids, [], long[: LONG - 1], rare_tokens(checkpoint)]
        tokenizer = self.model.tokenizer
        return [tokenizer.before + i + tokenizer.after for i in everything if i or tokenizer.added]

    def _library_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokenise with the library, and do what the folder's settings ask: lower case, truncation."""
        model, tokenizer = self.model, self.model.tokenizer
        if model._modules.transformer.do_lower_case:
            texts = [text.lower() for text in texts]
        room = model.max_seq_length - len(tokenizer.added)
        return [tokenizer.truncate(ids, room) for ids in library_ids(model.checkpoint, texts)]

    def stages(self, ids: Texts) -> Iterable[Stage]:
        return self.model.backend.stages(ids)

    def token_checks(self, is_published: bool) -> Iterator[Check]:
        model, name = self.model, hub_id(self.model.checkpoint.folder)
        card = model_cards.FAMILY.get(name, model_cards.QWEN)
        is_published |= name in model_cards.FAMILY
        prompt = model.prompts.get(card.prompt_name, "")
        expected = card.query_prompt
        verdict = OK if prompt == expected else BAD
        if not is_published and "".join(prompt.split()) != "".join(expected.split()):
            verdict = "the model has another" if prompt else "the model has none"
        want, found = ("..." + repr(text[-6:]) for text in (expected, prompt))
        what = "query prompt" if card.prompt_name == "query" else f"prompt {card.prompt_name!r}"
        yield Check(what, want, found, None, None, verdict)

        # The colon of "Query:" is one token with the "M" of "Mizzen", and with a newline in every vocabulary.
        texts = [*published.CARD_QUERIES, *published.CARD_DOCUMENTS, "", "Mizzen", "\nnew line", "中国 😀"]
        before, after = model.tokenizer.before, model.tokenizer.after
        ids = model.tokenize(texts, prompt=expected)
        if after:
            end = model.tokenizer.decode(after)
            missing = sum(i[-len(after) :] != after or after[-1] in i[: -len(after)] for i in ids)
            yield count(f"{end} once, at the end", missing, len(texts))
        ends = [published.ENDS[card.end]] if card.end else list(published.ENDS.values())
        others = len(after) != 1 or after[0] not in ends
        if name in model_cards.FAMILY and card.end:
            found = model.tokenizer.decode(after) or "nothing"
            yield Check("what ends every text", card.end, found, None, None, BAD if others else OK)
        one_string = self._library_ids([expected + text for text in texts])
        differ = sum(i != before + j + after for i, j in zip(ids, one_string, strict=True))
        yield count("prompt and text as one string", differ, len(texts))

        ours = prompt if verdict in (OK, BAD) else expected  # another prompt is no error of the tokenizer
        for text, is_query, content in published.token_ids(card):
            if not text and not after:  # then it has no vector
                continue
            [tokens] = model.tokenize([text], prompt=ours if is_query else "")
            what = f"ids of {'query' if is_query else 'document'} {text[:10]!r}"
            yield token_ids(what, tokens, content + after, others)

    def property_checks(self, ids: list[list[int]]) -> Iterator[Check]:
        model, texts, hidden = self.model, self._card, self.model.config.hidden_size
        batch = model.backend.forward(ids[: len(texts)])
        vectors = model.encode(texts, prompt="", truncate_dim=hidden, normalize_embeddings=True)
        yield same_bits("from text as from its ids", vectors, reference.normalize(batch))
        for dim in sorted({min(32, hidden), hidden // 2, hidden}):
            truncated = model.encode(texts, prompt="", truncate_dim=dim, normalize_embeddings=True)
            truncated = truncated.astype(np.float64)
            off = float(np.abs(np.linalg.norm(truncated, axis=1) - 1).max())
            yield close(f"{dim} dimensions: unit length", off, UNIT)
            exact = batch[:, :dim].astype(np.float64)
            exact /= np.linalg.norm(exact, axis=1, keepdims=True)
            off = float(np.abs(truncated - exact).max())
            yield close(f"{dim} dimensions: truncated, then normalised", off, UNIT)

    def published_checks(self, name: str, compared: bool) -> Iterator[Check]:
        """Yield a row per cosine, and one per vector for the worst of its leading values."""
        model, hidden = self.model, self.model.config.hidden_size
        extra = ALLOWANCE[model.backend.arithmetic]
        for s in published.COSINES[name]:
            scores: NDArray[np.float32] = np.full(np.shape(s.scores), np.nan, np.float32)
            if compared:
                queries = model.encode_query(s.queries, truncate_dim=hidden)
                scores = model.similarity(queries, model.encode_document(s.documents, truncate_dim=hidden))
            for (q, d), expected in np.ndenumerate(s.scores):
                source = f"{s.arithmetic}: {s.source}"
                label = f"{s.queries[q][:10]!r} x {s.documents[d][:10]!r}"
                yield value(label, expected, float(scores[q, d]), s.tolerance + extra, compared, source)
        for leading in published.LEADING_VALUES.get(name, []):
            values, worst = np.array(leading.values), 0
            got: NDArray[np.float32] = np.full(len(values), np.nan, np.float32)
            if compared:
                encode = model.encode_query if leading.query else model.encode_document
                got = encode(leading.text, truncate_dim=hidden)[: len(values)]
                worst = int(np.abs(got - values).argmax())
            label = f"{'query' if leading.query else 'document'} {leading.text[:11]!r} [{worst}]"
            source = f"{leading.arithmetic}, worst of {len(values)} values: {leading.source}"
            tolerance = leading.tolerance + extra
            yield value(label, leading.values[worst], float(got[worst]), tolerance, compared, source)
