"""Progress bars."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

logger = logging.getLogger("qwen3np")
LONG = 10_000  # characters of text; that takes some seconds


@contextmanager
def progress_bar(total: int, show: bool | None, unit: str) -> Iterator[Any]:
    """Show the bar of encode and predict.

    With show None it is there when the logger is at INFO or below, as in sentence-transformers.
    """
    show = logger.isEnabledFor(logging.INFO) if show is None else show
    with bar(total=total, desc=unit, disable=not show) as shown, ticking(shown):
        yield shown


def bar(**options: Any) -> Any:
    """Make a bar of tqdm, with its options; on a terminal alone unless they say otherwise."""
    return _class()(**{"disable": None, **options})


@cache
def _class() -> Any:
    """tqdm's class for this terminal or notebook, with a lock of its own.

    A child forked while another thread draws a bar would wait for tqdm's forever.
    """
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm
    else:  # without asyncio, which takes 30 ms to import
        from tqdm.std import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread that looks after bars

    Bar.set_lock(threading.RLock())
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
    return Bar


@contextmanager
def ticking(shown: Any) -> Iterator[None]:
    """Show the bar once a second with the time that has passed: one long text may take minutes."""
    if shown.disable:
        yield
        return
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            shown.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    try:
        with suppress(RuntimeError):  # no more threads: a bar without a clock
            thread.start()
        yield
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()


def worth_showing(texts: Sequence[str]) -> bool:
    """Tell whether a command should show a bar: on a terminal, and only of what takes a while."""
    return sys.stderr.isatty() and sum(map(len, texts)) > LONG
