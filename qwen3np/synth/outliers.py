"""Outlier channels: what makes real weights hard to quantise, and generated ones by default are not.

In trained models a few channels of every projection's input are far larger than the others in every token:
the same 6 of a model's width in all layers (LLM.int8(), Dettmers et al. 2022, section 4), about 100 times the
others (SmoothQuant, Xiao et al. 2023, section 3); the products of a gated MLP have such spikes, too (Yang et
al. 2024, "Mitigating Quantization Errors Due to Activation Spikes"). Whoever rounds activations with one
scale for all channels rounds the others away: of Octen-Embedding-0.6B, a Qwen3-Embedding-0.6B trained on,
dynamic int8 gives vectors of cosine 0.83 with float32's.

Here they come from where real weights have them: large gammas of the norms before q, k, v, gate and up, large
rows of v_proj, which attention hands on to o_proj, and large rows of up_proj, which do so to down_proj. The
columns that read them are smaller, or nothing else would count. All factors are powers of two: they change no
mantissa, and what does not quantise is as exact as without them.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..loading.config import Config

MOST = 6  # outlier channels of an input
LARGE = 16.0  # times the others
SMALL = 1 / 4  # of what reads them: a channel counts 4 times as much as another, not 16 times


class Scales(NamedTuple):
    """Factors of a tensor's rows and of its columns; those of a gamma are its rows'."""

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]


def outlier_scales(name: str, shape: tuple[int, ...], config: Config, seed: int, massive: int) -> Scales:
    """Return the factors that give a model outlier channels; `massive` is no channel of them."""
    c, scales = config, Scales(np.ones(shape[0], np.float32), np.ones(shape[-1], np.float32))
    path = name.split(".")
    layer, tensor = ".".join(path[:2]), path[-2]
    width = _chosen("width", np.delete(np.arange(c.hidden_size), massive), seed)
    values = _chosen(f"{layer} values", np.arange(c.num_key_value_heads * c.head_dim), seed)
    products = _chosen(f"{layer} products", np.arange(c.intermediate_size), seed)
    if tensor in ("input_layernorm", "post_attention_layernorm"):
        scales.rows[width] = LARGE
    elif tensor in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        scales.columns[width] = SMALL
    if tensor == "v_proj":
        scales.rows[values] = LARGE
    elif tensor == "o_proj":  # the query heads of a group read the same values
        group = c.num_attention_heads // c.num_key_value_heads
        head, channel = np.divmod(values, c.head_dim)
        for n in range(group):
            scales.columns[(head * group + n) * c.head_dim + channel] = SMALL
    elif tensor == "up_proj":
        scales.rows[products] = LARGE
    elif tensor == "down_proj":
        scales.columns[products] = SMALL
    return scales


def _chosen(what: str, channels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the outliers among channels: at most one in 16."""
    rng = np.random.default_rng([seed, 2, zlib.crc32(what.encode())])
    return rng.choice(channels, min(MOST, len(channels) // 16), replace=False)
