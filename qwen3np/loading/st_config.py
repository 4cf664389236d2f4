"""What a model's folder says beyond the encoder: modules.json and the files that it names.

The format is sentence-transformers'. What this package does not compute (another pooling, a dense layer) is
refused; what is assumed where files are missing is said in one warning. folder.py lists every file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from . import model_cards
from .chat_template import instruction_of, is_for_pairs, is_the_cards, words
from .checkpoint import Checkpoint
from .config import Config, load_json, load_object
from .hub import hub_id
from .tokenizer import EmbeddingTokenizer, RerankerTokenizer, Tokenizer
from .tokenizer_config import load_tokenizer_config
from .transformer_config import TransformerConfig, load_transformer_config

logger = logging.getLogger("qwen3np")

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
SETTINGS = "config_sentence_transformers.json"
USE_RERANKER = "use qwen3np.Reranker (qwen3np rerank)"
USE_EMBEDDER = "use qwen3np.Embedder (qwen3np embed, qwen3np similarity)"


@dataclass(frozen=True)
class Modules:
    """What the side files of an embedding model say; absent files leave the defaults."""

    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    truncate_dim: int | None = None
    normalizes: bool = True  # without a Normalize module vectors are as they were pooled
    transformer: TransformerConfig = TransformerConfig()
    path: str = ""  # the Transformer's, in the folder


def load_modules(folder: Path) -> Modules:
    """Read and check the side files of an embedding model.

    Raises CheckpointError that names the file and the value that is not supported.
    """
    modules = folder / "modules.json"
    normalizes, path = True, ""
    if modules.is_file():
        entries, kinds = _read_modules(modules)
        if _is_reranker(kinds):
            raise CheckpointError(
                f"{folder}: is a reranker (modules.json has {kinds[-1]}), not an embedding model: "
                f"{USE_RERANKER}"
            )
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise CheckpointError(
                f"{modules}: the modules {' -> '.join(kinds)} are not supported "
                "(only Transformer -> Pooling -> Normalize)"
            )
        path = _path(modules, entries[0], "")
        hidden_size = load_object(folder / path / "config.json").get("hidden_size")
        _check_pooling(folder / _path(modules, entries[1], "1_Pooling") / "config.json", hidden_size)
        normalizes = len(kinds) == 3
        if normalizes:
            _check_normalize(folder / _path(modules, entries[2], "2_Normalize") / "config.json")
    settings = load_object(folder / SETTINGS)
    where = folder / SETTINGS
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        cure = f": {USE_RERANKER}" if kind == "CrossEncoder" else ""
        raise CheckpointError(f"{where}: model_type = {kind!r} is not an embedding model{cure}")
    prompts = _prompts(where, settings)
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise CheckpointError(
            f"{where}: similarity_fn_name = {similarity!r} is not one of " + ", ".join(SIMILARITIES)
        )
    dim = settings.get("truncate_dim")
    if dim is not None and (type(dim) is not int or dim < 1):
        raise CheckpointError(f"{where}: truncate_dim must be a positive integer, found {dim!r}")
    return Modules(
        prompts,
        _default_prompt(where, settings, {"query": "", "document": "", **prompts}),
        similarity,
        dim,
        normalizes,
        load_transformer_config(folder / path, "feature-extraction"),
        path,
    )


@dataclass(frozen=True)
class RerankerModules:
    """What the side files of a reranker say; absent files leave the defaults."""

    answers: tuple[int, int] | None = None  # token ids of "yes" and "no"
    instruction: str | None = None
    transformer: TransformerConfig = TransformerConfig()
    path: str = ""
    is_listed: bool = False  # whether there is a modules.json


def load_reranker_modules(folder: Path) -> RerankerModules:
    """Read and check the side files of a reranker.

    Copies older than the sentence-transformers files have none; a sequence classifier has no 1_LogitScore.
    Raises CheckpointError for an embedding model.
    """
    settings, where = load_object(folder / SETTINGS), folder / SETTINGS
    kind = settings.get("model_type")
    modules = folder / "modules.json"
    answers, path = None, ""
    if modules.is_file():
        entries, kinds = _read_modules(modules)
        if "Pooling" in kinds:
            raise CheckpointError(
                f"{folder}: is an embedding model (modules.json has Pooling), not a reranker: {USE_EMBEDDER}"
            )
        if kinds not in (["Transformer", "LogitScore"], ["Transformer"]):
            raise CheckpointError(
                f"{modules}: the modules {' -> '.join(kinds) or 'none'} are not supported (only Transformer "
                "-> LogitScore, and Transformer alone of a sequence classifier)"
            )
        path = _path(modules, entries[0], "")
        if len(kinds) == 2:
            answers = _answers(folder / _path(modules, entries[1], "1_LogitScore") / "config.json")
    if kind not in (None, "CrossEncoder") and not (kind == "SentenceTransformer" and answers):
        raise CheckpointError(f"{where}: model_type = {kind!r} is not a reranker: {USE_EMBEDDER}")
    prompts = _prompts(where, settings)
    # sentence-transformers reads prompts of its own CrossEncoders alone.
    default = _default_prompt(where, settings, prompts) if kind == "CrossEncoder" else None
    instruction = prompts[default] if default else None
    if not modules.is_file():
        return RerankerModules(answers, instruction)
    task = "text-generation" if answers else "sequence-classification"
    return RerankerModules(answers, instruction, load_transformer_config(folder / path, task), path, True)


def published_name(folder: Path, config: Config) -> str:
    """Return the published model that the folder is a copy of, or made from; "" for another model.

    It is known by the Hub id of a snapshot, or else by the sizes in config.json, which tell all six apart.
    """
    name = hub_id(folder)
    if name in model_cards.SIZES.values():
        return name
    c = config
    sizes = c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.vocab_size, c.max_position_embeddings
    return model_cards.SIZES.get(sizes, "")


def is_reranker(folder: Path) -> bool:
    """Return whether the folder holds a reranker rather than an embedding model, as modules.json says.

    Without it (older copies) a score head says so, or the published model that it is a copy of, or else what
    tells the published ones apart: a reranker is saved as a causal model, its names are "model.*", and its
    tokenizer appends nothing. Raises CheckpointError for a folder without a model.
    """
    modules = folder / "modules.json"
    if modules.is_file():
        return _is_reranker(_read_modules(modules)[1])
    checkpoint = Checkpoint(folder)
    if "score.weight" in checkpoint.tensors:
        return True
    if name := published_name(folder, checkpoint.config):
        return name in model_cards.RERANKERS
    if not checkpoint.tensors["norm.weight"].name.startswith("model."):
        return False
    config = load_tokenizer_config(folder)
    return not Tokenizer(folder / "tokenizer.json", checkpoint.config.vocab_size, config).added


def open_embedder(
    folder: Path, checkpoint: Checkpoint, modules: Modules, escape_special_tokens: bool = False
) -> tuple[EmbeddingTokenizer, Modules]:
    """Return the tokenizer of an embedding model, and its side files with what is assumed.

    Without modules.json sentence-transformers would pool the mean, or of a causal model the last token, of
    texts put into the chat template if the folder has one; without prompts and without normalising. None of
    this is what an embedding model made of Qwen3 was trained for. So its last token is pooled and normalised;
    and where the sizes are those of Qwen3-Embedding, of which folders of config, tokenizer and weights alone
    are usually plain copies, its published prompts are used. One warning says what is assumed. Raises
    CheckpointError for a reranker.
    """
    where = checkpoint.transformer_folder
    config = load_tokenizer_config(where)
    name = published_name(folder, checkpoint.config)
    listed = (folder / "modules.json").is_file()
    if not listed and (name in model_cards.RERANKERS or "score.weight" in checkpoint.tensors):
        what = f"has the sizes of {name}" if name else "has a score head"
        raise CheckpointError(
            f"{folder}: is a reranker ({what}, and no modules.json says that it is an embedding model): "
            f"{USE_RERANKER}"
        )
    assumed = []
    has_settings = (folder / SETTINGS).is_file()
    if not listed:
        prompts = "no prompts: encode_query puts nothing before a text (prompts={'query': ...} does)"
        if has_settings:
            prompts = f"the prompts of {SETTINGS}"
        elif name:
            modules = replace(modules, prompts=dict(model_cards.PROMPTS))
            prompts = f"the published prompts of {name}"
        assumed.append(f"it has no modules.json: the last token is pooled and normalised, with {prompts}")
        if not name:
            assumed[-1] += f"; if it is a reranker, {USE_RERANKER}"
    elif not has_settings and name in model_cards.EMBEDDERS:
        modules = replace(modules, prompts=dict(model_cards.PROMPTS))
        assumed.append(f"it has no {SETTINGS}: the published prompts of {name} are used")
    # What sentence-transformers saves has a __version__; the published file has only prompts and similarity.
    as_published = not has_settings or load_object(folder / SETTINGS).get("prompts") == model_cards.PROMPTS
    as_published &= "__version__" not in load_object(folder / SETTINGS)
    tokenizer = EmbeddingTokenizer(
        where / "tokenizer.json",
        checkpoint.config.vocab_size,
        config,
        lower_case=modules.transformer.do_lower_case,
        appends_end=name in model_cards.EMBEDDERS and as_published,
        escape_special_tokens=escape_special_tokens,
    )
    if tokenizer.appends_end:
        assumed.append(
            f"its tokenizer.json, as that of {name} before June 2025, appends nothing: every text is ended "
            "with <|endoftext|>"
        )
    if assumed:
        level = logging.INFO if name and name == hub_id(folder) else logging.WARNING
        logger.log(level, "%s: assumed: %s", folder, "; ".join(assumed))
    return tokenizer, modules


def open_reranker(
    folder: Path, checkpoint: Checkpoint, modules: RerankerModules
) -> tuple[RerankerTokenizer, str | None]:
    """Return the tokenizer of a reranker, and the instruction in its files, if there is one.

    One warning says where it is a guess that the model reads the model card's conversation. Raises
    CheckpointError for an embedding model, and for a reranker that reads another conversation.
    """
    where, name = checkpoint.transformer_folder, published_name(folder, checkpoint.config)
    is_classifier = "score.weight" in checkpoint.tensors
    if modules.is_listed and is_classifier == (modules.answers is not None):
        listed = "has LogitScore" if modules.answers else "is that of a sequence classifier"
        raise CheckpointError(
            f"{folder}: modules.json {listed}, but the weights have "
            f"{'a' if is_classifier else 'no'} score.weight; the files are of two models"
        )
    if not modules.is_listed and name in model_cards.EMBEDDERS and not is_classifier:
        raise CheckpointError(
            f"{folder}: has the sizes of {name}, an embedding model, and no modules.json says that it is a "
            f"reranker: {USE_EMBEDDER}"
        )
    if modules.transformer.uses_messages is False:
        raise CheckpointError(
            f"{folder}: its sentence_bert_config.json puts no pair into the chat template (modality_config "
            "has no message): it reads query and document as they are, which is not supported"
        )
    config = load_tokenizer_config(where)
    template = config.chat_template
    instruction = None
    if template is not None and is_for_pairs(template):
        if not is_the_cards(template):
            raise CheckpointError(
                f"{where}: its chat template asks in other words than the model card of Qwen3-Reranker "
                f"({words(template)[:200]!r}), which is not supported"
            )
        instruction = instruction_of(template)
    elif name not in model_cards.RERANKERS:
        logger.warning(
            "%s: assumed: it has no chat template for a query and a document, and pairs are put into the "
            "conversation of Qwen3-Reranker's model card; if it was trained on another, or is not a "
            "reranker, its scores mean nothing",
            folder,
        )
    tokenizer = RerankerTokenizer(
        where / "tokenizer.json",
        checkpoint.config.vocab_size,
        config,
        lower_case=modules.transformer.do_lower_case,
    )
    if tokenizer.added and not modules.is_listed:
        raise CheckpointError(
            f"{folder}: its tokenizer ends every text with a token of its own, as an embedding model's "
            f"does, and no modules.json says that it is a reranker: {USE_EMBEDDER}"
        )
    return tokenizer, modules.instruction or instruction


def max_seq_length_of(transformer: TransformerConfig, folder: Path, config: Config) -> int:
    """Return the longest text in tokens, as sentence-transformers has it.

    That is sentence_bert_config.json's, else the smaller of tokenizer_config.json's
    model_max_length and max_position_embeddings.
    """
    if transformer.max_seq_length is not None:
        return transformer.max_seq_length
    longest = load_tokenizer_config(folder).model_max_length
    return min(longest or config.max_position_embeddings, config.max_position_embeddings)


def _is_reranker(kinds: list[str]) -> bool:
    return "LogitScore" in kinds or kinds == ["Transformer"]


def _read_modules(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the modules, and the last part of each one's type."""
    entries = load_json(path)
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("type"), str) for e in entries
    ):
        raise CheckpointError(f"{path}: is not a list of modules with a type each; download it again")
    own = [e["type"] for e in entries if not e["type"].startswith("sentence_transformers.")]
    if own:
        raise CheckpointError(f"{path}: {', '.join(own)} is code of the model's own, which is never run")
    return entries, [e["type"].rpartition(".")[2] for e in entries]


