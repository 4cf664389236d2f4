"""Input files -> their rows, one at a time: .txt, .jsonl, .csv and .parquet.

Rows are counted from 0, as the vectors of the output are; lines from 1, as editors do. A row that cannot be
embedded comes out as a BadRow, and reading goes on behind it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .parquet import pyarrow_parquet

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
LONGEST_LINE = 16 << 20  # bytes; a model reads about 128 kB of a text, and a line must fit into the memory
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    row: int
    id: int | str
    text: str


@dataclass(frozen=True)
class BadRow:
    row: int
    line: int | None  # None: the format has no lines
    reason: str

    def __str__(self) -> str:
        place = f"row {self.row} (the first is 0)" if self.line is None else f"line {self.line}"
        return f"{place}: {self.reason}"


def read_rows(path: Path, column: str | None = None, id_column: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a file in order, in bounded memory; the suffix of its name says what it is.

    Args:
        column: what holds the texts. Default: "text", or else the only column besides the ids.
        id_column: what holds the ids, strings or integers. Default: "id", if there is one. Where there is
            none, or id_column is "", a row's id is its number.

    .txt: a text a line, and an empty line is an empty text. .jsonl: a JSON object or a JSON string a line.
    .csv: RFC 4180, with a header; where no row can be told from the next, reading stops. Blank lines of
    these two are no rows. All three are UTF-8, with or without a byte
    order mark. .parquet needs pyarrow. Raises ValueError for another suffix, a file that is not what its
    suffix says, and a column that cannot be found or chosen; OSError for a file that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not path.is_file():
        what = "is no regular file" if path.exists() else "there is no such file"
        raise ValueError(f"{path}: {what}")
    if suffix == ".txt":
        if column or id_column:
            raise ValueError(f"{path}: a .txt file has no columns; each line is a text")
        return _txt(path)
    return {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[suffix](path, column, id_column)


def _txt(path: Path) -> Iterator[Row | BadRow]:
    with open(path, "rb") as file:
        for row, line in enumerate(_lines(file)):
            text = line if isinstance(line, _Bad) else _decode(line.removesuffix(b"\r"))
            yield _row(row, row + 1, row, text)


def _jsonl(path: Path, column: str | None, id_column: str | None) -> Iterator[Row | BadRow]:
    chosen: tuple[str, str | None] | None = None
    row = -1
    with open(path, "rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if not isinstance(line, _Bad) and not line.strip():
                continue
            row += 1
            value = _json(line)
            if isinstance(value, dict):
                # The first object decides; with both columns named there is nothing to decide.
                if chosen is None:
                    named = [name for name in (column, id_column) if name]
                    chosen = _choose(path, [*value, *(n for n in named if n not in value)], column, id_column)
                text, id = (_cell(value, name) for name in chosen)
                yield _row(row, number, row if chosen[1] is None else id, text)
            elif isinstance(value, str) and column is None and not id_column:
                yield _row(row, number, row, value)
            else:
                kind = value if isinstance(value, _Bad) else _Bad(f"is {_kind(value)}, expected an object")
                yield _row(row, number, row, kind)


def _csv(path: Path, column: str | None, id_column: str | None) -> Iterator[Row | BadRow]:
    csv.field_size_limit(LONGEST_LINE)
    with open(path, "rb") as file:
        lines = _CsvLines(file)
        reader = csv.reader(lines, strict=True)
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
                header = []
                for cell in map(_utf8, cells):
                    if isinstance(cell, _Bad):
                        raise ValueError(f"{path}, line {first_line}: {cell}")
                    header.append(cell)
                if len(set(header)) < len(header):
                    raise ValueError(f"{path}: two columns have the same name: {_names(header)}")
                text_column, ids = _choose(path, header, column, id_column)
                continue
            row += 1
            if len(cells) != len(header):
                bad = _Bad(f"has {len(cells)} fields, the header {len(header)}")
                yield _row(row, first_line, row, bad)
                continue
            values = dict(zip(header, cells, strict=True))
            yield _row(
                row, first_line, row if ids is None else _utf8(values[ids]), _utf8(values[text_column])
            )


def _parquet(path: Path, column: str | None, id_column: str | None) -> Iterator[Row | BadRow]:
    pq = pyarrow_parquet(path)
    import pyarrow as pa

    # Not ahead of time: a row group, read whole, may be larger than the memory.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        schema = file.schema_arrow
        text_column, ids = _choose(path, schema.names, column, id_column)
        wanted = [(text_column, True)] + ([] if ids is None else [(ids, False)])
        for name, strings_only in wanted:
            kind = schema.field(name).type
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (_is_string(pa, plain) or (pa.types.is_integer(plain) and not strings_only)):
                hint = "strings; name another --column" if strings_only else (
                    "strings or integers; name another --id-column, or give --id-column '' to number the rows"
                )  # fmt: skip
                raise ValueError(f"{path}: column {name!r} is {kind}, expected {hint}")
        row = -1
        for batch in file.iter_batches(batch_size=1024, columns=[name for name, _ in wanted]):
            texts = _parquet_cells(pa, batch, text_column)
            own = [None] * len(texts) if ids is None else _parquet_cells(pa, batch, ids)
            for text, id in zip(texts, own, strict=True):
                row += 1
                if id is None and ids is not None:
                    id = _Bad(f"column {ids!r} is null")
                yield _row(
                    row,
                    None,
                    row if ids is None else id,
                    _Bad(f"column {text_column!r} is null") if text is None else text,
                )


def _parquet_cells(pa: Any, batch: Any, name: str) -> list[Any]:
    """As bytes until they are decoded here: pyarrow does not say which of many cells is not UTF-8."""
    cells = batch.column(batch.schema.get_field_index(name))
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if not _is_string(pa, cells.type):
        return list(cells.to_pylist())
    return [None if c is None else _decode(c) for c in cells.cast(pa.large_binary()).to_pylist()]


def _is_string(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


class _Bad(Exception):
    """Stands where a value should be. A type of its own, since any string is a valid text."""


def _row(row: int, line: int | None, id: Any, text: Any) -> Row | BadRow:
    for value in (text, id):
        if isinstance(value, _Bad):
            return BadRow(row, line, str(value))
    if not isinstance(text, str):
        return BadRow(row, line, f"the text is {_kind(text)}, expected a string")
    if isinstance(id, bool) or not isinstance(id, (int, str)):
        return BadRow(row, line, f"the id is {_kind(id)}, expected a string or an integer")
    for what, value in (("text", text), ("id", id)):
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            found = f"lone surrogate {error.object[error.start]!r} at character {error.start}"
            return BadRow(row, line, f"the {what} is not valid Unicode: {found}")
    return Row(row, id, text)


def _choose(
    path: Path, columns: Sequence[str], column: str | None, id_column: str | None
) -> tuple[str, str | None]:
    """The columns of texts and of ids."""
    for name in (column, id_column):
        if name and name not in columns:
            raise ValueError(f"{path}: there is no column {name!r}; there are {_names(columns)}")
    if id_column is None and "id" in columns and column != "id" and len(columns) > 1:
        id_column = "id"
    if column is None:
        others = [name for name in columns if name != id_column]
        if "text" not in others and len(others) != 1:
            raise ValueError(f"{path}: say with --column which holds the texts; there are {_names(columns)}")
        column = "text" if "text" in others else others[0]
    return column, id_column or None


def _names(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"


def _cell(values: Mapping[str, Any], name: str | None) -> Any:
    if name is None:
        return None
    if name not in values:
        return _Bad(f"has no column {name!r}; there are {_names(list(values))}")
    return _Bad(f"column {name!r} is null") if values[name] is None else values[name]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _json(line: bytes | _Bad) -> Any:
    text = line if isinstance(line, _Bad) else _decode(line)
    if isinstance(text, _Bad):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return _Bad(f"is not JSON ({error.msg} at character {error.pos})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in thousands
        return _Bad(f"is not JSON that can be read ({error})")


def _decode(data: bytes) -> str | _Bad:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return _Bad(f"is not UTF-8 ({error.reason} at byte {error.start})")


def _utf8(cell: str) -> str | _Bad:
    """A cell that was decoded with surrogates in place of bytes that are not UTF-8."""
    return cell if cell.isascii() else _decode(cell.encode("utf-8", "surrogateescape"))


def _lines(file: BinaryIO) -> Iterator[bytes | _Bad]:
    """Split at newlines only: str.splitlines would also split at U+2028 and others."""
    first = True
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield _Bad(f"is longer than {LONGEST_LINE >> 20} MiB")
        else:
            yield (line.removeprefix(BOM) if first else line).removesuffix(b"\n")
        first = False


class _CsvLines:
    """What csv.reader reads from. An error raised here leaves both ready for the next line, which a generator
    would not be."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = _lines(file)
        self.number = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if isinstance(line, _Bad):
            raise csv.Error(f"a line {line}")
        return line.decode("utf-8", "surrogateescape") + "\n"
