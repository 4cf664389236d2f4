"""Files that appear complete or not at all, whenever a process is killed or the power fails.

A file is written under a temporary name in the same folder, flushed to the disk, and renamed; then the folder
is flushed to the disk, where systems can.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def write_file(path: Path, *parts: bytes | NDArray[Any]) -> None:
    """Write the parts to a file, which appears complete or not at all; an OSError names it."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with create(partial, "xb") as file:
            for part in parts:
                write(file, part)
        replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise
    sync_folder(path.parent)


@contextmanager
def create(path: Path, mode: str = "wb") -> Iterator[Any]:
    """Open a file for writing, and flush it to the disk when it is closed.

    Renamed afterwards, it is whole even if the power fails. An OSError names it, also where the disk is full
    when it is closed.
    """
    try:
        with open(path, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write(file: BinaryIO, data: bytes | NDArray[Any]) -> None:
    """Write bytes or an array; unlike ndarray.tofile, say so if the disk is full."""
    file.write(data if isinstance(data, bytes) else np.ascontiguousarray(data).data)


def replace(new: Path, path: Path) -> None:
    """Rename `new` to `path`, replacing what is there at once; an OSError names `path`."""
    try:
        os.replace(new, path)
    except OSError as error:
        # Windows does not replace a file that a program has open, as np.load(..., mmap_mode="r") does.
        why = "; close the programs that have it open" if os.name == "nt" and path.exists() else ""
        raise OSError(error.errno, f"{error.strerror}{why}", str(path)) from error


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    with suppress(OSError):  # not every system can
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
