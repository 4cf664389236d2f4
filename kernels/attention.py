"""Causal grouped-query attention on packed sequences, without an S x S matrix.

    q         float32 panels [P, N*H, 16], normalised and rotated
    keys      of all sequences, and values: see kv_layout.py
    out       an operand of N*H rows

Queries and probabilities become operands (panels.py) of the keys' and values' kind: float32, rounded to
bfloat16, or for AMX sums of bfloat16 parts, where a product of two sums leaves out the pairs that are smaller
than its last part. Scores, softmax and sums are float32 always.

A panel of queries may hold tokens of several sequences. A segment says which: its lanes, and the slots of
its sequence's keys. Keys are taken in chunks, counted from the sequence's first; each chunk is summed in
the order of its keys, and a key that a lane may not see adds an exact zero. So a sequence's place in the
batch changes no bit.

A task is one key/value head and up to PANELS panels of queries. A chunk of its keys and values is fetched
once and serves all of them in turn: scores, softmax, and the weighted sum of values, for the query heads of
one panel after the other. At 4,096 tokens a panel by itself would wait for the last-level cache.

Source: online softmax, arXiv:1805.02867. Functions without a body have it in the @overload below (README.md).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from .amx import TILE, Lhs, Rhs, Sums, configure, multiply_tiles, release, tiled
from .jit import inline
from .kv_layout import KV_ALIGN, padded
from .micro_kernel import kind_of, panels_at_once, product
from .panels import Panels, pairs_of_rounded, rounded, store_lanes, store_parts
from .simd import LANE, any_lane, both, exp2, fma, load, maximum, negative, select, splat, store
from .team import TASKS, atomic_add

CHUNK = 256  # keys: their scores (16 KB a head) stay in L1, their values in L2
# Below any score. With -inf, a lane that sees nothing would compute inf - inf.
MASKED_SCORE = np.float32(-1e30)
MAX_HEADS = 3  # query heads in one product
PANELS = 8  # of queries in a task: their sums take 16 KB each at two heads of 128 channels
MAX_PARTS = 3  # bfloat16 parts of a float32 value
LOG2_E = np.float32(1.44269504088896341)


class Memory(NamedTuple):
    """A thread's scratch. An entry is a query head of a panel: panel by panel, heads one by one."""

    scores: Any  # [MAX_HEADS, CHUNK, 16] of the heads at hand; with float32, then their probabilities
    sums: Any  # [entry, H', 16] of values times probabilities
    state: Any  # [entry, 2, 16] the largest score times scale, and the sum of probabilities
    queries: Any  # operands of uint16: [entry, parts, H/2, 32], H padded to 32
    probabilities: Any  # operands of uint16: [heads at hand, parts, keys of the chunk / 2, 32]


class Chunk(NamedTuple):
    """Keys of one sequence, for the queries of one panel."""

    head: int  # of keys and values
    start: int  # slot of the first key
    stop: int  # a slot, start plus a multiple of 32: no lane sees the slots behind the last key
    seen: int  # a slot: the panel's own lanes see all before it
    fresh: bool  # the sequence's first chunk


