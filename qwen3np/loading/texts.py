"""Whatever holds texts -> a list of str; whatever holds pairs of them -> a list of tuples.

Lists, generators, NumPy arrays, pandas and polars Series, Arrow arrays and columns of `datasets` are told by
what they can do: none of those libraries is imported. What would give the names of columns, or an arbitrary
order, is refused with what to give instead.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

Pair = tuple[str, str]

MISSING = 'is a missing value: leave it out or put a text in its place (pandas: .dropna() or .fillna(""))'


def as_texts(inputs: Any, name: str = "inputs") -> tuple[list[str], bool]:
    """Return the texts as a list, and whether the input was one text: a str, {"text": str}, a 0-d array.

    Args:
        inputs: What holds the texts.
        name: What errors call the argument.

    Raises:
        TypeError: `inputs` holds no texts, or an element is not one; the message has its index.
        ValueError: A text is not valid Unicode.
    """
    one = _unwrapped(inputs)
    if isinstance(one, str):
        return [_checked("the text", one)], True
    return list(iterate_texts(inputs, name)), False


def iterate_texts(inputs: Any, name: str = "inputs") -> Iterator[str]:
    """Yield the texts one after the other; what does not hold texts is an error at once."""
    return _texts(_iterable(inputs, name, "a str or a list of them", _one_column), inputs)


def as_pairs(inputs: Any) -> tuple[list[Pair], bool]:
    """Return (query, document) of each pair, and whether the input was one pair.

    One pair is a list, a tuple or a row of two texts. Raises as `as_texts` does.
    """
    if isinstance(inputs, (list, tuple, np.ndarray)) and _is_pair_of_texts(inputs):
        return [_pair(0, inputs)], True
    expected = "pairs of a query and a document"
    if isinstance(inputs, (str, Mapping)):
        raise TypeError(f"inputs must be {expected}, found {shown(inputs)}")
    pairs = _iterable(inputs, "inputs", expected, _two_columns)
    return [_pair(i, pair) for i, pair in enumerate(pairs)], False


def shown(value: Any) -> str:
    """Return a value's type and the beginning of its repr."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _texts(elements: Iterator[Any], inputs: Any) -> Iterator[str]:
    for i, element in enumerate(elements):
        text = _unwrapped(element)
        where = f"text {i}"
        if not isinstance(text, str) and hasattr(inputs, "index") and hasattr(inputs, "iloc"):
            where = f"text {i} (index {inputs.index[i]!r})"
        yield _checked(where, text)


def _checked(where: str, text: Any) -> str:
    """Return the text; raise TypeError for what is not a str, ValueError for what is not valid Unicode."""
    if not isinstance(text, str):
        raise TypeError(f"{where} is {_cure_of_element(text)}")
    check_unicode(where, text)
    return text


def check_unicode(where: str, text: str) -> None:
    """Raise ValueError for a text that is not valid Unicode."""
    if text.isascii():  # a str knows it; encoding makes a copy
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"lone surrogate {text[error.start]!r} at character {error.start}"
        raise ValueError(f"{where} is not valid Unicode: {surrogate}") from None


def _cure_of_element(value: Any) -> str:
    kind = type(value).__name__
    if value is None or kind in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return f"{kind}, expected str: {value!r} {MISSING}"
    if isinstance(value, (bytes, bytearray)):
        return f"{kind}, expected str: decode it first, .decode()"
    if isinstance(value, (list, tuple, np.ndarray)):
        return f"{kind}, expected str: {shown(value)} (pairs of texts are for Reranker.predict)"
    if isinstance(value, Mapping):
        return f'{kind}, expected str: {shown(value)}; of a row give its text, row["{_likely(value)}"]'
    return f"{kind}, expected str: {shown(value)}"


