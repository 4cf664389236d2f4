"""Two forward passes of the same token ids compared, stage by stage in forward order.

A stage is a named array: "embed_tokens", then for each layer i "layers.i.self_attn" and "layers.i.mlp" (what
the two add to the residual stream) and "layers.i" (the stream after the layer), then "norm": each
[tokens, hidden_size], the texts one behind the other; "pooled", the unit vectors [texts, hidden_size]; and of
a reranker "scores", [1, 3 * texts]: the logits of "yes", those of "no", and "yes" - "no", in one row, so that
an error counts in the largest logit. The names are transformers' module names. A source yields its stages one
at a time, so that two full-size models can be compared with one layer of each in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from . import reference
from .checkpoint import Checkpoint, Weights
from .table import table

Stage = tuple[str, NDArray[Any]]
Texts = Sequence[Sequence[int]]
Answers = tuple[int, int] | None

MOST = 0.25  # a quarter of a token's largest value is wrong, however far float32 itself is off


@dataclass(frozen=True)
class Row:
    """How one stage of two forward passes differs.

    `relative` is the largest difference over the largest expected value of the same token: one token's
    massive activation (5700 in the 0.6B) does not excuse an error at another. `tolerance` bounds it; `first`
    is the (token, channel) of the first value beyond. `float32` is plain float32's own relative difference,
    where it was measured.
    """

    stage: str
    max_abs: float
    relative: float
    float32: float | None
    tolerance: float
    cosine: float
    first: tuple[int, ...] | None

    @property
    def ok(self) -> bool:
        return self.first is None


def reference_stages(
    texts: Texts, weights: Weights, ref: ModuleType = reference, answers: Answers = None
) -> Iterator[Stage]:
    """The stages in the reading copy, in the precision of `weights`; one layer's weights in memory. `answers`
    are a reranker's token ids of "yes" and "no"."""
    c = weights.checkpoint.config
    xs = [weights.embed_tokens[list(ids)] for ids in texts]
    yield "embed_tokens", np.concatenate(xs)
    tables = [ref.rope_table(len(ids), c.head_dim, c.rope_theta) for ids in texts]
    for i in range(c.num_hidden_layers):
        layer = weights.layer(i)
        attended, added = [], []
        for n, (x_TD, (cos, sin)) in enumerate(zip(xs, tables, strict=True)):
            # The lines of reference.block, with a stop between them.
            normed_TD = ref.rms_norm(x_TD, layer["input_layernorm"], c.rms_norm_eps)
            attended.append(ref.attention(normed_TD, cos, sin, c.rms_norm_eps, **layer["self_attn"]))
            normed_TD = ref.rms_norm(x_TD + attended[-1], layer["post_attention_layernorm"], c.rms_norm_eps)
            added.append(ref.mlp(normed_TD, **layer["mlp"]))
            xs[n] = ref.block(x_TD, layer, cos, sin, c.rms_norm_eps)
        yield f"layers.{i}.self_attn", np.concatenate(attended)
        yield f"layers.{i}.mlp", np.concatenate(added)
        yield f"layers.{i}", np.concatenate(xs)
        del layer  # before the next one is read: 1.5 GB in float64 for the 8B
        weights.checkpoint.release()
    xs = [ref.rms_norm(x_TD, weights.norm, c.rms_norm_eps) for x_TD in xs]
    yield "norm", np.concatenate(xs)
    last_ND = np.stack([ref.pool(x_TD) for x_TD in xs])
    yield "pooled", ref.normalize(last_ND)
    if answers is not None:
        lm_head = weights.rows(weights.checkpoint.head or "lm_head.weight")
        yes_N, no_N = (last_ND @ lm_head[list(answers)].T).T
        yield "scores", np.concatenate([yes_N, no_N, yes_N - no_N])[None]


