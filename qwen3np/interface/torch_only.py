"""Arguments of sentence-transformers that Embedder and Reranker have no use for.

What cannot change a vector is accepted; what can is refused with what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any, NamedTuple

import numpy as np


class Rule(NamedTuple):
    """What values of an argument change nothing here, and what to do instead of others."""

    harmless: Callable[[Any], bool]
    instead: str


def _one_of(*values: Any) -> Callable[[Any], bool]:
    """Return a test for these values, also as PyTorch writes them: torch.float32, torch.device("cpu")."""
    return lambda value: any(value is v or str(value).removeprefix("torch.") == v for v in values)


def _is_cpu(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_cpu, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_cpu, value))
    return value is None or str(value) in ("cpu", "cpu:0")


def _empty(value: Any) -> bool:
    return value is None or value == {}


def _anything(value: Any) -> bool:
    return True


def _flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def is_int(value: Any) -> bool:
    """Return whether value is an integer of Python or NumPy; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


FLOAT32 = _one_of(None, "float32", "auto", "fp32", "float")
ARRAYS = "results are NumPy arrays; torch.from_numpy(vectors) makes a tensor of them"
PROCESSES = "one process uses all cores; num_threads=... of Embedder sets how many"
DTYPE = 'weights keep the type they are stored in; matmul_precision="medium" multiplies in bfloat16'
ITS_OWN = "give it to the constructor itself"
QUANTIZED = 'weights="int8" rounds them to 8 bits; matmul_precision sets speed and accuracy'
EXPORTS = "model.safetensors is what is computed; leave it out"

RULES: dict[str, Rule] = {
    "convert_to_numpy": Rule(_one_of(True), ARRAYS),
    "convert_to_tensor": Rule(_one_of(False), ARRAYS),
    "device": Rule(
        _is_cpu, "everything runs on the CPU; num_threads=... of Embedder sets how many cores; leave it out"
    ),
    "pool": Rule(_one_of(None), PROCESSES),
    "chunk_size": Rule(lambda value: value is None or is_int(value), "it is a number of texts"),
    "task": Rule(_anything, ""),
    "num_workers": Rule(_anything, ""),
    "apply_softmax": Rule(_flag, "there is one score per pair"),
    "processing_kwargs": Rule(_empty, "max_seq_length, and max_length of Reranker, set where texts are cut"),
    "trust_remote_code": Rule(_flag, "no code of a model is ever run: leave it out"),
    "modules": Rule(_one_of(None), "the model's own modules.json is what is computed"),
    "model_card_data": Rule(_anything, ""),
    "num_labels": Rule(_one_of(None, "1"), "a Qwen3 reranker gives one score per pair"),
    "keep_in_fp32_modules": Rule(_anything, ""),
    "classifier_dropout": Rule(_anything, ""),
}

# What may be in the arguments that are dictionaries.
NESTED: dict[str, dict[str, Rule]] = {
    "model_kwargs": {
        "dtype": Rule(FLOAT32, DTYPE),
        "torch_dtype": Rule(FLOAT32, DTYPE),
        "attn_implementation": Rule(lambda value: value is None or isinstance(value, str), "it is a name"),
        "device_map": Rule(lambda value: value == "auto" or _is_cpu(value), "everything runs on the CPU"),
        "low_cpu_mem_usage": Rule(_flag, "weights are mapped, not read"),
        "use_safetensors": Rule(_one_of(None, True), "weights are read from model.safetensors alone"),
        "use_cache": Rule(_flag, "nothing is generated"),
        "trust_remote_code": Rule(_flag, "no code of a model is ever run"),
        "quantization_config": Rule(_one_of(None), QUANTIZED),
        "load_in_8bit": Rule(_one_of(None, False), QUANTIZED),
        "load_in_4bit": Rule(_one_of(None, False), QUANTIZED),
        "provider": Rule(_one_of(None), EXPORTS),
        "file_name": Rule(_one_of(None), EXPORTS),
        "export": Rule(_one_of(None, False), EXPORTS),
        **{name: Rule(_one_of(None), ITS_OWN) for name in ("revision", "token", "cache_dir", "subfolder")},
    },
    "processor_kwargs": {
        "padding_side": Rule(_one_of("left", "right"), "it is left or right; there is no padding here"),
        "padding": Rule(_anything, ""),
        "truncation": Rule(_one_of(None, True, "longest_first"), "what is too long is cut at its end"),
        "truncation_side": Rule(_one_of(None, "right"), "what is too long is cut at its end"),
        "use_fast": Rule(_flag, "tokenizer.json is what is read"),
        "trust_remote_code": Rule(_flag, "no code of a model is ever run"),
        "clean_up_tokenization_spaces": Rule(_flag, "nothing is decoded"),
        "max_length": Rule(_one_of(None), "its name is model_max_length, or max_seq_length of Embedder"),
    },
    "config_kwargs": {
        "num_labels": RULES["num_labels"],
        "dtype": Rule(FLOAT32, DTYPE),
        "torch_dtype": Rule(FLOAT32, DTYPE),
        "attn_implementation": Rule(_anything, ""),
        "use_cache": Rule(_flag, "nothing is generated"),
        "trust_remote_code": Rule(_flag, "no code of a model is ever run"),
        "classifier_dropout": Rule(_anything, ""),
    },
}
UNKNOWN = {
    "model_kwargs": "matmul_precision=..., num_threads=... are what can be set",
    "processor_kwargs": "tokenizer.json is what is used",
    "config_kwargs": "a changed copy of config.json in the model's folder stands for it",
}

