"""What runs the encoder: the kernels, or the reference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..loading.checkpoint import Checkpoint
from .stages import Stage, reference_stages

Vectors = NDArray[np.float32]

BACKENDS = ("auto", "numba", "numpy")
REFERENCE_BATCH = 32  # texts that the reference takes at a time: the states of all their tokens are in memory


class Backend(Protocol):
    """What runs the encoder. `repr` says which, how exact, and on how many threads.

    Attributes:
        name: "numba" or "numpy".
        isa: the instruction path.
        matmul_precision: the one asked for.
        arithmetic: the one used: "high", "medium", or "float32", also where the CPU has nothing faster; "low"
            where activations are rounded to integers, or weights were rounded to int8 at load.
        weights: "stored", "lossless" or "int8".
        num_threads: 1 for the reference, whose threads are NumPy's.
    """

    name: str
    isa: str
    matmul_precision: str
    arithmetic: str
    weights: str

    @property
    def num_threads(self) -> int: ...

    def forward(
        self,
        texts: Sequence[Sequence[int]],
        prefix: Sequence[int] = (),
        batch_size: int | None = None,
        progress: Callable[[int], object] = lambda texts: None,
    ) -> Vectors:
        """Token ids of each text -> the final state of its last token, not normalised.

        Args:
            texts: token ids of each text.
            prefix: what these texts begin with, and later calls will too.
            batch_size: the most texts to compute at a time.
            progress: called with the number of texts that were computed since its last call.

        Returns:
            [len(texts), hidden_size].
        """

    def token_states(self, texts: Sequence[Sequence[int]]) -> list[Vectors]:
        """Token ids of each text -> the final states of all its tokens, [len(ids), hidden_size]."""

    def stages(self, texts: Sequence[Sequence[int]], probabilities: Collection[int] = ()) -> Iterable[Stage]:
        """The same computation, stopped at each stage (see stages.py).

        Args:
            texts: token ids of each text.
            probabilities: layers whose attention is a stage too; there is one text then.
        """

    def with_threads(self, num_threads: int) -> Backend:
        """The same on another number of threads, with an empty prefix cache."""


class NumpyBackend:
    """The reference. In memory are one layer's float32 weights and one head's S x S scores."""

    name, isa, matmul_precision, arithmetic, num_threads = "numpy", "numpy", "highest", "float32", 1
    weights = "stored"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._weights = checkpoint.weights(np.float32)

    def __repr__(self) -> str:
        return "numpy, the reading copy"

    def forward(
        self,
        texts: Sequence[Sequence[int]],
        prefix: Sequence[int] = (),
        batch_size: int | None = None,
        progress: Callable[[int], object] = lambda texts: None,
    ) -> Vectors:
        states = np.empty((len(texts), self.config.hidden_size), np.float32)
        size = min(batch_size or REFERENCE_BATCH, REFERENCE_BATCH)
        for first in range(0, len(texts), size):
            some = texts[first : first + size]
            states[first : first + size] = [reference.pool(x_TD) for x_TD in self.token_states(some)]
            progress(len(some))
        return states

    def token_states(self, texts: Sequence[Sequence[int]]) -> list[Vectors]:
        c, w = self.config, self._weights
        args = (w.embed_tokens, w.layers, w.norm, c.rms_norm_eps, c.rope_theta, c.head_dim)
        return list(reference.forward(texts, *args))

    def stages(self, texts: Sequence[Sequence[int]], probabilities: Collection[int] = ()) -> Iterable[Stage]:
        return reference_stages(texts, self._weights, reference, probabilities=probabilities)

    def with_threads(self, num_threads: int) -> NumpyBackend:
        return self


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r} is not one of {', '.join(BACKENDS)}; leave it out")


def make_backend(
    checkpoint: Checkpoint,
    backend: str,
    matmul_precision: str,
    num_threads: int | None,
    reproducible: bool = False,
    weights: str = "stored",
) -> Backend:
    """Make the backend of a name: "numpy" is the reference, "auto" the fastest here, the kernels."""
    if backend == "numpy":
        if weights != "stored":
            raise ValueError(
                f"backend = 'numpy' and weights = {weights!r} contradict each other: the reference computes "
                "with the weights as they are stored; leave one of them out"
            )
        if reproducible:
            raise ValueError(
                "backend = 'numpy' and reproducible=True contradict each other: NumPy's matrix products have "
                "other bits on other CPUs; leave one of them out"
            )
        return NumpyBackend(checkpoint)
    from .numba_backend import NumbaBackend  # and with it Numba, which only the kernels need

    made = NumbaBackend(checkpoint, matmul_precision, num_threads, reproducible, weights)
    checkpoint.check_unchanged()  # while it was packed
    return made
