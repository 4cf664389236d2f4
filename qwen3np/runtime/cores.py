"""How many threads this process should have, by what the system gives and the environment asks."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from pathlib import Path

import numpy as np

from .cgroups import Group, own_groups, read

logger = logging.getLogger("qwen3np")


def thread_count(num_threads: int | None = None) -> int:
    """The number of threads to use, at most the usable cores.

    More than those is lowered to them, with a warning: threads that wait for each other at barriers, on one
    core, take turns of milliseconds.

    Args:
        num_threads: as the caller asked for; default: the usable cores, or those of them that work best
            together, as far as the environment allows.

    Raises:
        ValueError: it is not a positive integer.
    """
    usable = usable_cores()
    if num_threads is None:
        return min([usable, performance_cores() or usable, *environment_limits()])
    if isinstance(num_threads, bool) or not isinstance(num_threads, (int, np.integer)) or num_threads < 1:
        raise ValueError(f"num_threads = {num_threads!r} must be an integer of 1 or more")
    if num_threads > usable:
        logger.warning("num_threads = %d is lowered to %d, the usable cores", num_threads, usable)
    return min(int(num_threads), usable)


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores this process may use. `root` is where /proc and /sys are found.

    Its affinity limits them, and the quotas of its control group and all around it (a container's CPU limit).
    """
    quotas = [quota for group in own_groups("cpu", root) if (quota := _quota(group)) is not None]
    return max(1, min([len(_affinity()), *(int(quota + 0.5) for quota in quotas)]))


def performance_cores(root: Path = Path("/")) -> int | None:
    """How many cores work best on even shares; None if they are alike, or the system does not tell.

    k cores are k times as fast as the slowest of them: beside 6 performance cores, 8 efficiency cores with
    0.4 of their speed are best left out; beside 2, best taken. Threads are not bound to cores: Linux and
    macOS give busy ones the fastest that are free. Windows does not tell, and all are used.
    """
    if sys.platform == "darwin":
        return _sysctl("hw.perflevel0.physicalcpu")
    speeds = sorted(_speeds(root), reverse=True)
    best = max(range(len(speeds)), key=lambda i: (i + 1) * speeds[i], default=-1) + 1
    return best if best < len(speeds) else None


def cores_sharing_cache(root: Path = Path("/")) -> int:
    """The fewest cores of this process that share a largest cache; all if the system does not tell."""
    cores = _affinity()
    shared = {}
    for cpu in cores:
        caches = (root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index*")
        levels = {read(cache / "level"): read(cache / "shared_cpu_list") for cache in caches}
        shared[cpu] = len(cores & _cpus(levels[max(levels)])) if levels else 0
    return min(filter(None, shared.values()), default=len(cores))


def _speeds(root: Path) -> list[float]:
    """The speed of each core of this process: its capacity (on ARM), or its highest frequency.

    Threads on one core count once; Intel's efficiency cores half, as their multipliers are half as wide.
    """
    system = root / "sys/devices"
    efficient = _cpus(read(system / "cpu_atom/cpus"))
    speeds = {}
    for cpu in _affinity():
        folder = system / f"system/cpu/cpu{cpu}"
        speed = read(folder / "cpu_capacity") or read(folder / "cpufreq/cpuinfo_max_freq")
        if not speed.isdecimal():
            return []
        core = read(folder / "topology/thread_siblings_list") or str(cpu)
        speeds[core] = int(speed) * (0.5 if cpu in efficient else 1)
    return list(speeds.values())


def _cpus(listed: str) -> set[int]:
    """Parse numbers as /sys lists them: "0-3,8"."""
    ranges = [part.split("-") for part in listed.split(",") if part.replace("-", "").isdecimal()]
    return {cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)}


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _sysctl(name: str) -> int | None:
    value = ctypes.c_int32(0)
    size = ctypes.c_size_t(ctypes.sizeof(value))
    found = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return value.value if found == 0 and value.value > 0 else None


def environment_limits() -> list[int]:
    """What OMP_NUM_THREADS and NUMBA_NUM_THREADS allow.

    Ray, joblib and batch systems set them for libraries such as this one. OMP's may be a list, for nested
    loops: its first number counts.
    """
    texts = [os.environ.get(name, "").split(",")[0] for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")]
    return [int(text) for text in texts if text.strip().isdecimal() and int(text) > 0]


def _quota(group: Group) -> float | None:
    """A group's limit of CPU time, in cores; None without a limit.

    It is in version 2's cpu.max, "quota period", or in version 1's two files.
    """
    if group.version == 2:
        quota, _, period = group.read("cpu.max").partition(" ")
    else:
        quota, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None
