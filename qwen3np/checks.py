"""The comparisons of a verification that are not stages: tokens, what vectors promise, published values.

Each function yields rows and never stops at a difference. What is compared with is computed apart: token ids
by the tokenizers library itself, cuts and lengths in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from . import published, reference
from .backends import Backend
from .embedder import Embedder
from .threads import usable_cores
from .tokenizer import END_OF_TEXT

OK, BAD = "ok", "BAD"
NEEDS_WEIGHTS, OTHER_TOKENIZER = "needs the published weights", "another tokenizer"

# What the arithmetic may add to a published value's own tolerance: a cosine or a channel of a unit vector.
ALLOWANCE = {"float32": 0.0, "high": 2e-5, "medium": 5e-3}
UNIT = 1e-6  # a float32 norm of 1024 to 4096 channels rounds to some 2^-23


@dataclass(frozen=True)
class Check:
    """One comparison that is not a stage. `verdict` is "ok", "BAD", or why nothing was compared."""

    name: str
    expected: str | float
    got: str | float
    difference: float | None
    tolerance: float | None
    verdict: str
    source: str = ""


def arithmetic(backend: Backend) -> str:
    """A key of STAGE_TOLERANCE: what the products are made of, which is not the precision asked for where the
    CPU has nothing faster than float32."""
    if backend.name == "numpy":
        return "float32"
    from .kernels import isa

    precision: str = getattr(backend, "matmul_precision", "highest")
    return "float32" if getattr(backend, "isa", "") == isa.SIMD or precision == "highest" else precision


def token_checks(model: Embedder, is_published: bool) -> Iterator[Check]:
    prompt = model.prompts.get("query", "")
    expected = published.QUERY_PROMPT
    verdict = OK if prompt == expected else BAD
    if not is_published and "".join(prompt.split()) != "".join(expected.split()):
        verdict = "the model has another" if prompt else "the model has none"
    yield Check("query prompt", "..." + repr(expected[-6:]), "..." + repr(prompt[-6:]), None, None, verdict)

    # The colon of "Query:" is one token with the "M" of "Mizzen", and with a newline in any vocabulary here.
    texts = [*published.CARD_QUERIES, *published.CARD_DOCUMENTS, "", "Mizzen", "\nnew line", "中国 😀"]
    end = model.tokenizer.end_of_text
    ids = model.tokenize(texts, prompt=expected)
    missing = sum(i[-1:] != [end] or end in i[:-1] for i in ids)
    yield _count(f"{END_OF_TEXT} once, at the end", missing, len(texts))
    one_string = library_ids(model, [expected + text for text in texts])
    differ = sum(i != [*j, end] for i, j in zip(ids, one_string, strict=True))
    yield _count("prompt and text as one string", differ, len(texts))

    for text, is_query, expected_ids in published.TOKEN_IDS:
        name = f"ids of {'query' if is_query else 'document'} {text[:10]!r}"
        if end != published.END_OF_TEXT:
            yield Check(name, f"{len(expected_ids)} ids", "", None, None, OTHER_TOKENIZER)
            continue
        ours = prompt if verdict in (OK, BAD) else expected  # another prompt is no error of the tokenizer
        [found] = model.tokenize([text], prompt=ours if is_query else "")
        different = sum(a != b for a, b in zip(found, expected_ids, strict=False))
        different += abs(len(found) - len(expected_ids))
        verdict = BAD if different else OK
        yield Check(name, f"{len(expected_ids)} ids", f"{len(found)} ids", different, 0, verdict)


def property_checks(
    model: Embedder, texts: Sequence[str], ids: list[list[int]], pooled: NDArray[Any]
) -> Iterator[Check]:
    """`texts` are those of the first of `ids`, and `pooled` the unit vectors that the stages ended in."""
    backend = model.backend
    batch = backend.encode(ids)
    yield _bits("stages end in encode's vectors", reference.normalize(batch), pooled)
    yield _bits("alone as in a batch", np.concatenate([backend.encode([i]) for i in ids]), batch)
    yield _bits("in reversed order", backend.encode(ids[::-1])[::-1], batch)
    twice = backend.encode([i for i in ids for _ in range(2)])
    yield _bits("every text twice", twice, np.repeat(batch, 2, axis=0))
    yield _threads(backend, ids, batch)
    hidden, batch = model.config.hidden_size, batch[: len(texts)]
    vectors = model.encode(texts, prompt="", truncate_dim=hidden)
    yield _bits("from text as from its ids", vectors, reference.normalize(batch))
    for dim in sorted({min(32, hidden), hidden // 2, hidden}):
        cut = model.encode(texts, prompt="", truncate_dim=dim).astype(np.float64)
        off = float(np.abs(np.linalg.norm(cut, axis=1) - 1).max())
        yield _close(f"{dim} channels: unit length", off, UNIT)
        exact = batch[:, :dim].astype(np.float64)
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        yield _close(f"{dim} channels: cut, then normalised", float(np.abs(cut - exact).max()), UNIT)


def _threads(backend: Backend, ids: list[list[int]], batch: NDArray[Any]) -> Check:
    with_threads = getattr(backend, "with_threads", None)
    cores = usable_cores()
    if with_threads is None or cores == 1:
        why = "one core" if cores == 1 else "the reading copy has none"
        return Check("on 1 thread as on 2", "same bits", "", None, None, why)
    threads = backend.num_threads if backend.num_threads > 1 else cores  # type: ignore[attr-defined]
    one, more = (with_threads(n).encode(ids) for n in (1, threads))
    return _bits(f"on 1 thread as on {threads}", np.concatenate([one, more]), np.concatenate([batch, batch]))


def published_checks(model: Embedder, name: str, compared: bool) -> Iterator[Check]:
    """A row for each cosine and, for each vector's head, the channel that is furthest off."""
    extra, hidden = ALLOWANCE[arithmetic(model.backend)], model.config.hidden_size
    verdict = "" if compared else NEEDS_WEIGHTS
    for s in published.SIMILARITIES[name]:
        scores: NDArray[Any] = np.full(np.shape(s.scores), np.nan)
        if compared:
            queries = model.encode_query(s.queries, truncate_dim=hidden)
            scores = model.similarity(queries, model.encode_document(s.documents, truncate_dim=hidden))
        for (q, d), expected in np.ndenumerate(s.scores):
            source = f"{s.arithmetic}: {s.source}"
            label = f"{s.queries[q][:10]!r} x {s.documents[d][:10]!r}"
            yield _value(label, expected, float(scores[q, d]), s.tolerance + extra, verdict, source)
    for head in published.HEADS.get(name, []):
        values, channel = np.array(head.values), 0
        got: NDArray[Any] = np.full(len(values), np.nan)
        if compared:
            encode = model.encode_query if head.query else model.encode_document
            got = encode(head.text, truncate_dim=hidden)[: len(values)]
            channel = int(np.abs(got - values).argmax())
        label = f"{'query' if head.query else 'document'} {head.text[:11]!r} [{channel}]"
        source = f"{head.arithmetic}, worst of {len(values)} channels: {head.source}"
        tolerance = head.tolerance + extra
        yield _value(label, head.values[channel], float(got[channel]), tolerance, verdict, source)


