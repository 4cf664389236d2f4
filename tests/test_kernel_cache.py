"""Compiled kernels are kept where possible, found by what they are made of, never trusted when damaged."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from qwen3np.kernels import cache_files
from qwen3np.kernels.jit import compile_for, entry_point

ROOT = Path(__file__).parent.parent
FOUR = (np.arange(4.0),)


def add_one(x):
    for i in range(x.size):
        x[i] += 1


def run_it(caplog) -> bool:
    """Loads or compiles a small kernel, as a new process does; whether it compiled."""
    caplog.clear()
    kernel = entry_point(add_one)
    compile_for(kernel, FOUR, "for a test")
    x = np.zeros(4)
    kernel(x)
    assert x.tolist() == [1] * 4
    lines = [record.message for record in caplog.records]
    compiled = [line for line in lines if line.startswith("compil")]
    assert not compiled or "the kernel add_one (for a test)" in compiled[0] and " s" in compiled[1]
    return bool(compiled)


@pytest.fixture
def cache(tmp_path, monkeypatch, caplog) -> Path:
    """The folder of an empty cache."""
    caplog.set_level(logging.WARNING, "qwen3np")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    cache_files._warn.cache_clear()
    return cache_files.folders()[0]


def with_checksum(payload: bytes) -> bytes:
    return cache_files.MAGIC + hashlib.sha256(payload).digest() + payload


DAMAGES = {
    "empty": lambda data: b"",
    "cut within the checksum": lambda data: data[:30],
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "a flipped bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "of another format": lambda data: data.replace(b"kernel 1", b"kernel 2"),
    "no pickle": lambda data: with_checksum(b"garbage"),
    "another pickle": lambda data: with_checksum(pickle.dumps((1, 2, 3))),
    "a pickle of what is not there": lambda data: with_checksum(b"cno_such_module\nx\n."),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_replaced(cache, caplog, damage):
    assert run_it(caplog) and not run_it(caplog)
    [path] = cache.glob("*.kernel")
    path.write_bytes(damage(path.read_bytes()))
    assert run_it(caplog)
    assert not run_it(caplog) and list(cache.glob("*.kernel")) == [path]


def test_a_folder_in_a_files_place_is_no_error(cache, caplog):
    assert run_it(caplog)
    [path] = cache.glob("*.kernel")
    path.unlink()
    path.mkdir()
    assert run_it(caplog) and "cannot be written to" in caplog.text
    assert not run_it(caplog)  # from the temporary folder


def test_where_kernels_are_kept(cache, tmp_path, monkeypatch, caplog):
    """Below NUMBA_CACHE_DIR; else where the system keeps caches; else in a temporary folder of this user."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    assert run_it(caplog) and list((tmp_path / "numba" / "qwen3np").glob("*.kernel"))
    assert len(caplog.records) == 2  # no other warning
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert run_it(caplog) and list((tmp_path / "cache" / "qwen3np" / "kernels").glob("*.kernel"))
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert run_it(caplog) and len(caplog.records) == 3
    assert f"are kept in {cache_files._temporary()}" in caplog.text and not run_it(caplog)
    if os.name != "nt":
        assert cache_files._temporary().stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    assert not run_it(caplog)


