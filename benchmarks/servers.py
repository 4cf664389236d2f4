"""Servers as processes of their own: started on a free port, watched, ended.

Commands take the folder of a model; {port} is put in.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

PATIENCE = 600.0  # seconds until a server is ready: a first start compiles


def ours(*folders: Path, options: Sequence[str] = ()) -> list[str]:
    """Return the command that serves these models with this Python's qwen3np."""
    return [sys.executable, "-m", "qwen3np", "serve", *map(str, folders), "--port", "{port}", *options]


def infinity(python: Path, folder: Path, dtype: str) -> list[str]:
    """Return the command of infinity_emb, as its documentation has it for a CPU.

    Its warm-up, a batch of 32 x 512 tokens, takes minutes in bfloat16 on some CPUs.
    """
    return [
        str(python.with_name("infinity_emb")), "v2", "--model-id", str(folder), "--device", "cpu",
        "--engine", "torch", "--dtype", dtype, "--no-bettertransformer", "--no-model-warmup",
        "--host", "127.0.0.1", "--port", "{port}", "--log-level", "error",
    ]  # fmt: skip


class Server:
    """A server that is ready; RuntimeError, with the end of what it printed, if it does not become so."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.log = tempfile.NamedTemporaryFile()
        offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "0"}
        self.process = subprocess.Popen(
            [part.replace("{port}", str(self.port)) for part in command],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env=os.environ | offline | dict(environment or {}),
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:  # refused, or 503
                time.sleep(0.1)
        raise RuntimeError(f"{self.process.args[0]} is not ready: {self.printed()[-1000:]}")

    def printed(self) -> str:
        """Return all that the server printed."""
        return Path(self.log.name).read_text(errors="replace")

    def memory(self) -> float:
        """Return the MB of main memory that it takes now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise OSError(f"no VmRSS of process {self.process.pid}")

    def cpu_seconds(self) -> float:
        """Return the seconds that its threads computed, in all."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it, by force where asking does not help."""
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
