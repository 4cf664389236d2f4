"""Numba, set up for this package: no GIL, compiled once per machine, never stale."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
from numba import njit
from numba.core.bytecode import FunctionIdentity

from .cache import KernelCache


def _count_from_a_random_number() -> None:
    """Have Numba give what this process compiles names that no other process's cached kernels have.

    It names a function by its Python name, types and a counter that begins at 1 in every process; and of two
    functions of one name in one process the linker keeps the first, also where a kernel from the cache brings
    the other (numba#10486). What `micro_kernel` makes has one Python name for every shape and mode: kernels
    that two processes compiled would call each other's parts, and give wrong numbers without an error.
    """
    FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(7), "little"))


_count_from_a_random_number()

# Numba has one lock for all compilation: a child forked while another thread holds it would wait forever at
# its first compilation. So a fork waits for ours to end.
_compiling = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )
    os.register_at_fork(after_in_child=_count_from_a_random_number)


_compiled = partial(njit, nogil=True, error_model="numpy")


def inline(function: Callable[..., Any]) -> Any:
    """Make a function that kernels call: it is compiled with them, as a part of them.

    There is no fast math: a kernel writes fma(...) where it wants one. Of a * c - b * s LLVM could fuse
    either product, and which one depends on the CPU it compiles for.
    """
    return _compiled()(function)


def always_inline(function: Callable[..., Any]) -> Any:
    """Make the same, and have LLVM put it into each caller, whatever its size."""
    return _compiled(forceinline=True)(function)


def entry_point(function: Callable[..., Any] | None = None, *, fastmath: Any = False) -> Any:
    """Make a kernel that Python calls: its code is kept on disk, where a folder can be written.

    Args:
        function: the kernel, whose types Numba infers at a call.
        fastmath: LLVM's flags for what it may reorder, for a kernel whose bits are promised to nobody.
    """
    if function is None:
        return partial(entry_point, fastmath=fastmath)
    kernel: Any = _compiled(fastmath=fastmath)(function)
    kernel._cache = KernelCache(function)  # as Numba's own `cache=True` does, with its cache
    return kernel


def compile_for(kernel: Any, arguments: tuple[Any, ...], variant: str) -> None:
    """Compile `kernel` for the types of `arguments`, or load it from the cache.

    Args:
        kernel: made by entry_point.
        arguments: of the types that it will be called with.
        variant: tells this compilation from the kernel's others, in the line that says what is compiled.

    Raises:
        ValueError: Numba is told not to compile.
    """
    config: Any = numba.config
    if config.DISABLE_JIT:
        raise ValueError(
            "NUMBA_DISABLE_JIT is set, and the kernels cannot run uncompiled: unset it, or take "
            'backend="numpy" (--backend numpy), the reading copy'
        )
    types = tuple(numba.typeof(a) for a in arguments)
    if types not in kernel.overloads:
        kernel._cache.variant = variant
        with _compiling, kernel._cache.alone(types, kernel.targetctx):
            kernel.compile(types)
