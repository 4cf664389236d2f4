"""Copies of a model's folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..loading.config import load_json


def save(
    folder: Path,
    path: str | Path,
    settings: Mapping[str, Mapping[str, Any]],
    left_out: Collection[Path] = (),
    write: Callable[[Path], object] = lambda made: None,
) -> None:
    """Copy `folder` to `path`, all of it or nothing.

    Args:
        folder: The model's folder.
        path: A new or empty folder.
        settings: Other values for its JSON files, by file and key.
        left_out: Files of the folder that are not copied.
        write: Called with the copy before it appears, to write others into it.

    Raises:
        FileExistsError: `path` holds anything.
        ValueError: `path` is inside `folder`.
    """
    path = Path(path)
    if folder.resolve() in path.resolve().parents:
        raise ValueError(f"{path}: lies in the folder that is to be copied; save to another place")
    if path.is_symlink() or path.exists():
        if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
            raise FileExistsError(f"{path}: exists; a model is saved to a new folder, or an empty one")
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        copy = made / "model"
        unwanted = shutil.ignore_patterns(".cache", ".git")

        def ignored(inside: str, names: list[str]) -> set[str]:
            return unwanted(inside, names) | {name for name in names if Path(inside, name) in left_out}

        shutil.copytree(folder, copy, ignore=ignored)  # links as their files
        write(copy)
        for name, values in settings.items():
            _set(copy / name, values)
        if path.exists():
            path.rmdir()  # it was empty; if it no longer is, this or the next line fails
        copy.replace(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _set(path: Path, values: Mapping[str, Any]) -> None:
    known = load_json(path) if path.is_file() else {}
    path.write_text(json.dumps({**known, **values}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
