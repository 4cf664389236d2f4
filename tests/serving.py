"""A server in a process of its own, for tests that are clients."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT = 120  # seconds, of anything that may hang; kernels compile when a server starts


@contextmanager
def serve(log: Path, *arguments: object, seconds: float = TIMEOUT) -> Iterator[str]:
    """The URL of a server in a process of its own, which starts in time and ends well when told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "qwen3np", "serve", *map(str, arguments), "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while not healthy(url):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield url
        process.terminate()
        assert process.wait(TIMEOUT) == 0, log.read_text()
        assert "word17" not in log.read_text()  # no text of a request
        assert "  File " not in log.read_text(), log.read_text()  # no stack: what breaks is answered with 424
    finally:
        process.kill()
        process.wait()


def healthy(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=TIMEOUT).status == 200
    except (urllib.error.URLError, ConnectionError):
        return False
