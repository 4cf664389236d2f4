"""A model's folder with weights of 8 bits: half the download, and loaded without rounding anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..loading.checkpoint import INDEX_FILE, Checkpoint, Tensor, read_safetensors, safetensors_header
from ..loading.int8 import MATRICES, METHOD, SCALES, quantize, scales_shape
from .copies import save


def to_int8(
    checkpoint: Checkpoint,
    path: str | Path,
    progress: Callable[[int], object] = lambda tensors: None,
) -> Path:
    """Write a model's folder anew, its projections as int8; the folder appears complete or not at all.

    Embeddings, norms and heads stay as they are: the embeddings are read row by row, and are no part of what
    a text waits for. One matrix is in memory at a time.

    Args:
        checkpoint: The model.
        path: A new or empty folder.
        progress: Called with 1 after each tensor.

    Returns:
        The folder.

    Raises:
        FileExistsError: `path` holds anything.
        ValueError: `path` is inside the model's folder, or the weights are of 8 bits already.
    """
    if checkpoint.is_int8:
        raise ValueError(f"{checkpoint.folder}: its weights are of 8 bits already")
    inside = checkpoint.transformer_folder.relative_to(checkpoint.folder)
    settings = {str(inside / "config.json"): {"quantization_config": METHOD}}
    left_out = {*checkpoint.files, checkpoint.transformer_folder / INDEX_FILE}

    def write(made: Path) -> None:
        weight_map: dict[str, str] = {}
        total = 0
        for source in checkpoint.files:
            stored = sorted(read_safetensors(source), key=lambda tensor: tensor.name)
            entries = {}
            for tensor in stored:
                entries[tensor.name] = ("I8" if is_matrix(tensor) else tensor.dtype, tensor.shape)
                if is_matrix(tensor):
                    entries[tensor.name + SCALES] = ("F32", scales_shape(tensor.shape))
            weight_map |= dict.fromkeys(entries, source.name)
            header, size = safetensors_header(entries)
            total += size
            with open(made / inside / source.name, "wb") as file:
                file.write(header)
                for tensor in stored:
                    if is_matrix(tensor):
                        for part in quantize(tensor.widen()):
                            file.write(part.tobytes())
                    else:
                        file.write(tensor.data.tobytes())
                    checkpoint.release()
                    progress(1)
        if len(checkpoint.files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (made / inside / INDEX_FILE).write_text(text, encoding="utf-8")
        checkpoint.check_unchanged()

    save(checkpoint.folder, path, settings, left_out, write)
    return Path(path)


def is_matrix(tensor: Tensor) -> bool:
    """Return whether a tensor becomes int8: those that every token is multiplied by."""
    return tensor.name.endswith(MATRICES)
