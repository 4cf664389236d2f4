"""How a model goes to another process: as its constructor's arguments, never as gigabytes of weights."""

from __future__ import annotations

import copy
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..loading.hub import hub_id

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..loading.checkpoint import Checkpoint


class PickledByArguments:
    """Base of Embedder and Reranker: pickle (and with it spawn, joblib, Spark, Ray) loads the model anew.

    A folder is named by its absolute path, a model of the Hub by its id and the commit that was loaded, so
    that both processes compute the same vectors. A token is a secret and stays behind: the other process uses
    its own login. Settings that were changed after loading go along. copy and deepcopy load nothing: the copy
    has settings of its own, and shares weights and threads, which several callers may use at the same time.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ()  # attributes that users may set
    checkpoint: Checkpoint
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]
    _working_folder: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self._arguments = args, kwargs
        self._working_folder = ""  # a relative path starts here, wherever the process goes later
        with suppress(OSError):  # the folder may be deleted
            self._working_folder = os.getcwd()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        args, kwargs = self._arguments
        kwargs = {name: value for name, value in kwargs.items() if name != "token"}
        if args:
            args = (self._elsewhere(args[0], kwargs), *args[1:])
        elif "model_name_or_path" in kwargs:
            kwargs["model_name_or_path"] = self._elsewhere(kwargs["model_name_or_path"], kwargs)
        return _load, (type(self), args, kwargs, self._settings())

    def _elsewhere(self, model: Any, kwargs: dict[str, Any]) -> Any:
        """Return the model's name for any process; a Hub id's commit is pinned in `kwargs`."""
        folder = self.checkpoint.folder
        if isinstance(model, (str, Path)):
            if Path(self._working_folder, Path(model).expanduser()) == folder:
                return str(folder)
        if str(model) == hub_id(folder):
            kwargs["revision"] = folder.name
        return model

    def _settings(self) -> dict[str, Any]:
        return {name: copy.deepcopy(getattr(self, name)) for name in self.SETTINGS}

    def __copy__(self) -> Self:
        other = super().__new__(type(self))
        other.__dict__.update(self.__dict__)
        for name, value in self._settings().items():
            setattr(other, name, value)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()


def _load(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], settings: dict[str, Any]) -> Any:
    model = cls(*args, **kwargs)
    model.default_prompt_name = None  # it must be one of the prompts, which are set first
    for name, value in settings.items():
        setattr(model, name, value)
    return model
