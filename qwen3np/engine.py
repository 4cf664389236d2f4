"""The encoder on the kernels: reference.py's functions, in its order, on packed tokens.

A call's texts are one stream of tokens with no padding between them; 16 tokens are the lanes of a panel (see
kernels/panels.py). Every function below is compiled and is run by all threads of a team at once, each on its
share, with a barrier where one needs what another wrote. Beyond reference.py's arguments they take the work
arrays and the team.

Names: `x` residual stream [P, D, 16]; `h` what a matmul reads; a panel number that starts with `first_`
counts in the stream, others in the block at hand: the stream passes a layer in blocks of BLOCK_PANELS panels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from .kernels import attention as attention_kernel
from .kernels.compiled import entry_point, inline
from .kernels.matmul import matmul, matmul_add, matmul_swiglu
from .kernels.norm import keys_values, query_heads, rms_norm
from .kernels.team import barrier, share, stopping

BLOCK_PANELS = 16  # 256 tokens: a block's activations are 2 MB at the 0.6B's width


class Work(NamedTuple):
    """Arrays that a forward pass writes. Sizes with ' are padded for the matmuls; padding stays zero."""

    x: NDArray[Any]  # [P, D', 16] residual stream
    keys: NDArray[Any]  # [K, P, H, 16] of one layer
    values: NDArray[Any]  # [K, 16 * P, H'] of one layer
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
    tokens: NDArray[Any]  # [P, 16] float32: each lane's token, as its number in the stream
    starts: NDArray[Any]  # [P + 1]: panel p has segments[starts[p] : starts[p + 1]]
    segments: NDArray[Any]  # [n, 4]: first key, last key + 1, first lane, last lane + 1


@inline
def attention(
    x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread, num_threads
):
    """x += o_proj(attention(h)): the queries of a block, on keys and values that are there already."""
    matmul(w.q_proj[layer], work.h, work.q, 0, panels, thread, num_threads)
    barrier(team, num_threads)
    query_heads(
        work.q, panels, first_panel, w.q_norm[layer], eps, stream.cos, stream.sin, thread, num_threads
    )
    barrier(team, num_threads)
    attention_kernel.attention(
        work.q, panels, first_panel, work.keys, work.values, group, head_dim, stream.starts, stream.segments,
        stream.tokens, work.attended, work.scratch[thread], team,
    )  # fmt: skip
    barrier(team, num_threads)
    matmul_add(w.o_proj[layer], work.attended, x, first_panel, panels, thread, num_threads)
    barrier(team, num_threads)


@inline
def mlp(x, first_panel, panels, layer, w, work, team, thread, num_threads):
    """x += down_proj(silu(gate) * up) of h."""
    matmul_swiglu(w.gate_up_proj[layer], work.h, work.act, panels, work.scratch[thread], thread, num_threads)
    barrier(team, num_threads)
    matmul_add(w.down_proj[layer], work.act, x, first_panel, panels, thread, num_threads)
    barrier(team, num_threads)


@inline
def block_keys_values(x, first_panel, panels, stream, layer, w, work, eps, team, thread, num_threads):
    """h = rms_norm(x), and the layer's keys and values of these tokens."""
    rms_norm(x, first_panel, panels, w.input_layernorm[layer], eps, work.h, thread, num_threads)
    barrier(team, num_threads)
    matmul(w.kv_proj[layer], work.h, work.kv, 0, panels, thread, num_threads)
    barrier(team, num_threads)
    keys_values(
        work.kv, panels, first_panel, w.k_norm[layer], eps, stream.cos, stream.sin, work.keys, work.values,
        thread, num_threads,
    )  # fmt: skip


@inline
def block(x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread, num_threads):
    """reference.block from the queries on, for tokens whose h is there and whose keys and values are."""
    attention(x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread, num_threads)
    rms_norm(x, first_panel, panels, w.post_attention_layernorm[layer], eps, work.h, thread, num_threads)
    barrier(team, num_threads)
    mlp(x, first_panel, panels, layer, w, work, team, thread, num_threads)


@entry_point
def encode(
    layers, w, work, stream, pooled_x, pooled, pooled_at, eps, group, head_dim, team, thread, num_threads
):
    """All layers of the stream; in the last one the queries and the MLP of the pooled tokens alone, in
    pooled_x.

    pooled_at[i] is pooled token i's number in the stream; pooled describes them as a stream of their own.
    With no pooled tokens the last layer is like the others and x holds every token's state.
    """
    x = work.x
    for layer in range(layers):
        last = layer == layers - 1 and pooled_at.size > 0
        first_panel = 0
        while first_panel < x.shape[0]:
            if stopping(team):
                return
            panels = min(BLOCK_PANELS, x.shape[0] - first_panel)
            block_keys_values(x, first_panel, panels, stream, layer, w, work, eps, team, thread, num_threads)
            if not last:
                block(
                    x, first_panel, panels, stream, layer, w, work, eps, group, head_dim, team, thread,
                    num_threads,
                )  # fmt: skip
            else:
                barrier(team, num_threads)
            first_panel += panels
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
            panels = min(BLOCK_PANELS, pooled_x.shape[0] - first_panel)
            layer = layers - 1
            norm = w.input_layernorm[layer]
            rms_norm(pooled_x, first_panel, panels, norm, eps, work.h, thread, num_threads)
            barrier(team, num_threads)
            block(
                pooled_x, first_panel, panels, pooled, layer, w, work, eps, group, head_dim, team, thread,
                num_threads,
            )  # fmt: skip
            first_panel += panels


@entry_point
def layer_stages(
    layer, w, work, stream, attended_x, mlp_x, eps, group, head_dim, team, thread, num_threads
):
    """One layer of the whole stream, as in `encode` to the bit, its two sums kept apart: attended_x and mlp_x
    [P, D', 16], zeros before, are what attention and MLP add to x. For the comparison stage by stage."""
    x = work.x
    first_panel = 0
    while first_panel < x.shape[0]:
        if stopping(team):
            return
        panels = min(BLOCK_PANELS, x.shape[0] - first_panel)
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