# Older names of arguments of sentence-transformers and its CrossEncoder.
RENAMED = {
    "use_auth_token": "token",
    "cache_dir": "cache_folder",
    "tokenizer_kwargs": "processor_kwargs",
    "tokenizer_args": "processor_kwargs",
    "model_args": "model_kwargs",
    "automodel_args": "model_kwargs",
    "config_args": "config_kwargs",
    "default_activation_function": "activation_fn",
    "activation_fct": "activation_fn",
    "sentences": "inputs",
}


def accept(
    arguments: Mapping[str, Any], function: Callable[..., Any], where: str, own: Iterable[str] = ()
) -> dict[str, Any]:
    """Check arguments that are not a function's own, and return those of its own that they stand for.

    Args:
        arguments: The arguments given that `function` does not name.
        function: Whose arguments are meant; an unknown name is compared with its signature.
        where: What errors call the function.
        own: Names of its own arguments that may be given under another name.

    Raises:
        TypeError: An argument can change a vector: the message says what to do instead. Or it is unknown: the
            message has the name most like it.
    """
    meant: dict[str, Any] = {}
    own = list(own)
    for given, value in arguments.items():
        name = RENAMED.get(given, given)
        if name in own:
            meant[name] = value
        elif name in NESTED and (value is None or isinstance(value, Mapping)):
            meant |= _nested(name, given, value or {}, where, own)
        elif name in RULES:
            _check(RULES[name], f"{given}={value!r}", value, where)
        elif name in NESTED:
            raise TypeError(f"{where}: {given} is {type(value).__name__}, expected a dict")
        elif name in signature(function).parameters:
            raise TypeError(f"{where}: {given} is an older name of {name}, which is given too: give one")
        else:
            known = [*signature(function).parameters, *RULES, *NESTED, *RENAMED]
            raise TypeError(f"{where}: unknown argument {given!r}{suggestion(given, known)}")
    return meant


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the known name most like this one, as a question, or ""."""
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_batch_size(batch_size: Any) -> None:
    """Raise ValueError for what is not a positive integer or None."""
    if batch_size is not None and (not is_int(batch_size) or batch_size < 1):
        raise ValueError(f"batch_size must be a positive integer, found {batch_size!r}")


def _nested(name: str, given: str, values: Mapping[str, Any], where: str, own: list[str]) -> dict[str, Any]:
    """Check the arguments in a dictionary, as `accept` does."""
    meant: dict[str, Any] = {}
    for key, value in values.items():
        shown = f"{given}={{{key!r}: {value!r}}}"
        if key == "model_max_length" and name == "processor_kwargs":
            meant[next(n for n in ("max_seq_length", "max_length") if n in own)] = value
        else:
            rule = NESTED[name].get(key, Rule(lambda value: False, UNKNOWN[name]))
            _check(rule, shown, value, where)
    return meant


def _check(rule: Rule, shown: str, value: Any, where: str) -> None:
    """Raise TypeError for a value that can change a vector."""
    if not rule.harmless(value):
        raise TypeError(f"{where}: {shown} is not possible without PyTorch: {rule.instead}")
