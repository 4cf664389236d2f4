"""What a run reads: one file, or several, as one stream of rows.

With several, each row says which file it is of, by the name that the user gave.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import identity
from .cells import BadRow, Row, Template
from .chunking import Chunks, Cutter
from .lines import format_of
from .names import Input, find_files, named
from .rows import read_rows, shown

if TYPE_CHECKING:
    from ..embedder import Embedder

IDS_COMPARED = 1 << 20  # ids that are searched for equal ones, in some 100 MB


@dataclass(eq=False)
class Source:
    """The files of a run, and how they are read.

    Args:
        inputs: The files, in order.
        name: What messages call them together.
        several: Whether rows say which file they are of: always, but for the name of one file.
        column: As for read_rows.
        id_column: As for read_rows.
        delimiter: As for read_rows.
        chunks: How texts are cut. Default: they are not.
        limit: How many rows are read, before they are cut. Default: all.
        notes: What there is to say about the names.
    """

    inputs: Sequence[Input]
    name: str
    several: bool = False
    column: str | Template | None = None
    id_column: str | None = None
    delimiter: str | None = None
    chunks: Chunks | None = None
    limit: int | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cut: Cutter | None = None
        self._ids: set[int] | None = set() if self.several else None
        self.repeated = 0  # rows whose id another row has
        self.first_repeated: int | str = ""
        self.empty: list[str] = []  # files without rows

    def __str__(self) -> str:
        return self.name

    def check(self) -> None:
        """Raise ValueError for a file that cannot be read as it is to be."""
        for each in self.inputs:
            self._read(each)

    def prepare(self, model: Embedder, prompt: str) -> bool:
        """Take the model's tokenizer, with which texts are cut; return whether they are.

        Raises ValueError if a chunk would be truncated.
        """
        if self.chunks is None:
            return False
        [before] = model.tokenizer.ids([prompt], model.tokenizer.escape_special_tokens)
        around = len(before) + len(model.tokenizer.added)
        most = model.max_seq_length - around
        if self.chunks.tokens > most:
            raise ValueError(
                f"--chunk-tokens {self.chunks.tokens}: the model takes {model.max_seq_length} tokens, and "
                f"{around} are the prompt's and its own: must be {most} or fewer"
            )
        self._cut = Cutter(self.chunks, model.tokenizer)
        return True

    @property
    def uncut(self) -> bool:
        """Whether texts are to be cut, and `prepare` has not come yet."""
        return self.chunks is not None and self._cut is None

    def rows(self) -> Iterator[Row | BadRow]:
        """Yield the rows of all files; once prepared for cutting, those of the chunks."""
        entries = islice(self._rows() if self.several else self._read(self.inputs[0]), self.limit)
        return entries if self._cut is None else self._cut(entries)

    def _rows(self) -> Iterator[Row | BadRow]:
        number, ids, self._ids = 0, self._ids, None
        empty = []
        for each in self.inputs:
            before, name = number, shown(each.path)
            for entry in self._read(each):
                if isinstance(entry, BadRow):
                    yield replace(entry, file=name)
                else:
                    id = number if entry.numbered else entry.id
                    if ids is not None and not entry.numbered:
                        self._compare(ids, id)
                    yield Row(entry.row, id, entry.text, entry.numbered, {"file": name})
                number += 1
            empty += [name] if number == before else []
        self.empty = empty

    def _compare(self, ids: set[int], id: int | str) -> None:
        digest = hash(str(id))  # 64 bits: among a million, two others are equal once in 30 million runs
        if digest in ids:
            self.repeated += 1
            self.first_repeated = id if self.repeated == 1 else self.first_repeated
        elif len(ids) < IDS_COMPARED:
            ids.add(digest)

    def _read(self, each: Input) -> Iterator[Row | BadRow]:
        return read_rows(each.path, self.column, self.id_column, self.delimiter, each.whole)

    @cached_property
    def digests(self) -> list[str]:
        """The digests of the files, as they were when this was first asked for."""
        return [identity.file_digest(each.path) for each in self.inputs]

    @property
    def digest(self) -> str:
        """The digest of the file; of several, that of their names and bytes."""
        if not self.several:
            return self.digests[0]
        files = zip(self.inputs, self.digests, strict=True)
        said = json.dumps([[shown(each.path), each.whole, digest] for each, digest in files])
        return hashlib.sha256(said.encode()).hexdigest()

    def changed(self) -> list[Path]:
        """Return the files that are not as they were when their digests were taken."""
        files = zip(self.inputs, self.digests, strict=True)
        return [each.path for each, digest in files if identity.file_digest(each.path) != digest]

    def part_of_run(self) -> dict[str, Any]:
        """Return what the rows depend on, for the identity of a run."""
        first = self.inputs[0]
        kind = format_of(first.path) + (" whole" if first.whole else "")
        found: dict[str, Any] = {
            "input": self.digest,
            "input format": f"{len(self.inputs)} files" if self.several else kind,
            "column": None if isinstance(self.column, Template) else self.column,
            "id column": self.id_column,
            "delimiter": self.delimiter,
        }
        if isinstance(self.column, Template):
            found["template"] = self.column.template
        if self.limit is not None:
            found["limit"] = self.limit
        if self.chunks is not None:
            found |= {"chunk tokens": self.chunks.tokens, "overlap": self.chunks.overlap}
        return found

    def info(self) -> dict[str, str]:
        """Return what an output says of its input.

        With "input", `search` reads the texts again, which it can where each is a cell or a line of one file.
        """
        parts = self.several or self.inputs[0].whole or self.chunks or self.limit
        if parts or isinstance(self.column, Template):
            return {"inputs": os.fsencode(self.name).decode(errors="replace")}
        path = os.fsencode(self.inputs[0].path.resolve()).decode(errors="replace")  # it may not be Unicode
        columns = {"column": self.column, "id_column": self.id_column, "delimiter": self.delimiter}
        return {"input": path} | {name: value for name, value in columns.items() if value is not None}


def find(names: Sequence[str | Path], output: Path, txt: str | None = None, **options: Any) -> Source:
    """Find the files that are named: see find_files.

    Args:
        names: As for find_files.
        output: As for find_files.
        txt: As for find_files.
        **options: Those of Source: column, id_column, delimiter, chunks, limit.
    """
    found = find_files([*map(str, names)], output, txt)
    several = len(names) > 1 or not any(each.path == Path(names[0]) for each in found.inputs)
    notes = [f"{what}: {named(paths)}" for what, paths in found.left.items()]
    return Source(found.inputs, named(names), several, **options, notes=notes)
