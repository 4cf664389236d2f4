"""What a run would compute, and how long it would take: all texts are counted, a few of them embedded."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..loading.tokenizer import TruncationCount, batches
from .preflight import check, survey
from .rows import Row
from .run import Job, without_warnings

if TYPE_CHECKING:
    from ..embedder import Embedder

# Texts that the time is estimated by, and the most of their tokens (or one text): seconds on any CPU.
SAMPLED, SAMPLE_TOKENS = 512, 4096


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        texts: Vectors that it would write.
        bad: Bad rows that it would leave out.
        tokens: Tokens that it would compute, prompts included.
        longest: Those of the longest text, before it is cut.
        cut: Texts longer than the model takes.
        seconds: Its time, by a sample of the texts.
    """

    texts: int
    bad: int
    tokens: int
    longest: int
    cut: int
    seconds: float


def estimate(job: Job, model: Embedder, prompt: str, dim: int | None = None) -> Estimate:
    """Read all that a job would read, tokenise it, and time the model on a random sample of the texts.

    Nothing is written. Texts of an output that would be kept by an update are counted too.

    Raises:
        ValueError: As embed_file does before it computes.
        OSError: A file cannot be read.
    """
    check(job)
    _, bad = survey(job)
    model.encode("a", prompt=prompt, truncate_dim=dim)  # a wrong dimension is an error now
    if job.source.prepare(model, prompt):
        survey(job)  # of chunks
    count = TruncationCount("texts", "max_seq_length", model.max_seq_length)
    sample: list[tuple[str, int]] = []
    chosen = random.Random(0)
    tokens = seen = 0
    for batch in batches(entry.text for entry in job.rows() if isinstance(entry, Row)):
        ids = model.tokenizer.encode(batch, model.max_seq_length, prompt, count)
        for text, own in zip(batch, ids, strict=True):
            tokens += len(own)
            seen += 1
            if len(sample) < SAMPLED:
                sample.append((text, len(own)))
            elif (place := chosen.randrange(seen)) < SAMPLED:
                sample[place] = text, len(own)
    chosen.shuffle(sample)
    size = 0
    timed: list[str] = []
    for text, length in sample:
        if timed and size + length > SAMPLE_TOKENS:
            break
        timed.append(text)
        size += length
    with without_warnings():
        model.encode(timed[0], prompt=prompt)  # kernels and weights are loaded
        begun = time.perf_counter()
        model.encode(timed, prompt=prompt)
        seconds = (time.perf_counter() - begun) * tokens / size
    return Estimate(count.texts, bad, tokens, count.longest, count.truncated, seconds)
