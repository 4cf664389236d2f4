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
from .lanes import LANE, any_lane, both, exp2, fma, load, maximum, select, splat, store
from .matmul import kind_of, panels_at_once, product
from .panels import pairs_of_rounded, put_lanes, put_parts, rounded
from .team import TASKS, atomic_add
from .tiles import TILE, configure, multiply_tiles, release, tiled

CHUNK = 256  # keys: their scores (16 KB a head) stay in L1, their values in L2
LOWEST = np.float32(-1e30)  # below any score; with -inf, a lane that sees nothing would compute inf - inf
MOST = 3  # heads at once
PANELS = 8  # of queries that take a chunk of keys and values in turn, while it is in L2
PARTS = 3  # of a float32 value, at the most


def scratch_size(head_dim: int, group: int) -> int:
    """float32 values of scratch that a thread needs."""
    rows = padded(head_dim, tiles=True)
    query = rows + 2 + PARTS * rows // 2  # the sum of values, the state and the operand of a panel's head
    return 16 * (MOST * CHUNK + PANELS * group * query + 2 * PARTS * CHUNK // 2)


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


def of_kind(left, float32, parts):
    """One of two, by how `left` (keys or values) is multiplied: by float32 or by parts."""


@overload(of_kind, jit_options={"nogil": True})
def _of_kind(left, float32, parts):
    if left.dtype == types.float32:
        return lambda left, float32, parts: float32
    return lambda left, float32, parts: parts


def put_queries(keys, parts, rows, q, at, operands, to):
    """`rows` float32 rows at q[at] as parts at operands[to], with zeros up to a multiple of 32 rows; nothing
    if keys are float32."""


@overload(put_queries, jit_options={"nogil": True})
def _put_queries(keys, parts, rows, q, at, operands, to):
    if keys.dtype == types.float32:
        return lambda keys, parts, rows, q, at, operands, to: None

    def put(keys, parts, rows, q, at, operands, to):
        part_step = -(-rows // 32) * TILE
        for i in range(0, part_step, 32):
            even = odd = splat(np.float32(0))
            if i < rows * 16:  # an even number of rows
                even, odd = load(q, at + i), load(q, at + i + 16)
            put_parts(operands, to + i, part_step, parts, even, odd)

    return put


def put_weights(values, parts, scores, at, operands, to, step, even, odd):
    """Two keys' probabilities as values are multiplied by: float32 where the scores were, or parts in
    `operands`."""


@overload(put_weights, jit_options={"nogil": True})
def _put_weights(values, parts, scores, at, operands, to, step, even, odd):
    if values.dtype == types.float32:

        def put(values, parts, scores, at, operands, to, step, even, odd):
            store(scores, at, even)
            store(scores, at + 16, odd)

    else:

        def put(values, parts, scores, at, operands, to, step, even, odd):
            for part in range(parts):
                e, o = rounded(even), rounded(odd)
                store(operands, to + part * step, pairs_of_rounded(e, o))
                even, odd = even - e, odd - o

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
                k_at = (head * keys.shape[1] + j // 32) * parts * steps * 2 * TILE
                multiply_tiles(
                    True, keys, k_at, 2 * part_step, parts, steps, q, q_at, q_step, part_step, parts, take,
                    scores, (j - start) * 16, score_step, 0,
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
            v_step = values.shape[3] * 2 * TILE  # of 32 channels
            for block in range(blocks):
                v_at = (head * parts * blocks + block) * v_step + start // 32 * 2 * TILE
                multiply_tiles(
                    fresh, values, v_at, blocks * v_step, parts, steps, p, p_at, p_step, part_step, parts,
                    take, o, o_at + block * TILE, o_step, 0,
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
def softmax_chunk(
    scratch, at, first, stop, seen, places, scale, state, fresh, o_at, rows, values, parts, operands, to
):
    """Scores, at `at`, of the keys at places [first, stop) -> probabilities, relative to the largest score so
    far; the state (largest, sum) and the values summed so far follow it. All lanes see the places before
    `seen`."""
    for j in range(max(first, seen), stop):
        here = at + (j - first) * 16
        score = select(places >= splat(np.float32(j)), load(scratch, here), splat(LOWEST))
        store(scratch, here, score)
    m0 = m1 = m2 = m3 = splat(LOWEST)
    end = at + (stop - first) * 16
    for here in range(at, end, 64):
        m0, m1 = maximum(load(scratch, here), m0), maximum(load(scratch, here + 16), m1)
        m2, m3 = maximum(load(scratch, here + 32), m2), maximum(load(scratch, here + 48), m3)
    before = splat(LOWEST) if fresh else load(scratch, state)
    largest = maximum(maximum(maximum(m0, m1), maximum(m2, m3)) * scale, before)
    zero = splat(np.float32(0))
    less, even_sum, odd_sum = zero - largest, zero, zero
    step = (stop - first) * 16
    for here in range(at, end, 32):
        even = exp2(fma(load(scratch, here), scale, less))
        odd = exp2(fma(load(scratch, here + 16), scale, less))
        even_sum, odd_sum = even_sum + even, odd_sum + odd
        put_weights(values, parts, scratch, here, operands, to + here - at, step, even, odd)
    total = even_sum + odd_sum
    if not fresh:
        shrink = exp2(before - largest)
        total = total + load(scratch, state + 16) * shrink
        if any_lane(largest > before):
            for h in range(o_at, o_at + rows * 16, 16):
                store(scratch, h, load(scratch, h) * shrink)
    store(scratch, state, largest)
    store(scratch, state + 16, total)


LOG2_E = np.float32(1.44269504088896341)


@inline
def attend(q, p, panels, keys, values, head, group, head_dim, at, starts, segments, places, out, scratch):
    """The query heads of one key/value head, of `panels` panels of queries from p on. In the stream the first
    is number `at`."""
    H, (parts, rows) = head_dim, parts_and_rows(values)
    scale = splat(LOG2_E / np.sqrt(np.float32(H)))
    score_step, o_step, x_step = CHUNK * 16, rows * 16, parts * -(-H // 32) * TILE
    o_at = MOST * score_step
    state_at = o_at + PANELS * group * o_step
    operands = scratch[state_at + PANELS * group * 32 :].view(np.uint16)
    for i in range(panels * group):
        q_at = ((p + i // group) * q.shape[1] + (head * group + i % group) * H) * 16
        put_queries(keys, parts, H, q, q_at, operands, i * x_step)
    s = starts[at]
    while s < starts[at + panels]:
        i = 0  # the text's first panel here
        while starts[at + i + 1] <= s:
            i += 1
        first, count = segments[s, 0], 1
        while i + count < panels and segments[s + count, 0] == first:
            count += 1
        for chunk in range(first, segments[s + count - 1, 1], CHUNK):
            for j in range(count):
                last, lane = segments[s + j, 1], segments[s + j, 2]
                if chunk >= last:
                    continue
                stop = -(-min(chunk + CHUNK, last) // AT_ONCE) * AT_ONCE
                own = (at + i + j) * 16
                seen = np.int64(places[at + i + j, lane]) + 1
                g = 0
                while g < group:
                    take = heads_at_once(keys, group - g)
                    n = (i + j) * group + g
                    q_at = ((p + i + j) * q.shape[1] + (head * group + g) * H) * 16
                    x, x_at, xs = of_kind(keys, (q, q_at, H * 16), (operands, n * x_step, x_step))
                    key_scores(keys, head, chunk, stop, take, x, x_at, xs, scratch, score_step)
                    p_step = parts * (stop - chunk) * 16
                    p_at = PANELS * group * x_step
                    for t in range(take):
                        softmax_chunk(
                            scratch, t * score_step, chunk, stop, seen, load(places, own), scale,
                            state_at + (n + t) * 32, chunk == first, o_at + (n + t) * o_step, rows, values,
                            parts, operands, p_at + t * p_step,
                        )  # fmt: skip
                    y, y_at, ys = of_kind(values, (scratch, 0, score_step), (operands, p_at, p_step))
                    weigh_values(
                        values, head, chunk, stop, take, y, y_at, ys, chunk == first, scratch,
                        o_at + n * o_step, o_step,
                    )  # fmt: skip
                    g += take
        here = load(LANE, 0)
        for j in range(count):
            lane, next_lane = np.float32(segments[s + j, 2]), np.float32(segments[s + j, 3])
            mine = both(here >= splat(lane), here < splat(next_lane))
            for g in range(group):
                n = (i + j) * group + g
                inverse = splat(np.float32(1)) / load(scratch, state_at + n * 32 + 16)
                for h in range(0, H, 2):
                    o = o_at + n * o_step + h * 16
                    even, odd = load(scratch, o) * inverse, load(scratch, o + 16) * inverse
                    put_lanes(out, p + i + j, (head * group + g) * H + h, even, odd, mine)
        s += count


@inline
def attention(
    q, panels, query_panel, keys, values, group, head_dim, starts, segments, places, out, scratch, team,
    num_threads,
):  # fmt: skip
    """out[p] for p < panels. Query panel query_panel + p has segments[starts[it] : starts[it + 1]], rows of
    (place of the first key, of the last + 1, first lane, last lane + 1), and the places of its lanes' own
    keys in places[it].

    Some panels of a head are a task, handed out one by one: the cost grows with the place in the sequence.
    """
    heads = keys.shape[0]
    at_once = max(1, min(PANELS, panels * heads // (2 * num_threads)))
    groups = -(-panels // at_once)
    configure(keys)
    while True:
        task = atomic_add(team, TASKS, 1)
        if task >= groups * heads:
            break
        p, head = (groups - 1 - task // heads) * at_once, task % heads  # the longest first
        attend(
            q, p, min(at_once, panels - p), keys, values, head, group, head_dim, query_panel + p, starts,
            segments, places, out, scratch,
        )  # fmt: skip
    release(keys)
