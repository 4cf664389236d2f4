"""The names of files, folders and patterns that a user gives -> the files to read.

The files are found once, in an order that does not depend on the system; a file that two names lead to is
read once.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .lines import format_of
from .record import FORMAT, RECORD, beside
from .record import SUFFIXES as BESIDE
from .rows import SUFFIXES, readable

TXT = ("lines", "whole")
NAMED = 3  # files that a message names


@dataclass(frozen=True)
class Input:
    """A file to be read; `whole`: all of it is one text, also of a .txt."""

    path: Path
    whole: bool = False


def named(names: Sequence[object]) -> str:
    """Return the first names, and how many more there are, as a message lists them."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more


def matches(pattern: str) -> Iterator[Path]:
    """Yield the files that a pattern such as "data/**/*.md" matches, but for hidden ones."""
    parts = Path(pattern).parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), None)
    if first is None:
        return
    # Not glob.glob, which follows links to folders, in circles too.
    for path in Path(*parts[:first]).glob(str(Path(*parts[first:]))):
        if not path.is_dir() and not any(part.startswith(".") for part in path.parts[first:]):
            yield path


def find_files(names: Sequence[str], output: Path, txt: str | None = None) -> Found:
    """Find the files that are named.

    Of a folder, all in it and in those below are taken whose names end in what is read, but for hidden ones
    and the outputs of `embed`; so are those that a pattern matches. Links to folders are not followed.

    Args:
        names: Files, folders and patterns.
        output: The output, which is never an input though it may lie in one of the folders.
        txt: What a .txt is: "lines", a text a line, or "whole", one text. Default: in a folder "whole", else
            "lines".

    Raises:
        ValueError: A folder has no such file, or a pattern matches none.
        OSError: A folder cannot be read.
    """
    found = Found(output)
    for name in names:
        if os.path.isdir(name):
            if not found.add_texts(found.below(Path(name)), txt != "lines"):
                raise ValueError(f"{name}: no file in this folder is read: names must end in {readable()}")
        elif glob.has_magic(name) and not os.path.lexists(name):
            if not found.add_texts(matches(name), txt == "whole"):
                raise ValueError(f"{name}: there is no such file, and none that is read has a name like that")
        else:
            found.add(Path(name), txt == "whole")
    if txt is None and (whole := [each.path for each in found.inputs if each.whole]):
        found.left["read as one text each (--txt lines: a text a line)"] = whole
    return found


class Found:
    """Files to read.

    Attributes:
        inputs: The files, in order.
        left: What there is to say of others: the reason and their paths.
    """

    def __init__(self, output: Path) -> None:
        self.inputs: list[Input] = []
        self.left: dict[str, list[Path]] = {}
        self._known: set[str] = set()
        self._own = {os.path.realpath(beside(output, suffix)) for suffix in BESIDE}

    def add(self, path: Path, whole: bool) -> None:
        """Add a file, unless it was added before; `whole` counts for a .txt."""
        real = os.path.realpath(path)
        if real in self._known:
            self._leave("read once, named twice", path)
            return
        self._known.add(real)
        self.inputs.append(Input(path, whole and format_of(path) == ".txt"))

    def add_texts(self, paths: Iterable[Path], whole: bool) -> bool:
        """Add those of the files that are read, in order; return whether there are any."""
        paths = sorted(paths, key=lambda path: path.parts)
        ours = {path for each in paths if _is_record(each) for path in _described_by(each)}
        some = False
        for path in paths:
            if path in ours or os.path.realpath(path) in self._own:
                self._leave("not read, outputs of qwen3np", path)
            elif format_of(path) not in SUFFIXES:
                self._leave("not read, of another kind", path)
            else:
                self.add(path, whole)
                some = True
        return some

    def below(self, folder: Path) -> Iterator[Path]:
        """Yield the files in a folder and in those below it."""

        def fail(error: OSError) -> None:
            raise error

        for root, folders, names in os.walk(folder, onerror=fail):
            here = Path(root)
            yield from (here / name for name in names if not name.startswith("."))
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in [here / name for name in folders if (here / name).is_symlink()]:
                self._leave("not read, links to folders", path)
            folders[:] = [name for name in folders if not _is_work_folder(here / name)]

    def _leave(self, why: str, path: Path) -> None:
        self.left.setdefault(why, []).append(path)


def _is_record(path: Path) -> bool:
    """Return whether a file is the record of an output; its first bytes say so."""
    if not path.name.endswith(RECORD) or not path.is_file():  # a pipe would wait
        return False
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(64)


def _described_by(record: Path) -> list[Path]:
    output = record.with_name(record.name.removesuffix(RECORD))
    return [beside(output, suffix) for suffix in BESIDE]


def _is_work_folder(path: Path) -> bool:
    return path.name.endswith(".partial") and (path / "manifest.json").is_file()
