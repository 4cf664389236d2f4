"""Causal grouped-query attention on packed sequences, without an S x S matrix (online softmax,
arXiv:1805.02867).

q        float32 panels [P, N*H, 16], normalised and rotated
keys     of the stream's texts, and values: see kv_layout.py
out      operand [P, N*H, 16]

Queries and probabilities become operands (panels.py) of the keys' and values' kind: float32, rounded to
bfloat16, or for AMX sums of bfloat16 parts, where a product of two sums leaves out the pairs that are smaller
than its last part. Scores, softmax and sums are float32 always.

A query panel may hold tokens of several texts. A segment says which: its lanes, and the slots of its text's
keys. Keys are taken in chunks counted from the text's first, each chunk's sums are chains over its keys in
order, and a key that a lane may not see adds an exact zero: where the text stands in the stream changes no
bit.

A task is one key/value head and up to PANELS panels of queries. A chunk of its keys and values is fetched
once and serves all of them in turn: scores, softmax, and the weighted sum of values, for the query heads of
one panel after the other. At 4,096 tokens a panel by itself would wait for the last-level cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from .amx import TILE, Left, Right, Sums, configure, multiply_tiles, release, tiled
from .jit import inline
from .kv_layout import AT_ONCE, padded
from .micro_kernel import kind_of, panels_at_once, product
from .panels import pairs_of_rounded, put_lanes, put_parts, rounded
from .simd import LANE, any_lane, both, exp2, fma, load, maximum, select, splat, store
from .team import TASKS, atomic_add

CHUNK = 256  # keys: their scores (16 KB a head) stay in L1, their values in L2
LOWEST = np.float32(-1e30)  # below any score; with -inf, a lane that sees nothing would compute inf - inf
MOST = 3  # heads at once
PANELS = 8  # of queries in a task: their sums take 16 KB each at two heads of 128 channels
PARTS = 3  # of a float32 value, at the most
LOG2_E = np.float32(1.44269504088896341)


class Memory(NamedTuple):
    """A thread's scratch. `entry` counts the query heads of a task: panel by panel, heads one by one."""

    scores: Any  # [MOST, CHUNK, 16] of the heads at hand; as float32 operands, then their probabilities
    sums: Any  # [entry, H', 16] of values times probabilities
    state: Any  # [entry, 2, 16] the largest score times scale, and the sum of probabilities
    queries: Any  # as operands of uint16: [entry, parts, H/2, 32], H padded to 32
    probabilities: Any  # as operands of uint16: [heads at once, parts, keys of the chunk / 2, 32]


class Chunk(NamedTuple):
    """Keys of one text, for the queries of one panel."""

    head: int  # of keys and values
    start: int  # slots of the keys
    stop: int  # a multiple of 32: slots from the last key on are seen by no lane
    seen: int  # the panel's own lanes see all slots before
    fresh: bool  # the text's first chunk


