"""The side files of an embedding model: modules.json, 1_Pooling/config.json,
config_sentence_transformers.json.

They are sentence-transformers' format. What this package does not compute (another pooling, a dense layer) is
refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import load_json
from .errors import CheckpointError

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class Modules:
    """What the side files say beyond the encoder itself. Absent files leave the defaults."""

    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    max_seq_length: int | None = None


def load_modules(folder: Path) -> Modules:
    """Read and check the side files. Raises CheckpointError naming the file and the value it cannot
    honour."""
    modules = folder / "modules.json"
    if modules.is_file():
        entries = load_json(modules)
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("type"), str) for e in entries
        ):
            raise CheckpointError(f"{modules}: is not a list of modules with a type each; download it again")
        kinds = [e["type"].rpartition(".")[2] for e in entries]
        if "LogitScore" in kinds:
            raise CheckpointError(
                f"{folder}: is a reranker (modules.json has LogitScore), not an embedding model: use "
                "qwen3np.Reranker"
            )
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise CheckpointError(
                f"{modules}: the modules {' -> '.join(kinds)} are not supported "
                "(only Transformer -> Pooling -> Normalize)"
            )
        _check_pooling(folder / str(entries[1].get("path", "1_Pooling")) / "config.json")
    settings = _object(folder / "config_sentence_transformers.json")
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise CheckpointError(
            f"{folder / 'config_sentence_transformers.json'}: prompts must map names to strings"
        )
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise CheckpointError(
            f"{folder / 'config_sentence_transformers.json'}: similarity_fn_name = {similarity!r} "
            "is not one of " + ", ".join(SIMILARITIES)
        )
    default = settings.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise CheckpointError(
            f"{folder / 'config_sentence_transformers.json'}: default_prompt_name = {default!r} "
            "is not one of "
            f"its prompts {sorted(prompts)}"
        )
    max_seq_length = _object(folder / "sentence_bert_config.json").get("max_seq_length")
    if max_seq_length is not None and (type(max_seq_length) is not int or max_seq_length < 1):
        raise CheckpointError(
            f"{folder / 'sentence_bert_config.json'}: max_seq_length must be a positive "
            f"integer, found {max_seq_length!r}"
        )
    return Modules(prompts, default, similarity, max_seq_length)


def load_answer_ids(folder: Path) -> tuple[int, int] | None:
    """Token ids of "yes" and "no" as a reranker's side files give them; None if it has none (copies older
    than the sentence-transformers files). Raises CheckpointError for an embedding model."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return None
    entries = load_json(modules)
    kinds = (
        [str(e.get("type")).rpartition(".")[2] for e in entries if isinstance(e, dict)]
        if isinstance(entries, list)
        else []
    )
    if "Pooling" in kinds:
        raise CheckpointError(
            f"{folder}: is an embedding model (modules.json has Pooling), not a reranker: use "
            "qwen3np.Embedder"
        )
    if kinds != ["Transformer", "LogitScore"]:
        raise CheckpointError(
            f"{modules}: the modules {' -> '.join(kinds) or 'none'} are not supported (only Transformer -> "
            "LogitScore)"
        )
    path = folder / str(entries[1].get("path", "1_LogitScore")) / "config.json"
    score = _object(path)
    ids = score.get("true_token_id"), score.get("false_token_id")
    if not all(type(i) is int and i >= 0 for i in ids) or ids[0] == ids[1]:
        raise CheckpointError(
            f"{path}: true_token_id and false_token_id must be two token ids, found {ids[0]!r} and {ids[1]!r}"
        )
    return ids  # type: ignore[return-value]


def _object(path: Path) -> dict[str, Any]:
    value = load_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _check_pooling(path: Path) -> None:
    """Only the last token is pooled, prompt included. Both spellings of the mode: a flag each, or one
    name."""
    pooling = _object(path)
    modes = {
        key.removeprefix("pooling_mode_")
        for key, on in pooling.items()
        if key.startswith("pooling_mode_") and on
    }
    if isinstance(pooling.get("pooling_mode"), str):
        modes.add(pooling["pooling_mode"])
    if modes != {"lasttoken"}:
        found = ", ".join(sorted(modes)) or "none"
        raise CheckpointError(f"{path}: pooling mode {found} is not supported (only lasttoken)")
    if pooling.get("include_prompt", True) is not True:
        raise CheckpointError(
            f"{path}: include_prompt = {pooling['include_prompt']!r} is not supported (only true)"
        )