def require_transformers() -> str:
    """The versions of torch and transformers. Raises ImportError, saying what to install, without them."""
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
    """The stages in transformers' Qwen3 in `dtype` ("float32", "float64") on the CPU, one layer's weights in
    memory.

    A Qwen3Model of one layer is given each layer's weights in turn, read by the safetensors library, so that
    neither this package's loader nor its arithmetic has a part in it. The model makes the causal mask and the
    rotary table itself. (In float64 too its RMSNorm and rotary table are float32, as in the source.) Raises
    ImportError without torch and transformers.
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
    """Unit vectors [texts, hidden_size] of transformers' whole model, loaded in `dtype` ("float32", ...).

    In that precision from the files: a bfloat16 model that is cast up keeps bfloat16 rotary frequencies.
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


def compare(
    expected: Iterable[Stage],
    got: Iterable[Stage],
    tolerance: float,
    float32: Iterable[Stage] | None = None,
) -> list[Row]:
    """One row a stage, all of them. A value is beyond the tolerance if it is off by more than tolerance times
    the largest expected value of its token; a NaN is beyond every tolerance.

    With `float32`, the stages that plain float32 gives, `tolerance` counts in their relative difference from
    the expected ones (2^-23 at the least; MOST bounds the product): how far rounding carries depends on the
    weights, and float32 shows it.

    Raises ValueError if the sources do not have the same stages in the same order.
    """
    rows = []
    sources = [expected, got] if float32 is None else [expected, got, float32]
    for stages in zip(*sources, strict=True):
        (name, want), (_, have) = stages[:2]
        if any((other, x.shape) != (name, want.shape) for other, x in stages):
            raise ValueError("stages differ: " + ", ".join(f"{n} {list(x.shape)}" for n, x in stages))
        with np.errstate(all="ignore"):  # NaN and infinity are what a row reports, not a warning
            want = want.astype(np.float64)
            scale = np.abs(want).max(axis=-1, keepdims=True)
            difference = np.abs(have - want)
            relative = _largest(difference, scale)
            unit = None if float32 is None else _largest(np.abs(stages[2][1] - want), scale)
            limit = tolerance if unit is None else min(tolerance * max(unit, 2.0**-23), MOST)
            within = (difference <= limit * scale) & np.isfinite(difference)  # false for NaN
            have = have.astype(np.float64)
            norms = np.linalg.norm(want) * np.linalg.norm(have)
            cosine = np.vdot(want, have) / norms if norms else np.array_equal(want, have)
        first = None if within.all() else tuple(int(i) for i in np.argwhere(~within)[0])
        rows.append(Row(name, float(difference.max()), relative, unit, limit, float(cosine), first))
    return rows


def _largest(difference: NDArray[Any], scale: NDArray[Any]) -> float:
    return float((difference / np.maximum(scale, np.finfo(np.float32).tiny)).max())


def report(rows: Sequence[Row], columns: int | None = None) -> str:
    """The rows as a table in forward order, for a terminal of `columns` columns."""
    header = "stage,max abs,relative,float32's,tolerance,1 - cosine,first beyond,verdict".split(",")
    cells = [
        [
            row.stage,
            f"{row.max_abs:.1e}",
            f"{row.relative:.1e}",
            "" if row.float32 is None else f"{row.float32:.1e}",
            f"{row.tolerance:.1e}",
            f"{np.maximum(1 - row.cosine, 0):.0e}",
            str(row.first or ""),
            "ok" if row.ok else "BAD",
        ]
        for row in rows
    ]
    return table(header, cells, columns)


class _TorchTensors:
    """A checkpoint's tensors as the safetensors library reads them. A file is open only while a tensor of it
    is in use, so that no more than one tensor's pages stay in memory."""

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
    """The outputs of layer 0 and its two halves, as they come: by forward hooks."""
    kept: dict[str, list[Any]] = {"layers.0.self_attn": [], "layers.0.mlp": [], "layers.0": []}
    for name, outputs in kept.items():

        def keep(module: Any, inputs: Any, output: Any, outputs: list[Any] = outputs) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        model.get_submodule(name).register_forward_hook(keep)
    return kept


def _concatenate(xs_1TD: Sequence[Any]) -> NDArray[Any]:
    return np.concatenate([x_1TD[0].numpy() for x_1TD in xs_1TD])
