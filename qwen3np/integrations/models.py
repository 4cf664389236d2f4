"""What all adapters need: the library they are for, and a model, loaded once in a process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakValueDictionary

EMBEDDER, RERANKER = "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"  # where nobody names a model
Model = TypeVar("Model")

_lock = Lock()
_loaded: WeakValueDictionary[str, Any] = WeakValueDictionary()


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import a library in here: where it is missing, the error names the extra to install.

    Args:
        name: The extra in pyproject.toml.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        cure = f"{error.name} is not installed: pip install 'qwen3np[{name}]'"
        raise ModuleNotFoundError(cure, name=error.name, path=error.path) from error


def given(kind: type[Model], model: Any, options: dict[str, Any]) -> Model:
    """Return `model` if it is one already, else load it.

    Args:
        kind: Embedder or Reranker.
        model: A model of that kind, a Hub id or the path of a folder.
        options: The further arguments of `kind`.
    """
    if not isinstance(model, kind):
        return shared(kind, model, options)
    if options:
        raise TypeError(f"{', '.join(options)}: {model!r} is loaded already; give its name or path instead")
    return model


def shared(kind: type[Model], model: Any, options: dict[str, Any] | None = None) -> Model:
    """Return the model of these arguments that this process has, or load it.

    Databases and pipelines make an adapter anew from its stored configuration, whenever a table is opened:
    the weights are in memory once, as long as any adapter is in use.

    Args:
        kind: Embedder or Reranker.
        model: A Hub id or the path of a folder.
        options: The further arguments of `kind`; what JSON can hold.
    """
    options = options or {}
    try:
        key = json.dumps([kind.__name__, str(model), options], sort_keys=True)
    except TypeError as error:
        raise TypeError(f"options = {options!r} cannot be stored as JSON: {error}") from error
    with _lock:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = kind(model, **options)  # type: ignore[call-arg]
    return found
