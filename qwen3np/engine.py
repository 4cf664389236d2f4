"""The encoder on the kernels: reference.py's functions, in its order, on a packed batch.

The sequences of a batch lie behind one another with no padding between them; 16 tokens are the lanes of a
panel (kernels/README.md). Every function below is compiled, and is run by all threads of a team at once,
each on its share, with a barrier where one needs what another wrote. Beyond reference.py's arguments they
take the work arrays and the thread.

Shapes are those of reference.py; sizes with ' are padded for the matmuls, and the padding stays zero. `x`
is the residual stream [P, D', 16], `h` the operand that a matmul reads. A batch passes a layer in blocks of
as many panels as `h` holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from .kernels.attention import attention as attend
from .kernels.integer import complete
from .kernels.jit import entry_point, inline
from .kernels.kv_layout import copy_slots, store_keys_values
from .kernels.matmul import matmul, matmul_add, matmul_swiglu
from .kernels.norm_rope import norm_rope_queries, rms_norm
from .kernels.panels import Panels, Tokens
from .kernels.team import Worker, share, stopping, wait


class Dims(NamedTuple):
    """What the arrays' shapes do not tell."""

    eps: np.float32
    group: int  # query heads per key/value head
    head_dim: int


class Prefix(NamedTuple):
    """A prefix's keys and values in every layer; `size` 0 means none."""

    keys: NDArray[Any]  # [L, ...] as in Work
    values: NDArray[Any]
    size: int  # in slots, a multiple of 32
    slots: NDArray[Any]  # [sequences]: of each one's first key


class Batch(NamedTuple):
    """A packed batch: sequences that pass the layers together."""

    rows: NDArray[Any]  # [tokens, D] of embed_tokens, as stored: float32, or bfloat16 bits (uint16)
    tokens: Tokens
    pooled: Tokens  # the pooled tokens alone, side by side: the last layer's queries
    pooled_at: NDArray[Any]  # [sequences]: their numbers in the batch; none: every token's state is asked for
    cached: Prefix  # computed before: the batch holds the tokens behind it
    saved: Prefix  # where the first sequence's keys and values go, for others that begin with it


class Work(NamedTuple):
    """The arrays that a forward pass writes."""

    x: NDArray[Any]  # [P, D', 16] residual stream
    pooled_x: NDArray[Any]  # [P of the pooled tokens, D', 16]
    keys: NDArray[Any]  # of one layer; keys and values as kernels/kv_layout.py says
    values: NDArray[Any]
    h: Any  # operand of D' rows, one block
    q: NDArray[Any]  # [block, N*H', 16]
    kv: NDArray[Any]  # [block, 2*K*H', 16]
    attn_out: Any  # operand of N*H' rows, one block
    act: Any  # operand of F' rows, one block
    scratch: NDArray[Any]  # [threads, ...] float32


def embed(x, rows, me):
    """x = the tokens' rows of embed_tokens, as panels; zeros behind the last token.

    Its body is below, by the type of the rows (kernels/README.md, "Functions without a body").
    """


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
def keys_values(x, panels, tokens, layer, w, work, dims, me):
    """h = rms_norm(x), and the keys and values of these tokens, in this layer."""
    scratch, here = work.scratch[me.thread], Panels(0, panels.count)
    rms_norm(x, panels, w.input_layernorm[layer], dims.eps, work.h, me)
    complete(work.h, panels.count, me)
    matmul(w.kv_proj[layer], work.h, work.kv, here, scratch, me)
    wait(me)
    store_keys_values(work.kv, panels, tokens, w.k_norm[layer], dims.eps, work.keys, work.values, me)


@inline
def attention(x, panels, tokens, layer, w, work, dims, me):
    """x += o_proj(attention(h)): the queries of a block, on keys and values that are there already."""
    scratch, here = work.scratch[me.thread], Panels(0, panels.count)
    matmul(w.q_proj[layer], work.h, work.q, here, scratch, me)
    wait(me)
    norm_rope_queries(work.q, panels, tokens, w.q_norm[layer], dims.eps, me)
    wait(me)
    keys, values, group, head_dim = work.keys, work.values, dims.group, dims.head_dim
    attend(work.q, panels, tokens, keys, values, group, head_dim, work.attn_out, scratch, me)
    complete(work.attn_out, panels.count, me)
    matmul_add(w.o_proj[layer], work.attn_out, x, panels, scratch, me)
    wait(me)


@inline
def mlp(x, panels, layer, w, work, me):
    """x += down_proj(silu(gate_proj(h)) * up_proj(h))."""
    scratch = work.scratch[me.thread]
    matmul_swiglu(w.gate_up_proj[layer], work.h, work.act, panels.count, scratch, me)
    complete(work.act, panels.count, me)
    matmul_add(w.down_proj[layer], work.act, x, panels, scratch, me)
    wait(me)


@inline
def block(x, panels, tokens, layer, w, work, dims, me):
    """The rest of reference.block, once h, keys and values of these tokens exist."""
    attention(x, panels, tokens, layer, w, work, dims, me)
    rms_norm(x, panels, w.post_attention_layernorm[layer], dims.eps, work.h, me)
    complete(work.h, panels.count, me)
    mlp(x, panels, layer, w, work, me)


