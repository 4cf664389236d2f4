"""Pack a checkpoint's weights for the kernels, layer by layer, without a second copy in memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..kernels.compact import COLUMNS, FORMATS, MOST_LISTED, encode, pack_int8
from ..kernels.jit import compile_for, entry_point
from ..kernels.panels import pack_tiles
from ..kernels.team import share
from ..loading.checkpoint import Checkpoint, widen
from .threads import Job, Pool

# Windows has no fork, and no such flags.
PRIVATE: dict[str, Any] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)
Stored: TypeAlias = "NDArray[Any] | tuple[NDArray[Any], ...]"  # a matrix, or its int8 and their scales
GUARD_BYTES = 64  # in front of the first weight: micro_kernel.one_weight loads the two bytes before a weight


class PackedWeights(NamedTuple):
    """The weights as the kernels read them.

    A matrix is [L, N/16, K/2, 16, 2] bfloat16 bits, or [L, N/16, K, 16] float32 (kernels/matmul.py), or for
    AMX [L, N/32, K/32, 2, 16, 32] bfloat16 bits (kernels/amx.py), or in fewer bits [L, N/16, K/128, bytes]
    (kernels/compact.py).
    """

    q_proj: NDArray[Any]
    kv_proj: NDArray[Any]  # k_proj's rows, then v_proj's
    o_proj: NDArray[Any]
    gate_up_proj: NDArray[Any]  # 16 rows of gate_proj, 16 of up_proj, in turns
    down_proj: NDArray[Any]
    q_norm: NDArray[Any]
    k_norm: NDArray[Any]
    input_layernorm: NDArray[Any]
    post_attention_layernorm: NDArray[Any]
    norm: NDArray[Any]


def pad(size: Any, multiple: int) -> Any:
    """Round a number, or an array of them, up to a multiple."""
    return -(-size // multiple) * multiple


@entry_point
def pack_share(source: Any, packed: Any, tile: int, tile_step: int, thread: int, num_threads: int) -> None:
    """Pack this thread's share of a matrix."""
    first, last = share((source.shape[0] + 15) // 16, thread, num_threads)
    pack_tiles(source, packed, tile, tile_step, first, last)


@entry_point
def encode_share(
    source: Any,
    pairs: bool,
    packed: Any,
    tile: int,
    tile_step: int,
    listed: Any,
    thread: int,
    num_threads: int,
) -> None:
    """Encode this thread's share of a matrix; listed[thread] becomes the most that a block had to list."""
    first, last = share((source.shape[0] + 15) // 16, thread, num_threads)
    listed[thread] = encode(source, pairs, packed, tile, tile_step, first, last)


@entry_point
def pack_int8_share(
    source: Any, scales: Any, packed: Any, tile: int, tile_step: int, thread: int, num_threads: int
) -> None:
    """Pack this thread's share of a matrix that is int8 already."""
    first, last = share((source.shape[0] + 15) // 16, thread, num_threads)
    pack_int8(source, scales, packed, tile, tile_step, first, last)


def allocate(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Allocate aligned zeros in memory of this process alone, in huge pages where there are some.

    At 16 tokens a forward pass touches every page once. mmap's default, shared memory, gets no huge pages,
    and a forked child would write into its parent's.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, size + GUARD_BYTES, **PRIVATE)
    except OSError as error:
        raise MemoryError(
            f"the system refuses {size / 1e9:.2f} GB of memory ({error.strerror}): give the process more, or "
            "shorten the longest texts (max_seq_length)"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a system without them
            pass
    return np.frombuffer(memory, np.uint8, size, GUARD_BYTES).view(dtype).reshape(shape)


def as_uint32(matrix: NDArray[Any]) -> NDArray[np.uint32]:
    """View rows as 32-bit words: float32 values, or pairs of bfloat16.

    If K is odd, the last pair gets a zero. They are read-only, as a mapped file is: one type for the kernel.
    """
    if matrix.dtype == np.uint16 and matrix.shape[1] % 2:
        matrix = np.pad(matrix, ((0, 0), (0, 1)))
    if matrix.ctypes.data % 4:  # no writer of safetensors leaves data so
        matrix = matrix.copy()
    words = matrix.view(np.uint32)
    words.flags.writeable = False
    return words


def read_only(array: Any) -> NDArray[Any]:
    """Return an array that is contiguous and read-only, as a mapped file is: one type for the kernels."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the rows of several arrays behind one another; those of one as they are."""
    return arrays[0] if len(arrays) == 1 else read_only(np.concatenate(arrays))


def is_bfloat16(checkpoint: Checkpoint) -> bool:
    """Tell whether all matrices are bfloat16; the kernels for bfloat16 take no others."""
    return all(t.dtype == "BF16" for name, t in checkpoint.tensors.items() if name.endswith("_proj.weight"))


def pack(
    checkpoint: Checkpoint,
    pool: Pool[Any],
    progress: Callable[[int], object],
    tiles: bool = False,
    weights: str = "stored",
) -> PackedWeights:
    """Pack all layers, on all threads.

    Args:
        checkpoint: the weights.
        pool: the threads.
        progress: called with 1 after each layer.
        tiles: for AMX.
        weights: "stored", or "int8" or "lossless" (kernels/compact.py).

    Raises:
        CheckpointError: the weights do not become lossless ones: exponents differ too much.
    """
    c, tensors = checkpoint.config, checkpoint.tensors
    L, D, F, H = c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.head_dim
    NH, KH = c.num_attention_heads * H, c.num_key_value_heads * H
    bfloat16 = is_bfloat16(checkpoint)

    def matrix(N: int, K: int) -> NDArray[Any]:
        N, K = pad(N, 32), pad(K, 32)
        if weights in FORMATS:
            dtype, size = FORMATS[weights]
            return allocate((L, N // 16, -(-K // COLUMNS), size), dtype)
        if tiles:
            return allocate((L, N // 32, K // 32, 2, 16, 32), np.uint16)
        if bfloat16:
            return allocate((L, N // 16, K // 2, 16, 2), np.uint16)
        return allocate((L, N // 16, K, 16), np.float32)

    w = PackedWeights(
        q_proj=matrix(NH, D),
        kv_proj=matrix(2 * KH, D),
        o_proj=matrix(D, NH),
        gate_up_proj=matrix(2 * pad(F, 32), D),
        down_proj=matrix(D, F),
        q_norm=np.empty((L, H), np.float32),
        k_norm=np.empty((L, H), np.float32),
        input_layernorm=np.empty((L, D), np.float32),
        post_attention_layernorm=np.empty((L, D), np.float32),
        norm=tensors["norm.weight"].widen(),
    )

    def words(packed: NDArray[Any]) -> NDArray[np.uint32]:
        as_words = packed.view(np.uint32)
        return as_words if tiles else as_words.reshape(len(packed), -1, 16)

    listed = np.zeros(pool.num_threads, np.int64)

    def put(job: Job[Any], source: Stored, packed: NDArray[Any], tile: int = 0, step: int = 1) -> None:
        if isinstance(source, tuple):
            job.run(pack_int8_share, *source, packed, tile, step)
            return
        if weights not in FORMATS:
            job.run(pack_share, as_uint32(source), words(packed), tile, step)
            return
        job.run(encode_share, as_uint32(source), bfloat16, packed, tile, step, listed)
        if listed.max() > MOST_LISTED:
            raise CheckpointError(
                f"{checkpoint.folder}: {listed.max()} of 2,048 neighbouring weights have unusual exponents, "
                f'and weights="lossless" has room for {MOST_LISTED}: leave it out, or take weights="int8"'
            )

    def pack_layers(job: Job[Any]) -> None:
        checkpoint.read_ahead(0)
        for i in range(L):
            checkpoint.read_ahead(i + 1)  # while this one is packed

            def stored(*names: str, i: int = i) -> Stored:
                found = [tensors[f"layers.{i}.{name}.weight"] for name in names]
                if checkpoint.is_int8:
                    columns = zip(*((read_only(t.data), read_only(t.scales)) for t in found), strict=True)
                    return tuple(map(joined, columns))
                return joined([t.data if bfloat16 else widen(t.data) for t in found])

            put(job, stored("self_attn.q_proj"), w.q_proj[i])
            put(job, stored("self_attn.k_proj", "self_attn.v_proj"), w.kv_proj[i])
            put(job, stored("self_attn.o_proj"), w.o_proj[i])
            put(job, stored("mlp.gate_proj"), w.gate_up_proj[i], 0, 2)
            put(job, stored("mlp.up_proj"), w.gate_up_proj[i], 1, 2)
            put(job, stored("mlp.down_proj"), w.down_proj[i])
            for name in ("q_norm", "k_norm"):
                getattr(w, name)[i] = tensors[f"layers.{i}.self_attn.{name}.weight"].widen()
            for name in ("input_layernorm", "post_attention_layernorm"):
                getattr(w, name)[i] = tensors[f"layers.{i}.{name}.weight"].widen()
            checkpoint.release()
            job.advance(1)

    if checkpoint.is_int8:
        one = tuple(read_only(np.zeros((16, 1), dtype)) for dtype in (np.int8, np.float32))
        compile_for(pack_int8_share, (*one, w.q_proj[0], 0, 1, 0, 1), "int8 files")
        pool.call(pack_layers, progress)
        return w
    nothing = as_uint32(np.empty((0, 2), np.uint16 if bfloat16 else np.float32))
    if weights in FORMATS:
        compile_for(encode_share, (nothing, bfloat16, w.q_proj[0], 0, 1, listed, 0, 1), weights)
    else:
        compile_for(pack_share, (nothing, words(w.q_proj[0]), 0, 1, 0, 1), "tiles" if tiles else "rows")
    pool.call(pack_layers, progress)
    return w
