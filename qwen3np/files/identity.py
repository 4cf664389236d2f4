"""What a run is: all that its output's bytes depend on, as a mapping that can be stored and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..loading.folder import patterns
from .rows import BadRow, Row

if TYPE_CHECKING:
    from ..embedder import Embedder
    from ..loading.checkpoint import Checkpoint

SEGMENT = 1 << 24  # bytes that a thread digests at a time


def of_model(model: Embedder, prompt: str, dim: int) -> dict[str, Any]:
    """Return the model's part of a run's identity."""
    backend = model.backend
    return {
        "model": model_digest(model.checkpoint, backend.num_threads),
        "prompt": prompt,
        "dim": dim,
        "max_seq_length": model.max_seq_length,
        "backend": [backend.name, backend.isa, backend.matmul_precision, backend.weights],
        "qwen3np": __version__,
    }


def of_vectors(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's identity that says what its vectors mean.

    Two runs in which it is the same give vectors that may stand in one file: of the same weights and prompt,
    in the same precision. Their last bits may differ, as CPUs and versions of this package do.
    """
    names = ("model", "prompt", "dim", "max_seq_length")
    kind = {"precision": run.get("precision", "float32"), "backend": run["backend"][2:]}
    return {name: run.get(name) for name in names} | kind


def others(run: Mapping[str, Any], older: Iterable[Mapping[str, Any] | None]) -> str:
    """Return the versions and backends, other than this run's, that made the vectors of older runs."""
    found = {(_maker(run)): None}
    for made in filter(None, older):
        found |= dict.fromkeys(
            [*filter(None, made["info"].get("also_by", "").split("; ")), _maker(made["run"])]
        )
    return "; ".join([*found][1:])


def _maker(run: Mapping[str, Any]) -> str:
    return " ".join(map(str, [run["qwen3np"], *run["backend"]]))


def model_digest(checkpoint: Checkpoint, num_threads: int = 1) -> str:
    """Return a digest of all weights (about 1 GB per second and thread) and of the folder's settings."""
    digest = hashlib.blake2b(digest_size=32)
    for path in _settings(checkpoint.folder):
        digest.update(f"{path.relative_to(checkpoint.folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    with ThreadPoolExecutor(num_threads) as pool:
        for name, tensor in sorted(checkpoint.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            for values in (tensor.data, tensor.scales):
                if values is None:
                    continue
                stored = values.reshape(-1).view(np.uint8)
                segments = [stored[start : start + SEGMENT] for start in range(0, stored.size, SEGMENT)]
                for part in pool.map(_digest, segments):
                    digest.update(part)
    checkpoint.release()
    return digest.hexdigest()


def _digest(data: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(data.data, digest_size=32).digest()


def _settings(folder: Path) -> list[Path]:
    """Return the files that may say how a model computes.

    Not just all JSON files: outputs may lie in the same folder.
    """
    found = {path for pattern in patterns() for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.suffix != ".safetensors")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def rows_digest(entries: Iterable[Row | BadRow]) -> str:
    """Return a digest of rows, bad ones included."""
    digest = hashlib.blake2b(digest_size=32)
    for entry in entries:
        digest.update(json.dumps([type(entry).__name__, *vars(entry).values()]).encode())
    return digest.hexdigest()


def differences(found: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return what differs between two runs in words; "" where nothing does."""
    return "; ".join(
        f"{name} was {_short(found.get(name))}, is {_short(run.get(name))}"
        for name in {**found, **run}
        if found.get(name) != run.get(name)
    )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