def _path(modules: Path, entry: Mapping[str, Any], default: str) -> str:
    """Return the module's folder, as a path in the model's."""
    path = entry.get("path", default)
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"{modules}: path = {path!r} is not a folder inside the model's")
    return path


def _prompts(where: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str | None) for p in prompts.values()):
        raise CheckpointError(f"{where}: prompts must map names to strings")
    return {name: prompt or "" for name, prompt in prompts.items()}


def _default_prompt(where: Path, settings: Mapping[str, Any], prompts: Mapping[str, str]) -> str | None:
    default = settings.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise CheckpointError(
            f"{where}: default_prompt_name = {default!r} is not one of its prompts {sorted(prompts)}"
        )
    return default


def _answers(path: Path) -> tuple[int, int]:
    """Return the token ids of "yes" and "no" in 1_LogitScore/config.json."""
    score = load_object(path)
    ids = score.get("true_token_id"), score.get("false_token_id")
    if not all(type(i) is int and i >= 0 for i in ids) or ids[0] == ids[1]:
        raise CheckpointError(
            f"{path}: true_token_id and false_token_id must be two token ids, found {ids[0]!r} and {ids[1]!r}"
        )
    if score.get("module_input_name", "causal_logits") != "causal_logits":
        raise CheckpointError(f"{path}: module_input_name = {score['module_input_name']!r} is not supported")
    return ids  # type: ignore[return-value]


