"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control group (a container's CPU
    limit)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_cgroup_quota() + 0.5)))


def _cgroup_quota() -> float:
    """Cores' worth of time: cgroup v2's cpu.max "quota period", or v1's two files; infinite without a
    limit."""
    for quota, period in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            numbers = Path(quota).read_text().split() + (Path(period).read_text().split() if period else [])
            if float(numbers[0]) > 0:
                return float(numbers[0]) / float(numbers[1])
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue  # no such file, or "max"
    return 1e9
