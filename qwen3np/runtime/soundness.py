"""Damaged weights, found by their results: states that are zero or not finite.

Looking at the results costs nothing; the weights are looked at, all of them, only once a result is bad.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..loading.checkpoint import Checkpoint, Tensor, widen
from .backend import Backend

AT_ONCE = 1 << 24  # values of a tensor looked at at a time: 64 MB as float32


def check_states(
    states: NDArray[np.float32], texts: Sequence[Sequence[int]], checkpoint: Checkpoint, backend: Backend
) -> None:
    """Check final states, each of which must be finite and not zero.

    Args:
        states: [rows, hidden_size].
        texts: token ids, one text per row, or one of all rows.
        checkpoint: the weights.
        backend: computed the states.

    Raises:
        CheckpointError: one is not; it names the tensor, or else the stage where that begins.
    """
    squares = np.einsum("ij,ij->i", states, states)
    bad = np.flatnonzero(~((squares > 0) & (squares < np.inf)))
    if len(bad):
        ids = texts[bad[0]] if len(texts) == len(states) else texts[0]
        what = "zero" if squares[bad[0]] == 0 else "not finite"
        blame = next(_bad_tensors(checkpoint), None) or _bad_stage(backend, ids)
        raise CheckpointError(
            f"{checkpoint.folder}: the model's result is {what}: {blame}; download the weights again"
        )


def check_rows(rows: NDArray[Any], name: str, folder: Path) -> None:
    """Raise CheckpointError if a head's row is not finite, or zero: all scores would be the same."""
    if not np.isfinite(rows).all() or not rows.any(axis=1).all():
        raise CheckpointError(
            f"{folder}: {name}: holds NaN, infinity or nothing but zeros; download the weights again"
        )


def _bad_tensors(checkpoint: Checkpoint) -> Iterator[str]:
    for name, tensor in checkpoint.tensors.items():
        if count := sum(int((~np.isfinite(part)).sum()) for part in _parts(tensor)):
            yield f"{name} holds {count} values that are NaN or infinite, of {tensor.data.size}"
        elif not any(part.any() for part in _parts(tensor)):
            yield f"{name} is all zeros"


def _parts(tensor: Tensor) -> Iterator[NDArray[np.float32]]:
    for stored in (tensor.data, tensor.scales):
        flat = np.empty(0) if stored is None else stored.reshape(-1)
        yield from (widen(flat[first : first + AT_ONCE]) for first in range(0, flat.size, AT_ONCE))


def _bad_stage(backend: Backend, ids: Sequence[int]) -> str:
    """Say which stage of this text's computation is the first that is not finite, or zero."""
    for name, values in backend.stages([list(ids)]):
        if not np.isfinite(values).all() or not values.any():
            return f"it is so first behind {name}, though its weights are finite"
    return "every stage computed alone is sound: the machine's memory may be faulty"
