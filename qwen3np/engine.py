"""The encoder on the kernels: reference.py's functions, in its order, on packed tokens.

A call's texts are one stream of tokens with no padding between them; 16 tokens are the lanes of a panel
(kernels/README.md). Every function below is compiled, and is run by all threads of a team at once, each on
its share, with a barrier where one needs what another wrote. Beyond reference.py's arguments they take the
work arrays and the thread.

Names: `x` residual stream [P, D', 16]; `h` what a matmul reads; sizes with ' are padded for the matmuls, and
the padding stays zero. The stream passes a layer in blocks of as many panels as `h` holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from .kernels import attention as attention_kernel
from .kernels.jit import entry_point, inline
from .kernels.kv_layout import copy_slots, store_keys_values
from .kernels.matmul import matmul, matmul_add, matmul_swiglu
from .kernels.norm_rope import norm_rope_queries, rms_norm
from .kernels.team import barrier, share, stopping


class Dims(NamedTuple):
    """What the arrays' shapes do not tell."""

    eps: np.float32
    group: int  # query heads per key/value head
    head_dim: int


class Stream(NamedTuple):
    """Where tokens stand. Of the whole stream, or of the pooled tokens alone (the last layer's queries)."""

    cos: NDArray[Any]  # [P, H/2, 16] of each lane's position in its text
    sin: NDArray[Any]
    slots: NDArray[Any]  # [P, 16] float32: where each lane's key and value are
    starts: NDArray[Any]  # [P + 1]: panel p has segments[starts[p] : starts[p + 1]]
    segments: NDArray[Any]  # [n, 4]: slot of the text's first key, of the last + 1; first lane, last lane + 1


class Prefix(NamedTuple):
    """Keys and values of a prefix of texts, of every layer; or none, with `size` 0."""

    keys: NDArray[Any]  # [L, ...] as in Work
    values: NDArray[Any]
    size: int  # in slots, a multiple of 32
    slots: NDArray[Any]  # of each text's first key


class Batch(NamedTuple):
    """Texts that pass the layers together."""

    rows: NDArray[Any]  # [tokens, D] of embed_tokens, as stored: float32, or bfloat16 bits (uint16)
    stream: Stream
    pooled: Stream
    pooled_at: NDArray[Any]  # [texts] the pooled tokens' numbers in the stream; none: every token's state
    cached: Prefix  # computed before: the stream holds the tokens behind it
    saved: Prefix  # where the keys and values of the first text go, for others that begin with it


class Work(NamedTuple):
    """Arrays that a forward pass writes."""

    x: NDArray[Any]  # [P, D', 16] residual stream
    pooled_x: NDArray[Any]  # [P of the pooled tokens, D', 16]
    keys: NDArray[Any]  # of one layer; this and values: see kernels/kv_layout.py
    values: NDArray[Any]
    h: NDArray[Any]  # operand of D' rows, one block
    q: NDArray[Any]  # [block, N*H', 16]
    kv: NDArray[Any]  # [block, 2*K*H', 16]
    attended: NDArray[Any]  # operand of N*H' rows, one block
    act: NDArray[Any]  # operand of F' rows, one block
    scratch: NDArray[Any]  # [threads, ...] float32


class Panels(NamedTuple):
    """The panels of a block: they lie at [first, first + count) of x, and at [0, count) of the operands."""

    first: int
    count: int


class Worker(NamedTuple):
    """One thread of a team."""

    team: NDArray[Any]  # the counters of its barriers
    thread: int
    num_threads: int


@inline
def wait(me):
    barrier(me.team, me.num_threads)


def embed(x, rows, me):
    """x = the tokens' rows of embed_tokens, as panels; zeros behind the last token."""


