"""The table of RoPE, reference.rope_table, with the same bits on every CPU.

np.cos, np.sin and np.power have code for each kind of CPU and of C library, and their last bits differ.
Here are sums, products and roundings alone, in float64 and in an order that is written down: IEEE 754
defines their bits. In the published models' tables each value is the float32 nearest to the exact one;
np.cos is up to 1.5 units in the last place off.
"""

from __future__ import annotations

from decimal import Context, Decimal
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

# pi/2 in two parts (fdlibm's). The first has 33 bits: its multiples up to 2^20 are exact.
QUARTER_HIGH, QUARTER_LOW = float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a626331p-34")
# Taylor's, the highest power first, for |x| <= pi/4: sin x / x to x^14 and cos x to x^16, both in x^2.
SIN = [(-1) ** n / factorial(2 * n + 1) for n in reversed(range(8))]
COS = [(-1) ** n / factorial(2 * n) for n in reversed(range(9))]
AT_ONCE = 512  # positions: their float64 values stay in the cache

Table = NDArray[np.float32]


def rope_table(T: int, H: int, theta: float) -> tuple[Table, Table]:
    """cos and sin of position * theta^(-2i/H): two arrays [T, H/2].

    Frequencies and angles are rounded to float32, as in the reference.
    """
    exponents = np.arange(0, H, 2, dtype=np.float32) / np.float32(H)
    power = Context(prec=30).power
    powers = [float(power(Decimal(theta), Decimal(float(exponent)))) for exponent in exponents]
    inv_freq = np.float32(1) / np.array(powers, np.float32)
    cos, sin = np.empty((T, len(inv_freq)), np.float32), np.empty((T, len(inv_freq)), np.float32)
    for first in range(0, T, AT_ONCE):
        positions = np.arange(first, min(first + AT_ONCE, T), dtype=np.float32)
        cos[first : first + AT_ONCE], sin[first : first + AT_ONCE] = cos_sin(positions[:, None] * inv_freq)
    return cos, sin


def cos_sin(angles: Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """cos and sin of float32 angles from 0 to 1.6 million."""
    x = angles.astype(np.float64)
    quarters = np.rint(x * (2 / np.pi))
    x = (x - quarters * QUARTER_HIGH) - quarters * QUARTER_LOW
    squares = x * x
    cos, sin = polynomial(COS, squares), x * polynomial(SIN, squares)
    quarter = quarters.astype(np.int64) % 4  # a quarter turn takes (cos, sin) to (-sin, cos)
    odd = quarter % 2 == 1
    cos, sin = np.where(odd, sin, cos), np.where(odd, cos, sin)
    return np.where((quarter == 1) | (quarter == 2), -cos, cos), np.where(quarter >= 2, -sin, sin)


def polynomial(coefficients: list[float], x: NDArray[Any]) -> NDArray[Any]:
    """Evaluate a polynomial by Horner's scheme, each product and each sum rounded."""
    y = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y = y * x + c
    return y
