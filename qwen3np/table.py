"""Text tables, measured in terminal columns: a Chinese character takes two, a combining one none."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence

from wcwidth import clip, ljust, rjust, width

GAP = 2  # terminal columns between two of the table's
MIN_TEXT_WIDTH = 16  # terminal columns that a text keeps, unless the table would not fit at all


def terminal_columns(otherwise: int | None = None) -> int | None:
    """Return how wide the terminal on stdout is, or what COLUMNS says; `otherwise` where there is neither."""
    return shutil.get_terminal_size((otherwise or 0, 24)).columns or None


def table(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None = None) -> str:
    """Lay out rows under a header: columns of numbers are right-aligned, others left-aligned.

    A table wider than `columns` has its longest texts shortened. Where that would not do, the columns on the
    right come below, behind the first column once more where there is room for it.
    """
    cells = [[one_line(cell, columns) for cell in row] for row in (header, *rows)]
    by_column = list(zip(*cells, strict=True))
    widths = [max(map(width, column)) for column in by_column]
    numeric = [all(map(_is_number, column[1:])) for column in by_column]
    if columns is not None:
        widths = _fitting(widths, [i for i, right in enumerate(numeric) if not right], columns)
    cells.insert(1, ["-" * w for w in widths])
    parts = []
    for chosen in _parts(widths, columns):
        lines = []
        for row in cells:
            fitted = [(rjust if numeric[i] else ljust)(cut(row[i], widths[i]), widths[i]) for i in chosen]
            line = (" " * GAP).join(fitted).rstrip()
            lines.append(line if columns is None else clip(line, 0, columns))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def one_line(text: str, columns: int | None = None) -> str:
    """Drop line ends and control characters, which would break the table or steer the terminal.

    Of a text of megabytes only what `columns` columns can show is looked at.
    """
    start = text if columns is None else text[: 20 * columns]
    shown = "".join(c if c.isprintable() else "" if unicodedata.category(c) == "Cf" else " " for c in start)
    return " ".join(shown.split()) + ("..." if len(start) < len(text) else "")


def cut(text: str, columns: int | None) -> str:
    """Shorten a text to what `columns` columns have room for."""
    if columns is None or width(text) <= columns:
        return text
    return clip(text, 0, max(columns - 3, 0)).rstrip() + "..."[:columns]


def _fitting(widths: Sequence[int], texts: Sequence[int], columns: int) -> list[int]:
    """Return widths that fit into `columns` columns: the widest texts are shortened first, to one width.

    If all together cannot fit, any two columns do. Numbers are not shortened: what is left of one is another.
    """
    fitting = list(widths)
    excess = sum(widths) + GAP * (len(widths) - 1) - columns
    while excess > 0 and (wide := [i for i in texts if fitting[i] > MIN_TEXT_WIDTH]):
        fitting[max(wide, key=lambda i: fitting[i])] -= 1
        excess -= 1
    if excess > 0:
        fitting = [min(w, (columns - GAP) // 2) if i in texts else w for i, w in enumerate(widths)]
    return fitting


def _parts(widths: Sequence[int], columns: int | None) -> list[list[int]]:
    """Return the column numbers of each part of the table; the first column is in all that have room."""
    parts = [[0]]
    for i in range(1, len(widths)):
        together = sum(widths[j] + GAP for j in parts[-1]) + widths[i]
        if columns is not None and together > columns:
            parts.append([0] if widths[0] + GAP + widths[i] <= columns else [])
        parts[-1].append(i)
    return parts


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
