"""Files of text and stdin -> their bytes and lines: packed or not, and refused where they are not UTF-8."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .cells import Bad, decode

LONGEST_LINE = 16 << 20  # bytes; a model reads about 128 kB of a text, and a line must fit into memory
BOM = b"\xef\xbb\xbf"
PACKED = (".gz", ".zst")
LOOKED_AT = 8  # lines that are searched for the zeros of UTF-16; the first may be empty

# How files begin that are not UTF-8 text.
OTHERS = {
    b"\xff\xfe\0\0": "UTF-32LE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PAR1": "Parquet",
}


def format_of(path: Path) -> str:
    """Return the suffix that says what a file holds, in lower case: ".csv" of A.CSV and of a.csv.gz."""
    return Path(path.stem if is_packed(path) else path.name).suffix.lower()


def is_packed(path: Path) -> bool:
    """Return whether the name ends in .gz or .zst."""
    return path.suffix.lower() in PACKED


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Open the bytes of a file, or what is packed in a .gz or .zst; ValueError if that is damaged."""
    if not is_packed(path):
        with open(path, "rb") as plain:
            yield plain
        return
    kind, unpack, damage = _unpacker(path)
    try:
        with unpack(path, "rb") as file:
            yield file
    except damage as error:
        if "too much memory" in str(error):  # of zstd: more than 128 MiB
            raise ValueError(f"{path}: {error}; pack it again without --long") from error
        raise ValueError(
            f"{path}: is not a whole {kind} file ({error}); copy it here again ({kind} -t tests a file)"
        ) from error


def _unpacker(path: Path) -> tuple[str, Callable[..., Any], tuple[type[BaseException], ...]]:
    """Return what a packed file is, what opens it, and what that raises for a damaged one."""
    if path.suffix.lower() == ".gz":
        return "gzip", gzip.open, (EOFError, gzip.BadGzipFile, zlib.error)
    try:
        try:
            from compression import zstd  # since Python 3.14
        except ImportError:
            from backports import zstd
    except ImportError as error:
        raise ImportError(f"{path}: .zst needs backports.zstd: pip install 'qwen3np[zstd]'") from error
    return "zstd", zstd.open, (EOFError, zstd.ZstdError)


def lines(file: BinaryIO, name: object) -> Iterator[bytes | Bad]:
    """Yield the lines of a file, split at newlines only: str.splitlines would also split at U+2028.

    A byte order mark is not part of the text. Raises ValueError, which calls the file `name`, if it
    is not UTF-8.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        if number == 0 and line == BOM:  # and nothing else
            return
        if number < LOOKED_AT:
            check_encoding(line.removesuffix(b"\n"), name, number == 0)
        if number == 0 and not line.endswith(b"\n") and b"\r" in line.rstrip(b"\r"):
            # The whole file would be one line, and its texts one text.
            raise ValueError(
                f"{name}: its lines end in CR, expected LF or CRLF; convert it: tr '\\r' '\\n' < OLD > NEW"
            )
        if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield Bad(f"is longer than {LONGEST_LINE >> 20} MiB")
        else:
            yield (line if number else line.removeprefix(BOM)).removesuffix(b"\n")
        number += 1


def check_encoding(data: bytes, name: object, first: bool = True) -> None:
    """Raise ValueError for what is certainly not UTF-8, by its first bytes or by the zeros of UTF-16."""
    found = next((kind for begin, kind in OTHERS.items() if first and data.startswith(begin)), None)
    found = found or _utf16(data[:1024])
    if found is None:
        return
    cure = ""
    if found.startswith("UTF"):
        cure = (
            f"; convert it: iconv -f {found} -t UTF-8 OLD > NEW, in PowerShell: "
            "Get-Content OLD | Set-Content -Encoding utf8 NEW"
        )
    elif found in ("gzip", "zstd"):
        suffix = {"gzip": ".gz", "zstd": ".zst"}[found]
        cure = f"; unpack it, or let the file's name end in {suffix}, as name.csv{suffix}"
    raise ValueError(f"{name}: is {found}, expected UTF-8 text{cure}")


def _utf16(data: bytes) -> str | None:
    """Return the kind of UTF-16 that data is, by its upper bytes, or None.

    They are small in European and Near Eastern text; text whose upper bytes are large is not
    valid UTF-8 anyway.
    """
    even, odd = ([byte < 9 for byte in data[start::2]] for start in (0, 1))
    if len(data) >= 8:
        for name, upper, lower in (("UTF-16LE", odd, even), ("UTF-16BE", even, odd)):
            if 4 * sum(upper) >= 3 * len(upper) and 8 * sum(lower) <= len(lower):
                return name
    return None


def stdin_texts() -> list[str]:
    """Return the texts on stdin, one per line; ValueError names a line that is not a text."""
    texts = []
    for number, line in enumerate(lines(sys.stdin.buffer, "stdin"), 1):
        text = line if isinstance(line, Bad) else decode(line.removesuffix(b"\r"))
        if isinstance(text, Bad):
            raise ValueError(f"stdin, line {number}: {text}")
        texts.append(text)
    return texts