def test_where_nothing_can_be_written_one_warning_says_so(cache, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    assert run_it(caplog) and "cannot be kept, each process compiles them anew" in caplog.text
    assert run_it(caplog) and "cannot be kept" not in caplog.text


def test_a_user_without_a_home(cache, tmp_path, monkeypatch):
    """expanduser leaves "~" as it is for a user that the system does not know: no folder of that name."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_files.folders() == [cache_files._temporary()]


@pytest.mark.skipif(os.name == "nt", reason="a user's temporary files are the user's alone there")
def test_a_temporary_folder_that_others_can_write_to_is_not_trusted(cache, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert run_it(caplog) and not run_it(caplog)
    cache_files._temporary().chmod(0o770)
    assert run_it(caplog) and "not a folder of this user alone" in caplog.text
    assert cache_files.stored() == []


@pytest.mark.skipif(os.name == "nt", reason="locks of another kind")
@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EACCES", "EINVAL"])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks(cache, monkeypatch, caplog, code):
    import fcntl

    def refuse(*args):
        raise OSError(getattr(errno, code), "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("qwen3np.kernels.cache.QUIET_WAIT", 0.1)
    assert run_it(caplog) and not run_it(caplog)
    assert not list(cache.glob("lock-*"))


@pytest.mark.skipif(os.name == "nt", reason="locks of another kind")
def test_a_process_that_holds_the_lock_for_ever_holds_nobody_up(cache, monkeypatch, caplog):
    """One that is stopped, say: after a while the kernel is compiled a second time, which does no harm."""
    import fcntl

    monkeypatch.setattr("qwen3np.kernels.cache.QUIET_WAIT", 0.1)
    monkeypatch.setattr("qwen3np.kernels.cache.LONGEST_WAIT", 0.1)
    cache.mkdir(parents=True)
    with open(cache / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_it(caplog) and caplog.text.count("waiting for another process") == 1
        assert not run_it(caplog) and not caplog.records


def test_only_own_and_long_unused_files_are_removed(cache, caplog):
    cache.mkdir(parents=True)
    month_ago = time.time() - 31 * cache_files.DAY
    unused = cache / f"encode-{'0' * 32}.kernel"
    partial = cache / f"encode-{'0' * 32}.kernel.{'a' * 32}.tmp"
    others = [cache / "encode.kernel", cache / "notes.txt", cache / f"x-{'0' * 31}.kernel"]
    recent = cache / f"encode-{'1' * 32}.kernel"
    for path in (unused, partial, recent, *others):
        path.touch()
        os.utime(path, (month_ago, month_ago))
    folder = cache / f"encode-{'2' * 32}.kernel"
    folder.mkdir()
    os.utime(recent)
    assert run_it(caplog)
    assert not unused.exists() and not partial.exists()
    assert all(path.exists() for path in (recent, folder, *others))
    [path] = cache.glob("add_one-*")
    os.utime(path, (month_ago, month_ago))
    assert not run_it(caplog) and path.stat().st_mtime > month_ago + cache_files.DAY  # used: not removed next


FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a write beyond is an error, as on a full disk
"""
COMPILE = """
import logging, numpy as np
from qwen3np.kernels.jit import compile_for
from qwen3np.runtime.packed_weights import pack_share
words = np.zeros((16, 1), np.uint32), np.zeros((1, 1, 16), np.uint32)
compile_for(pack_share, (*words, 0, 1, 0, 1), "for a test")
"""


def output(code: str, cwd: Path, **environment: object) -> str:
    """stdout and stderr of a process that imports this package from cwd, if it is there."""
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    variables |= {"PYTHONPATH": str(cwd), "TMPDIR": str(cwd)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=variables, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_full_disk_is_no_error(tmp_path):
    printed = output(FULL_DISK + COMPILE, tmp_path, XDG_CACHE_HOME=tmp_path / "cache")
    assert "cannot be kept" in printed and "Traceback" not in printed
    assert not list(tmp_path.rglob("*.kernel*"))  # nor a part of one


@pytest.fixture
def installed(tmp_path):
    """Copies the package to where it would be installed."""

    def install(name: str) -> Path:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(
            ROOT / "qwen3np", tmp_path / name / "qwen3np", ignore=ignore, copy_function=shutil.copy
        )
        shutil.copytree(ROOT / "kernels", tmp_path / name / "qwen3np" / "kernels", copy_function=shutil.copy)
        return tmp_path / name

    return install


def test_two_installations_share_what_is_compiled(installed, tmp_path):
    """Neither the folder nor the files' times are part of the key."""
    first, second = installed("first"), installed("second")
    assert "compiling" in output(COMPILE, first, XDG_CACHE_HOME=tmp_path / "cache")
    assert output(COMPILE, second, XDG_CACHE_HOME=tmp_path / "cache") == ""


HASH = """
import qwen3np.kernels.sources as s
print(s.__file__, s.source_hash("qwen3np.engine"))
"""


def test_the_hash_follows_from_what_is_imported(installed):
    """A kernel in a new place, a changed constant of it, and nothing that no kernel reads."""

    def hashed() -> str:
        file, digest = output(HASH, place).split()
        assert Path(file).is_relative_to(place)
        return digest

    place = installed("place")
    seen = [hashed()]
    package = place / "qwen3np"
    (package / "search.py").write_text("changed = True")
    (package / "kernels" / "unused.py").write_text("changed = True")
    assert hashed() == seen[0]
    (package / "engine.py").write_text("from .more import kernels\n" + (package / "engine.py").read_text())
    (package / "more").mkdir()
    (package / "more" / "__init__.py").touch()
    (package / "more" / "kernels.py").write_text("from .constants import SIZE")
    (package / "more" / "constants.py").write_text("SIZE = 1")
    seen.append(hashed())
    (package / "more" / "constants.py").write_text("SIZE = 2")
    seen.append(hashed())
    (package / "kernels" / "simd.py").write_text((package / "kernels" / "simd.py").read_text() + "#")
    seen.append(hashed())
    assert len(set(seen)) == 4


def test_a_disabled_compiler_is_named(tiny, tmp_path):
    """One line, and the reading copy still works."""
    code = f"""
from qwen3np.cli import main
assert main(["embed", "--model", {str(tiny)!r}, "hi"]) == 2
assert main(["embed", "--model", {str(tiny)!r}, "hi", "--backend", "numpy"]) == 0
"""
    printed = output(code, ROOT, NUMBA_DISABLE_JIT="1")
    assert "qwen3np: error: NUMBA_DISABLE_JIT is set" in printed and "Traceback" not in printed


# Functions of one name, as micro_kernel makes them; too long for LLVM to make them a part of their caller.
TWINS = """
import sys
import numpy as np
from qwen3np.kernels.jit import compile_for, entry_point, inline

def made(step):
    @inline
    def climb(x):
        for i in range(x.size):
BODY
    return climb

low, high = made(1.0), made(100.0)

@entry_point
def run_low(x):
    low(x)
    low(x[1:])

@entry_point
def run_high(x):
    high(x)
    high(x[1:])

def result(name):
    kernel, x = globals()[name], np.zeros(3)
    compile_for(kernel, (x,), name)
    kernel(x)
    return x.tolist()
""".replace("BODY", "\n".join(f"            x[i] = np.sqrt(x[i] * x[i]) + step * {n}" for n in range(80)))


@pytest.mark.slow
def test_kernels_that_two_processes_compiled_do_not_call_each_others_parts(tmp_path):
    """numba#10486: in a third process, which loads both."""
    (tmp_path / "twins.py").write_text(TWINS)
    kept = {"XDG_CACHE_HOME": tmp_path / "cache"}
    ask = "import twins; print([twins.result(name) for name in {}])"
    alone = [output(ask.format([name]), tmp_path, **kept) for name in ("run_low", "run_high")]
    assert all("compiled" in printed for printed in alone)
    both = output(ask.format(["run_low", "run_high"]), tmp_path, **kept)
    assert both == "[[3160.0, 6320.0, 6320.0], [316000.0, 632000.0, 632000.0]]\n"
