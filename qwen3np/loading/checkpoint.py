"""safetensors -> named, memory-mapped arrays; nothing is copied until it is used.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
data (https://github.com/huggingface/safetensors#format). The safetensors library checks the header (no gaps,
no overlaps, no more than the file holds); the arrays are made here because NumPy has no bfloat16 for the
library to return.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .config import Config, load_json
from .int8 import MATRICES, SCALES, dequantize, scales_shape

STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I8": np.dtype("i1"),
}
FLOATS = ("BF16", "F16", "F32")  # what all but int8's matrices are of
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: a read-only view of the mapped file.

    `data` holds the stored bits: uint16 for BF16 (NumPy has no bfloat16), else float16 or float32; or int8,
    of a matrix that has scales (int8.py).
    """

    name: str
    dtype: str  # "BF16", "F16", "F32" or "I8"
    data: NDArray[Any]
    scales: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def widen(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return a copy as float32 or float64; exact for all stored dtypes."""
        if self.scales is not None:
            return dequantize(self.data, self.scales).astype(dtype)
        return widen(self.data, dtype)


def widen(stored: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return stored values as floats.

    A bfloat16 is the upper half of a float32's bits, so the shift is exact.
    """
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(dtype)


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of the encoder, in the order of the published shards."""
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, D)}
    for i in range(config.num_hidden_layers):
        layer = {
            "self_attn.q_proj": (N * H, D),
            "self_attn.k_proj": (K * H, D),
            "self_attn.v_proj": (K * H, D),
            "self_attn.o_proj": (D, N * H),
            "self_attn.q_norm": (H,),
            "self_attn.k_norm": (H,),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
            "input_layernorm": (D,),
            "post_attention_layernorm": (D,),
        }
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["norm.weight"] = (D,)
    return shapes


class OpenedFile:
    """A weight file as it was when it was opened.

    It stays open: a file that is replaced by another of its name is still read as it was. Only one that is
    written to changes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        # Not at the interpreter's exit: functions registered with atexit may still compute.
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._state = self._now()

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was written to since it was opened."""
        now = self._now()
        if now != self._state:
            size = f" ({self._state[0]} bytes then, {now[0]} now)" if now[0] != self._state[0] else ""
            raise CheckpointError(
                f"{self.path}: was written to after it was opened{size}, and its weights are of two models "
                "now; load the model again, and replace weights by renaming a new file over the old one"
            )


class Checkpoint:
    """A model folder, opened: its Config and all its tensors, by name without the `model.` prefix.

    Beside the encoder's there may be `lm_head.weight` (the 8B reranker; an embedding model saved as a causal
    LM) and `score.weight` (a reranker saved as a sequence classifier).

    Args:
        folder: The model's folder.
        path: The path of the Transformer module in the folder, where modules.json gives it one.

    Raises:
        CheckpointError: Anything is missing, damaged or of another shape; there is never a partial model.
    """

    _opened: Sequence[OpenedFile] = ()

    def __init__(self, folder: str | Path, path: str = "") -> None:
        self.folder = Path(folder)
        self.transformer_folder = self.folder / path  # config.json, weights and tokenizer
        if not (self.transformer_folder / "config.json").is_file():
            raise CheckpointError(
                f"{self.transformer_folder}: holds no config.json; give the folder of a Qwen3-Embedding or "
                "Qwen3-Reranker model"
            )
        self.config = Config.load(self.transformer_folder / "config.json")
        if (self.transformer_folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{self.transformer_folder}: holds adapter_config.json, a LoRA adapter beside its base "
                "model; merge it first (peft: PeftModel.from_pretrained(...).merge_and_unload()"
                ".save_pretrained(FOLDER)), or remove the file if the weights are merged"
            )
        self.files = _weight_files(self.transformer_folder)
        self._opened = [OpenedFile(path) for path in self.files]
        self.tensors = self._read()

    def _read(self) -> dict[str, Tensor]:
        """Map all tensors, and check their names, shapes, dtypes and ends."""
        expected = tensor_shapes(self.config)
        optional = {
            "lm_head.weight": (self.config.vocab_size, self.config.hidden_size),
            "score.weight": (1, self.config.hidden_size),
        }
        tensors: dict[str, Tensor] = {}
        last: list[Tensor | None] = []  # the tensor at the end of each file
        problems: list[str] = []
        for path in self.files:
            for tensor in (stored := read_safetensors(path)):
                name = tensor.name.removeprefix("model.")
                if name in tensors:
                    problems.append(f"stored twice: {name} (again in {path.name})")
                tensors[name] = tensor
            last.append(max(stored, key=lambda t: t.data.ctypes.data, default=None))
        tensors = _with_scales(tensors, problems)
        allowed = expected | optional
        problems += [
            f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in tensors
        ]
        problems += [
            f"unexpected: {name} {list(t.shape)}" for name, t in tensors.items() if name not in allowed
        ]
        for name, tensor in tensors.items():
            if name in allowed and tensor.shape != allowed[name]:
                problems.append(
                    f"wrong shape: {name} is {list(tensor.shape)}, config.json asks for {list(allowed[name])}"
                )
            if name in allowed and tensor.dtype not in FLOATS and tensor.scales is None:
                problems.append(f"wrong dtype: {name} is {tensor.dtype}, supported are {', '.join(FLOATS)}")
        if problems:
            shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
            raise CheckpointError(
                f"{self.folder}: the weights are not those of the model in config.json:\n  "
                + "\n  ".join(shown)
            )
        for path, final in zip(self.files, last, strict=True):
            _check_end(path, final)
        for name, tensor in tensors.items():
            if _is_zero(tensor):
                raise CheckpointError(
                    f"{self.folder}: {name} is all zeros: its part of the file was never written (an "
                    "interrupted download?); download it again"
                )
        return tensors

    @property
    def head(self) -> str | None:
        """The name of the tensor whose rows give the logits.

        As in transformers 5: the stored one, and where none is stored that of the embeddings, if
        config.json ties them.
        """
        if "lm_head.weight" in self.tensors:
            return "lm_head.weight"
        return "embed_tokens.weight" if self.config.tie_word_embeddings else None

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a weight file was written to since it was opened.

        Pages are read from it when they are used: they would be another model's, and past a new end there
        are none (SIGBUS).
        """
        for file in self._opened:
            file.check_unchanged()

    @property
    def is_int8(self) -> bool:
        """Whether the matrices are stored in 8 bits."""
        return all(t.scales is not None for n, t in self.tensors.items() if n.endswith(MATRICES))

    @property
    def num_parameters(self) -> int:
        return sum(t.data.size for t in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def read_ahead(self, layer: int) -> None:
        """Have the system read a layer's tensors from disk meanwhile; a layer that is not there is none."""
        for name, tensor in self.tensors.items():
            data, memory = tensor.data, tensor.data.base
            if not (name.startswith(f"layers.{layer}.") and isinstance(memory, mmap.mmap)):
                continue
            if hasattr(mmap, "MADV_WILLNEED"):
                begin = data.ctypes.data - np.frombuffer(memory, np.uint8, 1).ctypes.data
                first, last = begin // mmap.PAGESIZE * mmap.PAGESIZE, begin + data.nbytes
                memory.madvise(mmap.MADV_WILLNEED, first, last - first)

    def release(self) -> None:
        """Give back the memory of the pages read so far; they are read again when they are used."""
        mapped = {id(t.data.base): t.data.base for t in self.tensors.values()}
        for memory in mapped.values():
            if isinstance(memory, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                memory.madvise(mmap.MADV_DONTNEED)

    def weights(self, dtype: DTypeLike = np.float32) -> Weights:
        """Return the weights in the form that reference.py takes, widened to `dtype` when they are used."""
        return Weights(self, np.dtype(dtype))


@dataclass(frozen=True)
class Weights:
    """A checkpoint as the reference sees it: nested by name, floats, one layer in memory at a time."""

    checkpoint: Checkpoint
    dtype: np.dtype[Any]

    @property
    def embed_tokens(self) -> Rows:
        return self.rows("embed_tokens.weight")

    def rows(self, name: str) -> Rows:
        """Return a matrix whose rows are widened as they are taken."""
        return Rows(self.checkpoint, self.checkpoint.tensors[name].data, self.dtype)

    @property
    def norm(self) -> NDArray[Any]:
        self.checkpoint.check_unchanged()
        return self.checkpoint.tensors["norm.weight"].widen(self.dtype)

    @property
    def layers(self) -> Iterator[dict[str, Any]]:
        return (self.layer(i) for i in range(self.checkpoint.config.num_hidden_layers))

    def layer(self, i: int) -> dict[str, Any]:
        """Return layer i: {"input_layernorm": array, "self_attn": {"q_proj": array, ...}, ...}."""
        self.checkpoint.check_unchanged()
        nested: dict[str, Any] = {}
        for name, tensor in self.checkpoint.tensors.items():
            if name.startswith(f"layers.{i}."):
                *module, leaf = name.removesuffix(".weight").split(".")[2:]
                target = nested.setdefault(module[0], {}) if module else nested
                target[leaf] = tensor.widen(self.dtype)
        return nested


@dataclass(frozen=True)
class Rows:
    """Rows of a stored matrix, widened as they are taken.

    The 0.6B's embedding is 620 MB in float32, a text needs KB of it.
    """

    checkpoint: Checkpoint
    stored: NDArray[Any]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return widen(self.raw(rows), self.dtype)

    def raw(self, rows: Any) -> NDArray[Any]:
        """Return rows as stored, bfloat16 as uint16 bits; but float16 as float32."""
        self.checkpoint.check_unchanged()
        taken = self.stored[rows]
        self.checkpoint.check_unchanged()
        return taken.astype(np.float32) if taken.dtype == np.float16 else taken


def read_safetensors(path: Path) -> list[Tensor]:
    """Map all tensors of one file; raise CheckpointError if it is truncated or damaged."""
    try:
        with safe_open(path, framework="np"):  # checks the whole header against the file's size
            pass
        with open(path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_size))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {_damage(path)} ({error}); download it again") from error
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        stored = STORED_DTYPES.get(entry["dtype"])
        try:
            if stored is None:  # reported with all the others, by name; its bytes are never used
                data: NDArray[Any] = np.broadcast_to(np.uint8(0), entry["shape"])
            elif begin == end:
                data = np.empty(entry["shape"], stored)
            else:
                data = np.ndarray(entry["shape"], stored, buffer=mapped, offset=8 + header_size + begin)
        except (ValueError, OverflowError) as error:  # more dimensions, or larger ones, than NumPy can have
            raise CheckpointError(f"{path}: {name} has the shape {entry['shape']} ({error})") from error
        tensors.append(Tensor(name, entry["dtype"], data))
    return tensors


def _with_scales(tensors: dict[str, Tensor], problems: list[str]) -> dict[str, Tensor]:
    """Give int8 matrices their scales, which are no tensors of their own; add what is wrong to `problems`."""
    together = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALES)}
    for name, tensor in together.items():
        scales = tensors.get(name + SCALES)
        if tensor.dtype != "I8" or not name.endswith(MATRICES):
            if scales is not None:
                problems.append(f"unexpected: {name + SCALES}, as {name} is {tensor.dtype}")
        elif scales is None:
            problems.append(f"missing: {name + SCALES}, the scales of an int8 matrix")
        elif tensor.data.ndim != 2 or scales.shape != scales_shape(tensor.shape) or scales.dtype != "F32":
            problems.append(f"wrong: {name + SCALES} is {scales.dtype} {list(scales.shape)}")
        else:
            together[name] = replace(tensor, scales=scales.data)
    return together


