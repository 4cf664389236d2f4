"""Numba, set up for this package: no GIL, compiled once per machine, never stale.

Numba's own cache is keyed by the file that defines a function, so a changed helper in another file would
leave stale machine code behind. Here the cache's folder is named by a hash of every source file of the
package that is compiled, and of the versions of Numba and llvmlite. Numba itself keys the entries by CPU.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import njit

logger = logging.getLogger("qwen3np")

# Fused multiply-adds may be formed; nothing else that could change a result. NaN and infinity keep their
# meaning.
FAST_MATH = {"contract", "nsz"}


def inline(function: Callable[..., Any]) -> Any:
    """A function that kernels call. Compiled as a part of them, when they are."""
    return njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")(function)


def entry_point(function: Callable[..., Any]) -> Any:
    """A kernel that Python calls: cached on disk where a folder can be written."""
    folder = cache_folder()
    if folder is None:
        return inline(function)
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:  # the folder is read at this moment: other libraries' caches stay where they are
        return njit(nogil=True, fastmath=FAST_MATH, error_model="numpy", cache=True)(function)
    finally:
        config.CACHE_DIR = before


def compile_for(kernel: Any, arguments: tuple[Any, ...]) -> None:
    """Compile `kernel` for the types of `arguments`, or load it from the cache. One process at a time:
    several that fill one cold cache have crashed (numba #4807, #10128)."""
    types = tuple(numba.typeof(a) for a in arguments)
    if types in kernel.overloads:
        return
    folder = cache_folder()
    if folder is None:
        logger.info("compiling the kernels (no folder to keep them in)")
        kernel.compile(types)
        return
    from filelock import FileLock

    with FileLock(folder / "lock"):
        if not any(folder.rglob("*.nbc")):
            logger.warning("compiling the kernels, once for this machine: about 20 seconds")
        kernel.compile(types)


_folder: list[Path | None] = []


def cache_folder() -> Path | None:
    """Where compiled kernels are kept, `$XDG_CACHE_HOME/qwen3np/<hash>`; None, with one warning, if nothing
    can be written there (a read-only home: the kernels are then compiled in every process)."""
    if not _folder:
        _folder.append(_find_cache_folder())
    return _folder[0]


def _find_cache_folder() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME") or (
        os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None
    )
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "qwen3np" / source_hash()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        logger.warning(
            "no folder for compiled kernels can be written (%s): each process compiles them anew", error
        )
        return None
    return folder


def source_hash() -> str:
    """Changes with every source file whose code may be in a kernel."""
    here = Path(__file__).parent
    import qwen3np

    package = Path(qwen3np.__file__).parent
    files = [*sorted(here.glob("*.py")), package / "engine.py", package / "weights.py"]
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