def scratch_size(head_dim: int, group: int) -> int:
    """float32 values of scratch that a thread needs."""
    rows = padded(head_dim, tiles=True)
    entry = rows + 2 + PARTS * rows // 2
    return 16 * (MOST * CHUNK + PANELS * group * entry + 2 * PARTS * CHUNK // 2)


@inline
def query_size(head_dim, parts):
    """bfloat16 values of a query as an operand."""
    return parts * (-(-head_dim // 32)) * TILE


@inline
def memory(scratch, entries, rows, query):
    sums = MOST * CHUNK * 16
    state = sums + entries * rows * 16
    operands = state + entries * 32
    queries = scratch[operands:].view(np.uint16)
    probabilities = queries[entries * query :]
    return Memory(scratch[:sums], scratch[sums:state], scratch[state:operands], queries, probabilities)


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


def put_query(keys, parts, rows, q, at, operands, to):
    """`rows` float32 rows at q[at] as parts at operands[to], with zeros up to a multiple of 32 rows; nothing
    if keys are float32."""


@overload(put_query, jit_options={"nogil": True})
def _put_query(keys, parts, rows, q, at, operands, to):
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


def put_probabilities(values, parts, scores, at, operands, to, step, even, odd):
    """Those of two keys, as values are multiplied by them: float32 where the scores were, or parts at
    operands[to], `step` apart."""


@overload(put_probabilities, jit_options={"nogil": True})
def _put_probabilities(values, parts, scores, at, operands, to, step, even, odd):
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


def key_scores(keys, chunk, take, q, q_at, q_step, scores):
    """scores[t, j] = q[t] . keys[chunk.start + j], for `take` heads; q is an operand."""


@overload(key_scores, jit_options={"nogil": True})
def _key_scores(keys, chunk, take, q, q_at, q_step, scores):
    if tiled(keys):

        def products(keys, chunk, take, q, q_at, q_step, scores):
            parts, steps = keys.shape[2], keys.shape[3]
            part_step = steps * TILE
            right = Right(q, q_at, q_step, part_step, parts)
            for j in range(chunk.start, chunk.stop, 32):
                k_at = (chunk.head * keys.shape[1] + j // 32) * parts * 2 * part_step
                sums = Sums(scores, (j - chunk.start) * 16, CHUNK * 16)
                multiply_tiles(True, Left(keys, k_at, 2 * part_step, parts), right, take, sums, steps, 0)

        return products

    multiply = product("store", kind_of(keys, q))

    def products(keys, chunk, take, q, q_at, q_step, scores):
        steps, step = keys.shape[2], keys.shape[3]
        for j in range(chunk.start, chunk.stop, 16):
            k_at, at = (chunk.head * keys.shape[1] + j // 16) * steps * step, (j - chunk.start) * 16
            multiply(take, keys, k_at, step, q, q_at, q_step, scores, at, CHUNK * 16, steps)

    return products


def weigh_values(values, chunk, take, p, p_at, p_step, sums, sums_at):
    """sums[t] (+)= the sum of values[chunk.start + j], each times its probability p[t, j], for `take` heads;
    p is an operand."""


@overload(weigh_values, jit_options={"nogil": True})
def _weigh_values(values, chunk, take, p, p_at, p_step, sums, sums_at):
    if tiled(values):

        def products(values, chunk, take, p, p_at, p_step, sums, sums_at):
            parts, blocks, steps = values.shape[1], values.shape[2], (chunk.stop - chunk.start) // 32
            v_step = values.shape[3] * 2 * TILE  # of 32 channels
            right = Right(p, p_at, p_step, steps * TILE, parts)
            for block in range(blocks):
                v_at = (chunk.head * parts * blocks + block) * v_step + chunk.start // 32 * 2 * TILE
                left = Left(values, v_at, blocks * v_step, parts)
                into = Sums(sums, sums_at + block * TILE, blocks * TILE)
                multiply_tiles(chunk.fresh, left, right, take, into, steps, 0)

        return products

    multiply = product("store", kind_of(values, p))
    multiply_on = product("continue", kind_of(values, p))
    width = 1 if values.dtype == types.float32 else 2

    def products(values, chunk, take, p, p_at, p_step, sums, sums_at):
        step, steps, blocks = values.shape[3], (chunk.stop - chunk.start) // width, values.shape[1]
        for block in range(blocks):
            v_at = ((chunk.head * blocks + block) * values.shape[2] + chunk.start // width) * step
            at = sums_at + block * 256
            if chunk.fresh:
                multiply(take, values, v_at, step, p, p_at, p_step, sums, at, blocks * 256, steps)
            else:
                multiply_on(take, values, v_at, step, p, p_at, p_step, sums, at, blocks * 256, steps)

    return products


@inline
def softmax_chunk(mine, t, entry, chunk, slots, scale, rows, values, parts):
    """The scores of head t of those at hand -> probabilities, relative to the largest score so far; its state
    and its sums follow that. In powers of two: e^(x - y) is 2^(x log2 e - y log2 e), and `scale` holds log2
    e."""
    scores, at = mine.scores, t * CHUNK * 16
    end = at + (chunk.stop - chunk.start) * 16
    for j in range(max(chunk.start, chunk.seen), chunk.stop):
        here = at + (j - chunk.start) * 16
        store(scores, here, select(slots >= splat(np.float32(j)), load(scores, here), splat(LOWEST)))
    m0 = m1 = m2 = m3 = splat(LOWEST)
    for i in range(at, end, 64):
        m0, m1 = maximum(load(scores, i), m0), maximum(load(scores, i + 16), m1)
        m2, m3 = maximum(load(scores, i + 32), m2), maximum(load(scores, i + 48), m3)
    before = splat(LOWEST) if chunk.fresh else load(mine.state, entry * 32)
    largest = maximum(maximum(maximum(m0, m1), maximum(m2, m3)) * scale, before)
    zero = splat(np.float32(0))
    less, even_sum, odd_sum = zero - largest, zero, zero
    part_step = end - at
    for i in range(0, end - at, 32):
        even = exp2(fma(load(scores, at + i), scale, less))
        odd = exp2(fma(load(scores, at + i + 16), scale, less))
        even_sum, odd_sum = even_sum + even, odd_sum + odd
        to = t * parts * part_step + i
        put_probabilities(values, parts, scores, at + i, mine.probabilities, to, part_step, even, odd)
    total = even_sum + odd_sum
    if not chunk.fresh:
        shrink = exp2(before - largest)
        total = fma(load(mine.state, entry * 32 + 16), shrink, total)
        if any_lane(largest > before):  # else it is 1 in all
            for i in range(entry * rows * 16, (entry + 1) * rows * 16, 16):
                store(mine.sums, i, load(mine.sums, i) * shrink)
    store(mine.state, entry * 32, largest)
    store(mine.state, entry * 32 + 16, total)


@inline
def attend_chunk(q, q_at, keys, values, group, head_dim, first_entry, chunk, slots, mine):
    """The query heads of one panel on one chunk. q_at: where they are in q."""
    (parts, rows), H = parts_and_rows(values), head_dim
    scale, query = splat(LOG2_E / np.sqrt(np.float32(H))), query_size(H, parts)
    g = 0
    while g < group:
        take, entry = heads_at_once(keys, group - g), first_entry + g
        x, x_at, x_step = of_kind(keys, (q, q_at + g * H * 16, H * 16), (mine.queries, entry * query, query))
        key_scores(keys, chunk, take, x, x_at, x_step, mine.scores)
        for t in range(take):
            softmax_chunk(mine, t, entry + t, chunk, slots, scale, rows, values, parts)
        p_step = parts * (chunk.stop - chunk.start) * 16
        p, p_step = of_kind(values, (mine.scores, CHUNK * 16), (mine.probabilities, p_step))
        weigh_values(values, chunk, take, p, 0, p_step, mine.sums, entry * rows * 16)
        g += take


@inline
def put_results(mine, first_entry, group, head_dim, rows, lane, next_lane, out, panel, row):
    """The heads of one panel, of the lanes of one segment, to out from `row` on; other lanes stay."""
    here = load(LANE, 0)
    own = both(here >= splat(np.float32(lane)), here < splat(np.float32(next_lane)))
    for g in range(group):
        entry = first_entry + g
        inverse = splat(np.float32(1)) / load(mine.state, entry * 32 + 16)
        for h in range(0, head_dim, 2):
            at = (entry * rows + h) * 16
            even, odd = load(mine.sums, at) * inverse, load(mine.sums, at + 16) * inverse
            put_lanes(out, panel, row + g * head_dim + h, even, odd, own)


@inline
def attend(q, first, panels, keys, values, head, group, head_dim, at, starts, segments, slots, out, scratch):
    """The query heads of one key/value head, of `panels` panels of queries from `first` on. In the stream the
    first is number `at`."""
    H, (parts, rows), row = head_dim, parts_and_rows(values), head * group * head_dim
    query = query_size(H, parts)
    mine = memory(scratch, PANELS * group, rows, query)
    for entry in range(panels * group):
        q_at = ((first + entry // group) * q.shape[1] + row + entry % group * H) * 16
        put_query(keys, parts, H, q, q_at, mine.queries, entry * query)
    s, p = starts[at], 0
    while s < starts[at + panels]:
        while starts[at + p + 1] <= s:
            p += 1
        count = 1  # panels from p on with queries of this text: a segment each
        while p + count < panels and segments[s + count, 0] == segments[s, 0]:
            count += 1
        text, end = segments[s, 0], segments[s + count - 1, 1]
        for start in range(text, end, CHUNK):
            for i in range(count):
                last, lane = segments[s + i, 1], segments[s + i, 2]
                if start < last:
                    stop = -(-min(start + CHUNK, last) // AT_ONCE) * AT_ONCE
                    seen = np.int64(slots[at + p + i, lane]) + 1
                    chunk = Chunk(head, start, stop, seen, start == text)
                    q_at = ((first + p + i) * q.shape[1] + row) * 16
                    own = load(slots, (at + p + i) * 16)
                    attend_chunk(q, q_at, keys, values, group, H, (p + i) * group, chunk, own, mine)
        for i in range(count):
            lane, next_lane = segments[s + i, 2], segments[s + i, 3]
            put_results(mine, (p + i) * group, group, H, rows, lane, next_lane, out, first + p + i, row)
        s += count


@inline
def attention(
    q, panels, query_panel, keys, values, group, head_dim, starts, segments, slots, out, scratch, team,
    num_threads,
):  # fmt: skip
    """out[p] for p < panels. Query panel query_panel + p has segments[starts[it] : starts[it + 1]], rows of
    (slot of the first key, of the last + 1, first lane, last lane + 1), and the slots of its lanes' own
    keys in slots[it].

    Tasks are handed out one by one, and there are two a thread or more: a panel's cost grows with its
    position in the sequence."""
    heads = keys.shape[0]
    at_once = max(1, min(PANELS, panels * heads // (2 * num_threads)))
    tasks = -(-panels // at_once) * heads
    configure(keys)
    while True:
        task = atomic_add(team, TASKS, 1)
        if task >= tasks:
            break
        first, head = (tasks - 1 - task) // heads * at_once, task % heads  # the longest first
        attend(
            q, first, min(at_once, panels - first), keys, values, head, group, head_dim, query_panel + first,
            starts, segments, slots, out, scratch,
        )  # fmt: skip
    release(keys)