def safetensors_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """Return the length and JSON header of a safetensors file, as the library writes it, and the data's size.

    Byte for byte: compact, sorted by name, padded with spaces to a multiple of 8.

    Args:
        tensors: The dtype and shape of each; their data follows in the order of their names.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        dtype, shape = tensors[name]
        end = offset + STORED_DTYPES[dtype].itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset


def _check_end(path: Path, final: Tensor | None) -> None:
    """Raise CheckpointError for a file whose last weights are zeros.

    An interrupted download into a file of its final size leaves zeros at the end. Trained norms and
    projections do not end so; vocabulary rows that no token has may be zeros.
    """
    if final is None or final.name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return
    end = final.data.reshape(-1)[-min(16, final.data.size) :] if final.data.ndim == 1 else final.data[-1]
    if not end.any():
        raise CheckpointError(
            f"{path}: ends in zeros (in {final.name}): it was not written to its end (an interrupted "
            "download?); download it again"
        )


def _is_zero(tensor: Tensor) -> bool:
    """Return whether all values are zero.

    One row is looked at first: reading all of a model takes longer than loading it.
    """
    return not tensor.data[-1:].any() and not tensor.data[:1].any() and not tensor.data.any()


def _weight_files(folder: Path) -> list[Path]:
    """Return model.safetensors, or the shards that the index names."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        other = sorted(
            p.name for pattern in ("*.bin", "*.gguf", "*.safetensors") for p in folder.glob(pattern)
        )
        found = f" (found {', '.join(other[:3])})" if other else ""
        raise CheckpointError(
            f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}{found}; download the weights"
        )
    weight_map = load_json(index)
    weight_map = weight_map.get("weight_map") if isinstance(weight_map, Mapping) else None
    if not isinstance(weight_map, Mapping) or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(
            f"{index}: holds no weight_map of tensor names to file names; download it again"
        )
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside or not names:
        raise CheckpointError(f"{index}: names what is not a file of this folder: {outside}")
    present = {path.name for path in folder.iterdir() if path.is_file()}
    missing = [name for name in names if name not in present]
    if missing:
        raise CheckpointError(f"{index}: names files that are not there: {', '.join(missing)}; download them")
    return [folder / name for name in names]


def _damage(path: Path) -> str:
    """Say what is wrong with a file that does not open, as far as its first bytes and its size tell."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(1024)
            if start.startswith(b"version https://git-lfs"):
                return "is a Git LFS pointer, not the weights: run `git lfs pull`"
            header_size = int.from_bytes(start[:8], "little")
            if size < 8 or header_size > size - 8:
                return f"is truncated, or not a safetensors file: {size} bytes"
            file.seek(8)
            header = json.loads(file.read(header_size))
            need = (
                8
                + header_size
                + max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
            )
            if need != size:
                return f"has {size} bytes where its header describes {need}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return "has a damaged header"
