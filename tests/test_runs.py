"""Runs over whole files: interrupted anywhere, killed, two at once, on a full disk, and their memory."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qwen3np.files import atomic, identity, run, work

TEXTS = ["The capital of China is Beijing.", "", "中国\u2028首都", 'He said "hi"', "  spaces\t", "a" * 300]
OUTPUTS = [".npy", ".jsonl", ".parquet", ".safetensors"]


def write_input(path: Path, texts) -> Path:
    """A text a line, or an object with it."""
    lines = texts if path.suffix == ".txt" else [json.dumps({"text": text}) for text in texts]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def program(*args: object, cwd: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "qwen3np", *map(str, args)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_two_runs_do_not_write_one_output(embed, tmp_path):
    write_input(tmp_path / "in.txt", TEXTS)
    with work.WorkFolder(tmp_path / "out.npy") as folder:
        folder.begin({"run": {}, "info": {}, "rows": 1, "bad": 0, "dim": 1, "replaces": {}})
        for options in ([], ["--resume"], ["--overwrite"]):
            code, _, err = embed("in.txt", "--output", "out.npy", *options)
            assert code == 2 and "another run is writing it" in err
    assert embed("in.txt", "--output", "out.npy", "--overwrite")[0] == 0


class Interruption:
    """Lets a run write `allowed` times; then the disk is full, or Ctrl-C is pressed."""

    def __init__(self, monkeypatch, error: BaseException) -> None:
        self.error, self.allowed, self.write = error, 0, atomic.write
        monkeypatch.setattr(atomic, "write", self)

    def __call__(self, file, data) -> None:
        self.allowed -= 1
        if self.allowed < 0:
            file.write(bytes(data)[:3] if isinstance(data, bytes) else b"")
            raise self.error
        self.write(file, data)


FULL, CTRL_C = (OSError(errno.ENOSPC, "No space left on device"), 2), (KeyboardInterrupt(), 130)


def slow(*values: object):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "output, interruption",
    [
        *[(".npy", FULL), (".jsonl", CTRL_C), (".parquet", CTRL_C), (".safetensors", FULL)],
        *[slow(".npy", CTRL_C), slow(".jsonl", FULL), slow(".parquet", FULL), slow(".safetensors", CTRL_C)],
    ],
)
def test_a_run_interrupted_anywhere_goes_on(embed, tmp_path, monkeypatch, output, interruption):
    """After every single write of a run, there is no output or a whole one.

    Then --resume makes the same bytes, bad rows and ids among them. Parquet's own writes are not counted, but
    those before are.
    """
    monkeypatch.setattr(run, "CHUNK_ROWS", 3)
    error, code = interruption
    lines = [json.dumps({"text": text, "id": f"i{n}"}) for n, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("\n".join([lines[0], "?", *lines[1:], "{"]))
    out, partial = tmp_path / f"out{output}", tmp_path / f"out{output}.partial"
    command = ["in.jsonl", "--output", out.name, "--on-error", "skip"]
    assert embed(*command)[0] == 0
    whole = {p.name: p.read_bytes() for p in tmp_path.glob("out*")}
    assert len(whole) == (5 if output in (".npy", ".safetensors") else 3)
    resumed = []
    for allowed in range(100):
        for name in whole:
            (tmp_path / name).unlink()
        writes = Interruption(monkeypatch, error)
        writes.allowed = allowed
        found, _, err = embed(*command)
        monkeypatch.setattr(atomic, "write", writes.write)
        if writes.allowed >= 0:
            break
        assert found == code and not out.exists()
        assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]
        if partial.exists():
            assert f"kept in {partial.name}: go on with the same command and --resume" in err
            assert "--resume goes on with it, --overwrite begins anew" in embed(*command)[2]
        found, _, err = embed(*command, "--resume")
        assert found == 0 and {p.name: p.read_bytes() for p in tmp_path.glob("out*")} == whole
        resumed.append("rows were done before" in err)
    assert allowed > 8 and resumed[-1] and not resumed[0]


@pytest.mark.parametrize("output", [".npy", ".jsonl", ".parquet", ".safetensors"])
def test_a_disk_that_is_full_at_any_byte_is_named_and_the_run_goes_on(embed, tmp_path, output):
    """Also if that is found out when a file is closed. Here no file may be larger than a limit."""
    resource = pytest.importorskip("resource")
    write_input(tmp_path / "in.txt", TEXTS)
    limits, sizes = resource.getrlimit(resource.RLIMIT_FSIZE), range(300, 99999, 700)
    failed = []
    for size in sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            code, _, err = embed("in.txt", "--output", f"out{output}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if code == 0:
            break
        failed.append(err)
        assert code == 2 and "File too large: '" in err and f"out{output}.partial" in err
        if (tmp_path / f"out{output}.partial").exists():
            assert embed("in.txt", "--output", f"out{output}", "--resume")[0] == 0
            for path in tmp_path.glob("out*"):
                path.unlink()
    assert code == 0 and len(failed) > 3


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda path: ["--prompt", "x"], 'prompt was "", is "x"'),
        (lambda path: ["--dim", "40"], "dim was 96, is 40"),
        (lambda path: ["--id-column", ""], 'id column was null, is ""'),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"China", b"china")) and [], "input was "),
    ],
)
def test_resume_goes_on_with_the_same_run_only(embed, tmp_path, monkeypatch, change, reason):
    source = write_input(tmp_path / "in.jsonl", TEXTS)
    monkeypatch.setattr(run, "CHUNK_ROWS", 2)
    interruption = Interruption(monkeypatch, KeyboardInterrupt())
    interruption.allowed = 4
    assert embed("in.jsonl", "--output", "out.npy")[0] == 130
    interruption.allowed = 1000
    before = {p.name: p.read_bytes() for p in (tmp_path / "out.npy.partial").iterdir()}
    code, _, err = embed("in.jsonl", "--output", "out.npy", "--resume", *change(source))
    assert code == 2 and "is left of another run (" in err and reason in err and err.count("\n") == 1
    assert {p.name: p.read_bytes() for p in (tmp_path / "out.npy.partial").iterdir()} == before
    assert embed("in.jsonl", "--output", "out.npy", "--overwrite", *change(source))[0] == 0


def test_resume_knows_another_model_of_the_same_shape(embed, tmp_path, model, monkeypatch):
    """One weight of 652,384 is another, at the beginning of a tensor."""
    write_input(tmp_path / "in.txt", TEXTS)
    before = identity.model_digest(model.checkpoint)
    name = "layers.2.mlp.up_proj.weight"
    tensor = model.checkpoint.tensors[name]
    changed = np.array(tensor.data)
    changed[0, 0] ^= 1
    monkeypatch.setitem(model.checkpoint.tensors, name, type(tensor)(name, tensor.dtype, changed))
    assert identity.model_digest(model.checkpoint) != before


@pytest.mark.parametrize(
    "output, how",
    [
        (".npy", "SIGKILL"),
        *[slow(output, "SIGKILL") for output in OUTPUTS[1:]],
        *[slow(output, "SIGINT") for output in OUTPUTS],
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="no signals from one process to another")
def test_a_killed_run_goes_on_bit_for_bit(tiny, embed, tmp_path, output, how):
    write_input(tmp_path / "in.txt", [f"text {i} {i * 7919 % 1000}" for i in range(9000)])
    assert embed("in.txt", "--output", f"whole{output}")[0] == 0
    out = tmp_path / f"out{output}"
    command = ["embed", "--model", tiny, "in.txt", "--output", out.name]
    process = program(*command, cwd=tmp_path)
    while not (tmp_path / f"{out.name}.partial" / "00000000.chunk").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(getattr(signal, how))
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == "SIGKILL" else 130) and not out.exists()
    if how == "SIGINT":
        assert b"go on with the same command and --resume" in err
    code, _, err = embed("in.txt", "--output", out.name, "--resume")
    assert code == 0 and "rows were done before" in err
    assert out.read_bytes() == (tmp_path / f"whole{output}").read_bytes()
    beside = ["", ".json", *([".hashes.npy"] if output in (".npy", ".safetensors") else [])]
    outputs = {f"{name}{suffix}" for name in (out.name, f"whole{output}") for suffix in beside}
    assert {p.name for p in tmp_path.iterdir()} == {"in.txt", *outputs}


@pytest.mark.parametrize("output", [".parquet", *map(slow, (".npy", ".jsonl", ".safetensors"))])
def test_a_file_that_outgrows_its_limit(tiny, embed, tmp_path, output):
    """A real error of the system, in the last step: the chunks fit, the output does not."""
    resource = pytest.importorskip("resource")
    write_input(tmp_path / "in.txt", [f"text {i}" for i in range(3000)])
    limit = (900_000, resource.RLIM_INFINITY)
    process = program(
        *["embed", "--model", tiny, "in.txt", "--output", f"out{output}"],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and b"File too large" in err and b"3,000 of 3,000 rows are done" in err
    assert not (tmp_path / f"out{output}").exists()
    code, _, err = embed("in.txt", "--output", f"out{output}", "--resume")
    assert code == 0 and "(3,000 rows were done before)" in err


def test_an_input_that_changes_meanwhile(embed, model, tmp_path, monkeypatch):
    source = write_input(tmp_path / "in.txt", TEXTS)
    digest = identity.model_digest

    def append(*arguments):
        with open(source, "a") as file:
            file.write("more\n")
        return digest(*arguments)

    monkeypatch.setattr(identity, "model_digest", append)
    code, _, err = embed("in.txt", "--output", "out.npy")
    assert code == 2 and "in.txt: changed while it was read" in err and not (tmp_path / "out.npy").exists()


def test_the_progress_bar(on_terminal, tiny, tmp_path):
    """On a terminal: rows, time left and tokens per second."""
    write_input(tmp_path / "in.txt", ["some text " * 10] * 3000)
    command = ["embed", "--model", tiny, "in.txt", "--output", "out.npy"]
    code, shown = on_terminal(*command, columns=100)
    assert code == 0 and all(part in shown for part in ("in.txt:", "/3000 [", " tokens/s", "3,000 x 96"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(tiny, tmp_path):
    """100,000 texts: 50 MB at most between a tenth of the way and the end."""
    write_input(tmp_path / "in.txt", [f"the text with the number {i}" for i in range(100_000)])
    code = """
import sys
from qwen3np.cli import main
from qwen3np.cli.embed import _Bar
sizes, show = [], _Bar.show
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
def measure(bar, sums, rows):
    sizes.append((sums.rows, resident()))
    show(bar, sums, rows)
_Bar.show = measure
assert main(sys.argv[1:]) == 0
tenth = next(size for rows, size in sizes if rows >= 10_000)
print(tenth, max(size for rows, size in sizes if rows >= 10_000), resident())
"""
    command = [sys.executable, "-c", code, "embed", "--model", tiny, "in.txt", "--output", "out.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    tenth, most, end = map(float, done.stdout.split())
    assert np.load(tmp_path / "out.npy", mmap_mode="r").shape == (100_000, 96)
    assert max(most, end) - tenth < 50, done.stdout
