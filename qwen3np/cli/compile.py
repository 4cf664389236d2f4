"""qwen3np compile: compile every kernel that this CPU uses ahead of time, for a container image."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import save_file

from ..loading.checkpoint import SINGLE_FILE, Checkpoint
from ..synth.checkpoints import synthesize
from .options import MATMUL_PRECISIONS, WEIGHTS

EXAMPLES = ("qwen3np compile",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--matmul-precision",
        choices=MATMUL_PRECISIONS,
        help="compile the kernels of one precision (default: of all three)",
    )
    parser.add_argument(
        "--reproducible", action="store_true", help="compile the kernels that --reproducible uses"
    )
    parser.add_argument(
        "--weights", default="stored", choices=WEIGHTS, help="compile the kernels that --weights uses"
    )


def run(args: argparse.Namespace) -> None:
    from ..kernels import cache_files

    kernels = compile_kernels(args.matmul_precision, args.reproducible, args.weights)
    if missing := [kernel for kernel, kept in kernels.items() if not kept]:
        raise OSError(f"compiled kernels were not kept ({', '.join(missing)}): see the warning above")
    for folder, files, size in cache_files.stored():
        print(f"{folder}: {files} kernels, {size / 1e6:.1f} MB")


def compile_kernels(
    matmul_precision: str | None = None, reproducible: bool = False, weights: str = "stored"
) -> dict[str, bool]:
    """Compile kernels for bfloat16 and float32 checkpoints, unless they are there already.

    Args:
        matmul_precision: Those of one precision. Default: of all.
        reproducible: Those of reproducible vectors.
        weights: Those of "stored", "lossless" or "int8" weights.

    Returns:
        Kernel and types -> whether it is kept on disk.
    """
    from ..engine import forward, stage
    from ..interface.convert import to_int8
    from ..kernels.scan import scan
    from ..nearest import compile_scans
    from ..runtime.numba_backend import FLOATING, PRECISIONS, NumbaBackend
    from ..runtime.packed_weights import encode_share, is_bfloat16, pack_int8_share, pack_share

    every = ("highest",) if reproducible else PRECISIONS if weights == "int8" else FLOATING
    precisions = every if matmul_precision is None else (matmul_precision,)
    with tempfile.TemporaryDirectory() as temporary:
        for checkpoint in _checkpoints(Path(temporary)):
            for precision in precisions:
                if weights == "stored" or is_bfloat16(checkpoint):
                    list(NumbaBackend(checkpoint, precision, None, reproducible, weights).stages([[0]]))
            if weights == "int8" and is_bfloat16(checkpoint):  # what a file of 8 bits needs beyond that
                file = Checkpoint(to_int8(checkpoint, Path(temporary) / "int8"))
                NumbaBackend(file, precisions[0], None, reproducible)
                del file
            del checkpoint  # Windows deletes no file that is mapped
    compile_scans()
    return {
        f"{kernel.__name__} {number}": kernel._cache.kept(types, kernel.targetctx)
        for kernel in (pack_share, encode_share, pack_int8_share, forward, stage, scan)
        for number, types in enumerate(kernel.signatures, 1)
    }


def _checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Yield a checkpoint of each kind of weights that has kernels of its own.

    Kernels depend on types, never on sizes.
    """
    yield (bfloat16 := Checkpoint(synthesize(folder / "bfloat16")))
    widened = synthesize(folder / "float32")
    save_file({name: tensor.widen() for name, tensor in bfloat16.tensors.items()}, widened / SINGLE_FILE)
    yield Checkpoint(widened)
