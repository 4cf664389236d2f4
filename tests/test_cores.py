"""How many threads and how much memory a process takes: what system, cgroups and environment allow."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from qwen3np import Embedder
from qwen3np.loading.checkpoint import Checkpoint
from qwen3np.runtime import cores, memory
from qwen3np.runtime.cores import cores_sharing_cache, performance_cores, thread_count, usable_cores
from qwen3np.runtime.packed_weights import allocate, pack
from qwen3np.runtime.threads import Pool

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
MAX_V1 = 9223372036854771712  # what version 1 says where there is no limit

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V2_CONTAINER = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
)
V1_CONTAINER = (
    "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro master:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
)


def system(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A folder with the files of /proc and /sys."""
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "23 1 8:1 / / rw - ext4 a rw\n" + mounts} | {
        name if name.startswith("proc") else f"sys/fs/cgroup/{name}": text for name, text in files.items()
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


CPU_LIMITS = {
    "none": ("0::/a", V2, {"a/cpu.max": "max 100000"}, 8),
    "own group": ("0::/a/b", V2, {"a/b/cpu.max": "200000 100000"}, 2),
    "a parent's": ("0::/a/b/c", V2, {"a/cpu.max": "300000 100000", "a/b/c/cpu.max": "max 100000"}, 3),
    "the smallest": ("0::/a/b", V2, {"a/cpu.max": "300000 100000", "a/b/cpu.max": "400000 100000"}, 3),
    "not a sibling's": ("0::/a/b", V2, {"a/c/cpu.max": "100000 100000"}, 8),
    "the top of a container": ("0::/", V2, {"cpu.max": "150000 100000"}, 2),
    "less than a core": ("0::/", V2, {"cpu.max": "20000 100000"}, 1),
    "no namespace": ("0::/docker/abc", V2_CONTAINER, {"cpu.max": "200000 100000"}, 2),
    "a namespace within": ("0::/docker/abc/b", V2_CONTAINER, {"b/cpu.max": "200000 100000"}, 2),
    "outside of the mount": ("0::/../other", V2_CONTAINER, {"cpu.max": "200000 100000"}, 2),
    "version 1": (
        "4:cpu,cpuacct:/a/b\n0::/",
        V1,
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        3,
    ),
    "version 1, no limit": (
        "4:cpu,cpuacct:/a",
        V1,
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        8,
    ),
    "version 1, a container": (
        "4:cpu,cpuacct:/docker/abc",
        V1_CONTAINER,
        {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        2,
    ),
    "unreadable": ("rubbish", "rubbish", {"cpu.max": "100000 100000"}, 8),
    "rubbish in the file": ("0::/", V2, {"cpu.max": "x 0"}, 8),
}


@pytest.mark.parametrize("case", CPU_LIMITS.values(), ids=CPU_LIMITS.keys())
def test_cores_follow_the_control_groups(tmp_path, monkeypatch, case):
    cgroup, mounts, files, expected = case
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cores(system(tmp_path, cgroup, mounts, files)) == expected
    assert 1 <= usable_cores(Path("/")) <= 8
    assert usable_cores(tmp_path / "another system") == 8


def devices(root: Path, files: dict[str, str]) -> Path:
    """A folder with files of /sys/devices."""
    for name, text in files.items():
        (root / "sys/devices" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/devices" / name).write_text(text + "\n")
    return root


def of_cpus(name: str, *values: tuple[int, object]) -> dict[str, str]:
    """A file of every CPU: so many with a value, so many with the next."""
    cpus = [value for count, value in values for _ in range(count)]
    return {f"system/cpu/cpu{cpu}/{name}": str(value) for cpu, value in enumerate(cpus)}


FREQUENCY, CAPACITY = "cpufreq/cpuinfo_max_freq", "cpu_capacity"
SIBLINGS = of_cpus("topology/thread_siblings_list", *((2, f"{cpu}-{cpu + 1}") for cpu in range(0, 12, 2)))
HYBRID = {
    "nothing is told": ({}, 8, None),
    "all are alike": (of_cpus(FREQUENCY, (8, 4000000)), 8, None),
    "two turn a little faster": (of_cpus(FREQUENCY, (2, 5200000), (6, 5000000)), 8, None),
    "six of Intel's performance cores, with two threads each, and eight of the others": (
        of_cpus(FREQUENCY, (12, 5000000), (8, 3800000)) | SIBLINGS | {"cpu_atom/cpus": "12-19"}, 20, 6,
    ),
    "two, and eight of the others": (
        of_cpus(FREQUENCY, (2, 5000000), (8, 3800000)) | {"cpu_atom/cpus": "2-9"}, 10, None,
    ),
    "two, eight of the others and two of the slowest": (
        of_cpus(FREQUENCY, (2, 5000000), (8, 3800000), (2, 2500000)) | {"cpu_atom/cpus": "2-11"}, 12, 10,
    ),
    "ARM, four of each": (of_cpus(CAPACITY, (4, 414), (4, 1024)), 8, 4),
    "ARM, one fast, three nearly so": (of_cpus(CAPACITY, (4, 300), (3, 850), (1, 1024)), 8, 4),
    "a process that is bound to the slow ones": (of_cpus(CAPACITY, (4, 414), (4, 1024)), 4, None),
    "not told of all": (of_cpus(CAPACITY, (4, 414), (3, 1024)), 8, None),
    "rubbish": (of_cpus(CAPACITY, (8, "many")), 8, None),
}  # fmt: skip


@pytest.mark.parametrize("case", HYBRID.values(), ids=HYBRID.keys())
def test_slow_cores_do_not_set_the_pace(tmp_path, monkeypatch, case):
    """Of the default; a caller may ask for all."""
    files, cpus, expected = case
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cpus), raising=False)
    monkeypatch.setattr(cores.sys, "platform", "linux")
    found = performance_cores(devices(tmp_path, files))
    assert found == expected
    monkeypatch.setattr(cores, "usable_cores", lambda: cpus)
    monkeypatch.setattr(cores, "performance_cores", lambda: found)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert thread_count() == (expected or cpus)
    assert thread_count(cpus) == cpus


def cache(level: int, *shared: tuple[int, str]) -> dict[str, str]:
    """A cache of every CPU."""
    files = of_cpus(f"cache/index{level}/shared_cpu_list", *shared)
    return files | {name.replace("shared_cpu_list", "level"): str(level) for name in files}


CACHES = {
    "nothing is told": ({}, 8, 8),
    "one for all": (cache(3, (8, "0-7")), 8, 8),
    "two": (cache(3, (4, "0-3"), (4, "4-7")) | cache(2, (8, "0")), 8, 4),
    "of one and a half the process may use": (cache(3, (4, "0-3"), (4, "4,5-7")), 6, 2),
    "no third level": (cache(2, (4, "0-3")), 4, 4),
}


@pytest.mark.parametrize("case", CACHES.values(), ids=CACHES.keys())
def test_cores_that_share_a_cache(tmp_path, monkeypatch, case):
    files, cpus, expected = case
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cpus), raising=False)
    assert cores_sharing_cache(devices(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("omp", "numba", "expected"),
    [
        ("3", "", 3),
        ("", "2", 2),
        ("3", "2", 2),
        ("4,2", "", 4),
        (" 2 ", "", 2),
        ("100", "", 8),
        ("0", "-1", 8),
        ("many", "", 8),
        ("", "", 8),
    ],
)
def test_the_environment_bounds_the_default_and_nothing_else(monkeypatch, omp, numba, expected):
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.setattr(cores, "performance_cores", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    monkeypatch.setenv("NUMBA_NUM_THREADS", numba)
    assert thread_count() == expected
    assert Pool().num_threads == expected
    assert thread_count(5) == 5


def test_more_threads_than_cores_are_lowered_with_one_warning(tiny, caplog):
    model = Embedder(tiny, num_threads=np.int64(10_000))
    assert model.backend.num_threads == usable_cores()
    assert [r.message for r in caplog.records if "num_threads" in r.message] == [
        f"num_threads = 10000 is lowered to {usable_cores()}, the usable cores"
    ]


@pytest.mark.parametrize("threads", [0, -1, True, False, 1.0, "2", np.float32(1), np.int64(0)])
def test_what_is_no_number_of_threads_is_refused(threads):
    with pytest.raises(ValueError, match="num_threads = .* must be an integer of 1 or more"):
        Pool(threads)


MB = 1024 * 1024
FREE = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable: 1024000 kB\nSwapFree: 0 kB"}
MEMORY = {
    "no limit": ("0::/a", V2, {"a/memory.max": "max", "a/memory.current": "5"}, 1000),
    "own group": ("0::/a", V2, {"a/memory.max": f"{700 * MB}", "a/memory.current": f"{200 * MB}"}, 500),
    "a parent's": ("0::/a/b", V2, {"a/memory.max": f"{700 * MB}", "a/memory.current": f"{200 * MB}"}, 500),
    "pages of files are free": (
        "0::/",
        V2,
        {
            "memory.max": f"{700 * MB}",
            "memory.current": f"{690 * MB}",
            "memory.stat": f"anon 5\ninactive_file {300 * MB}\nactive_file {100 * MB}\nfile {900 * MB}",
        },
        410,
    ),
    "over the limit": ("0::/", V2, {"memory.max": "5", "memory.current": "9"}, 0),
    "version 1": (
        "5:memory:/a/b",
        V1,
        {
            "memory/a/memory.limit_in_bytes": f"{700 * MB}",
            "memory/a/memory.usage_in_bytes": f"{600 * MB}",
            "memory/a/memory.stat": f"active_file 1\ntotal_active_file {50 * MB}\ntotal_inactive_file 0",
            "memory/memory.limit_in_bytes": f"{MAX_V1}",
            "memory/memory.usage_in_bytes": f"{600 * MB}",
        },
        150,
    ),
}


@pytest.mark.parametrize("case", MEMORY.values(), ids=MEMORY.keys())
def test_memory_follows_the_control_groups(tmp_path, case):
    cgroup, mounts, files, megabytes = case
    assert memory.available_bytes(system(tmp_path, cgroup, mounts, FREE | files)) == megabytes * MB
    swap = {"proc/meminfo": FREE["proc/meminfo"].replace("SwapFree: 0", "SwapFree: 102400")}
    assert memory.available_bytes(system(tmp_path, cgroup, mounts, files | swap)) == (megabytes + 100) * MB


@pytest.mark.parametrize(
    ("limits", "megabytes"),
    [
        ("Max address space         838860800            unlimited            bytes", 500),
        ("Max data size             838860800            unlimited            bytes", 700),
        ("Max address space         104857600            unlimited            bytes", 0),
        ("Max address space         unlimited            unlimited            bytes", 1000),
        ("rubbish", 1000),
    ],
)
def test_memory_follows_the_limits_of_the_process(tmp_path, limits, megabytes):
    """ulimit -v and ulimit -d, less what is taken of them."""
    status = "VmSize:   307200 kB\nVmData:   102400 kB"
    files = FREE | {"proc/self/limits": f"Limit  Soft Limit  Units\n{limits}", "proc/self/status": status}
    assert memory.available_bytes(system(tmp_path, "0::/", V2, files)) == megabytes * MB


def test_a_work_array_that_the_system_refuses():
    with pytest.raises(MemoryError, match=r"the system refuses .* GB of memory .*max_seq_length"):
        allocate((2**56,), np.uint8)


def test_a_system_that_does_not_tell_its_memory_refuses_nothing(tmp_path, tiny):
    assert memory.available_bytes(tmp_path) is None


def test_the_estimate_is_what_packing_allocates(tiny):
    checkpoint = Checkpoint(tiny)
    packed = pack(checkpoint, Pool(1), lambda layers: None)
    matrices = sum(w.nbytes for name, w in packed._asdict().items() if name.endswith("proj"))
    assert memory.packed_bytes(checkpoint) == matrices


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tiny, monkeypatch):
    """One line: what is needed, what there is, and what to do."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000_000)
    with pytest.raises(MemoryError, match=r"need 0\.13 GB of memory, 0\.10 GB are available") as error:
        Embedder(tiny)
    assert "\n" not in str(error.value) and 'backend="numpy"' in str(error.value)
    assert Embedder(tiny, backend="numpy").encode("a").shape == (96,)


def test_memory_that_the_system_refuses_all_the_same(tiny):
    with pytest.raises(MemoryError, match="its weights need 0.13 GB of memory"):
        with memory.room_for(Checkpoint(tiny), "stored"):
            raise OSError(12, "Cannot allocate memory")
    with pytest.raises(OSError, match="No such file"):
        with memory.room_for(Checkpoint(tiny), "stored"):
            raise FileNotFoundError(2, "No such file")