def scratch_size(head_dim: int, group: int) -> int:
    """The float32 values of scratch that a thread needs."""
    rows = padded(head_dim, tiles=True)
    entry = rows + 2 + MAX_PARTS * rows // 2
    return 16 * (MAX_HEADS * CHUNK + PANELS * group * entry + 2 * MAX_PARTS * CHUNK // 2)


@inline
def query_size(head_dim, parts):
    """The bfloat16 values of one query head of a panel, as an operand."""
    return parts * (-(-head_dim // 32)) * TILE


@inline
def memory(scratch, entries, rows, query):
    """Cut up a thread's scratch."""
    sums = MAX_HEADS * CHUNK * 16
    state = sums + entries * rows * 16
    operands = state + entries * 32
    queries = scratch[operands:].view(np.uint16)
    probabilities = queries[entries * query :]
    return Memory(scratch[:sums], scratch[sums:state], scratch[state:operands], queries, probabilities)


def heads_at_once(keys, remaining):
    """The query heads of the next product, of those that remain of a group."""


@overload(heads_at_once, jit_options={"nogil": True})
def _heads_at_once(keys, remaining):
    if tiled(keys):
        return lambda keys, remaining: min(2, remaining)
    return lambda keys, remaining: panels_at_once(remaining)


def parts_and_rows(values):
    """The number of parts of a value, and H': the rows of a head's result."""


@overload(parts_and_rows, jit_options={"nogil": True})
def _parts_and_rows(values):
    if tiled(values):
        return lambda values: (values.shape[1], values.shape[2] * 32)
    return lambda values: (1, values.shape[1] * 16)


def of_kind(lhs, float32, parts):
    """Choose one of two by what multiplies `lhs` (keys or values): float32, or bfloat16 parts."""


@overload(of_kind, jit_options={"nogil": True})
def _of_kind(lhs, float32, parts):
    if lhs.dtype == types.float32:
        return lambda lhs, float32, parts: float32
    return lambda lhs, float32, parts: parts


def store_query(keys, parts, rows, q, at, operands, to):
    """Write `rows` float32 rows at q[at] as parts to operands[to], padded with zeros to 32 rows.

    Where keys are float32, nothing is to be done.
    """


@overload(store_query, jit_options={"nogil": True})
def _store_query(keys, parts, rows, q, at, operands, to):
    if keys.dtype == types.float32:
        return lambda keys, parts, rows, q, at, operands, to: None

    def put(keys, parts, rows, q, at, operands, to):
        part_step = -(-rows // 32) * TILE
        for i in range(0, part_step, 32):
            even = odd = splat(np.float32(0))
            if i < rows * 16:  # an even number of rows
                even, odd = load(q, at + i), load(q, at + i + 16)
            store_parts(operands, to + i, part_step, parts, even, odd)

    return put


def store_probabilities(values, parts, scores, at, operands, to, step, even, odd):
    """Write the probabilities of two keys as the operand that multiplies the values.

    Float32 go to scores[at], where the scores were; parts to operands[to], `step` apart.
    """


@overload(store_probabilities, jit_options={"nogil": True})
def _store_probabilities(values, parts, scores, at, operands, to, step, even, odd):
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
            rhs = Rhs(q, q_at, q_step, part_step, parts)
            for j in range(chunk.start, chunk.stop, 32):
                k_at = (chunk.head * keys.shape[1] + j // 32) * parts * 2 * part_step
                sums = Sums(scores, (j - chunk.start) * 16, CHUNK * 16)
                multiply_tiles(True, Lhs(keys, k_at, 2 * part_step, parts), rhs, take, sums, steps, 0)

        return products

    multiply = product("store", kind_of(keys, q))

    def products(keys, chunk, take, q, q_at, q_step, scores):
        steps, step = keys.shape[2], keys.shape[3]
        for j in range(chunk.start, chunk.stop, 16):
            k_at, at = (chunk.head * keys.shape[1] + j // 16) * steps * step, (j - chunk.start) * 16
            multiply(take, keys, k_at, step, q, q_at, q_step, scores, at, CHUNK * 16, steps)

    return products


def probs_times_values(values, chunk, take, p, p_at, p_step, sums, sums_at):
    """sums[t] += the sum of p[t, j] * values[chunk.start + j], for `take` heads; p is an operand.

    The sequence's first chunk begins the sums.
    """


@overload(probs_times_values, jit_options={"nogil": True})
def _probs_times_values(values, chunk, take, p, p_at, p_step, sums, sums_at):
    if tiled(values):

        def products(values, chunk, take, p, p_at, p_step, sums, sums_at):
            parts, blocks, steps = values.shape[1], values.shape[2], (chunk.stop - chunk.start) // 32
            v_step = values.shape[3] * 2 * TILE  # of 32 channels
            rhs = Rhs(p, p_at, p_step, steps * TILE, parts)
            for block in range(blocks):
                v_at = (chunk.head * parts * blocks + block) * v_step + chunk.start // 32 * 2 * TILE
                lhs = Lhs(values, v_at, blocks * v_step, parts)
                into = Sums(sums, sums_at + block * TILE, blocks * TILE)
                multiply_tiles(chunk.fresh, lhs, rhs, take, into, steps, 0)

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
    """Turn the scores of a query head, number t of those at hand, into probabilities.

    They are relative to the largest score so far: the entry's state (that score, the sum of probabilities)
    and its sums of values are rescaled to a new one. In powers of two: e^(x - y) is 2^(x log2 e - y log2 e),
    and `scale` holds log2 e.
    """
    scores, at = mine.scores, t * CHUNK * 16
    end = at + (chunk.stop - chunk.start) * 16
    for j in range(max(chunk.start, chunk.seen), chunk.stop):
        here = at + (j - chunk.start) * 16
        store(scores, here, select(slots >= splat(np.float32(j)), load(scores, here), splat(MASKED_SCORE)))
    m0 = m1 = m2 = m3 = splat(MASKED_SCORE)
    for i in range(at, end, 64):
        m0, m1 = maximum(load(scores, i), m0), maximum(load(scores, i + 16), m1)
        m2, m3 = maximum(load(scores, i + 32), m2), maximum(load(scores, i + 48), m3)
    before = splat(MASKED_SCORE) if chunk.fresh else load(mine.state, entry * 32)
    largest = maximum(maximum(maximum(m0, m1), maximum(m2, m3)) * scale, before)
    zero = splat(np.float32(0))
    less, even_sum, odd_sum = negative(largest), zero, zero
    part_step = end - at
    for i in range(0, end - at, 32):
        even = exp2(fma(load(scores, at + i), scale, less))
        odd = exp2(fma(load(scores, at + i + 16), scale, less))
        even_sum, odd_sum = even_sum + even, odd_sum + odd
        to = t * parts * part_step + i
        store_probabilities(values, parts, scores, at + i, mine.probabilities, to, part_step, even, odd)
    total = even_sum + odd_sum
    if not chunk.fresh:
        shrink = exp2(before - largest)
        total = fma(load(mine.state, entry * 32 + 16), shrink, total)
        if any_lane(largest > before):  # else shrink is 1 in all lanes
            for i in range(entry * rows * 16, (entry + 1) * rows * 16, 16):
                store(mine.sums, i, load(mine.sums, i) * shrink)
    store(mine.state, entry * 32, largest)
    store(mine.state, entry * 32 + 16, total)


@inline
def attend_chunk(q, q_at, keys, values, group, head_dim, first_entry, chunk, slots, mine):
    """Attend to one chunk with the query heads of one panel, which are at q[q_at]."""
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
        probs_times_values(values, chunk, take, p, 0, p_step, mine.sums, entry * rows * 16)
        g += take


@inline
def store_results(mine, first_entry, group, head_dim, rows, lane, next_lane, out, panel, row):
    """Write the heads of a panel to `out`, from `row` on, in the lanes of a segment; others stay."""
    here = load(LANE, 0)
    own = both(here >= splat(np.float32(lane)), here < splat(np.float32(next_lane)))
    for g in range(group):
        entry = first_entry + g
        inverse = splat(np.float32(1)) / load(mine.state, entry * 32 + 16)
        for h in range(0, head_dim, 2):
            at = (entry * rows + h) * 16
            even, odd = load(mine.sums, at) * inverse, load(mine.sums, at + 16) * inverse
            store_lanes(out, panel, row + g * head_dim + h, even, odd, own)


@inline
def attend_panels(q, panels, base, tokens, keys, values, head, group, head_dim, out, scratch):
    """Attend with the query heads of one key/value head, of the panels `panels` of a block.

    The block begins at panel `base` of the packed batch.
    """
    first, at = panels.first, base + panels.first
    starts, segments, slots = tokens.starts, tokens.segments, tokens.slots
    H, (parts, rows), row = head_dim, parts_and_rows(values), head * group * head_dim
    query = query_size(H, parts)
    mine = memory(scratch, PANELS * group, rows, query)
    for entry in range(panels.count * group):
        q_at = ((first + entry // group) * q.shape[1] + row + entry % group * H) * 16
        store_query(keys, parts, H, q, q_at, mine.queries, entry * query)
    s, p = starts[at], 0
    while s < starts[at + panels.count]:
        while starts[at + p + 1] <= s:
            p += 1
        count = 1  # panels from p on with queries of this sequence: a segment each
        while p + count < panels.count and segments[s + count, 0] == segments[s, 0]:
            count += 1
        begin, end = segments[s, 0], segments[s + count - 1, 1]
        for start in range(begin, end, CHUNK):
            for i in range(count):
                last, lane = segments[s + i, 1], segments[s + i, 2]
                if start < last:
                    stop = -(-min(start + CHUNK, last) // KV_ALIGN) * KV_ALIGN
                    seen = np.int64(slots[at + p + i, lane]) + 1
                    chunk = Chunk(head, start, stop, seen, start == begin)
                    q_at = ((first + p + i) * q.shape[1] + row) * 16
                    own = load(slots, (at + p + i) * 16)
                    attend_chunk(q, q_at, keys, values, group, H, (p + i) * group, chunk, own, mine)
        for i in range(count):
            lane, next_lane = segments[s + i, 2], segments[s + i, 3]
            store_results(mine, (p + i) * group, group, H, rows, lane, next_lane, out, first + p + i, row)
        s += count


@inline
def attention(q, panels, tokens, keys, values, group, head_dim, out, scratch, me):
    """out[p] = attention of the queries q[p] on the keys and values of their sequences.

    Tasks are handed out to the team's threads one by one, and there are at least two per thread: a panel's
    cost grows with its position in the sequence.

    Args:
        q: [block, >= N*H, 16].
        panels: the block's, in `tokens`.
        tokens: of the packed batch.
        keys: of all its sequences.
        values: theirs.
        group: query heads per key/value head.
        head_dim: H.
        out: an operand, [block].
        scratch: this thread's, of scratch_size values.
        me: the thread.
    """
    heads, count = keys.shape[0], panels.count
    at_once = max(1, min(PANELS, count * heads // (2 * me.num_threads)))
    tasks = -(-count // at_once) * heads
    configure(keys)
    while True:
        task = atomic_add(me.team, TASKS, 1)
        if task >= tasks:
            break
        first, head = (tasks - 1 - task) // heads * at_once, task % heads  # the longest first
        some = Panels(first, min(at_once, count - first))
        attend_panels(q, some, panels.first, tokens, keys, values, head, group, head_dim, out, scratch)
    release(keys)
