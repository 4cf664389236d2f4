"""Causal grouped-query attention on packed sequences, without an S x S matrix (online softmax,
arXiv:1805.02867).

q        float32 panels [P, N*H, 16], normalised and turned
keys     [K, panels of the stream, H, 16]: as a matmul's left operand, a panel is 16 keys
values   [K, S, H']: rows are tokens, H' is H padded to 16
out      operand [P, N*H, 16]

A query panel may hold tokens of several sequences. A segment says which: its lanes, and the first key of its
sequence. Keys are taken in chunks counted from the sequence's first key, each chunk's sums are chains over
its keys in order, and a key that a lane may not see adds an exact zero: where the sequence stands in the
stream changes no bit.
"""

from __future__ import annotations

import numpy as np

from .compiled import inline
from .lanes import both, exp, load, maximum, select, splat, store
from .matmul import panels_at_once, product
from .panels import put_rows
from .team import TASKS, atomic_add

CHUNK = 256  # keys: their scores (16 KB a head) stay in L1, their values in L2
LOWEST = np.float32(-1e30)  # below any score; with -inf, a lane that sees nothing would compute inf - inf
MOST = 3  # heads at once

SCORE_ROWS = CHUNK + 32  # a chunk that starts within a panel of keys touches one more

multiply_keys = product("store", "float32")
# A chunk's values are one chain: where its first panel starts, in the sequence or before, divides nothing.
multiply_values = product("store", "float32", SCORE_ROWS)
multiply_values_on = product("continue", "float32", SCORE_ROWS)


def padded(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


def scratch_size(head_dim: int, group: int) -> int:
    """float32 values of scratch that a thread needs."""
    return 16 * (MOST * (SCORE_ROWS + padded(head_dim) + 2) + group * padded(head_dim))


@inline
def softmax_chunk(scores, at, first, last, lead, tokens, scale, state, first_chunk, o, o_at, rows):
    """Scores of keys [first, last) at `at` -> probabilities, relative to the largest score so far; the state
    (largest, sum) and the values summed so far, o, follow it. `lead` keys before and the padding behind get
    probability zero."""
    before = splat(LOWEST) if first_chunk else load(scores, state)
    largest = before
    for j in range(first, last):
        here = at + (lead + j - first) * 16
        seen = tokens >= splat(np.float32(j))
        score = select(seen, load(scores, here) * scale, splat(LOWEST))
        store(scores, here, score)
        largest = maximum(largest, score)
    zero = splat(np.float32(0))
    total = zero
    for j in range(lead):
        store(scores, at + j * 16, zero)
    for j in range(first, last):
        here = at + (lead + j - first) * 16
        probability = exp(load(scores, here) - largest)
        store(scores, here, probability)
        total = total + probability
    j = lead + last - first
    while j % 16:
        store(scores, at + j * 16, zero)
        j += 1
    if not first_chunk:
        shrink = exp(before - largest)
        total = total + load(scores, state + 16) * shrink
        for h in range(rows):
            store(o, o_at + h * 16, load(o, o_at + h * 16) * shrink)
    store(scores, state, largest)
    store(scores, state + 16, total)


@inline
def attend(q, panel, keys, values, head, group, head_dim, segments, tokens, out, scratch):
    """The query heads of one key/value head, of one panel of queries."""
    H, H_padded = head_dim, values.shape[2]
    scale = splat(np.float32(1) / np.sqrt(np.float32(H)))
    score_step, o_step = SCORE_ROWS * 16, H_padded * 16
    o_at = MOST * score_step
    state_at = o_at + MOST * o_step
    done_at = state_at + MOST * 32
    for i in range(done_at, done_at + group * o_step, 16):  # lanes behind the stream's end stay zero
        store(scratch, i, splat(np.float32(0)))
    g = 0
    while g < group:
        take = panels_at_once(group - g)
        q_at = (panel * q.shape[1] + (head * group + g) * H) * 16
        for s in range(segments.shape[0]):
            first, last, lane, next_lane = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
            for chunk in range(first, last, CHUNK):
                end = min(chunk + CHUNK, last)
                start = chunk // 16 * 16
                stop = (end + 15) // 16 * 16
                for j in range(start, stop, 16):
                    k_at = (head * keys.shape[1] + j // 16) * H * 16
                    multiply_keys(
                        take, 16, keys, k_at, 16, q, q_at, H * 16, scratch, (j - start) * 16, score_step, H
                    )
                for t in range(take):
                    softmax_chunk(
                        scratch, t * score_step, chunk, end, chunk - start, tokens, scale, state_at + t * 32,
                        chunk == first, scratch, o_at + t * o_step, H_padded,
                    )  # fmt: skip
                v_at = (head * values.shape[1] + start) * H_padded
                if chunk == first:
                    multiply_values(
                        take, H_padded, values, v_at, H_padded, scratch, 0, score_step, scratch, o_at, o_step,
                        stop - start,
                    )  # fmt: skip
                else:
                    multiply_values_on(
                        take, H_padded, values, v_at, H_padded, scratch, 0, score_step, scratch, o_at, o_step,
                        stop - start,
                    )  # fmt: skip
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
    q, panels, query_panel, keys, values, group, head_dim, starts, segments, tokens, out, scratch, team
):
    """out[p] for p < panels. Query panel query_panel + p has segments[starts[it] : starts[it + 1]], rows of
    (first key, last key + 1, first lane, last lane + 1), and its lanes' tokens, as numbers of the stream, in
    tokens[it].

    Panels and heads are handed out one by one: the cost of a panel grows with its place in the sequence.
    """
    tasks = panels * keys.shape[0]
    while True:
        task = atomic_add(team, TASKS, 1)
        if task >= tasks:
            return
        p, head = panels - 1 - task // keys.shape[0], task % keys.shape[0]  # the longest first
        it = query_panel + p
        mine = segments[starts[it] : starts[it + 1]]
        attend(q, p, keys, values, head, group, head_dim, mine, load(tokens, it * 16), out, scratch)
