"""How many threads this process should have: what the system gives it, and what the environment asks for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from .cgroups import Group, own_groups

logger = logging.getLogger("qwen3np")


def thread_count(num_threads: int | None = None) -> int:
    """The number of threads for what the caller asked for; None: the default.

    More than the usable cores is lowered to them, with a warning: threads that wait for each other at
    barriers, on one core, take turns of milliseconds. Raises ValueError for what is no positive integer.
    """
    usable = usable_cores()
    if num_threads is None:
        return min([usable, *environment_limits()])
    if isinstance(num_threads, bool) or not isinstance(num_threads, (int, np.integer)) or num_threads < 1:
        raise ValueError(f"num_threads = {num_threads!r} must be an integer of 1 or more")
    if num_threads > usable:
        logger.warning("num_threads = %d is lowered to %d, the usable cores", num_threads, usable)
    return min(int(num_threads), usable)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: its affinity, and the quotas of its control group and all that are around
    it (a container's CPU limit). `root`: where /proc and /sys are found."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in own_groups("cpu", root) if (quota := _quota(group)) is not None]
    return max(1, min([cores, *(int(quota + 0.5) for quota in quotas)]))


def environment_limits() -> list[int]:
    """What OMP_NUM_THREADS and NUMBA_NUM_THREADS allow, which Ray, joblib and batch systems set for libraries
    such as this one. OMP's may be a list, for nested loops: its first counts."""
    texts = [os.environ.get(name, "").split(",")[0] for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")]
    return [int(text) for text in texts if text.strip().isdecimal() and int(text) > 0]


def _quota(group: Group) -> float | None:
    """Cores' worth of time: version 2's cpu.max "quota period", or version 1's two files; None without a
    limit."""
    if group.version == 2:
        quota, _, period = group.read("cpu.max").partition(" ")
    else:
        quota, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None
