"""Fixtures that several test files share."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

# NumPy multiplies small matrices here: more threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

from qwen3np import Embedder
from qwen3np.cli import main
from qwen3np.kernels import isa
from qwen3np.runtime.numba_backend import FLOATING
from qwen3np.synth.checkpoints import LIKE, synthesize

# A shell's background job ignores SIGINT, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Path and precision of every computation there is: on simd all precisions are the same one.
ALL_KERNELS = [
    (isa.AVX2 if isa.ONLY_AVX2 else isa.SIMD, "highest"),
    (isa.AVX512_BF16, "medium"),
    *((path, precision) for path in (isa.AMX, isa.AMX_SPELLED_OUT) for precision in FLOATING),
]


# Those of this machine. All but the default are slow: each path compiles for half a minute.
KERNELS = [
    pytest.param(kernel, id=" ".join(kernel), marks=[pytest.mark.slow] * (kernel[0] != isa.choose("high")))
    for kernel in ALL_KERNELS
    if kernel[0] in isa.available()
]


@pytest.fixture(autouse=True)
def no_width(monkeypatch) -> None:
    """Tables are as wide as they are, whatever the terminal that runs the tests."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch) -> tuple[str, str]:
    """Every instruction path and precision of this machine in turn; QWEN3NP_ISA asks for the path."""
    monkeypatch.setenv("QWEN3NP_ISA", request.param[0])
    return request.param


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of a tiny generated embedding model. Shared: not to be changed."""
    return synthesize(tmp_path_factory.mktemp("models") / "tiny", "tiny")


@pytest.fixture
def tiny_copy(tiny, tmp_path) -> Path:
    """The same, for this test alone."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory) -> Path:
    """The folder of a tiny generated reranker with tied embeddings. Shared: not to be changed."""
    return synthesize(tmp_path_factory.mktemp("models") / "reranker", "reranker-tiny")


@pytest.fixture(scope="session")
def untied_reranker(tmp_path_factory) -> Path:
    """The same with an lm_head of its own, as the 8B has it."""
    with pytest.MonkeyPatch.context() as patch:
        untied = dataclasses.replace(LIKE["reranker-tiny"], tie_word_embeddings=False)
        patch.setitem(LIKE, "reranker-tiny", untied)
        return synthesize(tmp_path_factory.mktemp("models") / "untied", "reranker-tiny")


@pytest.fixture(scope="session")
def model(tiny) -> Embedder:
    """Of the tiny model, on the kernels. Shared: not to be changed."""
    return Embedder(tiny)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*args: object, stdin: bytes | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        try:
            code = main([*map(str, args)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def embed(run, tiny, model, tmp_path, monkeypatch):
    """Run a command in tmp_path, with the model that is there: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qwen3np.cli.options.load_embedder", lambda args: model)

    def embed(*args: object, command: str = "embed") -> tuple[int, str, str]:
        return run(command, *args, "--model", tiny)

    return embed


@pytest.fixture
def on_terminal(tmp_path):
    """Run a command in tmp_path on a terminal: (exit code, all that the terminal shows)."""
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))

    def on_terminal(*args: object, typed: bytes = b"", columns: int = 60) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        command = [sys.executable, "-m", "qwen3np", *map(str, args)]
        environment = dict(os.environ)  # None would be C's, in which readline sets COLUMNS unseen
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        os.write(ours, typed)
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:  # all of it was read
            pass
        os.close(ours)
        return process.wait(60), shown.decode()

    return on_terminal


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real Qwen files (tokenizers, configs, golden values), too large for the repository."""
    folder = Path(
        os.environ.get("QWEN3NP_ASSETS") or Path(__file__).parents[2] / "shared" / "assets"
    ).resolve()
    if not (folder / "tokenizers").is_dir():
        pytest.skip(f"no real Qwen files in {folder}; QWEN3NP_ASSETS names another folder")
    return folder
