"""The encoder on the kernels: reference.py's functions, in its order, on packed tokens.

A call's texts are one stream of tokens with no padding between them; 16 tokens are the lanes of a panel (see
kernels/panels.py). Every function below is compiled and is run by all threads of a team at once, each on its
share, with a barrier where one needs what another wrote. Beyond reference.py's arguments they take the work
arrays and the team.

Names: `x` residual stream [P, D, 16]; `h` what a matmul reads; a panel number that starts with `first_`
counts in the stream, others in the block at hand: the stream passes a layer in blocks of as many panels as
`h` holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from .kernels import attention as attention_kernel
from .kernels.jit import entry_point, inline
from .kernels.kv_layout import copy_places, keys_values
from .kernels.matmul import matmul, matmul_add, matmul_swiglu
from .kernels.norm_rope import query_heads, rms_norm
from .kernels.team import barrier, share, stopping


class Work(NamedTuple):
    """Arrays that a forward pass writes. Sizes with ' are padded for the matmuls; padding stays zero."""

    x: NDArray[Any]  # [P, D', 16] residual stream
    keys: NDArray[Any]  # of one layer; this and values: see kernels/keys_values.py
    values: NDArray[Any]
    h: NDArray[Any]  # operand of D' rows, one block
    q: NDArray[Any]  # [block, N*H', 16]
    kv: NDArray[Any]  # [block, 2*K*H', 16]
    attended: NDArray[Any]  # operand of N*H' rows, one block
    act: NDArray[Any]  # operand of F' rows, one block
    scratch: NDArray[Any]  # [threads, ...] float32


class Stream(NamedTuple):
    """Where the texts lie. For the whole stream, or for the pooled tokens alone (the last layer's
    queries)."""

    cos: NDArray[Any]  # [P, H/2, 16] of each lane's position in its text
    sin: NDArray[Any]
    places: NDArray[Any]  # [P, 16] float32: of each lane's key, among those of the texts
    starts: NDArray[Any]  # [P + 1]: panel p has segments[starts[p] : starts[p + 1]]
    segments: NDArray[Any]  # [n, 4]: place of the first key, of the last + 1; first lane, last lane + 1


class Prefix(NamedTuple):
    """Keys and values of a beginning of texts, of every layer; or none, with `size` 0."""

    keys: NDArray[Any]  # [L, ...] as in Work
    values: NDArray[Any]
    size: int  # in places, a multiple of 32
    places: NDArray[Any]  # where the keys of the texts begin


@inline
def attention(
    x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread, num_threads
):
    """x += o_proj(attention(h)): the queries of a block, on keys and values that are there already."""
    matmul(w.q_proj[layer], work.h, work.q, 0, panels, work.scratch[thread], thread, num_threads)
    barrier(team, num_threads)
    query_heads(
        work.q, panels, first_panel, w.q_norm[layer], eps, stream.cos, stream.sin, thread, num_threads
    )
    barrier(team, num_threads)
    attention_kernel.attention(
        work.q, panels, first_panel, work.keys, work.values, group, head_dim, stream.starts, stream.segments,
        stream.places, work.attended, work.scratch[thread], team, num_threads,
    )  # fmt: skip
    barrier(team, num_threads)
    matmul_add(
        w.o_proj[layer], work.attended, x, first_panel, panels, work.scratch[thread], thread, num_threads
    )
    barrier(team, num_threads)


@inline
def mlp(x, first_panel, panels, layer, w, work, team, thread, num_threads):
    """x += down_proj(silu(gate) * up) of h."""
    matmul_swiglu(w.gate_up_proj[layer], work.h, work.act, panels, work.scratch[thread], thread, num_threads)
    barrier(team, num_threads)
    matmul_add(
        w.down_proj[layer], work.act, x, first_panel, panels, work.scratch[thread], thread, num_threads
    )
    barrier(team, num_threads)


@inline
def block_keys_values(x, first_panel, panels, stream, layer, w, work, eps, team, thread, num_threads):
    """h = rms_norm(x), and the layer's keys and values of these tokens."""
    rms_norm(x, first_panel, panels, w.input_layernorm[layer], eps, work.h, thread, num_threads)
    barrier(team, num_threads)
    matmul(w.kv_proj[layer], work.h, work.kv, 0, panels, work.scratch[thread], thread, num_threads)
    barrier(team, num_threads)
    keys_values(
        work.kv, panels, first_panel, w.k_norm[layer], eps, stream.cos, stream.sin, work.keys, work.values,
        stream.places, thread, num_threads,
    )  # fmt: skip


