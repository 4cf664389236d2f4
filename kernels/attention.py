"""Causal grouped-query attention on packed sequences, without an S x S matrix (online softmax,
arXiv:1805.02867).

q        float32 panels [P, N*H, 16], normalised and turned
keys     of the stream's texts, and values: see keys_values.py
out      operand [P, N*H, 16]

Queries and probabilities become operands (panels.py) of the keys' and values' kind: float32, rounded to
bfloat16, or for AMX sums of bfloat16 parts, where a product of two sums leaves out the pairs that are smaller
than its last part. Scores, softmax and sums are float32 always.

A query panel may hold tokens of several texts. A segment says which: its lanes, and the places of its text's
keys. Keys are taken in chunks counted from the text's first, each chunk's sums are chains over its keys in
order, and a key that a lane may not see adds an exact zero: where the text stands in the stream changes no
bit.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from .compiled import inline
from .keys_values import AT_ONCE, padded
from .lanes import both, exp, load, maximum, select, splat, store
from .matmul import kind_of, panels_at_once, product
from .panels import put_parts, put_rows
from .team import TASKS, atomic_add
from .tiles import TILE, configure, multiply_tiles, release, tiled

CHUNK = 256  # keys: their scores (16 KB a head) stay in L1, their values in L2
LOWEST = np.float32(-1e30)  # below any score; with -inf, a lane that sees nothing would compute inf - inf
MOST = 3  # heads at once
PARTS = 3  # of a float32 value, at the most


def scratch_size(head_dim: int, group: int) -> int:
    """float32 values of scratch that a thread needs."""
    rows = padded(head_dim, tiles=True)
    operands = 2 * PARTS * (rows + CHUNK) // 2  # of two heads on tiles; MOST heads of one part take less
    return 16 * (MOST * (CHUNK + rows + 2) + group * rows + operands)


def heads_at_once(keys, left):
    """How many of the `left` query heads of a group come next."""


@overload(heads_at_once, jit_options={"nogil": True})
def _heads_at_once(keys, left):
    if tiled(keys):
        return lambda keys, left: min(2, left)
    return lambda keys, left: panels_at_once(left)


def parts_and_rows(values):
    """Of how many parts a value is, and H': the rows of a head's result."""


@overload(parts_and_rows, jit_options={"nogil": True})
def _parts_and_rows(values):
    if tiled(values):
        return lambda values: (values.shape[1], values.shape[2] * 32)
    return lambda values: (1, values.shape[1] * 16)


def operand(left, parts, take, rows, source, at, step, operands, to):
    """`take` panels of `rows` float32 rows, `step` apart in source from `at` on, as `left` (keys or values)
    is multiplied by: an array, the index of the first panel, and the step to the next. Float32 as they are;
    else in parts, at operands[to] and behind, with zeros up to a multiple of 32 rows."""


@overload(operand, jit_options={"nogil": True})
def _operand(left, parts, take, rows, source, at, step, operands, to):
    if left.dtype == types.float32:
        return lambda left, parts, take, rows, source, at, step, operands, to: (source, at, step)

    def put(left, parts, take, rows, source, at, step, operands, to):
        part_step = -(-rows // 32) * TILE
        for t in range(take):
            for i in range(0, part_step, 32):
                even = odd = splat(np.float32(0))
                if i < rows * 16:  # an even number of rows
                    even, odd = load(source, at + t * step + i), load(source, at + t * step + i + 16)
                put_parts(operands, to + t * parts * part_step + i, part_step, parts, even, odd)
        return operands, to, parts * part_step

    return put


def key_scores(keys, head, start, stop, take, q, q_at, q_step, scores, score_step):
    """scores[t, j] = q[t] . keys[start + j], for `take` heads; q is an operand."""


@overload(key_scores, jit_options={"nogil": True})
def _key_scores(keys, head, start, stop, take, q, q_at, q_step, scores, score_step):
    if tiled(keys):

        def products(keys, head, start, stop, take, q, q_at, q_step, scores, score_step):
            parts, steps = keys.shape[2], keys.shape[3]
            part_step = steps * TILE
            for j in range(start, stop, 32):
                for part in range(parts):
                    k_at = ((head * keys.shape[1] + j // 32) * parts + part) * steps * 2 * TILE
                    multiply_tiles(
                        part == 0, keys, k_at, steps, q, q_at, q_step, part_step, parts - part, take, scores,
                        (j - start) * 16, score_step, 0,
                    )  # fmt: skip

        return products

    multiply = product("store", kind_of(keys, q))

    def products(keys, head, start, stop, take, q, q_at, q_step, scores, score_step):
        steps, step = keys.shape[2], keys.shape[3]
        for j in range(start, stop, 16):
            k_at = (head * keys.shape[1] + j // 16) * steps * step
            multiply(take, keys, k_at, step, q, q_at, q_step, scores, (j - start) * 16, score_step, steps)

    return products


def weigh_values(values, head, start, stop, take, p, p_at, p_step, fresh, o, o_at, o_step):
    """o[t] (+)= the sum of values[start + j], each times its probability p[t, j], for `take` heads; p is an
    operand."""


@overload(weigh_values, jit_options={"nogil": True})
def _weigh_values(values, head, start, stop, take, p, p_at, p_step, fresh, o, o_at, o_step):
    if tiled(values):

        def products(values, head, start, stop, take, p, p_at, p_step, fresh, o, o_at, o_step):
            parts, blocks, steps = values.shape[1], values.shape[2], (stop - start) // 32
            part_step = steps * TILE
            for block in range(blocks):
                for part in range(parts):
                    v_at = ((head * parts + part) * blocks + block) * values.shape[3] + start // 32
                    multiply_tiles(
                        fresh and part == 0, values, v_at * 2 * TILE, steps, p, p_at, p_step, part_step,
                        parts - part, take, o, o_at + block * TILE, o_step, 0,
                    )  # fmt: skip

        return products

    multiply = product("store", kind_of(values, p))
    multiply_on = product("continue", kind_of(values, p))
    width = 1 if values.dtype == types.float32 else 2

    def products(values, head, start, stop, take, p, p_at, p_step, fresh, o, o_at, o_step):
        step, steps = values.shape[3], (stop - start) // width
        for block in range(values.shape[1]):
            v_at = ((head * values.shape[1] + block) * values.shape[2] + start // width) * step
            at = o_at + block * 256
            if fresh:
                multiply(take, values, v_at, step, p, p_at, p_step, o, at, o_step, steps)
            else:
                multiply_on(take, values, v_at, step, p, p_at, p_step, o, at, o_step, steps)

    return products


@inline
def softmax_chunk(scores, at, first, last, stop, places, scale, state, first_chunk, o, o_at, rows):
    """Scores of the keys at places [first, last) at `at` -> probabilities, relative to the largest score so
    far; the state (largest, sum) and the values summed so far, o, follow it. What is behind, up to `stop`,
    gets probability zero."""
    before = splat(LOWEST) if first_chunk else load(scores, state)
    largest = before
    for j in range(first, last):
        here = at + (j - first) * 16
        seen = places >= splat(np.float32(j))
        score = select(seen, load(scores, here) * scale, splat(LOWEST))
        store(scores, here, score)
        largest = maximum(largest, score)
    zero = splat(np.float32(0))
    total = zero
    for j in range(first, last):
        here = at + (j - first) * 16
        probability = exp(load(scores, here) - largest)
        store(scores, here, probability)
        total = total + probability
    for j in range(last, stop):
        store(scores, at + (j - first) * 16, zero)
    if not first_chunk:
        shrink = exp(before - largest)
        total = total + load(scores, state + 16) * shrink
        for h in range(rows):
            store(o, o_at + h * 16, load(o, o_at + h * 16) * shrink)
    store(scores, state, largest)
    store(scores, state + 16, total)


@inline
def attend(q, panel, keys, values, head, group, head_dim, segments, places, out, scratch):
    """The query heads of one key/value head, of one panel of queries."""
    H, (parts, rows) = head_dim, parts_and_rows(values)
    scale = splat(np.float32(1) / np.sqrt(np.float32(H)))
    score_step, o_step = CHUNK * 16, rows * 16
    o_at = MOST * score_step
    state_at = o_at + MOST * o_step
    done_at = state_at + MOST * 32
    operands = scratch[done_at + group * o_step :].view(np.uint16)
    for i in range(done_at, done_at + group * o_step, 16):  # lanes behind the stream's end stay zero
        store(scratch, i, splat(np.float32(0)))
    g = 0
    while g < group:
        take = heads_at_once(keys, group - g)
        q_at = (panel * q.shape[1] + (head * group + g) * H) * 16
        x, x_at, x_step = operand(keys, parts, take, H, q, q_at, H * 16, operands, 0)
        for s in range(segments.shape[0]):
            first, last, lane, next_lane = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
            for chunk in range(first, last, CHUNK):
                end = min(chunk + CHUNK, last)
                stop = -(-end // AT_ONCE) * AT_ONCE
                key_scores(keys, head, chunk, stop, take, x, x_at, x_step, scratch, score_step)
                for t in range(take):
                    softmax_chunk(
                        scratch, t * score_step, chunk, end, stop, places, scale, state_at + t * 32,
                        chunk == first, scratch, o_at + t * o_step, rows,
                    )  # fmt: skip
                p, p_at, p_step = operand(
                    values, parts, take, stop - chunk, scratch, 0, score_step, operands, take * x_step
                )
                weigh_values(
                    values, head, chunk, stop, take, p, p_at, p_step, chunk == first, scratch, o_at, o_step
                )
            here = load(LANE, 0)
            mine = both(here >= splat(np.float32(lane)), here < splat(np.float32(next_lane)))
            for t in range(take):
                inverse = splat(np.float32(1)) / load(scratch, state_at + t * 32 + 16)
                for h in range(H):
                    at = done_at + (g + t) * o_step + h * 16
                    value = load(scratch, o_at + t * o_step + h * 16) * inverse
                    store(scratch, at, select(mine, value, load(scratch, at)))
        g += take
    for g in range(group):
        for h in range(0, H, 2):
            at = done_at + g * o_step + h * 16
            put_rows(out, panel, (head * group + g) * H + h, load(scratch, at), load(scratch, at + 16))


LANE = np.arange(16, dtype=np.float32)


@inline
def attention(
    q, panels, query_panel, keys, values, group, head_dim, starts, segments, places, out, scratch, team
):
    """out[p] for p < panels. Query panel query_panel + p has segments[starts[it] : starts[it + 1]], rows of
    (place of the first key, of the last + 1, first lane, last lane + 1), and the places of its lanes' own
    keys in places[it].

    Panels and heads are handed out one by one: the cost of a panel grows with its place in the sequence.
    """
    tasks = panels * keys.shape[0]
    configure(keys)
    while True:
        task = atomic_add(team, TASKS, 1)
        if task >= tasks:
            break
        p, head = panels - 1 - task // keys.shape[0], task % keys.shape[0]  # the longest first
        it = query_panel + p
        mine = segments[starts[it] : starts[it + 1]]
        attend(q, p, keys, values, head, group, head_dim, mine, load(places, it * 16), out, scratch)
    release(keys)
