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
    """stdout, whose errors name it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from error


class _Messages(io.FileIO):
    """stderr, whose errors are ignored: a terminal that is gone or a full disk ends no run."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


def prepare() -> None:
    """Make stdout and stderr UTF-8 whatever the locale; a lone surrogate is escaped, as JSON escapes it.

    A stream that the shell closed (`>&-`) is opened on the null device first, so that a file opened later
    does not get its number.
    """
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
    """Write what is left to be written, or drop it if that fails: Python would try once more at its end."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def say(message: object) -> None:
    """Print one line on stderr, whatever characters are in a file name."""
    lines = re.split(r"\n +", str(message))  # an indented list, as of all that is wrong with a checkpoint
    print("; ".join(escaped(line) for line in lines), file=sys.stderr)


def escaped(text: str) -> str:
    """Escape control characters as Python writes them, \\n and \\x1b: they must not steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
