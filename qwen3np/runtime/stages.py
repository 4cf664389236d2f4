"""A forward pass stopped at each stage, so that two of them can be compared.

A stage is a named array. The names are transformers' module names:

    embed_tokens          [tokens, hidden_size], the texts one behind the other; so are all up to "norm"
    layers.i.self_attn    what the attention of layer i adds to the residual stream
    layers.i.mlp          what its MLP adds
    layers.i              the residual stream after the layer
    layers.i.probabilities
                          [query heads, tokens, tokens], of one text and only if asked for: how much each
                          token (a row) reads of each (a column)
    norm                  the final states
    pooled                [texts, hidden_size]: the unit vectors
    scores                [1, 3 * texts], of a reranker: the logits of "yes", those of "no", and "yes" - "no",
                          in one row, so that an error counts in the largest logit

A source yields its stages one at a time, so that two full-size models can be compared with one layer
of each in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..loading.checkpoint import Weights

Stage = tuple[str, NDArray[Any]]
Texts = Sequence[Sequence[int]]
Answers = tuple[int, int] | None


def reference_stages(
    texts: Texts,
    weights: Weights,
    ref: ModuleType = reference,
    answers: Answers = None,
    probabilities: Collection[int] = (),
) -> Iterator[Stage]:
    """Yield the stages of the reference, in the precision of `weights`; one layer is in memory.

    Args:
        texts: token ids of each.
        weights: of the model.
        ref: the reference, or a changed one.
        answers: a reranker's token ids of "yes" and "no".
        probabilities: layers whose probabilities are yielded, behind the layer; there is one text then.
    """
    kept: list[NDArray[Any]] = []  # what softmax returned in a layer, head by head

    def keeping(scores_TS: NDArray[Any]) -> NDArray[Any]:
        kept.append(ref.softmax(scores_TS))
        return kept[-1]

    watched = FunctionType(ref.attention.__code__, {**vars(ref), "softmax": keeping})
    c = weights.checkpoint.config
    xs = [ref.embed(list(ids), weights.embed_tokens) for ids in texts]
    yield "embed_tokens", np.concatenate(xs)
    tables = [ref.rope_table(len(ids), c.head_dim, c.rope_theta) for ids in texts]
    for i in range(c.num_hidden_layers):
        layer = weights.layer(i)
        attn_out, mlp_out = [], []
        attention = watched if i in probabilities else ref.attention
        for n, (x_TD, (cos, sin)) in enumerate(zip(xs, tables, strict=True)):
            # The lines of reference.block, with a stop between them.
            normed_TD = ref.rms_norm(x_TD, layer["input_layernorm"], c.rms_norm_eps)
            attn_out.append(attention(normed_TD, cos, sin, c.rms_norm_eps, **layer["self_attn"]))
            normed_TD = ref.rms_norm(x_TD + attn_out[-1], layer["post_attention_layernorm"], c.rms_norm_eps)
            mlp_out.append(ref.mlp(normed_TD, **layer["mlp"]))
            xs[n] = ref.block(x_TD, layer, cos, sin, c.rms_norm_eps)
        yield f"layers.{i}.self_attn", np.concatenate(attn_out)
        yield f"layers.{i}.mlp", np.concatenate(mlp_out)
        yield f"layers.{i}", np.concatenate(xs)
        if i in probabilities:
            yield f"layers.{i}.probabilities", np.stack(kept)
            kept.clear()
        del layer  # before the next one is read: 1.5 GB in float64 for the 8B
        weights.checkpoint.release()
    xs = [ref.rms_norm(x_TD, weights.norm, c.rms_norm_eps) for x_TD in xs]
    yield "norm", np.concatenate(xs)
    last_ND = np.stack([ref.pool(x_TD) for x_TD in xs])
    yield "pooled", ref.normalize(last_ND)
    if answers is not None:
        lm_head = weights.rows(weights.checkpoint.head or "lm_head.weight")
        yes_N, no_N = (last_ND @ lm_head[list(answers)].T).T
        yield "scores", np.concatenate([yes_N, no_N, yes_N - no_N])[None]
