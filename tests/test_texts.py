"""What holds texts: the right texts of it, or an error that names what was found, where, and the cure."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest

from qwen3np.loading.texts import as_pairs, as_texts, iterate_texts

TEXTS = ["a", "", "中国\n😀"]


class Row(str):
    pass


def test_one_text_or_many_of_any_kind():
    for one in ("a", Row("a"), np.str_("a"), np.array("a"), {"text": "a"}):
        assert as_texts(one) == (["a"], True)
    for many in (
        TEXTS, tuple(TEXTS), iter(TEXTS), (t for t in TEXTS), map(Row, TEXTS),
        dict.fromkeys(TEXTS).keys(), dict(enumerate(TEXTS)).values(),
        np.array(TEXTS), np.array(TEXTS, object), np.array(TEXTS, np.dtypes.StringDType()),
        [{"text": text} for text in TEXTS], [np.array(text) for text in TEXTS],
    ):  # fmt: skip
        assert as_texts(many) == (TEXTS, False)
    assert as_texts([]) == ([], False) and as_texts(np.array([])) == ([], False)


def test_columns_of_every_library():
    pa = pytest.importorskip("pyarrow")
    columns = [pa.array(TEXTS), pa.chunked_array([TEXTS[:1], TEXTS[1:]]), pa.array(TEXTS).dictionary_encode()]
    columns += [[pa.scalar(text) for text in TEXTS], pa.array(TEXTS, pa.large_string())]
    for column in columns:
        assert as_texts(column) == (TEXTS, False)
    assert as_texts(pa.scalar("a")) == (["a"], True)


@pytest.mark.hf
def test_columns_of_pandas_polars_and_datasets():
    pd, pl, datasets = map(pytest.importorskip, ("pandas", "polars", "datasets"))
    for column in (
        pd.Series(TEXTS), pd.Series(TEXTS, index=[5, 5, 7]), pd.Index(TEXTS),
        pd.Series(TEXTS, dtype="category"),
        pd.Series(TEXTS, dtype=object), pd.Series(TEXTS, dtype="string"), pl.Series(TEXTS),
        pl.Series(TEXTS, dtype=pl.Categorical), datasets.Dataset.from_dict({"text": TEXTS})["text"],
    ):  # fmt: skip
        assert as_texts(column) == (TEXTS, False)
        assert list(iterate_texts(column)) == TEXTS
    for series in (
        pd.Series(["a", None], index=["x", "y"]),
        pd.Series(["a", float("nan")], index=["x", "y"]),
    ):
        with pytest.raises(TypeError, match=r"text 1 \(index 'y'\) is .* missing value: .*\.dropna\(\)"):
            as_texts(series)
    with pytest.raises(TypeError, match="text 1 is NoneType, .*missing value"):
        as_texts(pl.Series(["a", None]))


@pytest.mark.hf
def test_tables_are_refused_with_the_column_to_give():
    """Iterating over them gives the names of their columns, or rows."""
    pa, pd, pl, datasets = map(pytest.importorskip, ("pyarrow", "pandas", "polars", "datasets"))
    rows = {"id": ["1", "2"], "text": ["a", "b"]}
    dataset = datasets.Dataset.from_dict(rows)
    for table, found, cure in (
        (pd.DataFrame(rows), "pandas DataFrame with the columns 'id', 'text'", "inputs['text']"),
        (pd.DataFrame({"x": ["a"]}), "pandas DataFrame with the columns 'x'", "inputs['x']"),
        (pd.DataFrame(), "pandas DataFrame", "inputs['text']"),
        (pl.DataFrame(rows), "polars DataFrame with the columns 'id', 'text'", "inputs['text']"),
        (pl.LazyFrame(rows), "polars LazyFrame with the columns", "inputs.collect()['text']"),
        (pa.table(rows), "pyarrow Table with the columns", "inputs['text']"),
        (pa.table(rows).to_batches()[0], "pyarrow RecordBatch with the columns", "inputs['text']"),
        (dataset, "datasets Dataset with the columns", "inputs['text']"),
        (dataset.to_iterable_dataset(), "datasets IterableDataset with the columns", "'text'"),
        (datasets.DatasetDict({"train": dataset}), "datasets DatasetDict", "inputs['train']"),
    ):
        message = f"inputs is a {re.escape(found)}.*: give one column, .*{re.escape(cure)}"
        for call in (as_texts, iterate_texts):
            with pytest.raises(TypeError, match=message):
                call(table)
    for table in (pd.DataFrame(rows), pl.DataFrame(rows), pa.table(rows), dataset):
        with pytest.raises(TypeError, match=r"give list\(zip\(inputs\['id'\], inputs\['text'\]\)\)"):
            as_pairs(table)
        assert as_pairs(list(zip(table["id"], table["text"], strict=True))) == (
            [("1", "a"), ("2", "b")],
            False,
        )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": "b"}, r"inputs is dict: its keys are 'a'; give the texts alone: list\(inputs.values\(\)\)"),
        ({"text": "a", "id": 1}, "inputs is dict: its keys are 'text', 'id'"),
        ({"a", "b"}, r"a set has no order to give results in; give sorted\(inputs\)"),
        (b"a", "inputs is bytes: decode it first"),
        (Path("x.txt"), r"a file is not read here; give its text, Path\('x.txt'\).read_text"),
        (io.StringIO("a\n"), "its lines would keep their ends"),
        (None, "inputs is NoneType None, expected a str or a list of them"),
        (5, "inputs is int 5, expected a str"),
        (np.array(5.0), "expected a str"),
        (["a", None], "text 1 is NoneType, expected str: None is a missing value: leave it out"),
        (["a", float("nan")], "text 1 is float, expected str: nan is a missing value"),
        (["a", b"b"], "text 1 is bytes, expected str: decode it first"),
        (["a", 3], "text 1 is int, expected str: int 3"),
        ([["a", "b"]], "text 0 is list, .*pairs of texts are for Reranker.predict"),
        (np.array([["a", "b"]]), "text 0 is ndarray"),
        (np.array([b"a"]), "text 0 is bytes_, expected str: decode"),
        ([{"text": "a", "id": 1}], r'text 0 is dict, .*of a row give its text, row\["text"\]'),
        ([{"text": 1}], "text 0 is int"),
    ],
)
def test_what_holds_no_texts_is_refused(inputs, message):
    with pytest.raises(TypeError, match=message):
        as_texts(inputs)


def test_a_stream_counts_its_texts_from_its_beginning():
    texts = iterate_texts(text for text in ["a", "b", None])
    assert (next(texts), next(texts)) == ("a", "b")
    with pytest.raises(TypeError, match="text 2 is NoneType"):
        next(texts)
    with pytest.raises(
        ValueError, match="text 1 is not valid Unicode: lone surrogate '.udfff' at character 1"
    ):
        list(iterate_texts(["a", "b\udfff"]))


def test_pairs_of_any_kind():
    pairs = [("q", "a"), ("q", "b")]
    for inputs in (
        pairs,
        tuple(pairs),
        map(list, pairs),
        np.array(pairs),
        dict(zip("qr", "ab", strict=True)).items(),
    ):
        assert as_pairs(inputs)[0][0] == ("q", "a")
    for one in (("q", "a"), ["q", "a"], np.array(["q", "a"]), np.array(["q", "a"], object)):
        assert as_pairs(one) == ([("q", "a")], True)
    assert as_pairs([]) == ([], False)
    assert as_pairs(np.array(pairs)) == (pairs, False)  # two rows of two are two pairs


@pytest.mark.parametrize("two", [iter(["q", "a"]), {"q": 1, "a": 2}.keys(), ["q"], ["q", "a", "b"], ["q", 1]])
def test_two_texts_that_are_no_pair_are_not_taken_for_one(two):
    """A column of two rows, above all."""
    with pytest.raises(TypeError, match="input 0 is not a pair of a query and a document: str 'q'"):
        as_pairs(two)
