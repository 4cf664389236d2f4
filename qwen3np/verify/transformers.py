"""The stages and vectors of transformers' Qwen3; no other file of the package imports torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from .. import reference
from ..loading.checkpoint import Checkpoint
from ..runtime.stages import Answers, Stage, Texts


def require_transformers() -> str:
    """Return the versions of torch and transformers, or raise ImportError that says what to install."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f"a comparison with transformers needs both torch and transformers ({error}): "
            'pip install "qwen3np[hf]"'
        ) from error
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def transformers_stages(
    texts: Texts, checkpoint: Checkpoint, dtype: str, answers: Answers = None
) -> Iterator[Stage]:
    """Yield the stages of transformers' Qwen3 on the CPU, with one layer's weights in memory at a time.

    A Qwen3Model of one layer is given each layer's weights in turn, read by the safetensors library, so that
    neither this package's loader nor its arithmetic has a part in it. The model makes the causal mask and the
    rotary table itself. (In float64 too its RMSNorm and rotary table are float32, as in the source.)

    Args:
        texts: The token ids of each text.
        checkpoint: The model's files.
        dtype: "float32" or "float64".
        answers: A reranker's token ids of "yes" and "no".

    Raises:
        ImportError: torch or transformers is not installed.
    """
    require_transformers()
    import torch
    from transformers import AutoConfig, AutoModel

    stored = _TorchTensors(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint.transformer_folder, local_files_only=True)
    layers = config.num_hidden_layers
    used, ids = np.unique(np.concatenate([np.asarray(ids) for ids in texts]), return_inverse=True)
    config.num_hidden_layers, config.layer_types = 1, config.layer_types[:1]
    config.vocab_size, config.pad_token_id = len(used), None  # not the 8B's 2.5 GB
    with torch.no_grad():
        model = AutoModel.from_config(config, dtype=getattr(torch, dtype)).eval()
        kept = _keep_outputs(model)
        model.embed_tokens.weight.copy_(stored.read("embed_tokens.weight")[torch.from_numpy(used)])
        model.norm.weight.copy_(stored.read("norm.weight"))
        xs = [model.embed_tokens(part)[None] for part in torch.from_numpy(ids).split([len(t) for t in texts])]
        yield "embed_tokens", _concatenate(xs)
        for i in range(layers):
            for name, parameter in model.layers[0].named_parameters():
                parameter.copy_(stored.read(f"layers.{i}.{name}"))
            for outputs in kept.values():
                outputs.clear()
            states = [model(inputs_embeds=x, use_cache=False).last_hidden_state for x in xs]
            xs = list(kept["layers.0"])
            for name in ("layers.0.self_attn", "layers.0.mlp", "layers.0"):
                yield name.replace("0", str(i), 1), _concatenate(kept[name])
        yield "norm", _concatenate(states)
        last = torch.stack([x_1TD[0, -1] for x_1TD in states])
        yield "pooled", torch.nn.functional.normalize(last, dim=-1).numpy()
        if answers is not None:
            lm_head = stored.read(checkpoint.head or "lm_head.weight")
            yes, no = (last @ lm_head[list(answers)].to(last.dtype).T).T
            yield "scores", torch.cat([yes, no, yes - no])[None].numpy()


def transformers_vectors(folder: str | Path, texts: Texts, dtype: str) -> NDArray[np.float64]:
    """Return unit vectors [texts, hidden_size] of transformers' whole model, loaded in `dtype`.

    In that precision from the files: a bfloat16 model that is cast up keeps bfloat16 rotary frequencies.

    Args:
        folder: The model's folder.
        texts: The token ids of each text.
        dtype: "float32", "bfloat16", ...
    """
    require_transformers()
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        states = [model(torch.tensor([list(ids)])).last_hidden_state[0, -1].double().numpy() for ids in texts]
    del model
    gc.collect()
    return reference.normalize(np.stack(states))


class _TorchTensors:
    """A checkpoint's tensors as the safetensors library reads them.

    A file is open only while a tensor of it is in use, so that no more than one tensor's pages
    stay in memory.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._where: dict[str, tuple[Path, str]] = {}
        for path in checkpoint.files:
            with safe_open(path, framework="pt") as file:
                self._where |= {name.removeprefix("model."): (path, name) for name in file.keys()}

    def read(self, name: str) -> Any:
        path, stored = self._where[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(stored)


def _keep_outputs(model: Any) -> dict[str, list[Any]]:
    """Collect the outputs of layer 0 and of its two halves, by forward hooks."""
    kept: dict[str, list[Any]] = {"layers.0.self_attn": [], "layers.0.mlp": [], "layers.0": []}
    for name, outputs in kept.items():

        def keep(module: Any, inputs: Any, output: Any, outputs: list[Any] = outputs) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        model.get_submodule(name).register_forward_hook(keep)
    return kept


def _concatenate(xs_1TD: Sequence[Any]) -> NDArray[Any]:
    return np.concatenate([x_1TD[0].numpy() for x_1TD in xs_1TD])
