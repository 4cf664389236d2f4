"""What an argument of a command is: a text, a file name, or - for stdin.

No command takes a file name for a text: the vector of a name is wrong without an error.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..files.lines import format_of, stdin_texts
from ..files.names import matches
from ..files.rows import SUFFIXES
from .streams import say

STDIN = "-"
# Suffixes of other files of texts, which are not read.
OTHER_SUFFIXES = (
    *(".markdown", ".rst", ".html", ".htm", ".xml", ".yaml", ".yml", ".ndjson", ".log", ".tex"),
    *(".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".xls", ".xlsx", ".zip", ".bz2", ".xz"),
)
DELIMITERS = {"tab": "\t", "\\t": "\t"}


def looks_like_file(argument: str) -> bool:
    """Whether an argument ends like a file that is read, or is the path of another kind of file."""
    kind = format_of(Path(argument))
    is_path = os.sep in argument or "/" in argument
    return kind in SUFFIXES or (kind in OTHER_SUFFIXES and is_path and len(argument.split()) == 1)


def names_file(argument: str, folders: bool = True) -> bool:
    """Whether an argument names a file that exists, or is one word that looks like a file name.

    A folder counts if `folders` is true, and in any case if it is written as a path: ./data and not data.
    """
    if os.path.isdir(argument):
        return folders or os.sep in argument or "/" in argument
    return os.path.exists(argument) or (len(argument.split()) == 1 and looks_like_file(argument))


def is_read(argument: str) -> bool:
    """Whether an argument is a folder, a file that is read, or a pattern that matches some.

    A word with * or ? that is no path is a pattern if a file that is read has a name like that; **word** is
    none.
    """
    if os.path.isdir(argument):
        return True
    if os.path.exists(argument):
        return format_of(Path(argument)) in SUFFIXES
    is_path = looks_like_file(argument) or os.sep in argument or "/" in argument
    if len(argument.split()) != 1 or ("**" in argument and not is_path):
        return False
    return any(is_path or format_of(path) in SUFFIXES for path in matches(argument))


def refusal(name: str, as_text: str) -> ValueError:
    """Return the error for a name in place of a text, which says what can be done.

    `as_text` is how the command takes a text that looks like a name.
    """
    if not os.path.exists(name):
        return ValueError(f"{name}: there is no such file; if it is a text: {as_text}")
    found = f"file; its content as a text: {_cat(name)}"
    what = "folder; name a file in it" if os.path.isdir(name) else found
    return ValueError(f"{name}: is the name of a {what}; if the name itself is the text: {as_text}")


def _cat(name: str) -> str:
    """Return the shell's way to pass a file's content as an argument."""
    return f'"$(cat {shlex.quote(name)})"'


def texts(
    arguments: Sequence[str], literal: bool = False, folders: bool = False, as_text: str = "--literal"
) -> list[str]:
    """Return the arguments, with the lines of stdin in place of "-".

    Raises ValueError for the name of a file, unless all arguments are `literal`.
    """
    if literal:
        return list(arguments)
    for argument in arguments:
        if names_file(argument, folders):
            raise refusal(argument, as_text)
    if arguments.count(STDIN) > 1:
        raise ValueError("- is stdin, which can be read once")
    lines = {STDIN: stdin_lines(asked=True)} if STDIN in arguments else {}
    return [text for argument in arguments for text in lines.get(argument, [argument])]


def refuse_file_names(args: argparse.Namespace) -> None:
    """Raise ValueError for a file name in place of the text of --prompt or --instruction."""
    for option in ("prompt", "instruction"):
        value = getattr(args, option, None)
        if value and os.path.isfile(value) and not getattr(args, "literal", False):
            raise ValueError(f"--{option} {value}: is the name of a file; its content: {_cat(value)}")


def stdin_lines(asked: bool = False) -> list[str]:
    """Return the texts on stdin, one per line; ValueError if there are none.

    A terminal is only waited for if stdin was `asked` for.
    """
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if asked and terminal:
        say("reading texts from the terminal, one per line; Ctrl-D after the last")
    found = stdin_texts() if sys.stdin is not None and (asked or not terminal) else []
    if not found:
        raise ValueError("no text given: pass texts as arguments, or one per line on stdin")
    return found


def positive(argument: str) -> int:
    """Parse a number of things, 1 or more."""
    if not 1 <= int(argument) <= sys.maxsize:
        raise ValueError
    return int(argument)


def delimiter(argument: str) -> str:
    """Parse the option --delimiter."""
    found = DELIMITERS.get(argument, argument)
    if len(found) != 1 or found in '"\r\n':
        raise ValueError
    return found
