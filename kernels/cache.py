"""Compiled kernels on disk: a file each, whose name is the hash of all that its code depends on.

Numba's own cache is keyed by the path of the file that defines a function: every environment and every
reinstallation compiles anew, a changed helper in another file leaves stale code behind, and a damaged file is
an exception at every start. Here a file is complete or not there, whoever writes at the same time, and
carries a checksum: one that is not what was written is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from . import cache_files
from .isa import features
from .sources import source_hash

logger = logging.getLogger("qwen3np")

# Seconds to wait for a process that compiles the same: before that is said, and before this one compiles
# too (which wastes work, no more). Without an end, a process that is stopped would hold up all others.
QUIET_WAIT, LONGEST_WAIT = 2, 180


class KernelCache(_Cache):
    """Where a Numba dispatcher looks for compiled code, and puts it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._kernel = function.__name__
        self._source = source_hash(function.__module__)  # now: later the files may be others
        self.variant = ""
        self._start = 0.0

    @property
    def cache_path(self) -> str:
        """The folders, for Numba's statistics."""
        return ", ".join(map(str, cache_files.folders()))

    def load_overload(self, types: Any, context: Any) -> Any:
        """Return the compiled code, or None: Numba will then compile it."""
        # All that code of the cache needs of Numba's context. A refresh would import what types and compiles
        # other code, in 0.2 s, or 0.4 s where SciPy is installed; Numba does it before it compiles.
        rtsys.initialize(context)
        for payload in cache_files.find(self._name(types, context.codegen())):
            try:
                return CompileResult._rebuild(context, *pickle.loads(payload))
            except Exception as error:  # whatever unpickling raises
                logger.debug("a file of %s cannot be used (%r)", self._title(), error)
        logger.warning("compiling %s, once for this machine: up to a minute", self._title())
        self._start = time.perf_counter()
        return None

    def save_overload(self, types: Any, result: Any) -> None:
        """Keep the compiled code on disk."""
        logger.warning("compiled %s in %.1f s", self._title(), time.perf_counter() - self._start)
        if not result.library.has_dynamic_globals:  # those are addresses of this process
            cache_files.keep(self._name(types, result.library.codegen), dumps(result._reduce()))

    def kept(self, types: Any, context: Any) -> bool:
        """Tell whether the compiled code lies on disk."""
        return any(True for _ in cache_files.find(self._name(types, context.codegen())))

    @contextlib.contextmanager
    def alone(self, types: Any, context: Any) -> Iterator[None]:
        """Let one process at a time compile, where the file system has locks."""
        if self.kept(types, context):
            yield
            return
        with contextlib.ExitStack() as stack:
            if not cache_files.lock(stack, QUIET_WAIT):
                logger.warning("waiting for another process that compiles kernels")
                cache_files.lock(stack, LONGEST_WAIT)
            yield

    def _name(self, types: Any, codegen: Any) -> str:
        python = (sys.implementation.cache_tag, getattr(sys, "abiflags", ""))
        config: Any = numba.config
        settings = (config.OPT, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT, config.LOOP_VECTORIZE)
        cpu = (*codegen.magic_tuple(), sorted(name for name, there in features().items() if there))
        versions = (numba.__version__, llvmlite.__version__)
        digest = hashlib.sha256(repr((self._source, str(types), cpu, versions, python, settings)).encode())
        return cache_files.name(self._kernel, digest.hexdigest())

    def _title(self) -> str:
        return f"the kernel {self._kernel}" + f" ({self.variant})" * bool(self.variant)

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...
