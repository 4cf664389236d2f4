"""The progress bar of encode and predict."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("qwen3np")


def progress_bar(total: int, show: bool | None, unit: str) -> Any:
    """A tqdm bar; with show None it is there when the logger is at INFO or below, as in
    sentence-transformers."""
    from tqdm.auto import tqdm

    show = logger.isEnabledFor(logging.INFO) if show is None else show
    return tqdm(total=total, desc=unit, disable=not show)
