"""A query against many rows: products and squares of all of them in one pass over memory.

A search of one query reads every row once and does little with it: 4 GB for a million rows of 1024 float32.
So what it takes is the time to read them, if nothing is written back: not the rows' float32 values where they
are stored in bytes, nor rows divided by their lengths.
"""

from __future__ import annotations

import numpy as np

from .jit import entry_point


# Sums in any order, or LLVM would add one product at a time; what is not finite stays so.
@entry_point(fastmath={"reassoc", "contract", "nsz"})
def scan(rows, steps, origins, query, products, squares):
    """products[i] = value_i . query, squares[i] = value_i . value_i; value_i = origins + rows[i] * steps.

    Args:
        rows: [N, D] float32, int8 or uint8.
        steps: float32 [D], or None where the rows are the values.
        origins: As `steps`.
        query: float32 [D].
        products: Written, float32 [N].
        squares: Written, float32 [N].
    """
    for i in range(rows.shape[0]):
        product = square = np.float32(0)
        for d in range(rows.shape[1]):
            value = np.float32(rows[i, d])
            if steps is not None:
                value = value * steps[d] + origins[d]
            product += value * query[d]
            square += value * value
        products[i] = product
        squares[i] = square