def _value(name: str, expected: float, got: float, tolerance: float, verdict: str, source: str) -> Check:
    if verdict:
        return Check(name, expected, "", None, tolerance, verdict, source)
    difference = abs(got - expected)
    return Check(name, expected, got, difference, tolerance, OK if difference <= tolerance else BAD, source)


def _count(name: str, wrong: int, of: int) -> Check:
    return Check(name, f"{of} of {of}", f"{of - wrong} of {of}", wrong, 0, BAD if wrong else OK)


def _bits(name: str, got: NDArray[Any], expected: NDArray[Any]) -> Check:
    """Of float32 vectors; the difference is the number of vectors that are not the same."""
    a, b = (np.ascontiguousarray(x, np.float32).view(np.uint32) for x in (got, expected))
    wrong = int((a != b).any(axis=1).sum())
    verdict = BAD if wrong else OK
    return Check(name, "same bits", "other bits" if wrong else "same bits", wrong, 0, verdict)


def _close(name: str, difference: float, tolerance: float) -> Check:
    return Check(name, "", "", difference, tolerance, OK if difference <= tolerance else BAD)


def library_ids(model: Embedder, texts: Sequence[str]) -> list[list[int]]:
    """Straight from the tokenizers library, without this package's tokenizer: no special token added."""
    tokenizer = tokenizers.Tokenizer.from_file(str(model.checkpoint.folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
