"""The progress bar of encode and predict."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("qwen3np")
LONG = 10_000  # characters of text; that takes some seconds


@contextmanager
def progress_bar(total: int, show: bool | None, unit: str) -> Iterator[Any]:
    """A tqdm bar; with show None it is there when the logger is at INFO or below, as in
    sentence-transformers."""
    from tqdm.auto import tqdm

    show = logger.isEnabledFor(logging.INFO) if show is None else show
    with tqdm(total=total, desc=unit, disable=not show) as bar, ticking(bar):
        yield bar


@contextmanager
def ticking(bar: Any) -> Iterator[None]:
    """Show the bar once a second with the time that has passed: one long text may take minutes."""
    if bar.disable:
        yield
        return
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def worth_showing(texts: Sequence[str]) -> bool:
    """A command shows a bar on a terminal, and only of what takes a while."""
    return sys.stderr.isatty() and sum(map(len, texts)) > LONG
