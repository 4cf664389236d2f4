"""The student: Qwen3 of transformers, small, and its vectors of queries and documents."""

from __future__ import annotations

import torch
from static import unit
from torch import Tensor
from transformers import DynamicCache, Qwen3Config, Qwen3Model

# 2.96 million parameters, 1.92 of them embeddings: 5.9 MB in bfloat16. Three key/value heads of 32, because
# the last token can read only what the values carry: 96 numbers of each token in a layer.
CONFIG = {
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
THETA = 1e6
CHUNKS = 4  # a batch is computed in so many parts, sorted by length: little of them is padding


class Student(torch.nn.Module):
    """The model in training.

    It begins as the weighted mean of static.py: the first two layers' values carry half of the dimensions
    each, their heads write them where they were, and queries and keys compute the weights. All else begins
    small. The weights are in channels that RoPE turns least, by 2e-6 of a radian a token.

    Args:
        embeddings: The embeddings of static.py.
        prompt: The token ids of the query instruction.
        end: The id of the token at a text's end.
    """

    def __init__(self, embeddings: Tensor, prompt: list[int], end: int) -> None:
        super().__init__()
        config = Qwen3Config(
            **CONFIG,
            vocab_size=len(embeddings),
            rope_parameters={"rope_type": "default", "rope_theta": THETA},
        )
        self.model = Qwen3Model(config)
        self.prompt = prompt
        size, group = CONFIG["head_dim"], CONFIG["num_attention_heads"] // CONFIG["num_key_value_heads"]
        carried = size * CONFIG["num_key_value_heads"]
        with torch.no_grad():
            weights = self.model.embed_tokens.weight
            weights.copy_(unit(embeddings))
            weights[end, :-2] = 0.0  # the pooled token has no meaning of its own
            weights[end] *= 0.3 / weights[end].norm()
            for layer, start in zip(self.model.layers, (0, carried), strict=False):
                attention = layer.self_attn
                for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                    getattr(attention, name).weight.mul_(0.1)
                for first in range(0, len(attention.q_proj.weight), size):
                    attention.q_proj.weight[first + size // 2 - 1, -2] = -10
                for first in range(0, len(attention.k_proj.weight), size):
                    attention.k_proj.weight[first + size // 2 - 1, -2] = 10
                    attention.k_proj.weight[first + size - 1, -1] = 10
                for at in range(min(carried, len(weights[0]) - 2 - start)):
                    attention.v_proj.weight[at, start + at] += 1
                    for head in range(at // size * group, at // size * group + group):
                        attention.o_proj.weight[start + at, head * size + at % size] += 1 / group

    def forward(self, texts: list[list[int]], query: bool) -> Tensor:
        """Return the states of the last tokens, before the normalisation."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        part = -(-len(texts) // CHUNKS)
        chunks = [[texts[i] for i in order[at : at + part]] for at in range(0, len(order), part)]
        return torch.cat([self._chunk(c, query) for c in chunks])[torch.tensor(order).argsort()]

    def _chunk(self, texts: list[list[int]], query: bool) -> Tensor:
        """Return the states of texts of about one length.

        The instruction is computed once for all queries: no token sees a later one, so its keys and values
        are the same in all of them.
        """
        width = max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        cache = None
        if query:
            cache = DynamicCache(config=self.model.config)
            self.model(torch.tensor([self.prompt]), past_key_values=cache)
            cache.batch_repeat_interleave(len(texts))
        # Padding on the right needs no mask: attention is causal.
        states = self.model(ids, past_key_values=cache, use_cache=query).last_hidden_state
        return states[torch.arange(len(texts)), torch.tensor([len(text) - 1 for text in texts])]