def _check_pooling(path: Path, hidden_size: Any) -> None:
    """Raise CheckpointError unless only the last token is pooled, prompt included.

    There are two spellings of the mode: a flag per mode, or one name, which overrides the flags.
    """
    pooling = load_object(path)
    flags = {
        key.removeprefix("pooling_mode_")
        for key, on in pooling.items()
        if key.startswith("pooling_mode_") and on
    }
    mode = pooling.get("pooling_mode")
    modes = flags if mode is None else set(map(str, mode)) if isinstance(mode, list) else {str(mode)}
    if modes != {"lasttoken"}:
        found = ", ".join(sorted(modes)) or "none"
        raise CheckpointError(f"{path}: pooling mode {found} is not supported (only lasttoken)")
    if pooling.get("include_prompt", True) is not True:
        raise CheckpointError(
            f"{path}: include_prompt = {pooling['include_prompt']!r} is not supported (only true)"
        )
    width = pooling.get("embedding_dimension", pooling.get("word_embedding_dimension"))
    if None not in (width, hidden_size) and width != hidden_size:
        raise CheckpointError(
            f"{path}: embedding_dimension is {width!r}, but config.json's hidden_size is {hidden_size!r}; "
            "the files are of two models"
        )


def _check_normalize(path: Path) -> None:
    for key, value in load_object(path).items():
        if key in ("module_input_name", "module_output_name") and value not in (None, "sentence_embedding"):
            raise CheckpointError(f"{path}: {key} = {value!r} is not supported (only sentence_embedding)")