@overload(embed, jit_options={"nogil": True})
def _embed(x, rows, me):
    bfloat16 = rows.dtype == types.uint16

    def gather(x, rows, me):
        tokens, D = rows.shape
        bits, words = x.view(np.uint32), rows.view(np.uint16 if bfloat16 else np.uint32)
        first, last = share(x.shape[0], me.thread, me.num_threads)
        for p in range(first, last):
            bits[p] = 0
            count = min(16, tokens - p * 16)
            for d in range(D):
                for lane in range(count):
                    word = np.uint32(words[p * 16 + lane, d])
                    bits[p, d, lane] = word << np.uint32(16) if bfloat16 else word

    return gather


@inline
def keys_values(x, panels, stream, layer, w, work, dims, me):
    """h = rms_norm(x), and the layer's keys and values of these tokens."""
    thread, num_threads = me.thread, me.num_threads
    norm = w.input_layernorm[layer]
    rms_norm(x, panels.first, panels.count, norm, dims.eps, work.h, thread, num_threads)
    wait(me)
    matmul(w.kv_proj[layer], work.h, work.kv, 0, panels.count, work.scratch[thread], thread, num_threads)
    wait(me)
    store_keys_values(
        work.kv, panels.count, panels.first, w.k_norm[layer], dims.eps, stream.cos, stream.sin, work.keys,
        work.values, stream.slots, thread, num_threads,
    )  # fmt: skip


@inline
def attention(x, panels, stream, layer, w, work, dims, me):
    """x += o_proj(attention(h)): the queries of a block, on keys and values that are there already."""
    scratch, thread, num_threads = work.scratch[me.thread], me.thread, me.num_threads
    matmul(w.q_proj[layer], work.h, work.q, 0, panels.count, scratch, thread, num_threads)
    wait(me)
    norm_rope_queries(
        work.q, panels.count, panels.first, w.q_norm[layer], dims.eps, stream.cos, stream.sin, thread,
        num_threads,
    )  # fmt: skip
    wait(me)
    attention_kernel.attention(
        work.q, panels.count, panels.first, work.keys, work.values, dims.group, dims.head_dim, stream.starts,
        stream.segments, stream.slots, work.attended, scratch, me.team, num_threads,
    )  # fmt: skip
    wait(me)
    matmul_add(w.o_proj[layer], work.attended, x, panels.first, panels.count, scratch, thread, num_threads)
    wait(me)


@inline
def mlp(x, panels, layer, w, work, me):
    """x += down_proj(silu(gate) * up) of h."""
    scratch, thread, num_threads = work.scratch[me.thread], me.thread, me.num_threads
    matmul_swiglu(w.gate_up_proj[layer], work.h, work.act, panels.count, scratch, thread, num_threads)
    wait(me)
    matmul_add(w.down_proj[layer], work.act, x, panels.first, panels.count, scratch, thread, num_threads)
    wait(me)


@inline
def block(x, panels, stream, layer, w, work, dims, me):
    """reference.block from the queries on, for tokens whose h is there, and whose keys and values are."""
    attention(x, panels, stream, layer, w, work, dims, me)
    norm = w.post_attention_layernorm[layer]
    rms_norm(x, panels.first, panels.count, norm, dims.eps, work.h, me.thread, me.num_threads)
    wait(me)
    mlp(x, panels, layer, w, work, me)


@inline
def all_tokens(x, stream, layer, keys_only, w, work, dims, me):
    """One layer of the whole stream; `keys_only`: no more than its keys and values. False if asked to
    stop."""
    first = 0
    while first < x.shape[0]:
        if stopping(me.team):
            return False
        panels = Panels(first, min(work.h.shape[0], x.shape[0] - first))
        keys_values(x, panels, stream, layer, w, work, dims, me)
        if keys_only:
            wait(me)
        else:
            block(x, panels, stream, layer, w, work, dims, me)
        first += panels.count
    return True


@inline
def pooled_tokens(x, stream, layer, w, work, dims, me):
    """The last layer's queries and MLP, of the pooled tokens alone. False if asked to stop."""
    first = 0
    while first < x.shape[0]:
        if stopping(me.team):
            return False
        panels = Panels(first, min(work.h.shape[0], x.shape[0] - first))
        norm = w.input_layernorm[layer]
        rms_norm(x, panels.first, panels.count, norm, dims.eps, work.h, me.thread, me.num_threads)
        wait(me)
        block(x, panels, stream, layer, w, work, dims, me)
        first += panels.count
    return True


