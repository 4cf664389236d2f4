"""Texts as tokens beside the teacher's vectors of them, the batches of an epoch, and the loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from pairs import Pair
from torch import Tensor
from torch.nn import functional

from qwen3np.loading.model_cards import QUERY_PROMPT

DIMENSIONS = (32, 64, 128, 192)  # what a vector may be cut to
POOL = 16  # batches sorted by their documents' length together, so that little is padding
TEMPERATURE = 0.05
LENGTH = 96  # tokens of a text


Batch = tuple[list[int], list[int]]  # places of queries, and of their documents


class Texts:
    """Token ids of all texts, and the teacher's vectors of them, by their place in the list.

    They are those of a query too: the instruction's end, ":", is a token of its own before any text.
    """

    def __init__(self, texts: list[str], vectors: NDArray[np.float16], tokenizer: tokenizers.Tokenizer):
        self.at = {text: i for i, text in enumerate(texts)}
        self.vectors = torch.from_numpy(vectors)
        self.ids = [cut_ids(e.ids) for e in tokenizer.encode_batch([t.lower() for t in texts])]
        self.prompt = tokenizer.encode(QUERY_PROMPT.lower(), add_special_tokens=False).ids

    def teacher(self, queries: list[int], documents: list[int]) -> tuple[Tensor, Tensor]:
        """Return the teacher's vectors of texts by their places."""
        return self.vectors[queries].float(), self.vectors[documents].float()


def cut_ids(ids: list[int]) -> list[int]:
    """Return at most LENGTH ids, the last of them the end's."""
    return ids if len(ids) <= LENGTH else ids[: LENGTH - 1] + ids[-1:]


def projection(vectors: Tensor, dimensions: int) -> Tensor:
    """Return the (384, dimensions) projection that keeps most of the cosines, the strongest direction first.

    So the first 32 of its dimensions are the best 32, and cutting a vector is learned from the teacher too. A
    direction's sign is free, and depends on rounding: the largest of its values is positive here.
    """
    basis = torch.linalg.eigh(vectors.T @ vectors)[1].flip(1)[:, :dimensions]
    return basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()


def batches(pairs: list[Pair], texts: Texts, seed: int, size: int) -> Iterator[Batch]:
    """Yield the batches of an epoch, and the next epoch's, without end.

    Of every second pool each batch is of like documents, as the teacher finds them: what tells those apart is
    not in the words that a random document lacks.
    """
    for epoch in count():
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(pairs))
        found = []
        for number, start in enumerate(range(0, len(order), size * POOL)):
            pool = [pairs[i] for i in order[start : start + size * POOL]]
            places = [(texts.at[pair.query], texts.at[pair.document]) for pair in pool]
            if number % 2:
                places = _alike(places, texts.vectors, size)
            else:
                places.sort(key=lambda place: len(texts.ids[place[1]]))
            for i in range(0, len(places) - size + 1, size):
                queries, documents = zip(*places[i : i + size], strict=True)
                found.append(([*queries], [*documents]))
        for i in rng.permutation(len(found)):
            yield found[i]


def _alike(places: list[tuple[int, int]], vectors: Tensor, size: int) -> list[tuple[int, int]]:
    """Return pairs in an order in which a batch is the first left, and those of the nearest documents."""
    left, ordered = places, []
    while left:
        rows = vectors[[document for _, document in left]].float()
        nearest = (rows @ rows[0]).argsort(descending=True)
        ordered += [left[i] for i in nearest[:size].tolist()]
        left = [left[i] for i in sorted(nearest[size:].tolist())]
    return ordered


def loss(queries: Tensor, documents: Tensor, teacher: tuple[Tensor, Tensor], basis: Tensor) -> Tensor:
    """Return the loss of a batch.

    Args:
        queries: The student's states.
        documents: Of the documents, one a query.
        teacher: The teacher's vectors of both.
        basis: The projection to the student's dimensions.
    """
    own = torch.arange(len(queries))
    found = [cut(queries, d) @ cut(documents, d).T / TEMPERATURE for d in DIMENSIONS]
    both, target = torch.cat([queries, documents]), torch.cat(teacher) @ basis
    wanted = teacher[0] @ teacher[1].T / TEMPERATURE
    # A document that the teacher finds nearer to the query than its own may be right too.
    rivals = wanted > wanted.diagonal()[:, None]
    answer = mean(functional.cross_entropy(f.masked_fill(rivals, -1e9), own) for f in found)
    log = functional.log_softmax(wanted, 1)
    order = mean(
        functional.kl_div(f.log_softmax(1), log, reduction="batchmean", log_target=True) for f in found
    )
    likeness = mean((cut(both, d) * cut(target, d)).sum(1).mean() for d in DIMENSIONS)
    return 0.3 * answer + order + 4 * (1 - likeness)


def mean(values: Iterable[Tensor]) -> Tensor:
    """Return the mean of scalars."""
    return torch.stack(list(values)).mean()


def cut(states: Tensor, dimensions: int) -> Tensor:
    """Return unit vectors of the first dimensions."""
    return functional.normalize(states[:, :dimensions], dim=1)
