"""Saved outputs -> what other programs search: tables of DuckDB and LanceDB, indexes of FAISS and usearch.

A table holds id, file and chunk if there are such, text, and embedding: the float vectors that quantised ones
stand for. What made them is in its metadata (LanceDB) or its comment (DuckDB). It is replaced or added to in
one transaction of its database: whenever a process is killed, it is the older one or the new one. An index
file is written as an output is (publish.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..quantization import as_bits
from . import indexes, record
from .extras import library
from .publish import check_leftovers, finish, stage
from .saved import WHERE, Saved, metadata_of
from .work import Chunk, Totals, WorkFolder

TABLES = (".duckdb", ".lance")
SUFFIXES = (*TABLES, *indexes.SUFFIXES)


def export(
    saved: Saved,
    target: Path,
    *,
    table: str = "embeddings",
    index: str | None = None,
    append: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a saved output to a table or an index file, and return how many rows it then has.

    Args:
        saved: The output.
        target: A database (.duckdb), a table's folder in one (.lance), or a file (.faiss, .usearch).
        table: The name of the table in a .duckdb file.
        index: What FAISS's index_factory is to make (default: "Flat", or "BFlat" of bits, which is exact), or
            how usearch's graph is to hold the vectors (default: as the output does).
        append: Add to a table that exists, of the same columns; its rows with the same ids (of the same
            files, all their chunks) are replaced.
        overwrite: Replace a table or an index that exists.

    Raises:
        ValueError: The target is of another kind, or does not fit.
        FileExistsError: It exists, without `append` or `overwrite`, or with other columns than `append` adds,
            or with vectors of another model or prompt.
        ImportError: The library is not installed.
    """
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{target}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {target.parent}")
    if append and suffix not in TABLES:
        raise ValueError(f"{target}: rows are added to tables; an index is made anew, with --overwrite")
    if index is not None and suffix in TABLES:
        raise ValueError(f"{target}: --index is for {' and '.join(indexes.SUFFIXES)}")
    if table != "embeddings" and suffix != ".duckdb":
        raise ValueError(f"{target}: --table is for .duckdb")
    if suffix == ".duckdb":
        return _to_duckdb(saved, target, table, append, overwrite)
    if suffix == ".lance":
        return _to_lance(saved, target, append, overwrite)
    return _to_index(saved, target, index, overwrite)


def _to_duckdb(saved: Saved, target: Path, table: str, append: bool, overwrite: bool) -> int:
    duckdb = library("duckdb", target, "duckdb")
    name, what = '"' + table.replace('"', '""') + '"', f"{target}: table {table!r}"
    comments = (
        "SELECT comment FROM duckdb_tables() WHERE schema_name = 'main' AND lower(table_name) = lower(?)"
    )
    rows = _rows(saved, target)
    try:
        with duckdb.connect(str(target)) as database:
            database.begin()
            found = database.execute(comments, [table]).fetchall()  # one row if there is such a table
            _check_free(what, bool(found), append, overwrite)
            database.register("qwen3np_rows", rows)
            if found and append:
                here, new = (_described(database, relation) for relation in (name, "qwen3np_rows"))
                _check_columns(what, here, saved, new)
                _check_model(what, _of_comment(found[0][0]), saved)
                database.execute("CREATE TEMP TABLE qwen3np_new AS SELECT * FROM qwen3np_rows")
                same = ", ".join(column for column in rows.schema.names if column in ("id", "file"))
                gone = f"({same}) IN (SELECT ({same}) FROM qwen3np_new)"
                database.execute(f"DELETE FROM {name} WHERE {gone}")
                database.execute(f"INSERT INTO {name} BY NAME SELECT * FROM qwen3np_new")
            else:
                database.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM qwen3np_rows")
                comment = json.dumps(_info(saved)).replace("'", "''")
                database.execute(f"COMMENT ON TABLE {name} IS '{comment}'")
            [count] = database.execute(f"SELECT count(*) FROM {name}").fetchone()
            database.commit()
            return int(count)
    except duckdb.Error as error:
        raise ValueError(f"{target}: {' '.join(str(error).split())}") from error


