"""What a row is made of: which columns hold texts and ids, and whether a value is one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

NOT_UTF8 = "is not UTF-8"


@dataclass(frozen=True)
class Row:
    """A row that can be embedded.

    Attributes:
        row: Its number in its file.
        id: Its id; where it has none of its own, its number.
        text: Its text.
        numbered: Whether the id is a number that was given here.
        where: Where the text is from, for further columns of the output: file, chunk, start, end.
    """

    row: int
    id: int | str
    text: str
    numbered: bool = False
    where: Mapping[str, int | str] | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be embedded, and why."""

    row: int
    line: int | None  # None: the format has no lines
    reason: str
    file: str | None = None  # None: there is only one

    def __str__(self) -> str:
        place = f"row {self.row} (the first is 0)" if self.line is None else f"line {self.line}"
        return f"{'' if self.file is None else self.file + ', '}{place}: {self.reason}"


class Bad(Exception):
    """What stands where a value should be; a type of its own, since any string is a valid text."""


@dataclass(frozen=True)
class Template:
    """A text made of several columns, as in "{title}: {body}"; "{{" and "}}" are braces.

    A column's name stands there as it is, with no part of Python's format language. Raises ValueError for a
    template without columns, or with an opened brace that is not closed.
    """

    template: str

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(f"the template {self.template!r} names no column, as '{{title}}: {{body}}' does")

    @cached_property
    def _parts(self) -> list[tuple[str, str | None]]:
        """The texts, each with the column after it."""
        parts = []
        try:
            for text, name, spec, conversion in Formatter().parse(self.template):
                if name == "" or spec or conversion:
                    raise ValueError("between braces stands the name of a column and nothing else")
                parts.append((text, name))
        except ValueError as error:
            raise ValueError(f"the template {self.template!r}: {error}") from None
        return parts

    @property
    def columns(self) -> list[str]:
        """The columns that it names, each once."""
        return list(dict.fromkeys(name for _, name in self._parts if name is not None))

    def fill(self, values: Mapping[str, Any]) -> str | Bad:
        """Return the text that a row's values make, or Bad."""
        cells = {name: cell(values, name) for name in self.columns}
        for name, value in cells.items():
            if isinstance(value, Bad):
                return value
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                return Bad(f"column {name!r} is {kind_of(value)}, expected a string or an integer")
        return "".join(text + ("" if name is None else str(cells[name])) for text, name in self._parts)


def checked_row(row: int, line: int | None, id: Any, text: Any) -> Row | BadRow:
    """Return a row, or a bad row that says what is wrong with its text or id; None: it has no id."""
    numbered = id is None
    id = row if numbered else id
    for value in (text, id):
        if isinstance(value, Bad):
            return BadRow(row, line, str(value))
    if not isinstance(text, str):
        return BadRow(row, line, f"the text is {kind_of(text)}, expected a string")
    if isinstance(id, bool) or not isinstance(id, (int, str)):
        return BadRow(row, line, f"the id is {kind_of(id)}, expected a string or an integer")
    for what, value in (("text", text), ("id", id)):
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            found = f"lone surrogate {error.object[error.start]!r} at character {error.start}"
            return BadRow(row, line, f"the {what} is not valid Unicode: {found}")
    return Row(row, id, text, numbered)


def text_columns(column: str | Template | None) -> list[str]:
    """Return the columns that were named for the texts."""
    return column.columns if isinstance(column, Template) else [column] if column else []


def choose(
    path: Path, columns: Sequence[str], column: str | Template | None, id_column: str | None
) -> tuple[str | Template, str | None]:
    """Return the columns of texts and of ids."""
    for name in (*text_columns(column), id_column):
        if name and name not in columns:
            raise ValueError(f"{path}: there is no column {name!r}; there are {names(columns)}")
    if id_column is None and "id" in columns and column != "id" and len(columns) > 1:
        id_column = "id"
    if column is None:
        others = [name for name in columns if name != id_column]
        if "text" not in others and len(others) != 1:
            raise ValueError(f"{path}: say with --column which holds the texts; there are {names(columns)}")
        column = "text" if "text" in others else others[0]
    return column, id_column or None


def names(columns: Sequence[str]) -> str:
    """Return the columns' names as a message lists them."""
    return ", ".join(map(repr, columns)) or "none"


def cell(values: Mapping[str, Any], name: str | Template | None) -> Any:
    """Return the value in a column, or Bad if there is none."""
    if name is None:
        return None
    if isinstance(name, Template):
        return name.fill(values)
    if name not in values:
        return Bad(f"has no column {name!r}; there are {names(list(values))}")
    return Bad(f"column {name!r} is null") if values[name] is None else values[name]


def kind_of(value: Any) -> str:
    """Return what JSON calls a value's type."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text, or Bad."""
    text = decode(data)
    if isinstance(text, Bad):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Bad(f"is not JSON ({error.msg} at character {error.pos})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in thousands
        return Bad(f"is not JSON that can be read ({error})")


def decode(data: bytes) -> str | Bad:
    """Return UTF-8 bytes as a str, or Bad."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return Bad(f"{NOT_UTF8} ({error.reason} at byte {error.start})")
