"""A pool of threads that run kernels side by side, in one team or in several, behind a queue of jobs.

A caller hands a job over and waits. The job runs on the pool's first thread, as the team of all threads,
and may split them into smaller teams that work on an item each. What calls write, a workspace, belongs to
the first thread of a team, and is touched there alone.

Python runs signal handlers on the main thread, never on a pool's, so the exception of one (Ctrl-C, a timeout)
leaves nothing half done: wherever it strikes the caller, the job is cancelled, its threads stop at their next
block, and the next job finds the workspaces in order. Kernels hold no GIL: these threads run like C's.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..kernels.team import STOP, new_team
from .cores import thread_count

Workspace = TypeVar("Workspace")
Result = TypeVar("Result")

_forks = 0  # between this process and the one that imported this module
_starting = threading.RLock()


def _forked() -> None:
    """Start anew in a child: it has none of a pool's threads, and another may have held the lock."""
    global _forks, _starting
    _forks += 1
    _starting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Cancelled(Exception):
    """Ends a job whose caller has gone, or one of whose teams has failed."""


class Team(Generic[Workspace]):
    """Threads that run kernels side by side: the one that calls `run`, and its helpers.

    Attributes:
        num_threads: with the first.
        workspace: what the teams of this first thread keep from one job to the next.
        counters: of the kernels' barriers, for this team in this job.
    """

    def __init__(
        self, helpers: list[SimpleQueue[Any]], workspace: Workspace, counters: NDArray[np.int64]
    ) -> None:
        self._helpers = helpers
        self.num_threads = 1 + len(helpers)
        self.workspace, self.counters = workspace, counters

    def run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Run kernel(*arguments, thread, num_threads) on every thread; return when all are done.

        Raises:
            Cancelled: the job is to end. Also whatever a thread raised.
        """
        self.check()
        n = self.num_threads
        _side_by_side(self._helpers, [partial(kernel, *arguments, thread, n) for thread in range(n)])
        self.check()

    def check(self) -> None:
        """Raise Cancelled if the job is to end."""
        if self.counters[STOP]:
            raise Cancelled


class Job(Team[Workspace]):
    """A call `function(job)` on a pool's first thread; and the team of all threads."""

    def __init__(self, function: Callable[[Job[Workspace]], Any], crew: _Crew) -> None:
        self._workspaces: list[Workspace] = crew.workspaces
        self._counters = [new_team() for _ in crew.workspaces]  # of the teams that begin with each thread
        super().__init__(crew.helpers, self._workspaces[0], self._counters[0])
        self._function: Callable[[Job[Workspace]], Any] | None = function
        self._wake = threading.Lock()
        self._wake.acquire()
        self._advancing = threading.Lock()  # never the caller's
        self._forks = crew.forks  # of the threads that it is for
        self.started = self.done = self.cancelled = False
        self.advanced = 0
        self.result: Any = None
        self.error: BaseException | None = None

    def in_teams(self, size: int, function: Callable[[Team[Workspace], Any], None], items: list[Any]) -> None:
        """Call function(team, item) for every item, each on the next free team of `size` threads.

        It returns when all are done. If one raises, the other teams end at their next block, too.

        Args:
            size: of a team; it divides the number of threads.
            function: may call `team.run`.
            items: for one call each.

        Raises:
            Cancelled: the job is to end. Also whatever the function raised.
        """
        if size == self.num_threads:
            for item in items:
                function(self, item)
            return
        assert self.num_threads % size == 0, (self.num_threads, size)
        waiting: SimpleQueue[Any] = SimpleQueue()
        for item in (*items, *[None] * (self.num_threads // size)):
            waiting.put(item)
        work = []
        for first in range(0, self.num_threads, size):
            helpers = self._helpers[first : first + size - 1]  # thread i is helper i - 1
            team = Team(helpers, self._workspaces[first], self._counters[first])
            work.append(partial(self._work, team, function, waiting))
        _side_by_side(self._helpers[size - 1 :: size], work)
        self.check()

    def _work(
        self,
        team: Team[Workspace],
        function: Callable[[Team[Workspace], Any], None],
        waiting: SimpleQueue[Any],
    ) -> None:
        """Take items as long as some wait; on a team's first thread."""
        try:
            while (item := waiting.get()) is not None:
                self.check()
                function(team, item)
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Tell all teams to end at their next block."""
        self.cancelled = True
        for counters in self._counters:
            counters[STOP] = 1

    def check(self) -> None:
        if self.cancelled:
            raise Cancelled

    def advance(self, steps: int) -> None:
        """Tell the caller of progress; any team may."""
        with self._advancing:
            self.advanced += steps
            self._notify()

    def execute(self) -> None:
        """Call the function; on the pool's first thread."""
        self.started = True  # before it looks at `cancelled`; `settle` looks at them the other way round
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
        """Wait until the job is done; on the caller's thread.

        Everything is read from attributes, so that an exception that strikes between two steps loses nothing.
        """
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
        """Cancel the job and wait until no thread works on it; raise what struck last meanwhile.

        A job that no thread has started, behind those of others or never handed over, will not be started.
        """
        struck = None
        while True:
            try:
                self.cancel()
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
        if self._wake.locked():  # one of the pool's threads at a time releases it
            self._wake.release()


class Pool(Generic[Workspace]):
    """Threads that sleep until there is a job.

    A forked child starts its own, with new workspaces, at its first call.

    Args:
        num_threads: default: see cores.thread_count.
        workspace: makes what a thread's jobs keep from one to the next.
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
        """Call function(job) on the pool's first thread, after others' jobs; return its result.

        What the function raises is raised here. An exception of a signal handler or of `progress` cancels the
        job, and is raised when no thread works on it any more.

        Args:
            function: may call `job.run`, which runs a kernel on all threads, and `job.in_teams`.
            progress: called on this thread with the steps that `job.advance` was told of since the last call.
        """
        crew = self._started()
        job: Job[Workspace] = Job(function, crew)
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
                    self._crew = crew = _Crew([self._workspace() for _ in range(self.num_threads)])
        return crew


class _Crew:
    """The threads of a pool in one process, each with a workspace. They end with this object."""

    def __init__(self, workspaces: list[Any]) -> None:
        self.forks = _forks
        self.workspaces = workspaces
        self.jobs: SimpleQueue[Any] = SimpleQueue()
        self.helpers: list[SimpleQueue[Any]] = [SimpleQueue() for _ in workspaces[1:]]
        # Not at the interpreter's exit: atexit's functions may still call, and the threads are daemons.
        weakref.finalize(self, _end, [self.jobs, *self.helpers], _forks).atexit = False
        # The threads refer to the queues, not to this object.
        threads = [threading.Thread(target=_lead, args=(self.jobs,))]
        threads += [threading.Thread(target=_help, args=(queue,)) for queue in self.helpers]
        for number, thread in enumerate(threads):
            thread.name, thread.daemon = f"qwen3np-{number}", True
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError(
                    f"thread {number + 1} of {len(threads)} cannot be started ({error}): raise the limit on "
                    "threads or memory (ulimit -u, ulimit -v, a container's pids limit), or set num_threads "
                    "lower"
                ) from error


def _lead(jobs: SimpleQueue[Any]) -> None:
    while (job := jobs.get()) is not None:
        job.execute()
        del job  # a sleeping thread keeps no arrays alive


def _help(queue: SimpleQueue[Any]) -> None:
    while (share := queue.get()) is not None:
        call, ended = share
        ended.put(_attempt(call))
        del share, call, ended


def _side_by_side(helpers: list[SimpleQueue[Any]], calls: Sequence[Callable[[], None]]) -> None:
    """Make the first call on this thread and each other on a helper; return when all are done.

    It raises what one of them raised. All are prepared before one is handed over: a thread alone would wait
    for the others forever.
    """
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    shares = [(call, ended) for call in calls]
    for helper, share in zip(helpers, shares[1:], strict=True):
        helper.put(share)
    errors = list(filter(None, [_attempt(calls[0]), *(ended.get() for _ in helpers)]))
    errors.sort(key=lambda error: isinstance(error, Cancelled))  # last: another error may be their cause
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # their tracebacks refer to this frame


def _attempt(call: Callable[[], None]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


def _end(queues: list[SimpleQueue[Any]], forks: int) -> None:
    if forks == _forks:
        for queue in queues:
            queue.put(None)
