"""The Qwen3 encoder, to be read from top to bottom.

A text's token ids go in, a unit vector comes out. NumPy only: no kernels, no padding, no cache, one text at
a time. It runs in the precision of the weights it is given: float32, or float64 for a ground truth. This
file is the specification; engine.py has the same functions in the same order, made fast.

A name's suffix tells its shape. A weight has the name and the shape [out, in] that it has in the checkpoint.

    T  tokens that ask (queries)              V  vocabulary                      151669
    S  tokens that are seen (keys), = T       D  hidden_size                       1024
    N  query heads                   16       F  intermediate_size                 3072
    K  key/value heads                8       L  layers                              28
    G  query heads per key/value head 2       H  head_dim                           128
    B  texts                                  P  pairs of channels, H/2              64
                                              (the numbers: Qwen3-Embedding-0.6B)

What differs from Llama is marked with [Qwen3].

Sources: transformers' modeling_qwen3.py, which defines what the published weights mean; "Qwen3 Embedding:
Advancing Text Embedding and Reranking Through Foundation Models", arXiv:2506.05176.
"""

import numpy as np


def embed(ids_T, embed_tokens):
    """Look up the tokens' rows of the table, as they are: no scaling."""
    return embed_tokens[ids_T]


def silu(x):
    """x * sigmoid(x)  (arXiv:1702.03118).

    The bound keeps exp finite: e^88 is the last power that float32 can hold.
    """
    return x / (1 + np.exp(np.minimum(-x, 88)))


def softmax(x):
    """exp(x) / sum(exp(x)) over the last axis.

    Subtracting the maximum changes nothing but keeps exp finite.
    """
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis  (arXiv:1910.07467).

    No mean is subtracted, no bias added. Never in half precision: the real 0.6B has one channel near 5700
    at the first token, and 5700^2 overflows float16.
    """
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope_table(T, H, theta):
    """cos and sin of position * theta^(-2i/H), i = 0 .. H/2-1: two arrays [T, P]  (arXiv:2104.09864).

    Channel pair i rotates by one radian every theta^(2i/H) tokens: i = 0 every token, the last about every
    million. Frequencies, angles and cosines are float32 values, whatever the weights: the published code
    rounds the angles like this. An exact table would differ by up to 1e-3 radians at position 30000.
    """
    exponents = np.arange(0, H, 2, dtype=np.float32) / np.float32(H)
    inv_freq = np.float32(1) / np.power(theta, exponents, dtype=np.float64).astype(np.float32)
    angles_TP = np.arange(T, dtype=np.float32)[:, None] * inv_freq
    return np.cos(angles_TP), np.sin(angles_TP)


def apply_rope(x_TNH, cos, sin):
    """Rotate each head's channels by the token's angles.

    Channel i pairs with i + H/2, not with its neighbour:

        channel   0   1  ...  63 | 64  65 ... 127
                  a0  a1     a63 | b0  b1     b63        (a_i, b_i) is rotated by angle i
    """
    a, b = np.split(x_TNH, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]  # the same angles for every head
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_TNH.dtype)


def attention(x_TD, cos, sin, eps, q_proj, k_proj, v_proj, o_proj, q_norm, k_norm):
    """Causal grouped-query attention  (arXiv:2305.13245). No projection has a bias."""
    T, H = len(x_TD), len(q_norm)  # [Qwen3] head_dim is a number of its own: N * H = 2048 here, not D = 1024
    q_TNH = (x_TD @ q_proj.T).reshape(T, -1, H)
    k_SKH = (x_TD @ k_proj.T).reshape(T, -1, H)
    v_SKH = (x_TD @ v_proj.T).reshape(T, -1, H)

    # [Qwen3] each query and key head is RMS-normalised over its own H channels, before RoPE; values are not.
    q_TNH = apply_rope(rms_norm(q_TNH, q_norm, eps), cos, sin)
    k_SKH = apply_rope(rms_norm(k_SKH, k_norm, eps), cos, sin)

    N, K = q_TNH.shape[1], k_SKH.shape[1]
    G = N // K
    future_TS = np.triu(np.ones((T, T), bool), k=1)  # a token sees itself and what came before
    out_TNH = np.empty_like(q_TNH)
    for n in range(N):
        k = n // G  # G neighbouring query heads share one key/value head
        scores_TS = q_TNH[:, n] @ k_SKH[:, k].T * x_TD.dtype.type(H**-0.5)
        scores_TS[future_TS] = -np.inf
        out_TNH[:, n] = softmax(scores_TS) @ v_SKH[:, k]
    return out_TNH.reshape(T, N * H) @ o_proj.T


def mlp(x_TD, gate_proj, up_proj, down_proj):
    """SwiGLU  (arXiv:2002.05202): one projection, through silu, gates the other."""
    gate_TF, up_TF = x_TD @ gate_proj.T, x_TD @ up_proj.T
    return (silu(gate_TF) * up_TF) @ down_proj.T


def block(x_TD, layer, cos, sin, eps):
    """One layer: attention and MLP each read a normalised copy of the residual stream, and add to it."""
    h_TD = rms_norm(x_TD, layer["input_layernorm"], eps)
    x_TD = x_TD + attention(h_TD, cos, sin, eps, **layer["self_attn"])
    h_TD = rms_norm(x_TD, layer["post_attention_layernorm"], eps)
    x_TD = x_TD + mlp(h_TD, **layer["mlp"])
    return x_TD


def forward(texts, embed_tokens, layers, norm, eps, theta, head_dim):
    """Token ids of each text -> its states x_TD after the last layer and the final norm, in a list.

    `layers` yields each layer's weights once: all texts pass, each on its own, before the next is read.
    """
    xs = [embed(ids_T, embed_tokens) for ids_T in texts]
    tables = [rope_table(len(ids_T), head_dim, theta) for ids_T in texts]
    for layer in layers:
        xs = [block(x_TD, layer, cos, sin, eps) for x_TD, (cos, sin) in zip(xs, tables, strict=True)]
    return [rms_norm(x_TD, norm, eps) for x_TD in xs]


def pool(x_TD):
    """The state of the last token, <|endoftext|>: the only one that has seen the whole text."""
    return x_TD[-1]


def normalize(x_BD, dim=None):
    """Unit vectors of the first `dim` dimensions: truncate, then normalise.

    The model is trained so that any prefix of 32 or more dimensions is an embedding too (Matryoshka,
    arXiv:2205.13147).
    """
    x_BD = x_BD[..., :dim]
    # In float64, and by cumsum, which adds in order: the engine's vectors end here too, alike on every CPU.
    squared_B1 = np.cumsum(np.square(x_BD, dtype=np.float64), axis=-1)[..., -1:]
    length_B1 = np.maximum(np.sqrt(squared_B1), 1e-12)  # PyTorch's bound: a zero vector stays zero
    return x_BD / length_B1.astype(x_BD.dtype)
