"""A pool of threads that run one kernel side by side, behind a queue of jobs.

A caller hands a job over and waits. The job runs on the pool's first thread, and what calls write, the
workspace, is touched there alone. Python runs signal handlers on the main thread, never on a pool's, so the
exception of one (Ctrl-C, a timeout) leaves nothing half done: wherever it strikes the caller, the job is
cancelled, its threads stop at their next block, and the next job finds the workspace in order. Kernels hold
no GIL, so these threads are as good as C threads.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from .cores import thread_count
from .kernels.team import STOP, new_team

Workspace = TypeVar("Workspace")
Result = TypeVar("Result")

_forks = 0  # between this process and the one that imported this module
_starting = threading.RLock()


def _forked() -> None:
    """A child has one thread, and none of a pool's; the lock may have been held by another."""
    global _forks, _starting
    _forks += 1
    _starting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Cancelled(Exception):
    """Ends a job whose caller has gone."""


class Job(Generic[Workspace]):
    """One call of a function on a pool's first thread: `function(job)`.

    workspace: what the pool's jobs keep from one to the next.
    team: the counters of the kernels' barriers, for this job alone.
    """

    workspace: Workspace

    def __init__(self, function: Callable[[Job[Workspace]], Any], forks: int) -> None:
        self._function: Callable[[Job[Workspace]], Any] | None = function
        self._helpers: list[SimpleQueue[Any]] = []
        self._wake = threading.Lock()
        self._wake.acquire()
        self._forks = forks  # of the threads that it is for
        self.team = new_team()
        self.started = self.done = self.cancelled = False
        self.advanced = 0
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """kernel(*arguments, thread, num_threads) on every thread of the pool; returns when all are done.

        Raises Cancelled when the caller has gone, and what a thread raised."""
        self.check()
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        num_threads = 1 + len(self._helpers)
        # All are made before one is handed over: a thread alone would wait for the others for ever.
        shares = [(kernel, (*arguments, thread, num_threads), ended) for thread in range(1, num_threads)]
        for queue, share in zip(self._helpers, shares, strict=True):
            queue.put(share)
        failures = [_attempt(kernel, (*arguments, 0, num_threads)), *(ended.get() for _ in self._helpers)]
        for failure in failures:
            if failure is not None:
                raise failure
        self.check()

    def check(self) -> None:
        """Raise Cancelled when the caller has gone."""
        if self.cancelled:
            raise Cancelled

    def advance(self, steps: int) -> None:
        """Let the caller know of progress."""
        self.advanced += steps
        self._notify()

    def execute(self, helpers: list[SimpleQueue[Any]], workspace: Workspace) -> None:
        """On the pool's first thread."""
        self.started = True  # before it looks at `cancelled`; `settle` looks at them the other way round
        self._helpers, self.workspace = helpers, workspace
        try:
            self.check()
            assert self._function is not None
            self.result = self._function(self)
        except Cancelled:
            pass  # nobody asks; kept, its traceback and this job would keep each other alive, and the weights
        except BaseException as error:
            self.error = error
        self._function = None  # and with it what it holds: a caller may keep the job in a traceback
        self.done = True
        self._notify()

    def wait(self, progress: Callable[[int], object]) -> None:
        """Until the job is done, on the caller's thread. Everything is read from attributes, so that an
        exception that strikes between two steps loses nothing."""
        seen = 0
        while not self.done:
            self._wait()
            if (advanced := self.advanced) > seen:
                steps, seen = advanced - seen, advanced
                progress(steps)
        if self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        if self.advanced > seen:
            progress(self.advanced - seen)

    def settle(self) -> None:
        """Wait until no thread works on a cancelled job, whatever strikes meanwhile; raises what struck last.
        One that no thread has started, behind the jobs of others or never handed over, never will be."""
        struck = None
        while True:
            try:
                self.team[STOP] = 1
                while self.started and not self.done:
                    self._wait()
                break
            except BaseException as error:
                struck = error
                if self._forks != _forks:
                    break
        try:
            if struck is not None:
                raise struck
        finally:
            del struck  # its traceback refers to this frame

    def _wait(self) -> None:
        # At most a second at a time: a signal handler may fork, and its child waits for threads it has not.
        self._wake.acquire(timeout=1.0)
        if self._forks != _forks:
            raise RuntimeError(
                "the process was forked inside a call, by a signal handler or a progress callback: the call "
                "goes on in the parent alone"
            )

    def _notify(self) -> None:
        if self._wake.locked():  # only the pool's first thread releases it
            self._wake.release()


