"""Comparison of two forward passes of the same token ids, stage by stage (see runtime/stages.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.stages import Stage
from ..table import table

# No tolerance exceeds a quarter of a token's largest value, however far float32 itself is off.
TOLERANCE_CAP = 0.25


@dataclass(frozen=True)
class Row:
    """How one stage differs between two forward passes.

    Attributes:
        stage: Its name.
        max_abs: The largest difference.
        relative: The largest difference divided by the largest expected value of the same token: one token's
            massive activation (5700 in the 0.6B) does not excuse an error at another.
        float32: The relative difference of plain float32 itself, where it was measured.
        tolerance: The bound of `relative`.
        cosine: The cosine of all expected with all found values.
        first: The (token, channel) of the first value beyond the tolerance.
    """

    stage: str
    max_abs: float
    relative: float
    float32: float | None
    tolerance: float
    cosine: float
    first: tuple[int, ...] | None

    @property
    def ok(self) -> bool:
        """Whether every value is within the tolerance."""
        return self.first is None


def compare_stages(
    expected: Iterable[Stage],
    got: Iterable[Stage],
    tolerance: float,
    float32: Iterable[Stage] | None = None,
) -> list[Row]:
    """Compare two forward passes: one row per stage, all of them.

    A value is beyond the tolerance if it is off by more than tolerance times the largest expected value of
    its token. NaN is beyond every tolerance.

    Args:
        expected: The stages of the one pass.
        got: The stages of the other.
        tolerance: The relative difference allowed; with float32, a multiple of float32's own.
        float32: The stages that plain float32 gives. How far rounding carries depends on the weights, and
            float32's own relative difference shows it. It counts as 2^-23 at least, and TOLERANCE_CAP
            bounds the product.

    Raises:
        ValueError: The sources do not have the same stages in the same order.
    """
    rows = []
    sources = [expected, got] if float32 is None else [expected, got, float32]
    for stages in zip(*sources, strict=True):
        (name, want), (_, have) = stages[:2]
        if any((other, x.shape) != (name, want.shape) for other, x in stages):
            raise ValueError("stages differ: " + ", ".join(f"{n} {list(x.shape)}" for n, x in stages))
        with np.errstate(all="ignore"):  # NaN and infinity are what a row reports, not a warning
            want = want.astype(np.float64)
            scale = np.abs(want).max(axis=-1, keepdims=True)
            difference = np.abs(have - want)
            relative = _largest(difference, scale)
            unit = None if float32 is None else _largest(np.abs(stages[2][1] - want), scale)
            limit = tolerance if unit is None else min(tolerance * max(unit, 2.0**-23), TOLERANCE_CAP)
            within = (difference <= limit * scale) & np.isfinite(difference)  # false for NaN
            have = have.astype(np.float64)
            norms = np.linalg.norm(want) * np.linalg.norm(have)
            cosine = np.vdot(want, have) / norms if norms else np.array_equal(want, have)
        first = None if within.all() else tuple(int(i) for i in np.argwhere(~within)[0])
        rows.append(Row(name, float(difference.max()), relative, unit, limit, float(cosine), first))
    return rows


def _largest(difference: NDArray[Any], scale: NDArray[Any]) -> float:
    """Return the largest difference relative to its token's scale."""
    return float((difference / np.maximum(scale, np.finfo(np.float32).tiny)).max())


def stage_table(rows: Sequence[Row], columns: int | None = None) -> str:
    """Return the rows as a table, for a terminal of `columns` columns."""
    header = "stage,max abs,relative,float32's,tolerance,1 - cosine,first beyond,verdict".split(",")
    cells = [
        [
            row.stage,
            f"{row.max_abs:.1e}",
            f"{row.relative:.1e}",
            "" if row.float32 is None else f"{row.float32:.1e}",
            f"{row.tolerance:.1e}",
            f"{np.maximum(1 - row.cosine, 0):.0e}",
            str(row.first or ""),
            "ok" if row.ok else "BAD",
        ]
        for row in rows
    ]
    return table(header, cells, columns)
