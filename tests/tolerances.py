"""How far a result may be from float64: one table for all tests, by what the products are made of.

That follows from path and precision (Backend.arithmetic). The tolerances of single stages are the product's
own, qwen3np.verify.report.STAGE_TOLERANCE.
"""

from __future__ import annotations

from qwen3np.runtime.backend import Backend

# Of a channel of a unit vector of 1,024 channels. "high" is two bfloat16 parts, on AMX.
CHANNEL = {"float32": 1e-6, "high": 5e-6, "medium": 1e-2, "low": 1e-2}
# Of a logit, as a part of the largest.
LOGIT = {"float32": 1e-6, "high": 2e-5, "medium": 1e-2, "low": 3e-2}


def channel(backend: Backend, dimension: int) -> float:
    """Of vectors of so many channels: the fewer, the larger each is."""
    return CHANNEL[backend.arithmetic] * (1024 / dimension) ** 0.5


def logit(backend: Backend) -> float:
    return LOGIT[backend.arithmetic]
