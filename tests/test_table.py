"""Tables: no line is wider than the terminal, and no character of a cell steers it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import width

from qwen3np.table import cut, one_line, table

CELL = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="中首é\u0301👨‍👩‍👧\u202e\u200d\t\n\x1b \x00a", max_size=60),
    st.floats().map("{:.4f}".format),
)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(0, 4), st.integers(20, 100))
def test_a_table_fits_and_has_a_line_a_row(data, columns, rows, terminal):
    """Whatever is in the cells: as many parts as needed, each of a header, a rule and the rows."""
    row = st.lists(CELL, min_size=columns, max_size=columns)
    text = table(data.draw(row), [data.draw(row) for _ in range(rows)], terminal)
    lines = text.split("\n")
    assert all(width(line) <= terminal and line.isprintable() for line in lines)
    assert (len(lines) + 1) % (rows + 3) == 0


@pytest.mark.parametrize(
    "columns, expected",
    [
        (None, ["name            score  text", "--------------  -----  ----------------------"]),
        (40, ["name            score  text", "--------------  -----  -----------------"]),
        (24, ["name         score", "-----------  -----", "中国         -0.50", "a long n...   1.00", ""]),
    ],
)
def test_what_does_not_fit_is_cut_or_comes_below(columns, expected):
    rows = [["中国", "-0.50", "one two three four fiv"], ["a long name...", "1.00", "é"]]
    assert table(["name", "score", "text"], rows, columns).split("\n")[: len(expected)] == expected


@pytest.mark.parametrize("terminal", range(11, 60))
def test_a_number_is_not_cut(terminal):
    numbers = ["1.54241e-07", "0.999999", "12"]
    words = table(["score", "corpus_id", "text"], [[n, n, "a text " * 9] for n in numbers], terminal).split()
    assert [words.count(number) >= 2 for number in numbers] == [True] * 3


@pytest.mark.parametrize(
    "text, columns, expected",
    [
        ("中国首都", 8, "中国首都"),
        ("中国首都", 7, "中国..."),
        ("中国首都", 6, "中..."),
        ("e\u0301e\u0301e\u0301e\u0301", 4, "e\u0301e\u0301e\u0301e\u0301"),
        ("abcd", 2, ".."),
        ("a" * 10**6, 10, "aaaaaaa..."),
        ("a\nb\x1b[31m\u202ec\u2028d\t e\x00", None, "a b [31mc d e"),
    ],
)
def test_a_text_is_cut_at_columns_not_characters(text, columns, expected):
    assert cut(one_line(text, columns), columns) == expected
