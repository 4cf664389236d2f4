"""Where compiled kernels are kept, and how: files that are complete or not there, with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

logger = logging.getLogger("qwen3np")

MAGIC = b"qwen3np kernel 1\n"  # then the SHA-256 of the rest
OURS = re.compile(r"\w+-[0-9a-f]{32}\.kernel(\.\w+\.tmp)?")
DAY = 24 * 3600
UNUSED_DAYS = 30  # then a kernel, of another version or CPU most likely, is removed


def name(kernel: str, digest: str) -> str:
    """The name of a kernel's file."""
    return f"{kernel}-{digest[:32]}.kernel"


def folders() -> list[Path]:
    """The folders to look in; the first that can be written is written to.

    They are one below NUMBA_CACHE_DIR, if that is set; the system's place for a user's caches (on Linux
    $XDG_CACHE_HOME or ~/.cache); and a temporary folder of this user's own.
    """
    config: Any = numba.config
    places = [Path(config.CACHE_DIR).absolute() / "qwen3np"] if config.CACHE_DIR else []
    with contextlib.suppress(RuntimeError):  # a user without a home
        places.append(user_cache_path("qwen3np", appauthor=False) / "kernels")
    temporary = _temporary()
    places += [temporary] if temporary is not None else []
    return [place for place in places if place.is_absolute()]  # an older platformdirs leaves "~" as it is


def find(name: str) -> Iterator[bytes]:
    """Yield what was kept under this name, in any folder; not what is damaged or cannot be read."""
    for folder in folders():
        path = folder / name
        try:
            _check_trust(folder)
            data = path.read_bytes()
        except OSError:
            continue
        checksum, payload = data[len(MAGIC) : len(MAGIC) + 32], data[len(MAGIC) + 32 :]
        if data.startswith(MAGIC) and hashlib.sha256(payload).digest() == checksum:
            _mark_used(path)
            yield payload
        else:
            logger.debug("%s is damaged", path)


def keep(name: str, payload: bytes) -> None:
    """Write the file into the first folder that takes it.

    A warning, once, says so if that is not the usual one, or if there is none.
    """
    refused = []
    for folder in folders():
        try:
            _make(folder)
            _write(folder / name, MAGIC + hashlib.sha256(payload).digest() + payload)
        except OSError as error:
            refused.append(f"{folder}: {error.strerror or error}")
            continue
        if refused:
            _warn(f"compiled kernels are kept in {folder}, for they cannot be written to {refused[0]}")
        _remove_unused(folder)
        return
    _warn(f"compiled kernels cannot be kept, each process compiles them anew: {'; '.join(refused)}")


def stored() -> list[tuple[Path, int, int]]:
    """List each folder that holds kernels, with the number of files and their bytes."""
    found = []
    for folder in folders():
        with contextlib.suppress(OSError):
            _check_trust(folder)
            sizes = [e.stat().st_size for e in os.scandir(folder) if OURS.fullmatch(e.name)]
            found += [(folder, len(sizes), sum(sizes))] if sizes else []
    return found


@cache
def _warn(message: str) -> None:
    logger.warning(message)


def lock(stack: contextlib.ExitStack, seconds: float) -> bool:
    """Hold the lock of the first folder that can have one until `stack` is left; none where none can.

    Returns False if another process still holds it after that time.
    """
    for folder in folders():
        try:
            _make(folder)
            stack.enter_context(FileLock(folder / "lock", timeout=seconds))
            return True
        except Timeout:
            if _has_locks(folder):
                return False
        except (OSError, NotImplementedError):  # not writable, or a file system without locks
            pass
    return True


def _has_locks(folder: Path) -> bool:
    """Tell whether a file that nobody else knows can be locked.

    Some file systems refuse every lock, with the errors that mean "held by another" elsewhere.
    """
    path = folder / f"lock-{uuid.uuid4().hex}"
    try:
        with FileLock(path, timeout=0):
            return True
    except (Timeout, OSError, NotImplementedError):
        return False
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _temporary() -> Path | None:
    """This user's temporary folder; None where no temporary file can be written."""
    user = f"-{os.geteuid()}" if hasattr(os, "geteuid") else ""
    with contextlib.suppress(OSError):
        return Path(tempfile.gettempdir()) / f"qwen3np{user}"
    return None


def _make(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        if folder == _temporary():
            folder.mkdir(mode=0o700)
        else:
            folder.mkdir(parents=True)
    _check_trust(folder)


def _check_trust(folder: Path) -> None:
    """Raise PermissionError for a temporary folder that is not this user's alone.

    Anyone may make a folder of this name where temporary files are. One that others can write to would let
    them run code in this process.
    """
    if folder == _temporary() and hasattr(os, "geteuid"):
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
            raise PermissionError(0, "is not a folder of this user alone")


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(partial, "xb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _mark_used(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_mtime < time.time() - DAY:
            os.utime(path)


def _remove_unused(folder: Path) -> None:
    """Remove files that this package wrote and has not used for a month."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                if entry.stat().st_mtime < time.time() - UNUSED_DAYS * DAY:
                    os.unlink(entry)
