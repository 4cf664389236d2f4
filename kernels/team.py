"""A team: threads that run a kernel side by side, each on its share, with barriers between phases.

One call from Python runs a whole forward pass: at 16 tokens a layer takes about a millisecond, and handing
each of its eight phases to a thread pool would cost 30 microseconds apiece. A team is an int64 array with one
counter per cache line.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from .isa import has_feature
from .jit import inline
from .simd import i32, pointer

ARRIVED, GENERATION, TASKS = 0, 8, 16  # 64 bytes apart, so that no two share a cache line
STOP, STOPPING = 24, 32  # asked from outside at any time; what all threads saw at the latest barrier
COUNTERS = 40
# A thread that waits looks SPINS times, for some 10 us, as a pause takes 40 to 60 ns; then offers its core
# to others between two looks, for 0.5 ms or so; then sleeps between them. Most waits end in the first
# part. In the last the core saves power, and looks idle to the system, which then moves a thread there
# that the others wait for.
SPINS, YIELDS = 200, 1000
SLEEP = 50  # microseconds; Linux makes it 100, and a wait that comes so far has lasted five times that


class Worker(NamedTuple):
    """One thread of a team: the argument `me` of every kernel."""

    team: NDArray[Any]  # the counters, of new_team
    thread: int
    num_threads: int


def new_team() -> np.ndarray:
    """The counters of one team, all zero."""
    return np.zeros(COUNTERS, np.int64)


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add to array[index] in one step for all threads; returns the value before."""

    def codegen(context, b, sig, args):
        return b.atomic_rmw("add", pointer(context, b, sig.args[0], *args[:2]), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, index):
    def codegen(context, b, sig, args):
        return b.load_atomic(pointer(context, b, sig.args[0], *args), "acquire", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    def codegen(context, b, sig, args):
        b.store_atomic(args[2], pointer(context, b, sig.args[0], *args[:2]), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


def calling(name: str, result: ir.Type, *arguments: ir.Constant) -> Any:
    """Make an intrinsic that calls a function of the system or of LLVM."""

    @intrinsic
    def call(typingctx):
        def codegen(context, b, sig, args):
            kind = ir.FunctionType(result, [a.type for a in arguments])
            b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)
            return context.get_dummy_value()

        return types.void(), codegen

    return call


# Let the system run another thread on this core: at once, or after a sleep. On Windows a sleep takes up to 16
# ms, too long: there both are at once.
if sys.platform == "win32":
    yield_core = sleep = calling("SwitchToThread", i32)
else:
    yield_core = calling("sched_yield", i32)
    sleep = calling("usleep", i32, ir.Constant(i32, SLEEP))
# Tell the CPU that this is a waiting loop: it saves power, and leaves the core to the other thread on it.
if has_feature("sse2"):
    pause = calling("llvm.x86.sse2.pause", ir.VoidType())
elif has_feature("neon"):
    pause = calling("llvm.aarch64.hint", ir.VoidType(), ir.Constant(i32, 1))
else:
    pause = yield_core


@inline
def barrier(team, num_threads):
    """Wait until all threads of the team are here; what they wrote before is visible to all after.

    The last to come resets the task counter, and takes up a request to stop: so all see it at the same place.
    """
    generation = atomic_load(team, GENERATION)
    if atomic_add(team, ARRIVED, 1) == num_threads - 1:
        atomic_store(team, ARRIVED, 0)
        atomic_store(team, TASKS, 0)
        atomic_store(team, STOPPING, atomic_load(team, STOP))
        atomic_add(team, GENERATION, 1)
        return
    looks = 0
    while atomic_load(team, GENERATION) == generation:
        looks += 1
        if looks < SPINS:
            pause()
        elif looks < SPINS + YIELDS:
            yield_core()
        else:
            sleep()


@inline
def wait(me):
    """Wait at the team's barrier."""
    barrier(me.team, me.num_threads)


@inline
def stopping(team):
    """Tell whether the team was asked to stop; all threads get one answer between two barriers."""
    return atomic_load(team, STOPPING) != 0


@inline
def share(n, thread, num_threads):
    """This thread's part of range(n): start and stop in an even, contiguous split."""
    return n * thread // num_threads, n * (thread + 1) // num_threads