@inline
def block_size(panels, most):
    """Return how many panels pass a layer together: an even number, since tiles take them in pairs.

    Blocks are of about one size: 17 panels are 10 and 7, not 16 and one for which all weights are read again.
    """
    blocks = -(-panels // most)
    return min(most, -(-panels // (2 * blocks)) * 2)


@inline
def all_tokens(x, tokens, layer, keys_only, w, work, dims, me):
    """Compute one layer for the whole batch, or its keys and values alone. False if asked to stop."""
    first, size = 0, block_size(x.shape[0], work.kv.shape[0])
    while first < x.shape[0]:
        if stopping(me.team):
            return False
        panels = Panels(first, min(size, x.shape[0] - first))
        keys_values(x, panels, tokens, layer, w, work, dims, me)
        if keys_only:
            wait(me)
        else:
            block(x, panels, tokens, layer, w, work, dims, me)
        first += panels.count
    return True


@inline
def pooled_tokens(x, tokens, layer, w, work, dims, me):
    """Compute the last layer for the pooled tokens alone. False if asked to stop."""
    first, size = 0, block_size(x.shape[0], work.kv.shape[0])
    while first < x.shape[0]:
        if stopping(me.team):
            return False
        panels = Panels(first, min(size, x.shape[0] - first))
        rms_norm(x, panels, w.input_layernorm[layer], dims.eps, work.h, me)
        complete(work.h, panels.count, me)
        block(x, panels, tokens, layer, w, work, dims, me)
        first += panels.count
    return True


@inline
def load_prefix(prefix, layer, work, me):
    """Copy a cached prefix's keys and values to each sequence's slots.

    Whole groups of 32 slots are copied: keys_values overwrites those past the prefix, behind its barriers.
    """
    if prefix.size > 0:
        cached, here = (prefix.keys[layer], prefix.values[layer]), (work.keys, work.values)
        for slot in prefix.slots:
            copy_slots(cached, 0, here, slot, prefix.size, me)


@inline
def store_prefix(prefix, layer, work, me):
    """Copy the first sequence's keys and values into the cache entry.

    They are complete here, and nothing overwrites them before the next layer's first barrier.
    """
    if prefix.size > 0:
        cached, here = (prefix.keys[layer], prefix.values[layer]), (work.keys, work.values)
        copy_slots(here, prefix.slots[0], cached, 0, prefix.size, me)


@entry_point
def forward(w, dims, batch, work, team, thread, num_threads):
    """Compute the final states: of pooled tokens in work.pooled_x; with none, of all in work.x."""
    me, layers = Worker(team, thread, num_threads), w.input_layernorm.shape[0]
    pooling = batch.pooled_at.size > 0
    embed(work.x, batch.rows, me)
    wait(me)
    for layer in range(layers):
        load_prefix(batch.cached, layer, work, me)
        keys_only = pooling and layer == layers - 1
        if not all_tokens(work.x, batch.tokens, layer, keys_only, w, work, dims, me):
            return
        store_prefix(batch.saved, layer, work, me)
    x = work.x
    if pooling:
        x = work.pooled_x
        pool(x, work.x, batch.pooled_at, me)
        wait(me)
        if not pooled_tokens(x, batch.pooled, layers - 1, w, work, dims, me):
            return
    rms_norm(x, Panels(0, x.shape[0]), w.norm, dims.eps, x, me)


@inline
def pool(pooled_x, x, pooled_at, me):
    """pooled_x = the tokens at pooled_at, side by side.

    It comes before the last layer, whose other outputs nobody reads.
    """
    first, last = share(pooled_x.shape[0], me.thread, me.num_threads)
    for p in range(first, last):
        for lane in range(16):
            i = p * 16 + lane
            for d in range(x.shape[1]):
                pooled_x[p, d, lane] = np.float32(0)
                if i < pooled_at.size:
                    pooled_x[p, d, lane] = x[pooled_at[i] // 16, d, pooled_at[i] % 16]


@entry_point
def stage(layer, w, dims, batch, work, attn_x, mlp_x, team, thread, num_threads):
    """Compute one stage of `forward`, of all tokens: layer -1 is the embedding, L the final norm.

    What a layer's attention and MLP add is kept apart, in attn_x and mlp_x [P, D', 16], zeros before.
    """
    me, x = Worker(team, thread, num_threads), work.x
    if layer < 0:
        embed(x, batch.rows, me)
        return
    if layer == w.input_layernorm.shape[0]:
        rms_norm(x, Panels(0, x.shape[0]), w.norm, dims.eps, x, me)
        return
    first, size = 0, block_size(x.shape[0], work.kv.shape[0])
    while first < x.shape[0]:
        if stopping(team):
            return
        panels = Panels(first, min(size, x.shape[0] - first))
        keys_values(x, panels, batch.tokens, layer, w, work, dims, me)
        attention(attn_x, panels, batch.tokens, layer, w, work, dims, me)
        mine, end = share(panels.count, thread, num_threads)
        x[first + mine : first + end] += attn_x[first + mine : first + end]
        wait(me)
        rms_norm(x, panels, w.post_attention_layernorm[layer], dims.eps, work.h, me)
        complete(work.h, panels.count, me)
        mlp(mlp_x, panels, layer, w, work, me)
        x[first + mine : first + end] += mlp_x[first + mine : first + end]
        wait(me)
        first += panels.count
