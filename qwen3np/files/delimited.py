"""Rows of .csv and .tsv files: RFC 4180 with a header, and whatever separates the columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from . import lines as text_lines
from .cells import Bad, BadRow, Row, Template, cell, checked_row, choose, decode, names
from .lines import format_of, open_text

DELIMITERS = ",;\t|"
MOST_HEADER_LINES = 100
_EXCEL = re.compile(r'"?sep=(.)"?\r?\n', re.I)  # a first line that Excel writes and reads
_QUOTED = re.compile(rf'(^|[{DELIMITERS}])"(?:[^"]|"")*"')
_OPEN = re.compile(rf'(^|[{DELIMITERS}])"')


def delimited_rows(
    path: Path, column: str | Template | None, id_column: str | None, delimiter: str | None
) -> Iterator[Row | BadRow]:
    """Yield the rows; ValueError where no row can be told from the next."""
    csv.field_size_limit(text_lines.LONGEST_LINE)
    with open_text(path) as file:
        lines = _Lines(text_lines.lines(file, path))
        reader = csv.reader(lines, strict=True, delimiter=_delimiter(path, lines, delimiter))
        header: list[str] | None = None
        row = -1
        while True:
            first_line = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None or str(error).startswith(("unexpected end", "field larger")):
                    hint = "; is a quote opened there and never closed?" if lines.number > first_line else ""
                    raise ValueError(f"{path}, line {first_line}: is not CSV ({error}){hint}") from error
                row += 1
                yield BadRow(row, first_line, f"is not CSV ({error})")
                continue
            if not cells:  # a blank line
                continue
            if header is None:
                header = _header(path, first_line, cells)
                text_column, ids = choose(path, header, column, id_column)
                continue
            row += 1
            if len(cells) != len(header):
                bad = Bad(f"has {len(cells)} fields, the header {len(header)}")
                yield checked_row(row, first_line, None, bad)
                continue
            values = dict(zip(header, cells, strict=True))
            id = None if ids is None else _utf8(values[ids])
            yield checked_row(row, first_line, id, _utf8(cell(values, text_column)))


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    """Return the names of the columns; ValueError where two are the same."""
    header = []
    for name in map(_utf8, cells):
        if isinstance(name, Bad):
            raise ValueError(f"{path}, line {line}: {name}")
        header.append(name)
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: two columns have the same name: {names(header)}")
    return header


def _utf8(cell: str) -> str | Bad:
    """Return a cell that was decoded with surrogates in place of bytes that are not UTF-8, or Bad."""
    return cell if cell.isascii() else decode(cell.encode("utf-8", "surrogateescape"))


class _Lines:
    """The lines that csv.reader reads.

    An error raised here leaves both ready for the next line, which a generator would not be.
    """

    def __init__(self, lines: Iterator[bytes | Bad]) -> None:
        self._lines = lines
        self._again: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.pop(0) if self._again else next(self._lines)
        self.number += 1
        if isinstance(line, Bad):
            raise csv.Error(f"a line {line}")
        return line if isinstance(line, str) else line.decode("utf-8", "surrogateescape") + "\n"

    def give_back(self, lines: list[str]) -> None:
        self._again = lines + self._again
        self.number -= len(lines)


def _delimiter(path: Path, lines: _Lines, asked: str | None) -> str:
    """Return what separates the columns, and leave the header to be read.

    It is `asked`, or what Excel's first line says, or the only candidate in the header outside of quotes.
    """
    header = _header_lines(path, lines)
    if header and (excel := _EXCEL.fullmatch(header[0])):
        return asked or excel[1]
    lines.give_back(header)
    if asked is not None:
        return asked
    text = _QUOTED.sub(r"\1", "".join(header))
    found = [c for c in DELIMITERS if c in text]
    if format_of(path) == ".tsv" and (not found or "\t" in found):
        return "\t"
    if len(found) > 1:
        shown = " and ".join("tabs" if c == "\t" else repr(c) for c in found)
        raise ValueError(
            f"{path}: its header has {shown}: say with --delimiter which of them is between the columns"
        )
    return found[0] if found else ","  # one column


def _header_lines(path: Path, lines: _Lines) -> list[str]:
    """Return the first line that is not blank and, while a quote is open, those after it."""
    read: list[str] = []
    try:
        for line in islice(lines, MOST_HEADER_LINES):
            read.append(line)
            text = "".join(read)
            if text.strip() and not _OPEN.search(_QUOTED.sub(r"\1", text)):
                break
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.number}: is not CSV ({error})") from error
    return read
