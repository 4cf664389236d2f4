"""A contender's process, from inside: workers.py starts it, with the Python that the contender needs.

python serve.py DESCRIPTOR NAME FOLDER THREADS     a connection's; ends when the other side closes it
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from contenders import make


def serve(connection: Connection, name: str, folder: Path, threads: int) -> None:
    """Answers (method, arguments) with ("ok", seconds, result) or ("error", text, None)."""
    contender: Any = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            start = time.perf_counter()
            result = None
            if method == "load":
                contender = make(name, folder, threads)
            elif method == "memory":
                result = peak_memory()
            elif method == "run":
                ids, texts, prompt = arguments
                takes_texts = texts and hasattr(contender, "encode_texts")
                result = contender.encode_texts(texts, prompt) if takes_texts else contender.encode(ids)
            else:
                result = getattr(contender, method)(*arguments)
            connection.send(("ok", time.perf_counter() - start, result))
        except ImportError as error:
            connection.send(("error", f"not installed: {error.name or error}", None))
        except BaseException as error:  # a peer's bug must not end the run
            traceback.print_exc()
            text = next(iter(str(error).splitlines()), "")
            connection.send(("error", f"{type(error).__name__}: {text}", None))


def peak_memory() -> float:
    """GB of this process. Not getrusage's, which a child inherits from the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("no VmHWM in /proc/self/status: peak memory is measured on Linux")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    serve(Connection(int(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
