"""stdin, stdout and stderr, in whatever state a shell, a pipe or a scheduler left them."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import suppress
from typing import Any

STDOUT = "stdout"  # the file that an OSError of stdout names


class _Output(io.FileIO):
    """stdout. Its errors say so."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from error


class _Messages(io.FileIO):
    """stderr. That nobody can read it any more (a terminal that is gone, a full disk) ends no run."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


def prepare() -> None:
    """stdout and stderr are UTF-8 whatever the locale, and a file opened later gets none of their numbers
    (`>&-`). A lone surrogate is escaped, as JSON escapes it."""
    while (unused := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(unused)
    if os.name == "posix":  # elsewhere a terminal is more than a file
        if sys.stdout is not None and sys.stdout is sys.__stdout__:
            with suppress(OSError):
                sys.__stdout__.flush()
            out = io.BufferedWriter(_Output(1, "w", closefd=False))
            sys.stdout = io.TextIOWrapper(out, line_buffering=out.isatty())
        if sys.stderr is None or sys.stderr is sys.__stderr__:
            sys.stderr = io.TextIOWrapper(_Messages(2, "w", closefd=False), write_through=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def flush_stdout() -> None:
    """Write what is left to be written; if that cannot be, it is dropped: Python would try once more at its
    end."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def say(message: object) -> None:
    """Print one line on stderr, whatever characters are in a file's name."""
    lines = re.split(r"\n +", str(message))  # a list, as of all that is wrong with a checkpoint
    print("; ".join(escaped(line) for line in lines), file=sys.stderr)


def escaped(text: str) -> str:
    """Control characters as Python writes them, \\n and \\x1b: they must not steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
