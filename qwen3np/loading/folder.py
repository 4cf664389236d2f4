"""Every file that sentence-transformers 6.2 or transformers 5 reads, and what becomes of it here.

A file in neither table is read by neither library, nor here.
"""

from __future__ import annotations

READ = "read"
REFUSED = "refused"

# File -> what is done with it, and where. READ files are followed, or refused for a value that is not
# supported. The files of a Transformer with a path of its own are in that folder, those of the other modules
# in the folders that modules.json names.
USED: dict[str, tuple[str, str]] = {
    "config.json": (READ, "config.py: sizes; other keys that change the computation are refused"),
    "model.safetensors": (READ, "checkpoint.py"),
    "model.safetensors.index.json": (READ, "checkpoint.py: the shards' names"),
    "model-*-of-*.safetensors": (READ, "checkpoint.py"),
    "tokenizer.json": (READ, "tokenizer.py: ids, and the tokens around a text"),
    "tokenizer_config.json": (
        READ,
        "tokenizer_config.py: added tokens, truncation_side, model_max_length, template",
    ),
    "special_tokens_map.json": (
        READ,
        "tokenizer_config.py: where tokenizer_config.json has no added_tokens_decoder",
    ),
    "added_tokens.json": (READ, "tokenizer_config.py: likewise"),
    "chat_template.jinja": (READ, "chat_template.py: a reranker's must have the model card's words"),
    "modules.json": (READ, "st_config.py"),
    "config_sentence_transformers.json": (
        READ,
        "st_config.py: prompts, similarity, truncate_dim, model_type",
    ),
    "sentence_*_config.json": (READ, "transformer_config.py: max_seq_length, do_lower_case, messages"),
    "1_Pooling/config.json": (READ, "st_config.py: only the last token is pooled"),
    "2_Normalize/config.json": (READ, "st_config.py: what is normalised"),
    "1_LogitScore/config.json": (READ, 'st_config.py: ids of "yes" and "no"'),
    "adapter_config.json": (REFUSED, "checkpoint.py: an adapter is to be merged first"),
    "processor_config.json": (
        REFUSED,
        "tokenizer_config.py: with a processor_class, of a model for more than text",
    ),
    "preprocessor_config.json": (REFUSED, "tokenizer_config.py: likewise"),
}

# File -> why it cannot change a vector or a score.
MEANINGLESS: dict[str, str] = {
    "README.md": "a model card; sentence-transformers keeps its text",
    "generation_config.json": "how to sample from a causal model; nothing is generated",
    "vocab.json": "transformers takes the vocabulary from tokenizer.json, without which this package has "
    "none",
    "merges.txt": "likewise",
    "chat_template.json": "for processors of images alone",
    "additional_chat_templates/*.jinja": "templates with names; pairs and texts are given none",
    "video_preprocessor_config.json": "read with a processor_class alone",
    "adapter_model.safetensors": "read with adapter_config.json alone",
    "pytorch_model.bin": "read where there is no safetensors file; here that is an error",
    "*.index.json of other formats": "likewise",
    "training_args.bin": "of the trainer; read by no inference",
    "onnx/*, openvino/*": "read with another backend= alone",
    "custom_generate/*": "code for generation; never run",
    "*.py": "code of the model; a config.json or modules.json that asks for it is refused, and it is never "
    "run",
}


def patterns() -> list[str]:
    """Return patterns (fnmatch) of the files to fetch from a repository.

    It may also hold ONNX, GGUF or PyTorch copies of the weights. A Transformer with a path of its own is in
    0_Transformer, or whatever the folder is called.
    """
    names = [name for name in USED if "/" not in name]
    folders = ["1_Pooling/config.json", "1_LogitScore/config.json", "?_*/config.json"]
    return [*names, *(f"?_Transformer/{name}" for name in names), *folders]
