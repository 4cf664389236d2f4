"""sentence_bert_config.json: the settings of sentence-transformers' Transformer module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .config import load_object

# The first of these files that exists counts.
NAMES = [
    f"sentence_{name}_config.json"
    for name in "bert roberta distilbert camembert albert xlm-roberta xlnet".split()
]

# Keys that change nothing here with these values, or with None.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "processing_kwargs": ({},),
    "unpad_inputs": (True, False),
    "query_length": (),
    "document_length": (),
    "query_expansion": (),
    "tokenizer_name_or_path": (),
}
# Arguments for the parts of transformers -> their keys that change no vector; and the older names of these.
ARGUMENTS = {
    "model_kwargs": (
        "dtype",
        "torch_dtype",
        "attn_implementation",
        "device_map",
        "low_cpu_mem_usage",
        "use_safetensors",
    ),
    "processor_kwargs": ("padding_side", "use_fast"),
    "config_kwargs": ("use_cache",),
}
OLDER = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
METHODS = {
    "feature-extraction": "last_hidden_state",
    "text-generation": "logits",
    "sequence-classification": "logits",
}


@dataclass(frozen=True)
class TransformerConfig:
    """What the file says; an absent one leaves the defaults."""

    max_seq_length: int | None = None
    do_lower_case: bool = False
    uses_messages: bool | None = None  # whether texts go through the chat template; None without the file


def load_transformer_config(folder: Path, task: str) -> TransformerConfig:
    """Read and check the file of a module that does `task`.

    Raises CheckpointError that names the file and the value that is not supported.
    """
    path = next((folder / name for name in NAMES if (folder / name).is_file()), folder / NAMES[0])
    if not path.is_file():
        return TransformerConfig()
    raw = load_object(path)
    known = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"}
    for key, value in raw.items():
        if value is None or key in known:
            continue
        key_now = OLDER.get(key, key)
        if key_now in ARGUMENTS:
            if not isinstance(value, dict):
                raise CheckpointError(f"{path}: {key} = {value!r} is not an object")
            more = [name for name in value if name not in (*ARGUMENTS[key_now], "trust_remote_code")]
            if more:
                raise CheckpointError(f"{path}: {key} with {', '.join(map(repr, more))} is not supported")
        elif key not in SUPPORTED or value not in SUPPORTED[key]:
            raise CheckpointError(f"{path}: {key} = {value!r} is not supported")
    longest = raw.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise CheckpointError(f"{path}: max_seq_length must be a positive integer, found {longest!r}")
    lower = raw.get("do_lower_case") or False
    if type(lower) is not bool:
        raise CheckpointError(f"{path}: do_lower_case must be true or false, found {lower!r}")
    if raw.get("transformer_task", task) != task:
        raise CheckpointError(
            f"{path}: transformer_task = {raw['transformer_task']!r} is not supported here (only {task})"
        )
    return TransformerConfig(longest, lower, _uses_messages(path, raw.get("modality_config"), task))


def _uses_messages(path: Path, modalities: Any, task: str) -> bool:
    if modalities is None:
        return False
    ok = isinstance(modalities, dict) and all(isinstance(m, dict) for m in modalities.values())
    if not ok or "text" not in modalities or set(modalities) - {"text", "message"}:
        raise CheckpointError(
            f"{path}: modality_config = {modalities!r} is not supported (only text and message)"
        )
    for name, modality in modalities.items():
        found = modality.get("method"), modality.get("method_output_name")
        if found != ("forward", METHODS[task]):
            raise CheckpointError(
                f"{path}: the {name} of modality_config is {found}, not {('forward', METHODS[task])}"
            )
    if "message" in modalities and task == "feature-extraction":
        raise CheckpointError(
            f"{path}: modality_config puts texts into the chat template (message), which is not supported; "
            'if the model was not trained so, remove "message"'
        )
    return "message" in modalities
