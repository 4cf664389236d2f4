"""What is found wrong with a job before anything is computed, and how many rows it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..quantization import VECTOR_PRECISIONS
from . import outputs, record
from .cells import NOT_UTF8, BadRow
from .publish import SHOWN
from .sources import Source

if TYPE_CHECKING:
    from .run import Job


def check(job: Job) -> None:
    """Raise ValueError for a job that cannot be, before anything is read."""
    if job.on_error not in ("fail", "skip"):
        raise ValueError(f"on_error = {job.on_error!r} is neither 'fail' nor 'skip'")
    if job.precision not in VECTOR_PRECISIONS:
        raise ValueError(f"precision {job.precision!r} is not one of {', '.join(VECTOR_PRECISIONS)}")
    outputs.check_name(job.output)
    job.source.check()
    for suffix in record.SUFFIXES:
        path = record.beside(job.output, suffix)
        for each in job.source.inputs if path.exists() else ():
            if path.samefile(each.path):
                raise ValueError(f"{each.path}: is the input, and this run would write over it")


def survey(job: Job) -> tuple[int, int]:
    """Return the number of rows, and of bad rows among them.

    Reading is cheap: an error now is better than one after days of computing.
    """
    rows, bad, first = 0, 0, []
    for entry in job.rows():
        rows += 1
        if isinstance(entry, BadRow):
            bad += 1
            first += [entry] if bad <= SHOWN else []
    if rows == 0:
        raise ValueError(f"{job.source}: is empty: there is no text to embed")
    if bad and job.on_error == "fail":
        found = bad_rows_message(job.source, bad, first)
        cure = "--on-error skip leaves bad rows out"
        if NOT_UTF8 in found:
            cure += "; a file in another encoding: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        raise ValueError(f"{found}; nothing was computed; {cure}")
    if rows - bad < 2 and job.precision.endswith("int8") and not job.source.uncut:
        raise ValueError(
            f"{job.source}: {job.precision} takes its ranges from the vectors, and needs two texts or more"
        )
    if bad == rows:
        raise ValueError(f"{bad_rows_message(job.source, bad, first)}; no row is good")
    return rows, bad


def bad_rows_message(source: Source, count: int, first: Sequence[BadRow]) -> str:
    """Return a message that names the first bad rows, and says how many more there are."""
    more = f"; and {count - len(first)} more" if count > len(first) else ""
    return ("" if source.several else f"{source}, ") + "; ".join(map(str, first)) + more