def _iterable(inputs: Any, name: str, expected: str, columns_cure: Any) -> Iterator[Any]:
    """Return an iterator over what `inputs` holds; raise TypeError where that is not its texts."""
    columns = _columns(inputs)
    if columns is not None:
        kind = f"{type(inputs).__module__.partition('.')[0]} {type(inputs).__name__}"
        names = ", ".join(map(repr, columns[:5])) + (", ..." if len(columns) > 5 else "")
        kind += f" with the columns {names}" if names else ""
        raise TypeError(f"{name} is a {kind}: give {columns_cure(name, columns, inputs)}")
    if cure := _cure_of_container(inputs, name):
        raise TypeError(f"{name} is {type(inputs).__name__}: {cure}")
    try:
        return iter(inputs)
    except TypeError:
        raise TypeError(f"{name} is {shown(inputs)}, expected {expected}") from None


def _cure_of_container(inputs: Any, name: str) -> str:
    if isinstance(inputs, (bytes, bytearray, memoryview)):
        return f"decode it first, bytes({name}).decode()"
    if isinstance(inputs, os.PathLike):
        return f'a file is not read here; give its text, Path({os.fspath(inputs)!r}).read_text("utf-8")'
    if isinstance(inputs, io.IOBase):
        return f'its lines would keep their ends; give [line.rstrip("\\n") for line in {name}]'
    if isinstance(inputs, (set, frozenset)):
        return f"a set has no order to give results in; give sorted({name})"
    if isinstance(inputs, Mapping):
        keys = ", ".join(map(repr, list(inputs)[:5]))
        return f"its keys are {keys}; give the texts alone: list({name}.values()), or what one key holds"
    return ""


def _columns(inputs: Any) -> list[Any] | None:
    """Return the names of the columns of a table of any library, None for what is not a table."""
    if hasattr(type(inputs), "column_names"):  # Arrow tables, datasets
        return list(inputs.column_names or [])
    if hasattr(type(inputs), "collect_schema"):  # polars; a LazyFrame's columns would warn
        return list(inputs.collect_schema().names())
    if hasattr(type(inputs), "columns"):
        return list(inputs.columns)
    return None


def _likely(columns: Iterable[Any]) -> Any:
    """Return the column that is most likely meant."""
    names = list(columns) or ["text"]
    return next((name for name in ("text", "document", "content", "body") if name in names), names[0])


def _one_column(name: str, columns: list[Any], inputs: Any) -> str:
    column = _likely(columns)
    if hasattr(inputs, "__getitem__") and type(inputs).__name__ != "LazyFrame":
        return f"one column, {name}[{column!r}]"
    if hasattr(inputs, "collect"):
        return f"one column, {name}.collect()[{column!r}]"
    return f"one column, (row[{column!r}] for row in {name})"


def _two_columns(name: str, columns: list[Any], inputs: Any) -> str:
    query, document = (columns + ["query", "document"])[:2] if len(columns) >= 2 else ("query", "document")
    return f"list(zip({name}[{query!r}], {name}[{document!r}]))"


def _unwrapped(value: Any) -> Any:
    """Return what an Arrow scalar, a 0-d array, or sentence-transformers' {"text": ...} holds."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and list(value) == ["text"]:
        return value["text"]
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value.item()
    if hasattr(value, "as_py"):
        return value.as_py()
    return value


def _is_pair_of_texts(value: Any) -> bool:
    if isinstance(value, np.ndarray) and value.ndim != 1:
        return False
    return len(value) == 2 and all(isinstance(_unwrapped(text), str) for text in value)


def _pair(i: int, value: Any) -> Pair:
    pair = value.as_py() if hasattr(value, "as_py") else value
    pair = pair.to_list() if hasattr(pair, "to_list") else pair  # a row of a Series
    if not isinstance(pair, (tuple, list, np.ndarray)) or len(pair) != 2:
        raise TypeError(f"input {i} is not a pair of a query and a document: {shown(value)}")
    query, document = (
        _checked(f"the {what} of pair {i}", _unwrapped(text))
        for what, text in zip(("query", "document"), pair, strict=True)
    )
    return query, document
