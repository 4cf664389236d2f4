"""Generated checkpoints: complete folders in the Hub's layout, random weights shaped like real ones.

For tests, benchmarks and the demo, where the published weights cannot be had. Names, prefix, tying, sharding
and side files are those of the published model; the values are random, with what makes real weights
numerically hard: norm gammas far from one, and a massive activation (in the real 0.6B, channel 35 is near
5700 at the first token).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..loading import model_cards
from ..loading.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, safetensors_header, tensor_shapes, widen
from ..loading.config import Config, load_json

MASSIVE_VALUE = 5700.0
# The gammas of that channel are small in the real weights too: the channel is a bias, not a signal.
MASSIVE_GAMMA = 0.05
CHUNK = 1 << 22  # values generated at a time: 16 MB of float32, whatever the model's size

EMBEDDING_SHARD, RERANKER_SHARD = 5_000_000_000, 4_100_000_000  # bytes; they reproduce the published shards

BUILT_IN_TOKENIZER = Path(__file__).parent / "tokenizer.json"


def _config(D: int, F: int, L: int, N: int, V: int, positions: int, tied: bool = True) -> Config:
    return Config(D, F, L, N, 8, 128, V, positions, 1e-6, 1e6, tied)


LIKE: dict[str, Config] = {
    "0.6B": _config(1024, 3072, 28, 16, 151669, 32768),
    "4B": _config(2560, 9728, 36, 32, 151665, 40960),
    "8B": _config(4096, 12288, 36, 32, 151665, 40960, tied=False),
    "reranker-0.6B": _config(1024, 3072, 28, 16, 151669, 40960),
    "reranker-4B": _config(2560, 9728, 36, 32, 151669, 40960),
    "reranker-8B": _config(4096, 12288, 36, 32, 151669, 40960, tied=False),
    "F2LLM-v2-80M": _config(320, 2048, 8, 16, 151936, 40960),
    "F2LLM-v2-160M": _config(640, 1536, 9, 16, 151936, 40960),
    "F2LLM-v2-330M": _config(896, 2560, 16, 16, 151936, 40960),
    "tiny": Config(96, 224, 4, 6, 2, 32, 2048, 32768, 1e-6, 1e6, True),
    "reranker-tiny": Config(96, 224, 4, 6, 2, 32, 2048, 32768, 1e-6, 1e6, True),
}


def synthesize(
    folder: str | Path,
    like: str = "tiny",
    *,
    seed: int = 0,
    layers: int | None = None,
    tokenizer: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a generated checkpoint into a new or empty folder, which appears complete or not at all.

    The same seed gives the same bytes.

    Args:
        folder: The folder.
        like: The model whose shapes it has, a key of LIKE.
        seed: The seed of the weights.
        layers: Overrides num_hidden_layers.
        tokenizer: The tokenizer.json to copy. Default: the small one that comes with this package.
        progress: Called with the bytes done and the bytes in all.

    Returns:
        The folder.

    Raises:
        ValueError: `like` is unknown.
        FileExistsError: The folder holds something.
        CheckpointError: The tokenizer does not fit.
    """
    if like not in LIKE:
        raise ValueError(f"like = {like!r} is not one of {', '.join(LIKE)}")
    if layers is not None and layers < 1:
        raise ValueError(f"layers = {layers} must be at least 1")
    config = LIKE[like] if layers is None else replace(LIKE[like], num_hidden_layers=layers)
    folder = Path(folder)
    if not folder.name:
        raise ValueError(f"{folder}: give the name of a new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not an empty folder; nothing was written")
    source = Path(tokenizer or BUILT_IN_TOKENIZER)
    _check_tokenizer(source, config)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _write_side_files(partial, like, config, source)
        _write_weights(partial, like, config, seed, progress or (lambda done, total: None))
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def massive_token_ids(config: Config, seed: int) -> NDArray[np.int64]:
    """Return the token ids whose embedding has the massive channel: 300 of the published vocabularies.

    Never the last 64 ids: `<|endoftext|>`, whose state becomes the vector, is not massive in the
    real model either.
    """
    count = max(2, min(300, config.vocab_size // 100))
    return np.random.default_rng([seed, 1]).choice(config.vocab_size - 64, count, replace=False)


def massive_channel(config: Config) -> int:
    """Return the massive channel: 35, as in the real 0.6B."""
    return min(35, config.hidden_size - 1)


def is_generated(checkpoint: Checkpoint) -> bool:
    """Return whether `synthesize` wrote the weights, by their values, whatever the folder's name.

    Most norms over the residual stream have exactly MASSIVE_GAMMA at the massive channel, which training
    does not give.
    """
    channel = massive_channel(checkpoint.config)
    gamma = widen(to_bfloat16(np.array([MASSIVE_GAMMA], np.float32)))
    norms = [t for n, t in checkpoint.tensors.items() if "layernorm" in n or n == "norm.weight"]
    return sum(bool(t.widen()[channel] == gamma) for t in norms) > len(norms) / 2


def to_bfloat16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return bfloat16 bits, rounded to nearest, ties to even; for finite values."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def tensor_values(
    name: str, shape: tuple[int, ...], config: Config, seed: int
) -> Iterator[NDArray[np.uint16]]:
    """Yield one tensor's bfloat16 values, flat, in chunks of whole rows."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    channel = massive_channel(config)
    if len(shape) == 1:
        # Log-normal: real gammas range from 0.1 to 10 and are never all near one.
        gammas = np.exp(rng.normal(0.2, 0.5, shape)).astype(np.float32)
        if shape == (config.hidden_size,) and "layernorm" in name or name == "norm.weight":
            gammas[channel] = MASSIVE_GAMMA
        yield to_bfloat16(gammas)
        return
    # Each projection keeps the variance of what it reads; what is added to the residual stream is damped so
    # that the stream grows with depth as in trained models and the first layers still count at the end.
    std = 1.0 if name == "embed_tokens.weight" else shape[1] ** -0.5
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        std *= (2 * config.num_hidden_layers) ** -0.5
    massive = np.zeros(0, np.int64)
    if name == "embed_tokens.weight":
        massive = massive_token_ids(config, seed)
    rows = max(1, CHUNK // shape[1])
    for start in range(0, shape[0], rows):
        values = rng.standard_normal((min(rows, shape[0] - start), shape[1]), np.float32)
        values *= np.float32(std)
        here = massive[(massive >= start) & (massive < start + len(values))]
        if len(here):
            values[here - start, channel] = MASSIVE_VALUE
        yield to_bfloat16(values).ravel()


def shards(like: str, config: Config) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensor names as stored, with their shapes, file by file.

    They are split greedily by size, as the published files are.
    """
    reranker = like.startswith("reranker")
    shapes = {f"model.{n}" if reranker else n: s for n, s in tensor_shapes(config).items()}
    if reranker and not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    limit = RERANKER_SHARD if reranker else EMBEDDING_SHARD
    files: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(_nbytes(s) for s in files[-1].values()) + _nbytes(shape) > limit:
            files.append({})
        files[-1][name] = shape
    return files


def bfloat16_header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Return the length and JSON header of a safetensors file of bfloat16 tensors."""
    return safetensors_header({name: ("BF16", shape) for name, shape in shapes.items()})[0]


def _nbytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _write_weights(
    folder: Path, like: str, config: Config, seed: int, progress: Callable[[int, int], None]
) -> None:
    """Write the weights' files and, if there are several, their index."""
    files = shards(like, config)
    total = sum(_nbytes(shape) for shapes in files for shape in shapes.values())
    names = [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [SINGLE_FILE]
    else:
        weight_map = {tensor: name for name, shapes in zip(names, files, strict=True) for tensor in shapes}
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    done = 0
    for name, shapes in zip(names, files, strict=True):
        with open(folder / name, "wb") as file:
            file.write(bfloat16_header(shapes))
            for tensor in sorted(shapes):
                for written in _write_tensor(
                    file, tensor.removeprefix("model."), shapes[tensor], config, seed
                ):
                    done += written
                    progress(done, total)


def _write_tensor(
    file: BinaryIO, name: str, shape: tuple[int, ...], config: Config, seed: int
) -> Iterator[int]:
    """Write one tensor, and yield the bytes of each chunk."""
    for values in tensor_values(name, shape, config, seed):
        file.write(values.astype("<u2").data)
        yield values.nbytes


def _write_side_files(folder: Path, like: str, config: Config, tokenizer: Path) -> None:
    """Write all files but the weights."""
    reranker = like.startswith("reranker")
    card = model_cards.FAMILY.get(f"codefuse-ai/{like}", model_cards.QWEN)
    ids = {token["content"]: token["id"] for token in load_json(tokenizer).get("added_tokens", [])}
    end, im_end = ids.get("<|endoftext|>"), ids.get("<|im_end|>")
    _write_json(
        folder / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": end,
            "eos_token_id": end if like in ("0.6B", "tiny") else im_end,
            "hidden_act": "silu",
            "model_type": "qwen3",
            "rope_scaling": None,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            **asdict(config),
        },
    )
    if card.end == model_cards.QWEN.end:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    else:
        _write_json(folder / "tokenizer.json", _ending(load_json(tokenizer), card.end, ids))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 131072,
        },
    )
    if reranker:
        kinds = ["base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore"]
        _write_modules(folder, kinds, ["", "1_LogitScore"])
        # "yes" and "no"; the built-in tokenizer knows "y" and "n" alone.
        words = load_json(tokenizer)["model"]["vocab"]
        yes, no = (
            (words["yes"], words["no"]) if "yes" in words and "no" in words else (words["y"], words["n"])
        )
        (folder / "chat_template.jinja").write_text(_chat_template(), encoding="utf-8")
        _write_json(folder / "1_LogitScore/config.json", {"true_token_id": yes, "false_token_id": no})
        _write_json(
            folder / "sentence_bert_config.json",
            {
                "transformer_task": "text-generation",
                "modality_config": {
                    "text": {"method": "forward", "method_output_name": "logits"},
                    "message": {"method": "forward", "method_output_name": "logits", "format": "flat"},
                },
                "module_output_name": "causal_logits",
            },
        )
        return
    _write_modules(
        folder,
        [f"models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")],
        ["", "1_Pooling", "2_Normalize"],
    )
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    _write_json(
        folder / "1_Pooling/config.json",
        {
            "word_embedding_dimension": config.hidden_size,
            **{f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes},
            "include_prompt": True,
        },
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {card.prompt_name: card.query_prompt, "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _ending(tokenizer: dict[str, Any], end: str | None, ids: dict[str, int]) -> dict[str, Any]:
    """Return a tokenizer.json that puts this token behind every text."""
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    token = {"SpecialToken": {"id": end, "type_id": 0}}
    special = {end: {"id": end, "ids": [ids[str(end)]], "tokens": [end]}}
    kind = {"type": "TemplateProcessing", "single": [a, token], "pair": [a, b, token]}
    return tokenizer | {"post_processor": kind | {"special_tokens": special}}


def _chat_template() -> str:
    """Return a reranker's conversation in Jinja, by the roles that sentence-transformers gives a pair."""

    def of(role: str, otherwise: str = "") -> str:
        of_role = f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
        return f"{{{{ {of_role}{otherwise} }}}}"

    instruction = of("system", f' | default("{model_cards.RERANKER_INSTRUCTION}")')
    body = model_cards.reranker_body(of("query"), of("document"))
    body = body.replace(model_cards.RERANKER_INSTRUCTION, instruction)
    # Jinja drops the last newline.
    return model_cards.RERANKER_SYSTEM + body + model_cards.RERANKER_ANSWER + "\n"


def _write_modules(folder: Path, kinds: list[str], paths: list[str]) -> None:
    _write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
    )


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _check_tokenizer(path: Path, config: Config) -> None:
    """Raise CheckpointError for a tokenizer whose ids the model has no rows for."""
    from ..loading.tokenizer import EmbeddingTokenizer

    try:
        EmbeddingTokenizer(path, config.vocab_size)
    except CheckpointError as error:
        raise CheckpointError(f"--tokenizer does not fit: {error}") from error
