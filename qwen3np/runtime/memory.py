"""Whether a model's weights fit into memory, found out before they are read.

A process that takes more than a container allows is killed without a word.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ..kernels.compact import COLUMNS, FORMATS
from ..loading.checkpoint import Checkpoint
from .cgroups import Group, own_groups, read
from .packed_weights import is_bfloat16, pad

WORK = 128_000_000  # bytes beside the weights: Numba's compiler, the activations of a micro-batch


@contextlib.contextmanager
def room_for(checkpoint: Checkpoint, weights: str) -> Iterator[None]:
    """Guard the packing of the weights, which goes on inside.

    Raises:
        MemoryError: they do not fit into what is available (nothing has been read then), or the system
            refuses the memory all the same.
    """
    need, there = packed_bytes(checkpoint, weights) + WORK, available_bytes()
    if there is not None and need > there:
        raise MemoryError(_message(checkpoint, need, there))
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        raise MemoryError(_message(checkpoint, need, there)) from error


def packed_bytes(checkpoint: Checkpoint, weights: str = "stored") -> int:
    """The bytes that packed_weights.pack allocates for the matrices.

    As stored they are 2 per weight of bfloat16 checkpoints, else 4. Rows are padded to 32, and columns to 32
    or, in fewer bits, to blocks of 128.
    """
    c = checkpoint.config
    D, F, NH = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim
    weights = "int8" if checkpoint.is_int8 else weights
    shapes = [(NH, D), (2 * c.num_key_value_heads * c.head_dim, D), (D, NH), (2 * pad(F, 32), D), (D, F)]
    if weights in FORMATS:
        size = FORMATS[weights][1]
        matrices = (pad(N, 32) // 16 * -(-pad(K, 32) // COLUMNS) * size for N, K in shapes)
    else:
        size = 2 if is_bfloat16(checkpoint) else 4
        matrices = (pad(N, 32) * pad(K, 32) * size for N, K in shapes)
    return c.num_hidden_layers * sum(matrices)


def available_bytes(root: Path = Path("/")) -> int | None:
    """The memory that this process can still take; None where the system does not tell.

    That is what the system has free or can free (its caches, its swap), and what the limits of the process,
    of its control group and of all around that leave. `root` is where /proc and /sys are found.
    """
    lines = (line.split() for line in read(root / "proc/meminfo").splitlines())
    kilobytes = {
        line[0].rstrip(":"): int(line[1]) for line in lines if len(line) >= 2 and line[1].isdecimal()
    }
    if "MemAvailable" not in kilobytes:
        return None
    swap = kilobytes.get("SwapFree", 0) * 1024
    groups = (_left(group, swap) for group in own_groups("memory", root))
    limits = [left for left in groups if left is not None] + _process_limits(root)
    return min([kilobytes["MemAvailable"] * 1024 + swap, *limits])


def _process_limits(root: Path) -> list[int]:
    """The memory that the process's limits leave (ulimit -v, ulimit -d; batch systems set them)."""
    limits, status = (read(root / "proc/self" / file).splitlines() for file in ("limits", "status"))
    left = []
    for limit, usage in (("Max address space", "VmSize:"), ("Max data size", "VmData:")):
        most = next((line[len(limit) :].split()[0] for line in limits if line.startswith(limit)), "")
        used = next((line.split()[1] for line in status if line.startswith(usage)), "")
        if most.isdecimal() and used.isdecimal():  # "unlimited", or not there
            left.append(max(0, int(most) - int(used) * 1024))
    return left


def _left(group: Group, swap: int) -> int | None:
    """The memory that a group's limit leaves; None without a limit.

    Pages of files do not count: they are given back when memory is needed.
    """
    limit_file, usage_file, total = (
        ("memory.max", "memory.current", "")
        if group.version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    )
    limit, usage = group.read(limit_file), group.read(usage_file)
    if not (limit.isdecimal() and usage.isdecimal()):  # "max", or not there
        return None
    pages = group.numbers("memory.stat")
    files = sum(pages.get(f"{total}{kind}_file", 0) for kind in ("active", "inactive"))
    swap_limit = group.read("memory.swap.max")
    if swap_limit.isdecimal():
        swap = min(swap, int(swap_limit))
    return max(0, int(limit) - max(0, int(usage) - files)) + swap


def _message(checkpoint: Checkpoint, need: int, there: int | None) -> str:
    has = "which the system refuses"
    if there is not None and there < need:
        has = f"{there / 1e9:.2f} GB are available to"
    choices = {weights: packed_bytes(checkpoint, weights) + WORK for weights in FORMATS}
    smaller = [f'weights="{w}" ({size / 1e9:.2f} GB)' for w, size in choices.items() if size < need]
    return (
        f"{checkpoint.folder}: its weights need {need / 1e9:.2f} GB of memory, {has} this process; take "
        f"{', '.join([*smaller, 'a smaller model'])}, give it more memory, or use "
        'backend="numpy" (--backend numpy), which reads the weights layer by layer'
    )
