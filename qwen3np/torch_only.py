"""Arguments of sentence-transformers that need PyTorch: refused, with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Arguments of sentence-transformers that only make sense with PyTorch: the values that change nothing here,
# and what to do instead of the others.
TORCH_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "convert_to_numpy": (
        (True,),
        "results are NumPy arrays; torch.from_numpy(vectors) makes a tensor of them",
    ),
    "convert_to_tensor": (
        (False,),
        "results are NumPy arrays; torch.from_numpy(vectors) makes a tensor of them",
    ),
    "device": ((None, "cpu"), "everything runs on the CPU; num_threads=... of Embedder sets how many cores"),
    "pool": ((None,), "one process uses all cores; num_threads=... of Embedder sets how many"),
    "trust_remote_code": ((False,), "no code of a model is ever run: leave it out"),
    "model_kwargs": ((None, {}), "matmul_precision=... of Embedder stands for its dtype"),
    "processor_kwargs": ((None, {}), "max_seq_length=... of Embedder stands for its max_length"),
    "tokenizer_kwargs": ((None, {}), "max_seq_length=... of Embedder stands for its max_length"),
    "config_kwargs": ((None, {}), "a changed copy of config.json in the model's folder stands for it"),
    "modules": ((None,), "the model's own modules.json is what is computed"),
}


def refuse(arguments: Mapping[str, Any], where: str) -> None:
    """TypeError for arguments that are not known here, with what to do instead where that is known."""
    for name, value in arguments.items():
        harmless, instead = TORCH_ONLY.get(name, ((), ""))
        if any(value is h or value == h for h in harmless):
            continue
        if instead:
            raise TypeError(f"{where}: {name}={value!r} is not possible without PyTorch: {instead}")
        raise TypeError(f"{where}: unknown argument {name!r}")