@inline
def copy_prefix(prefix, layer, work, me):
    """A cached prefix's keys and values, to each text's slots. Whole groups of slots are copied: those past
    the prefix are overwritten behind the barriers of keys_values."""
    if prefix.size > 0:
        cached, here = (prefix.keys[layer], prefix.values[layer]), (work.keys, work.values)
        for slot in prefix.slots:
            copy_slots(cached, 0, here, slot, prefix.size, me.thread, me.num_threads)


@inline
def save_prefix(prefix, layer, work, me):
    """The first text's keys and values, to the cache. They are complete here, and nothing overwrites them
    before the next layer's first barrier."""
    if prefix.size > 0:
        cached, here = (prefix.keys[layer], prefix.values[layer]), (work.keys, work.values)
        copy_slots(here, prefix.slots[0], cached, 0, prefix.size, me.thread, me.num_threads)


@entry_point
def forward(w, dims, batch, work, team, thread, num_threads):
    """The final states of the pooled tokens, in work.pooled_x; with none, those of all tokens, in work.x."""
    me, layers = Worker(team, thread, num_threads), w.input_layernorm.shape[0]
    pooling = batch.pooled_at.size > 0
    embed(work.x, batch.rows, me)
    wait(me)
    for layer in range(layers):
        copy_prefix(batch.cached, layer, work, me)
        keys_only = pooling and layer == layers - 1
        if not all_tokens(work.x, batch.stream, layer, keys_only, w, work, dims, me):
            return
        save_prefix(batch.saved, layer, work, me)
    x = work.x
    if pooling:
        x = work.pooled_x
        pool(x, work.x, batch.pooled_at, me)
        wait(me)
        if not pooled_tokens(x, batch.pooled, layers - 1, w, work, dims, me):
            return
    rms_norm(x, 0, x.shape[0], w.norm, dims.eps, x, thread, num_threads)


@inline
def pool(pooled_x, x, pooled_at, me):
    """pooled_x = the tokens at pooled_at, side by side. Before the last layer, whose other outputs nobody
    reads."""
    first, last = share(pooled_x.shape[0], me.thread, me.num_threads)
    for p in range(first, last):
        for lane in range(16):
            i = p * 16 + lane
            for d in range(x.shape[1]):
                pooled_x[p, d, lane] = np.float32(0)
                if i < pooled_at.size:
                    pooled_x[p, d, lane] = x[pooled_at[i] // 16, d, pooled_at[i] % 16]


@entry_point
def stage(layer, w, dims, batch, work, attended_x, mlp_x, team, thread, num_threads):
    """`forward` of all tokens, one stage after the other: layer -1 is the embedding, L the final norm. A
    layer's two sums are kept apart: attended_x and mlp_x [P, D', 16], zeros before, are what attention and
    MLP add."""
    me, x = Worker(team, thread, num_threads), work.x
    if layer < 0:
        embed(x, batch.rows, me)
        return
    if layer == w.input_layernorm.shape[0]:
        rms_norm(x, 0, x.shape[0], w.norm, dims.eps, x, thread, num_threads)
        return
    first = 0
    while first < x.shape[0]:
        if stopping(team):
            return
        panels = Panels(first, min(work.h.shape[0], x.shape[0] - first))
        keys_values(x, panels, batch.stream, layer, w, work, dims, me)
        attention(attended_x, panels, batch.stream, layer, w, work, dims, me)
        mine, end = share(panels.count, thread, num_threads)
        x[first + mine : first + end] += attended_x[first + mine : first + end]
        wait(me)
        norm = w.post_attention_layernorm[layer]
        rms_norm(x, panels.first, panels.count, norm, dims.eps, work.h, thread, num_threads)
        wait(me)
        mlp(mlp_x, panels, layer, w, work, me)
        x[first + mine : first + end] += mlp_x[first + mine : first + end]
        wait(me)
        first += panels.count
