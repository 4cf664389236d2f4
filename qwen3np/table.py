"""Text tables for a terminal, in its columns: a Chinese character takes two, a combining one none."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence

from wcwidth import clip, ljust, rjust, width

GAP = 2  # terminal columns between two columns of a table
LEAST = 16  # terminal columns that a text keeps, however narrow the terminal


def terminal_columns(otherwise: int | None = None) -> int | None:
    """The terminal's width, or what COLUMNS says; `otherwise` where there is neither."""
    return shutil.get_terminal_size((otherwise or 0, 24)).columns or None


def table(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None = None) -> str:
    """Lay out rows below a header, each column as wide as its longest cell; numbers are right-aligned.

    A table wider than the terminal has its longest texts truncated. Where that is not enough, the columns
    on the right come below, beside the first column once more where there is room for it.

    Args:
        header: one cell per column.
        rows: the same.
        columns: of the terminal; default: any width will do.
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
    """Remove line ends and control characters, which would break the table, or steer the terminal.

    Of a text of megabytes only what `columns` columns can show is looked at.
    """
    start = text if columns is None else text[: 20 * columns]
    shown = "".join(c if c.isprintable() else "" if unicodedata.category(c) == "Cf" else " " for c in start)
    return " ".join(shown.split()) + ("..." if len(start) < len(text) else "")


def cut(text: str, columns: int | None) -> str:
    """Truncate a text to what `columns` columns have room for."""
    if columns is None or width(text) <= columns:
        return text
    return clip(text, 0, max(columns - 3, 0)).rstrip() + "..."[:columns]


def _fitting(widths: Sequence[int], texts: Sequence[int], columns: int) -> list[int]:
    """Narrow the widest text first, and several to the same width, until all fit.

    If all together cannot fit, they are narrowed so that two always do. Numbers are not: what is left
    of one is another.
    """
    fitting = list(widths)
    excess = sum(widths) + GAP * (len(widths) - 1) - columns
    while excess > 0 and (wide := [i for i in texts if fitting[i] > LEAST]):
        fitting[max(wide, key=lambda i: fitting[i])] -= 1
        excess -= 1
    if excess > 0:
        fitting = [min(w, (columns - GAP) // 2) if i in texts else w for i, w in enumerate(widths)]
    return fitting


def _parts(widths: Sequence[int], columns: int | None) -> list[list[int]]:
    """Group the columns that stand side by side; the first is in every group where it finds room."""
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