def _to_lance(saved: Saved, target: Path, append: bool, overwrite: bool) -> int:
    lancedb = library("lancedb", target, "lancedb")
    exists = target.exists()
    if exists and not (target / "_versions").is_dir():
        raise FileExistsError(f"{target}: is not a table of LanceDB; move it away, or name another")
    _check_free(str(target), exists, append, overwrite)
    database = lancedb.connect(str(target.parent))
    try:
        if exists and append:
            table = database.open_table(target.stem)
            rows = _rows(saved, target)
            here, new = ({f.name: str(f.type) for f in schema} for schema in (table.schema, rows.schema))
            _check_columns(str(target), here, saved, new)
            _check_model(str(target), metadata_of(table.schema), saved)
            keys = [name for name in new if name in ("id", "file", "chunk")]
            merge = table.merge_insert(keys).when_matched_update_all().when_not_matched_insert_all()
            if "chunk" in keys:  # a text that became shorter has fewer of them
                merge = merge.when_not_matched_by_source_delete(_of_texts(saved, "file" in keys))
            merge.execute(rows)
        else:
            mode = "overwrite" if exists else "create"
            table = database.create_table(target.stem, data=_rows(saved, target), mode=mode)
        return int(table.count_rows())
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{target}: LanceDB says: {' '.join(str(error).split())}") from error


def _to_index(saved: Saved, target: Path, index: str | None, overwrite: bool) -> int:
    bits = saved.precision.endswith("binary")
    if target.suffix.lower() == ".faiss":
        indexes.faiss(target)
        index = index or ("BFlat" if bits else "Flat")
    else:
        indexes.usearch_index(target)
        index = index or ("b1" if bits else "i8" if saved.precision.endswith("int8") else "f32")
    info = saved.info | {"precision": "ubinary" if bits else "float32", "index": index}
    with WorkFolder(target) as work:
        check_leftovers(target, work, overwrite=overwrite)
        run = {} if saved.record is None else saved.record["run"]
        totals = _totals(saved)
        manifest = {"run": run, "info": info, "rows": totals.rows, "bad": 0, "dim": saved.dim}
        work.begin(manifest | {"replaces": record.states(target)})
        try:
            stage(work, lambda: _chunks(saved), totals)
        except BaseException:
            work.remove()
            raise
        finish(work)
    return totals.texts


def _check_free(what: str, exists: bool, append: bool, overwrite: bool) -> None:
    if exists and not (append or overwrite):
        raise FileExistsError(f"{what} exists; --overwrite replaces it, --append adds to it")


def _described(database: Any, relation: str) -> dict[str, str]:
    """Return the columns of a table of DuckDB and their types."""
    return {row[0]: row[1] for row in database.execute(f"DESCRIBE {relation}").fetchall()}


def _info(saved: Saved) -> dict[str, str]:
    """Return what made an output's vectors: its metadata, and the model's digest where it is known."""
    digest = saved.record and saved.record["run"].get("model")
    return saved.info | ({"model_digest": digest} if digest else {})


def _of_comment(comment: str | None) -> Mapping[str, Any]:
    """Return what a comment on a table says made its vectors; {} where it is not ours."""
    try:
        found = json.loads(comment or "{}")
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _check_model(what: str, there: Mapping[str, Any], saved: Saved) -> None:
    """Raise FileExistsError where a table's rows are of another model or prompt than those to be added.

    One model may have two names, of the Hub and of a folder: its digest decides, where both say it.
    """
    new = _info(saved)
    key = "model_digest" if "model_digest" in there and "model_digest" in new else "model"
    for shown, name in {"model": key, "prompt": "prompt"}.items():
        if name in there and name in new and there[name] != new[name]:
            here, added = there.get(shown), new.get(shown)
            raise FileExistsError(
                f"{what} has vectors of {shown} {here!r}, and {saved.path} of {added!r}"
                f"{' (other weights or settings)' * (here == added)}: they cannot be compared; --overwrite "
                "replaces it, else name another"
            )