class Pool(Generic[Workspace]):
    """Threads that sleep until there is a job. A forked child starts its own, with a new workspace, at its
    first call.

    Args:
        num_threads: default: the cores this process may use.
        workspace: makes what jobs keep from one to the next.
    """

    def __init__(self, num_threads: int | None = None, workspace: Callable[[], Any] = lambda: None) -> None:
        self.num_threads = thread_count(num_threads)
        self._workspace = workspace
        self._crew: _Crew | None = None

    def call(
        self,
        function: Callable[[Job[Workspace]], Result],
        progress: Callable[[int], object] = lambda steps: None,
    ) -> Result:
        """function(job) on the pool's first thread, behind the jobs of other callers; returns its result.

        Args:
            function: may call `job.run`, which runs a kernel on all threads.
            progress: called on this thread with the steps that `job.advance` was told of since the last call.

        Raises what the function raised. An exception of a signal handler or of `progress` cancels the job,
        and is raised when no thread works on it any more."""
        crew = self._started()
        job: Job[Workspace] = Job(function, crew.forks)
        try:
            crew.jobs.put(job)
            job.wait(progress)
        except BaseException:
            job.cancelled = True  # first: whatever strikes from here on, the job ends by itself
            job.settle()
            raise
        result: Result = job.result
        return result

    def _started(self) -> _Crew:
        crew = self._crew
        if crew is None or crew.forks != _forks:
            with _starting:
                crew = self._crew
                if crew is None or crew.forks != _forks:
                    self._crew = crew = _Crew(self.num_threads, self._workspace())
        return crew


class _Crew:
    """The threads of a pool in one process. They end with this object."""

    def __init__(self, num_threads: int, workspace: Any) -> None:
        self.forks = _forks
        self.jobs: SimpleQueue[Any] = SimpleQueue()
        helpers: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(num_threads - 1)]
        # Not at the interpreter's exit: functions registered with atexit may still call, and the threads are
        # daemons.
        weakref.finalize(self, _end, [self.jobs, *helpers], _forks).atexit = False
        # The threads refer to the queues, not to this object.
        threads = [threading.Thread(target=_lead, args=(self.jobs, helpers, workspace))]
        threads += [threading.Thread(target=_help, args=(queue,)) for queue in helpers]
        for number, thread in enumerate(threads):
            thread.name, thread.daemon = f"qwen3np-{number}", True
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError(
                    f"thread {number + 1} of {num_threads} cannot be started ({error}): raise the limit on "
                    "threads or memory (ulimit -u, ulimit -v, a container's pids limit), or set num_threads "
                    "lower"
                ) from error


def _lead(jobs: SimpleQueue[Any], helpers: list[SimpleQueue[Any]], workspace: Any) -> None:
    while (job := jobs.get()) is not None:
        job.execute(helpers, workspace)
        del job  # a sleeping thread keeps no arrays alive


def _help(queue: SimpleQueue[Any]) -> None:
    while (share := queue.get()) is not None:
        kernel, arguments, ended = share
        ended.put(_attempt(kernel, arguments))
        del share, kernel, arguments, ended


def _attempt(kernel: Callable[..., None], arguments: tuple[Any, ...]) -> BaseException | None:
    try:
        kernel(*arguments)
    except BaseException as error:
        return error
    return None


def _end(queues: list[SimpleQueue[Any]], forks: int) -> None:
    if forks == _forks:
        for queue in queues:
            queue.put(None)
