"""What a row is made of: which columns hold texts and ids, and whether a value is one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_UTF8 = "is not UTF-8"


@dataclass(frozen=True)
class Row:
    """A row that can be embedded: its number, its id and its text."""

    row: int
    id: int | str
    text: str


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be embedded, and why."""

    row: int
    line: int | None  # None: the format has no lines
    reason: str

    def __str__(self) -> str:
        place = f"row {self.row} (the first is 0)" if self.line is None else f"line {self.line}"
        return f"{place}: {self.reason}"


class Bad(Exception):
    """What stands where a value should be; a type of its own, since any string is a valid text."""


def checked_row(row: int, line: int | None, id: Any, text: Any) -> Row | BadRow:
    """Return a row, or a bad row that says what is wrong with its text or id."""
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
    return Row(row, id, text)


def choose(
    path: Path, columns: Sequence[str], column: str | None, id_column: str | None
) -> tuple[str, str | None]:
    """Return the columns of texts and of ids."""
    for name in (column, id_column):
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


def cell(values: Mapping[str, Any], name: str | None) -> Any:
    """Return the value in a column, or Bad if there is none."""
    if name is None:
        return None
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
