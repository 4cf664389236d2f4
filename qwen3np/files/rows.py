"""Input files -> their rows, one at a time: .txt, .md, .jsonl, .json, .csv, .tsv and .parquet.

Rows are counted from 0, as the vectors of the output are; lines from 1, as editors do. A row that cannot be
embedded comes out as a BadRow, and reading continues after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import lines as text_lines
from .cells import (
    Bad,
    BadRow,
    Row,
    Template,
    cell,
    checked_row,
    choose,
    decode,
    kind_of,
    parse_json,
    text_columns,
)
from .delimited import delimited_rows
from .lines import BOM, PACKED, check_encoding, format_of, is_packed, lines, open_text
from .parquet import parquet_rows

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet")  # all but the last may be packed
WITHOUT_COLUMNS = (".txt", ".md")
DELIMITED = (".csv", ".tsv")
LARGEST_JSON = 1 << 28  # bytes: an array is read whole, and takes several times as much


def read_rows(
    path: Path,
    column: str | Template | None = None,
    id_column: str | None = None,
    delimiter: str | None = None,
    whole: bool = False,
) -> Iterator[Row | BadRow]:
    """Yield the rows of a file in order, in bounded memory; the suffix of its name says what it is.

    .txt: one text per line, and an empty line is an empty text. .md: one text, all of the file, whose id is
    the file's name. .jsonl: one JSON object or string per line. .json: an array of such. .csv and .tsv: RFC
    4180, with a header; where no row can be told from the next, reading stops. Blank lines of .jsonl, .csv
    and .tsv are not rows. All are UTF-8, with or without a byte order mark, and may be packed: .csv.gz,
    .csv.zst. .parquet needs pyarrow.

    Args:
        path: The file.
        column: The column of texts, or a template of several. Default: "text", or else the only column
            besides the ids.
        id_column: The column of ids, strings or integers. Default: "id", if there is one. Where there is
            none, or id_column is "", a row's id is its number.
        delimiter: What separates the columns of .csv and .tsv. Default: what Excel's line "sep=" says, or the
            one of , ; | and tab that the header has.
        whole: Read a .txt as a .md.

    Raises:
        ValueError: The suffix is another, the file is not what its suffix says, or a column cannot be
            found or chosen.
        OSError: The file cannot be read.
    """
    kind = format_of(path)
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "there is no such file"
        raise ValueError(f"{path}: {what}")
    if kind not in SUFFIXES or (kind == ".parquet" and is_packed(path)):
        raise ValueError(f"{path}: the name must end in {readable()}")
    if kind in WITHOUT_COLUMNS and (column or id_column):
        what = "all of it is one text" if kind == ".md" or whole else "each line is a text"
        raise ValueError(f"{path}: a {kind} file has no columns; {what}")
    if delimiter is not None and kind not in DELIMITED:
        raise ValueError(f"{path}: only {' and '.join(DELIMITED)} files have a delimiter")
    if kind == ".md" or (kind == ".txt" and whole):
        return _document(path)
    if kind == ".txt":
        return _txt(path)
    if kind in DELIMITED:
        return delimited_rows(path, column, id_column, delimiter)
    return {".jsonl": _jsonl, ".json": _json_array, ".parquet": parquet_rows}[kind](path, column, id_column)


def readable() -> str:
    """Return the suffixes of files that are read, as a message lists them."""
    return f"{', '.join(SUFFIXES[:-1])} (each also with {' or '.join(PACKED)}) or {SUFFIXES[-1]}"


def shown(path: Path) -> str:
    """Return a file's name as ids and columns hold it: with /, and always Unicode."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _txt(path: Path) -> Iterator[Row | BadRow]:
    with open_text(path) as file:
        for row, line in enumerate(lines(file, path)):
            text = line if isinstance(line, Bad) else decode(line.removesuffix(b"\r"))
            yield checked_row(row, row + 1, None, text)


def _document(path: Path) -> Iterator[Row | BadRow]:
    """Yield the one text that is all of a file; what is wrong with the file is wrong with that text."""
    line = 1
    try:
        with open_text(path) as file:
            data = file.read(text_lines.LONGEST_LINE + 1)
        check_encoding(data, path)
        text = decode(data.removeprefix(BOM))
        if len(data) > text_lines.LONGEST_LINE:
            text = Bad(f"is longer than {text_lines.LONGEST_LINE >> 20} MiB")
        elif isinstance(text, Bad):
            found = enumerate(map(decode, data.split(b"\n")), 1)
            line, text = next((number, bad) for number, bad in found if isinstance(bad, Bad))
    except ValueError as error:
        text = Bad(str(error).removeprefix(f"{path}: "))
    yield checked_row(0, line, shown(path), text)


def _jsonl(path: Path, column: str | Template | None, id_column: str | None) -> Iterator[Row | BadRow]:
    def values() -> Iterator[tuple[int, Any]]:
        with open_text(path) as file:
            for number, line in enumerate(lines(file, path), 1):
                if isinstance(line, Bad) or line.strip():
                    yield number, line if isinstance(line, Bad) else parse_json(line)

    return _of_values(path, column, id_column, values())


def _json_array(path: Path, column: str | Template | None, id_column: str | None) -> Iterator[Row | BadRow]:
    with open_text(path) as file:
        data = file.read(LARGEST_JSON + 1)
    if len(data) > LARGEST_JSON:
        raise ValueError(
            f"{path}: is longer than {LARGEST_JSON >> 20} MiB, and an array is read whole; write its "
            f"elements one per line: jq -c '.[]' {path.name} > NAME.jsonl"
        )
    check_encoding(data, path)
    array = parse_json(data.removeprefix(BOM))
    if isinstance(array, Bad):
        raise ValueError(f"{path}: {array}; if it holds one value per line, its name must end in .jsonl")
    if not isinstance(array, list):
        raise ValueError(f"{path}: is {kind_of(array)}, expected an array of strings or objects")
    yield from _of_values(path, column, id_column, ((None, value) for value in array))


def _of_values(
    path: Path,
    column: str | Template | None,
    id_column: str | None,
    values: Iterator[tuple[int | None, Any]],
) -> Iterator[Row | BadRow]:
    """Yield rows made of lines and the JSON values that they hold."""
    chosen: tuple[str | Template, str | None] | None = None
    for row, (line, value) in enumerate(values):
        if isinstance(value, dict):
            # The first object decides; with both columns named there is nothing to decide.
            if chosen is None:
                named = [name for name in (*text_columns(column), id_column) if name]
                chosen = choose(path, [*value, *(n for n in named if n not in value)], column, id_column)
            text, id = (cell(value, name) for name in chosen)
            yield checked_row(row, line, id, text)
        elif isinstance(value, str) and column is None and not id_column:
            yield checked_row(row, line, None, value)
        else:
            bad = value if isinstance(value, Bad) else Bad(f"is {kind_of(value)}, expected an object")
            yield checked_row(row, line, None, bad)
