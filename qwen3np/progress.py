"""Progress bars."""

from __future__ import annotations

import logging
import os
import threading
from functools import cache
from typing import Any

logger = logging.getLogger("qwen3np")


def progress_bar(total: int, show: bool | None, unit: str) -> Any:
    """The bar of encode and predict; with show None it is there when the logger is at INFO or below, as in
    sentence-transformers."""
    show = logger.isEnabledFor(logging.INFO) if show is None else show
    return bar(total=total, desc=unit, disable=not show)


def bar(**options: Any) -> Any:
    """A bar of tqdm, with its options."""
    return _class()(**options)


@cache
def _class() -> Any:
    """tqdm's class for this terminal or notebook, with a lock of its own: a child forked while another
    thread draws a bar would wait for tqdm's for ever."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # no thread that looks after bars

    Bar.set_lock(threading.RLock())
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
    return Bar