def _check_columns(what: str, here: Mapping[str, str], saved: Saved, new: Mapping[str, str]) -> None:
    """Raise FileExistsError where rows have not the columns of the table that they are to be added to.

    Without "file" a row would replace those of all files with its id, and without "text" lose their texts.
    """
    names = [name for name in ("id", *WHERE, "text", "embedding") if here.get(name) != new.get(name)]
    if names:
        other = "; ".join(
            f"{n}: {here.get(n, 'none')} there, {new.get(n, 'none')} in {saved.path}" for n in names
        )
        raise FileExistsError(
            f"{what} has other columns ({other}): --overwrite replaces it, else name another"
        )


def _chunks(saved: Saved) -> Iterator[Chunk]:
    """Yield ids, texts, where they are from, and float vectors; bits as they are."""
    named = saved.named()
    for block in saved.blocks():
        some = [*islice(named, len(block))]
        vectors = as_bits(block) if saved.precision.endswith("binary") else saved.floats(block)
        where = [one.where for one in some] if any(one.where for one in some) else None
        yield Chunk([one.id for one in some], [one.text or "" for one in some], vectors, where=where)


def _totals(saved: Saved) -> Totals:
    """Return the number of rows, and what their ids are."""
    count, integers, numbered, placed = 0, True, True, False
    for id, _, where in saved.named():
        integers &= isinstance(id, int) and -(2**63) <= id < 2**63
        numbered &= id == count
        placed |= bool(where)
        count += 1
    return Totals(count, count, int_ids=integers, numbered=numbered, placed=placed)


def _of_texts(saved: Saved, several: bool) -> str:
    """Return SQL that is true of rows of the output's texts, whichever of their chunks.

    Of several files, a text is known by its file and its id together; no file's name holds a NUL.
    """
    texts = {f"{one.where.get('file', '')}\0{one.id}" if several else str(one.id) for one in saved.named()}
    listed = ", ".join("'" + text.replace("'", "''") + "'" for text in sorted(texts))
    known = "file || '\0' || CAST(id AS STRING)" if several else "CAST(id AS STRING)"
    return f"{known} IN ({listed})"


def _rows(saved: Saved, target: Path) -> Any:
    """Return a pyarrow.RecordBatchReader of the table's columns."""
    pa = library("pyarrow", target, "parquet")
    integers, first = _totals(saved).int_ids, next(saved.named())
    texts = first.text is not None
    types = {int: pa.int64(), str: pa.string()}
    names = {"id": types[int if integers else str]}
    names |= {name: types[WHERE[name]] for name in first.where}
    names |= {"text": types[str]} if texts else {}
    names |= {"embedding": pa.list_(pa.float32(), saved.dim)}
    schema = pa.schema(list(names.items()), metadata=_info(saved))

    def batches() -> Iterator[Any]:
        for chunk in _chunks(saved):
            ids = chunk.ids if integers else [str(id) for id in chunk.ids]
            floats = saved.floats(chunk.vectors) if saved.precision.endswith("binary") else chunk.vectors
            flat = pa.array(np.ascontiguousarray(floats).ravel())
            vectors = pa.FixedSizeListArray.from_arrays(flat, saved.dim)
            where = chunk.where or [{}] * len(ids)  # other programs' rows need not all say it
            places = [pa.array([row.get(name) for row in where], names[name]) for name in first.where]
            columns = [pa.array(ids, names["id"]), *places, *([pa.array(chunk.texts)] if texts else [])]
            yield pa.record_batch([*columns, vectors], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())
