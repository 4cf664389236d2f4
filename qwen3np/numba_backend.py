"""The backend on the kernels: texts become a stream, engine.encode runs, the pooled states come back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import reference
from .checkpoint import Checkpoint
from .engine import BLOCK_PANELS, Stream, Work, encode, layer_stages
from .kernels import attention, isa
from .kernels.compiled import compile_for
from .kernels.team import STOP, new_team
from .threads import Lock, Pool
from .weights import allocate, pack, pad

PRECISIONS = ("highest", "high", "medium")
STEP_TOKENS = 2048
SWIGLU_SCRATCH = 3 * 2 * 16 * 16


class NumbaBackend:
    """The backend on the kernels.

    Args:
        matmul_precision: "highest", "high" or "medium", as torch.set_float32_matmul_precision names them.
        num_threads: default: the cores this process may use.
    """

    name = "numba"

    def __init__(
        self, checkpoint: Checkpoint, matmul_precision: str = "high", num_threads: int | None = None
    ) -> None:
        if matmul_precision not in PRECISIONS:
            raise ValueError(f"matmul_precision = {matmul_precision!r} is not one of {', '.join(PRECISIONS)}")
        self.matmul_precision = matmul_precision
        self.isa = isa.choose(matmul_precision)
        self.config = checkpoint.config
        self.pool = Pool(num_threads)
        self._embed_tokens = checkpoint.weights().embed_tokens
        self._norm = checkpoint.weights().norm
        self._team = new_team()
        self._lock = Lock()
        self._cos = self._sin = np.empty((0, 0), np.float32)
        self._buffers: dict[str, NDArray[Any]] = {}
        with _progress(checkpoint.config.num_hidden_layers) as bar:
            self._weights = pack(checkpoint, self.pool, lambda done, layers: bar.update(done - bar.n))
        compile_for(encode, (*self._arguments([[0]])[0], 0, 1))

    def __repr__(self) -> str:
        return f"numba, {self.isa}, matmul_precision {self.matmul_precision}, {self.num_threads} threads"

    @property
    def num_threads(self) -> int:
        return self.pool.num_threads

    def encode(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Token ids of each text -> the final state of its last token, [len(texts), hidden_size], not
        normalised.

        Safe to call from several Python threads: one at a time computes.
        """
        states = np.empty((len(texts), self.config.hidden_size), np.float32)
        with self._lock():
            for first, last in steps([len(ids) for ids in texts]):
                arguments, pooled_x = self._arguments(texts[first:last])
                self.pool.run(encode, *arguments, stop=self._stop)
                pooled_TD = pooled_x.transpose(0, 2, 1).reshape(-1, pooled_x.shape[1])
                states[first:last] = pooled_TD[: last - first, : self.config.hidden_size]
        return reference.rms_norm(states, self._norm, np.float32(self.config.rms_norm_eps))

    def with_threads(self, num_threads: int) -> NumbaBackend:
        """A backend of its own on another number of threads, on the same packed weights."""
        other = copy.copy(self)
        other.pool, other._team, other._lock, other._buffers = Pool(num_threads), new_team(), Lock(), {}
        return other

    def stages(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[str, NDArray[Any]]]:
        """The stages of parity.py, every layer computed for every token: `encode` to the bit, and slower."""
        yield from self.with_threads(self.num_threads)._stages(texts)  # encode may be called between two

    def _stages(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[str, NDArray[Any]]]:
        (layers, weights, work, stream, *_, eps, group, head_dim, team), _ = self._arguments(texts)
        ends = np.cumsum([len(ids) for ids in texts])
        parts = {"self_attn": np.zeros_like(work.x), "mlp": np.zeros_like(work.x)}

        def rows(x: NDArray[Any]) -> NDArray[Any]:
            x_TD = x.transpose(0, 2, 1).reshape(-1, x.shape[1])
            return np.array(x_TD[: ends[-1], : self.config.hidden_size])

        yield "embed_tokens", rows(work.x)
        for i in range(layers):
            for part in parts.values():
                part[:] = 0
            arguments = (i, weights, work, stream, *parts.values(), eps, group, head_dim, team)
            compile_for(layer_stages, (*arguments, 0, 1))
            self.pool.run(layer_stages, *arguments, stop=self._stop)
            for name, part in parts.items():
                yield f"layers.{i}.{name}", rows(part)
            yield f"layers.{i}", rows(work.x)
        states = reference.rms_norm(rows(work.x), self._norm, eps)
        yield "norm", states
        yield "pooled", reference.normalize(states[ends - 1])

    def _stop(self, asked: bool) -> None:
        if asked:
            self._team[STOP] = 1
        else:  # no thread is in the kernel any more
            self._team[:] = 0

    def _arguments(self, texts: Sequence[Sequence[int]]) -> tuple[tuple[Any, ...], NDArray[Any]]:
        """What the kernel takes for one step, up to the thread's number; and the array of its result."""
        c = self.config
        lengths = np.array([len(ids) for ids in texts])
        ends = np.cumsum(lengths)
        begins = ends - lengths
        D = pad(c.hidden_size, 32)
        panels, pooled_panels = -(-ends[-1] // 16), -(-len(texts) // 16)
        work = self._work(panels)
        ids = np.concatenate([np.asarray(ids, np.int64) for ids in texts])
        rows = np.zeros((panels * 16, D), np.float32)
        rows[: len(ids), : c.hidden_size] = self._embed_tokens[ids]
        work.x[:] = rows.reshape(panels, 16, D).transpose(0, 2, 1)
        pooled_x = self._buffer("pooled", (pooled_panels, D, 16))
        pooled_x[:] = 0
        positions = np.arange(ends[-1]) - np.repeat(begins, lengths)
        everything = self._stream(np.arange(ends[-1]), positions, *text_segments(begins, ends))
        pooled = self._stream(ends - 1, lengths - 1, *pooled_segments(begins, ends))
        group = c.num_attention_heads // c.num_key_value_heads
        fixed = (np.float32(c.rms_norm_eps), group, c.head_dim, self._team)
        stream_arguments = (everything, pooled_x, pooled, ends - 1)
        return (c.num_hidden_layers, self._weights, work, *stream_arguments, *fixed), pooled_x

    def _stream(self, tokens: Any, positions: Any, panel_of: Any, segments: Any) -> Stream:
        panels = -(-len(tokens) // 16)
        longest = int(positions.max()) + 1
        if len(self._cos) < longest:
            self._cos, self._sin = reference.rope_table(longest, self.config.head_dim, self.config.rope_theta)
        position = np.zeros(panels * 16, np.int64)
        position[: len(tokens)] = positions
        token = np.zeros((panels, 16), np.float32)
        token.ravel()[: len(tokens)] = tokens

        def lanes(table: NDArray[Any]) -> NDArray[Any]:
            return np.ascontiguousarray(table[position].reshape(panels, 16, -1).transpose(0, 2, 1))

        starts = np.searchsorted(panel_of, np.arange(panels + 1))
        return Stream(lanes(self._cos), lanes(self._sin), token, starts, segments)

    def _work(self, panels: int) -> Work:
        c = self.config
        H, F = c.head_dim, pad(c.intermediate_size, 32)
        NH, KH = c.num_attention_heads * H, c.num_key_value_heads * H
        group = c.num_attention_heads // c.num_key_value_heads
        D = pad(c.hidden_size, 32)
        scratch = max(attention.scratch_size(H, group), SWIGLU_SCRATCH)
        fixed = min(panels, BLOCK_PANELS)
        return Work(
            x=self._buffer("x", (panels, D, 16)),
            keys=self._buffer("keys", (c.num_key_value_heads, panels, H, 16)),
            values=self._buffer("values", (c.num_key_value_heads, 16 * panels, attention.padded(H))),
            h=self._operand("h", D),
            q=self._buffer("q", (fixed, pad(NH, 16), 16)),
            kv=self._buffer("kv", (fixed, pad(2 * KH, 16), 16)),
            attended=self._operand("attended", pad(NH, 32)),
            act=self._operand("act", F),
            scratch=self._buffer("scratch", (self.num_threads, scratch)),
        )

    def _operand(self, name: str, rows: int) -> NDArray[Any]:
        """Of one block. Its padding must be zero and stays it, since its shape is the same at every step."""
        if self.isa == isa.AVX512_BF16:
            return self._buffer(name, (BLOCK_PANELS, rows // 2, 32), np.uint16)
        return self._buffer(name, (BLOCK_PANELS, rows, 16))

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """A work array, kept from step to step: zeros when new, then what the step before left."""
        size = int(np.prod(shape))
        if self._buffers.get(name, np.empty(0)).size < size:
            self._buffers[name] = allocate((size,), dtype)
        return self._buffers[name][:size].reshape(shape)


def steps(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of texts that are computed together: as many as fit into STEP_TOKENS, or one that does not."""
    ranges, first, tokens = [], 0, 0
    for i, length in enumerate(lengths):
        if i > first and tokens + length > STEP_TOKENS:
            ranges.append((first, i))
            first, tokens = i, 0
        tokens += length
    return [*ranges, (first, len(lengths))] if len(lengths) else []


def text_segments(begins: NDArray[Any], ends: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """For every panel and every text with tokens in it: the panel, and a row of Stream.segments."""
    counts = (ends - 1) // 16 - begins // 16 + 1
    text = np.repeat(np.arange(len(begins)), counts)
    panel = begins[text] // 16 + np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    lane = np.maximum(begins[text] - 16 * panel, 0)
    next_lane = np.minimum(ends[text] - 16 * panel, 16)
    return panel, np.stack([begins[text], 16 * panel + next_lane, lane, next_lane], axis=1)


def pooled_segments(begins: NDArray[Any], ends: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same for the last tokens of the texts, each a lane of its own."""
    i = np.arange(len(begins))
    return i // 16, np.stack([begins, ends, i % 16, i % 16 + 1], axis=1)


def _progress(layers: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=layers, desc="packing weights", unit="layer", delay=2, leave=False)
