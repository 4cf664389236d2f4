"""A GGUF file of a checkpoint, for llama.cpp: the same weights, as bfloat16 or Q8_0."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np

from qwen3np.loading.checkpoint import Checkpoint

BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        return f"blk.{layer}.{BLOCK[rest.removesuffix('.weight')]}.weight"
    return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]


def write(folder: Path, path: Path, precision: str) -> Path:
    """precision: "bf16" or "q8_0". Norm weights are float32, as llama.cpp's own converter writes them."""
    checkpoint = Checkpoint(folder)
    c = checkpoint.config
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_pooling_type(gguf.PoolingType.LAST)
    _tokenizer(writer, folder, c.vocab_size)
    bf16, q8_0 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) == 1:
            writer.add_tensor(gguf_name(name), tensor.widen())
        elif precision == "bf16":
            data = np.ascontiguousarray(tensor.data).view(np.uint8)
            writer.add_tensor(gguf_name(name), data, raw_dtype=bf16)
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(tensor.widen(), q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    words = {i: word for word, i in tokenizer["model"]["vocab"].items()} | added
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types(
        [
            kinds.CONTROL if i in added else kinds.NORMAL if i in words else kinds.UNUSED
            for i in range(vocab_size)
        ]
    )
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    end = {word: i for i, word in added.items()}["<|endoftext|>"]
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
