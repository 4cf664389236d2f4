"""The beginning: one vector and one weight a token, whose weighted mean is already near the teacher.

It costs a twentieth of the model's own training, and the model starts as exactly this mean (student.py): what
is left to learn is the order of words and what they do to each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pairs import Pair
from texts import Texts, batches, loss
from torch import Tensor
from torch.nn import functional

BATCH, RATE = 512, 1e-2
# The two last dimensions of a token's embedding are its weight: the attention logit SPAN * cosine of their
# angle, which is what a head of 32 dimensions computes from them (k_norm takes their length away).
SPAN = 32**0.5
RARE = 1e-3  # tokens more frequent than this begin with less weight: arXiv 1703.02507, "a" of 1e-3


def begin(meanings: Tensor, texts: Texts, silent: Tensor) -> Tensor:
    """Return embeddings: the tokens' meanings, and weights by their frequency in the documents.

    Args:
        meanings: The teacher's vectors of the tokens, in the model's dimensions.
        texts: The texts to count.
        silent: Tokens of the least weight: those of the instruction, which would outweigh a short query.
    """
    counts = torch.bincount(torch.tensor([i for ids in texts.ids for i in ids]), minlength=len(meanings))
    cosine = ((RARE / (RARE + counts / counts.sum())).log() / SPAN + 0.2).clamp(-0.95, 0.95)
    cosine[silent] = -1.0
    embeddings = unit(meanings)
    embeddings[:, -2], embeddings[:, -1] = cosine, (1 - cosine**2).sqrt()
    return embeddings


def unit(rows: Tensor) -> Tensor:
    """Return the rows scaled to a root mean square of one, as RMSNorm does."""
    return rows / rows.pow(2).mean(1, keepdim=True).sqrt()


def table(embeddings: Tensor) -> Tensor:
    """Return what each token adds to the sum: its normalised embedding, times its weight."""
    rows, pointer = unit(embeddings), functional.normalize(embeddings[:, -2:], dim=1)
    weighted = rows * (SPAN * pointer[:, :1]).exp()
    return torch.cat([weighted[:, :-2], torch.zeros_like(pointer)], 1)


def sums(rows: Tensor, texts: list[list[int]]) -> Tensor:
    """Return the sum of each text's rows."""
    flat = torch.tensor([i for text in texts for i in text])
    starts = torch.tensor(np.cumsum([0, *map(len, texts[:-1])]))
    return functional.embedding_bag(flat, rows, starts, mode="sum")


def train(
    rank: int,
    embeddings: Tensor,
    pairs: list[Pair],
    texts: Texts,
    basis: Tensor,
    silent: Tensor,
    steps: int,
    seed: int,
    path: Path,
) -> None:
    """Train the embeddings, but those of silent tokens, and write them; rank is the only process's."""
    embeddings = embeddings.clone().requires_grad_()
    optimizer = torch.optim.Adam([embeddings], lr=RATE, betas=(0.9, 0.98))
    for step, (queries, documents) in zip(range(steps), batches(pairs, texts, seed, BATCH), strict=False):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        rows = table(embeddings)
        plain = step % 3 == 0
        asked = [texts.ids[i] if plain else texts.prompt + texts.ids[i] for i in queries]
        answers = [texts.ids[i] for i in documents]
        off = loss(sums(rows, asked), sums(rows, answers), texts.teacher(queries, documents), basis)
        optimizer.zero_grad()
        off.backward()
        embeddings.grad[silent] = 0.0  # Adam would move them however small their gradient is
        optimizer.step()
        if step % 20 == 0:
            print(f"static {step} of {steps}: {off.item():.3f}", flush=True)
    torch.save(embeddings.detach(), path)
