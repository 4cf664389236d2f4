"""Comparison with the reading copy, stage by stage in forward order.

A stage is a named array of one text's forward pass: "embed_tokens", then for each layer i
"layers.i.self_attn" and "layers.i.mlp" (what the two add to the residual stream) and "layers.i" (the stream
after the layer), then "norm" (all tokens) and "pooled" (the unit vector). The names are transformers' module
names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import reference
from .checkpoint import Weights
from .table import table

Stages = Iterable[tuple[str, NDArray[Any]]]


@dataclass(frozen=True)
class Row:
    """How one stage of two forward passes differs. `relative` is max_abs over the expected stage's largest
    value."""

    stage: str
    max_abs: float
    relative: float
    cosine: float
    first: tuple[int, ...] | None  # index of the first value beyond the tolerance

    @property
    def ok(self) -> bool:
        return self.first is None


def reference_stages(
    ids: Sequence[int], weights: Weights, ref: ModuleType = reference
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The stages of one text in the reading copy, in the precision of `weights`."""
    c = weights.checkpoint.config
    x_TD = weights.embed_tokens[list(ids)]
    yield "embed_tokens", x_TD
    cos, sin = ref.rope_table(len(ids), c.head_dim, c.rope_theta)
    for i, layer in enumerate(weights.layers):
        # The lines of reference.block, with a stop between them.
        normed_TD = ref.rms_norm(x_TD, layer["input_layernorm"], c.rms_norm_eps)
        attended_TD = ref.attention(normed_TD, cos, sin, c.rms_norm_eps, **layer["self_attn"])
        yield f"layers.{i}.self_attn", attended_TD
        normed_TD = ref.rms_norm(x_TD + attended_TD, layer["post_attention_layernorm"], c.rms_norm_eps)
        yield f"layers.{i}.mlp", ref.mlp(normed_TD, **layer["mlp"])
        x_TD = ref.block(x_TD, layer, cos, sin, c.rms_norm_eps)
        yield f"layers.{i}", x_TD
    x_TD = ref.rms_norm(x_TD, weights.norm, c.rms_norm_eps)
    yield "norm", x_TD
    yield "pooled", ref.normalize(ref.pool(x_TD))


def compare(expected: Stages, got: Stages, tolerance: float) -> list[Row]:
    """One row a stage; a value is beyond the tolerance if it is off by more than tolerance * max|expected
    stage|.

    Raises ValueError if the two do not have the same stages in the same order.
    """
    rows = []
    for (name, want), (other, have) in zip(expected, got, strict=True):
        if name != other or want.shape != have.shape:
            raise ValueError(f"stage {name} {list(want.shape)} against stage {other} {list(have.shape)}")
        want, have = want.astype(np.float64), have.astype(np.float64)
        difference, scale = np.abs(want - have), np.abs(want).max()
        beyond = np.argwhere(~(difference <= tolerance * scale))  # not ">": a NaN is beyond every tolerance
        first = tuple(int(i) for i in beyond[0]) if len(beyond) else None
        cosine = np.vdot(want, have) / max(np.linalg.norm(want) * np.linalg.norm(have), 1e-300)
        rows.append(Row(name, float(difference.max()), float(difference.max() / scale), float(cosine), first))
    return rows


def report(rows: Sequence[Row]) -> str:
    """The rows as a table in forward order."""
    return table(
        ["stage", "max abs", "relative", "1 - cosine", "first beyond", "verdict"],
        [
            [
                r.stage,
                f"{r.max_abs:.1e}",
                f"{r.relative:.1e}",
                f"{1 - r.cosine:.0e}",
                str(r.first or ""),
                "ok" if r.ok else "BAD",
            ]
            for r in rows
        ],
    )
