"""The files beside tokenizer.json, as transformers 5 reads them for a Qwen3 model.

They are tokenizer_config.json, special_tokens_map.json, added_tokens.json and the chat template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .config import load_object

# transformers builds Qwen2Tokenizer's normaliser and split itself and takes the vocabulary from
# tokenizer.json; the others of these names take tokenizer.json as it is.
QWEN_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
CLASSES = (*QWEN_CLASSES, "PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")

# Settings of tokenizer_config.json that change ids, with the values that leave them as they are.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_prefix_space": (False,),
    "auto_map": ({},),
    "do_lower_case": (False,),
    "fast_tokenizer_files": ([], ["tokenizer.json"]),
    "init_inputs": ([],),
    "processor_class": (),
    "split_special_tokens": (False,),
    "truncation_side": ("left", "right"),
}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class Token:
    """A token that is searched for in a text before anything else is done with it."""

    content: str
    id: int | None = None  # where a file says which
    special: bool = True
    flags: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(FLAGS, False))


@dataclass(frozen=True)
class TokenizerConfig:
    """The settings of a folder's tokenizer; absent files leave the defaults."""

    is_qwen: bool = True  # whether its class is Qwen's
    tokens: tuple[Token, ...] = ()  # to be searched for, besides tokenizer.json's own
    is_complete: bool = False  # `tokens` lists those of tokenizer.json too
    truncation_side: str | None = None
    model_max_length: int | None = None
    chat_template: str | None = None
    path: Path = Path("tokenizer_config.json")


def load_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read and check the files; errors name the file and the value that is not supported."""
    path = folder / "tokenizer_config.json"
    raw = load_object(path)
    for key, allowed in SUPPORTED.items():
        if raw.get(key) is not None and raw[key] not in allowed:
            names = " or ".join(repr(a) for a in allowed) or "none"
            raise CheckpointError(f"{path}: {key} = {raw[key]!r} is not supported (only {names})")
    for name in ("processor_config.json", "preprocessor_config.json"):
        if processor := load_object(folder / name).get("processor_class"):
            raise CheckpointError(
                f"{folder / name}: processor_class = {processor!r} is of a model for more than text, which "
                "is not supported"
            )
    kind = raw.get("tokenizer_class") or load_object(folder / "config.json").get("tokenizer_class")
    if kind is not None and kind not in CLASSES:
        raise CheckpointError(
            f"{path}: tokenizer_class = {kind!r} is not supported (only {', '.join(CLASSES)})"
        )
    longest = raw.get("model_max_length", raw.get("max_len"))
    if longest is not None and (type(longest) not in (int, float) or not longest >= 1):
        raise CheckpointError(f"{path}: model_max_length must be a positive integer, found {longest!r}")
    return TokenizerConfig(
        is_qwen=kind is None or kind in QWEN_CLASSES,
        tokens=tuple(_tokens(folder, raw)),
        is_complete="added_tokens_decoder" in raw,
        truncation_side=raw.get("truncation_side"),
        model_max_length=None if longest is None else int(min(longest, 1 << 60)),  # 1e30 stands for no limit
        chat_template=_chat_template(folder, raw),
        path=path,
    )


def _tokens(folder: Path, raw: Mapping[str, Any]) -> Iterator[Token]:
    """Yield the added tokens by their ids, then the named ones ("pad_token"), then the unnamed ones.

    Added tokens are in added_tokens_decoder or else in added_tokens.json. special_tokens_map.json counts
    where there is no added_tokens_decoder.
    """
    settings = dict(raw)
    added: dict[str, Any] = {}
    if "added_tokens_decoder" in raw:
        decoder = raw["added_tokens_decoder"]
        if not isinstance(decoder, dict) or not all(isinstance(t, dict) for t in decoder.values()):
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder must map ids to tokens"
            )
        yield from sorted(
            (_token(folder, token, _id(folder, i)) for i, token in decoder.items()), key=lambda t: t.id or 0
        )
    else:
        settings |= load_object(folder / "special_tokens_map.json")
        added = load_object(folder / "added_tokens.json")
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    if not isinstance(extra, list):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: extra_special_tokens must be a list")
    named = [value for key, value in settings.items() if key.endswith("_token") and _is_token(value)]
    special = [_token(folder, token) for token in [*named, *extra]]
    contents = {token.content for token in special}
    for content, i in sorted(added.items(), key=lambda item: _id(folder, item[1])):
        is_special = content in contents
        flags = dict.fromkeys(FLAGS, False) | {"normalized": not is_special}
        yield Token(content, _id(folder, i), is_special, flags)
    yield from special


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or isinstance(value, dict) and isinstance(value.get("content"), str)


def _token(folder: Path, value: Any, number: int | None = None) -> Token:
    if not _is_token(value):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {value!r} is not a token")
    if isinstance(value, str):
        return Token(value)
    special = number is None or bool(value.get("special", False))
    flags = {name: bool(value.get(name, name == "normalized" and not special)) for name in FLAGS}
    return Token(value["content"], number, special, flags)


def _id(folder: Path, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{folder}: {value!r} is not an id of an added token") from None


def _chat_template(folder: Path, raw: Mapping[str, Any]) -> str | None:
    """Return the template in chat_template.jinja, else in tokenizer_config.json; of several, "default"."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}); download it again") from error
    template = raw.get("chat_template")
    if isinstance(template, list):
        default = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
        template = next(default, {}).get("template")
    return template if isinstance(template, str) else None
