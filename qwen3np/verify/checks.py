"""Report rows other than stages: the Check type, helpers that make one, and the checks of every model.

embedding.py and reranking.py have each kind of model's own. No check stops at a difference. What is
compared with is computed apart: token ids by the tokenizers library itself; truncation, lengths and
probabilities in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from .. import reference
from ..loading.checkpoint import Checkpoint
from ..runtime.backend import Backend
from ..runtime.cores import usable_cores
from ..runtime.stages import Answers, Stage, Texts
from ..synth import checkpoints as synth

OK, BAD = "ok", "BAD"
NEEDS_WEIGHTS, OTHER_TOKENIZER = "needs the published weights", "another tokenizer"
LONG = 300  # tokens of the long text: more than an engine block and than an attention chunk, 256 each


@dataclass(frozen=True)
class Check:
    """One comparison that is not a stage.

    `verdict` is "ok", "BAD", or why nothing was compared.
    """

    name: str
    expected: str | float
    got: str | float
    difference: float | None
    tolerance: float | None
    verdict: str
    source: str = ""


class Subject(Protocol):
    """A model as a verification sees it."""

    @property
    def values(self) -> Mapping[str, Sequence[Any]]:
        """Hub id -> what is published."""

    @property
    def shapes(self) -> Mapping[tuple[int, int, int], str]:
        """(hidden_size, intermediate_size, num_hidden_layers) -> Hub id of the published model."""

    @property
    def answers(self) -> Answers:
        """A reranker's token ids of "yes" and "no"."""

    def texts(self) -> list[list[int]]:
        """Return what the stages compute: the model card's texts, an empty one, a long one, rare tokens."""

    def stages(self, ids: Texts) -> Iterable[Stage]:
        """Yield the stages that the model computes from these token ids."""

    def token_checks(self, is_published: bool) -> Iterator[Check]:
        """Check the token ids; `is_published` says that the model is said to be a published one."""

    def property_checks(self, ids: list[list[int]]) -> Iterator[Check]:
        """Check what the model promises beyond its encoder; `ids` are those of `texts`."""

    def published_checks(self, name: str, compared: bool) -> Iterator[Check]:
        """Compare the published values of the model `name`.

        `compared` is false where the weights are not known to be the published ones.
        """


def encoder_checks(backend: Backend, ids: list[list[int]], pooled: NDArray[Any]) -> Iterator[Check]:
    """Check what every encoder promises; `pooled` are the unit vectors that the stages ended in."""
    batch = backend.forward(ids)
    yield same_bits("stages end in encode's vectors", reference.normalize(batch), pooled)
    yield same_bits("alone as in a batch", np.concatenate([backend.forward([i]) for i in ids]), batch)
    yield same_bits("in reversed order", backend.forward(ids[::-1])[::-1], batch)
    twice = backend.forward([i for i in ids for _ in range(2)])
    yield same_bits("every text twice", twice, np.repeat(batch, 2, axis=0))
    yield _threads(backend, ids, batch)


def _threads(backend: Backend, ids: list[list[int]], batch: NDArray[Any]) -> Check:
    """Check that the number of threads changes no bit."""
    cores = usable_cores()
    if backend.name == "numpy" or cores == 1:
        why = "one core" if cores == 1 else "the reference has none"
        return Check("on 1 thread as on 2", "same bits", "", None, None, why)
    threads = backend.num_threads if backend.num_threads > 1 else cores
    one, more = (backend.with_threads(n).forward(ids) for n in (1, threads))
    return same_bits(
        f"on 1 thread as on {threads}", np.concatenate([one, more]), np.concatenate([batch, batch])
    )


def token_ids(name: str, found: Sequence[int], expected: Sequence[int], other: bool) -> Check:
    """Compare token ids; with `other`, the model has another tokenizer, and nothing is compared."""
    if other:
        return Check(name, f"{len(expected)} ids", "", None, None, OTHER_TOKENIZER)
    different = sum(a != b for a, b in zip(found, expected, strict=False)) + abs(len(found) - len(expected))
    verdict = BAD if different else OK
    return Check(name, f"{len(expected)} ids", f"{len(found)} ids", different, 0, verdict)


def value(name: str, expected: float, got: float, tolerance: float, compared: bool, source: str) -> Check:
    """Compare a number with a published one, unless the weights are not known to be the published ones."""
    if not compared:
        return Check(name, expected, "", None, tolerance, NEEDS_WEIGHTS, source)
    difference = abs(got - expected)
    return Check(name, expected, got, difference, tolerance, OK if difference <= tolerance else BAD, source)


def count(name: str, wrong: int, of: int) -> Check:
    """Check that none of so many is wrong."""
    return Check(name, f"{of} of {of}", f"{of - wrong} of {of}", wrong, 0, BAD if wrong else OK)


def same_bits(name: str, got: NDArray[Any], expected: NDArray[Any]) -> Check:
    """Compare float32 vectors to the bit; the difference is the number of vectors that are not the same."""
    a, b = (np.ascontiguousarray(x, np.float32).view(np.uint32) for x in (got, expected))
    wrong = int((a != b).any(axis=1).sum())
    verdict = BAD if wrong else OK
    return Check(name, "same bits", "other bits" if wrong else "same bits", wrong, 0, verdict)


def close(name: str, difference: float, tolerance: float) -> Check:
    """Check a difference against its tolerance."""
    return Check(name, "", "", difference, tolerance, OK if difference <= tolerance else BAD)


def library_ids(checkpoint: Checkpoint, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise with the tokenizers library alone, not this package's tokenizer, adding no special token."""
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint.transformer_folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def rare_tokens(checkpoint: Checkpoint) -> list[int]:
    """Return token ids that have massive activations in generated weights."""
    ids: list[int] = synth.massive_token_ids(checkpoint.config, seed=0)[:15].tolist()
    return ids
