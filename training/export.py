"""A trained student -> a folder in the Hub's layout, as Qwen3-Embedding's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from student import CONFIG, THETA

from qwen3np.loading.model_cards import PROMPTS

END, IM_END = "<|endoftext|>", "<|im_end|>"
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def export(state: dict[str, torch.Tensor], tokenizer: Path, folder: Path) -> None:
    """Write config, weights in bfloat16, tokenizer and the files of sentence-transformers.

    Args:
        state: The student's weights.
        tokenizer: The path of tokenizer.json.
        folder: The folder to write them into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.removeprefix("model."): tensor.bfloat16() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes 0600
    # Without the indents, which are a quarter of it.
    parsed = json.loads(tokenizer.read_text(encoding="utf-8"))
    compact = json.dumps(parsed, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact, encoding="utf-8")
    end = next(token["id"] for token in parsed["added_tokens"] if token["content"] == END)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": end,
        "eos_token_id": end,
        "hidden_act": "silu",
        "model_type": "qwen3",
        "rope_scaling": None,
        "rope_theta": THETA,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": len(tensors["embed_tokens.weight"]),
        **CONFIG,
    }
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in MODES}
    files = {
        "config.json": config,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": IM_END,
            "pad_token": END,
            "model_max_length": CONFIG["max_position_embeddings"],
        },
        "sentence_bert_config.json": {
            "max_seq_length": CONFIG["max_position_embeddings"],
            "do_lower_case": True,
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": CONFIG["hidden_size"],
            **pooling,
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {
            "prompts": PROMPTS,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
