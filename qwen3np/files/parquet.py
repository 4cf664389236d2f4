"""Parquet files, with pyarrow, which only they need (extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cells import BadRow, Row, Template, cell, checked_row, choose, decode, text_columns
from .extras import library


def pyarrow_parquet(path: Path) -> Any:
    """Return the module pyarrow.parquet, or raise ImportError that says how to install it."""
    return library("pyarrow.parquet", path, "parquet", "Parquet ")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in errors of reading it, which pyarrow's own do not."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())})") from error


def type_of(path: Path, schema: Any, name: str) -> Any:
    """Return a column's type; ValueError if two columns have that name."""
    if schema.names.count(name) > 1:
        raise ValueError(f"{path}: two columns have the name {name!r}; rename one of them")
    return schema.field(name).type


def parquet_rows(path: Path, column: str | Template | None, id_column: str | None) -> Iterator[Row | BadRow]:
    """Yield the rows of a Parquet file."""
    pq = pyarrow_parquet(path)
    import pyarrow as pa

    # Opened here, since pyarrow takes no name that is not UTF-8. Not read ahead: a whole row group may be
    # larger than memory.
    options = {"pre_buffer": False, "buffer_size": 1 << 20}
    with reading(path), open(path, "rb") as opened, pq.ParquetFile(opened, **options) as file:
        schema = file.schema_arrow
        text_column, ids = choose(path, schema.names, column, id_column)
        wanted = dict.fromkeys(text_columns(text_column), not isinstance(text_column, Template))
        wanted |= {} if ids is None else {ids: wanted.get(ids, False)}
        for name, strings_only in wanted.items():
            kind = type_of(path, schema, name)
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (_is_string(pa, plain) or (pa.types.is_integer(plain) and not strings_only)):
                hint = "strings; name another --column" if strings_only else (
                    "strings or integers; name another --id-column, or give --id-column '' to number the rows"
                    if name == ids else "strings or integers"
                )  # fmt: skip
                raise ValueError(f"{path}: column {name!r} is {kind}, expected {hint}")
        row = -1
        for batch in file.iter_batches(batch_size=1024, columns=[*wanted]):
            columns = [_cells(pa, batch, name) for name in wanted]
            for cells in zip(*columns, strict=True):
                row += 1
                values = dict(zip(wanted, cells, strict=True))
                yield checked_row(row, None, cell(values, ids), cell(values, text_column))


def _cells(pa: Any, batch: Any, name: str) -> list[Any]:
    """Return the values in a column, strings decoded here: pyarrow does not say which cell is not UTF-8."""
    cells = batch.column(batch.schema.get_field_index(name))
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if not _is_string(pa, cells.type):
        return list(cells.to_pylist())
    return [None if c is None else decode(c) for c in cells.cast(pa.large_binary()).to_pylist()]


def _is_string(pa: Any, kind: Any) -> bool:
    """Return whether a type is a string; pyarrow knows string_view, which polars uses, since version 16."""
    return kind in (pa.string(), pa.large_string()) or str(kind) == "string_view"