@inline
def block(x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread, num_threads):
    """reference.block from the queries on, for tokens whose h is there and whose keys and values are."""
    attention(x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread, num_threads)
    rms_norm(x, first_panel, panels, w.post_attention_layernorm[layer], eps, work.h, thread, num_threads)
    barrier(team, num_threads)
    mlp(x, first_panel, panels, layer, w, work, team, thread, num_threads)


@inline
def take_prefix(prefix, layer, work, thread, num_threads):
    """Keys and values of the beginning, to where those of each text begin. They come in whole panels: what
    they bring beyond the beginning is overwritten behind the barriers of block_keys_values."""
    if prefix.size > 0:
        known, here = (prefix.keys[layer], prefix.values[layer]), (work.keys, work.values)
        for place in prefix.places:
            copy_places(known, 0, here, place, prefix.size, thread, num_threads)


@inline
def save_prefix(saved, layer, work, thread, num_threads):
    """Keys and values of the first text. They are there, and stay until the next layer's first barrier."""
    if saved.size > 0:
        known, here = (saved.keys[layer], saved.values[layer]), (work.keys, work.values)
        copy_places(here, saved.places[0], known, 0, saved.size, thread, num_threads)


@entry_point
def encode(
    layers, w, work, stream, pooled_x, pooled, pooled_at, prefix, saved, eps, group, head_dim, team, thread,
    num_threads,
):  # fmt: skip
    """All layers of the stream and the final norm; in the last layer the queries and the MLP of the pooled
    tokens alone, in pooled_x.

    pooled_at[i] is pooled token i's number in the stream; pooled describes them as a stream of their own.
    With no pooled tokens the last layer is like the others and x holds every token's state.
    prefix: what is known of the texts' beginnings; the stream holds the tokens behind it. saved: where the
    keys and values of the first text go, for others that begin with it.
    """
    x = work.x
    for layer in range(layers):
        last = layer == layers - 1 and pooled_at.size > 0
        take_prefix(prefix, layer, work, thread, num_threads)
        first_panel = 0
        while first_panel < x.shape[0]:
            if stopping(team):
                return
            panels = min(work.h.shape[0], x.shape[0] - first_panel)
            block_keys_values(x, first_panel, panels, stream, layer, w, work, eps, team, thread, num_threads)
            if not last:
                block(
                    x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread,
                    num_threads,
                )  # fmt: skip
            else:
                barrier(team, num_threads)
            first_panel += panels
        save_prefix(saved, layer, work, thread, num_threads)
    if pooled_at.size > 0:
        for i in range(thread, pooled_at.size, num_threads):
            token = pooled_at[i]
            for d in range(x.shape[1]):
                pooled_x[i // 16, d, i % 16] = x[token // 16, d, token % 16]
        barrier(team, num_threads)
        first_panel = 0
        while first_panel < pooled_x.shape[0]:
            if stopping(team):
                return
            panels = min(work.h.shape[0], pooled_x.shape[0] - first_panel)
            layer = layers - 1
            norm = w.input_layernorm[layer]
            rms_norm(pooled_x, first_panel, panels, norm, eps, work.h, thread, num_threads)
            barrier(team, num_threads)
            block(
                pooled_x, first_panel, panels, pooled, layer, w, work, eps, group, head_dim, team, thread,
                num_threads,
            )  # fmt: skip
            first_panel += panels
    states = pooled_x if pooled_at.size > 0 else x
    rms_norm(states, 0, states.shape[0], w.norm, eps, states, thread, num_threads)


@entry_point
def layer_stages(layer, w, work, stream, attended_x, mlp_x, eps, group, head_dim, team, thread, num_threads):
    """One layer of the whole stream, as in `encode` to the bit, its two sums kept apart: attended_x and mlp_x
    [P, D', 16], zeros before, are what attention and MLP add to x. For the comparison stage by stage."""
    x = work.x
    first_panel = 0
    while first_panel < x.shape[0]:
        if stopping(team):
            return
        panels = min(work.h.shape[0], x.shape[0] - first_panel)
        block_keys_values(x, first_panel, panels, stream, layer, w, work, eps, team, thread, num_threads)
        attention(
            attended_x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread,
            num_threads,
        )  # fmt: skip
        first, last = share(panels, thread, num_threads)
        x[first_panel + first : first_panel + last] += attended_x[first_panel + first : first_panel + last]
        barrier(team, num_threads)
        rms_norm(x, first_panel, panels, w.post_attention_layernorm[layer], eps, work.h, thread, num_threads)
        barrier(team, num_threads)
        mlp(mlp_x, first_panel, panels, layer, w, work, team, thread, num_threads)
        x[first_panel + first : first_panel + last] += mlp_x[first_panel + first : first_panel + last]
        barrier(team, num_threads)
        first_panel += panels
