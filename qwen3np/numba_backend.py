"""The backend on the kernels: texts become a stream, engine.encode runs, the pooled states come back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import reference
from .beginnings import Beginning, Beginnings, shared_by, worth_computing
from .checkpoint import Checkpoint
from .cores import cores_sharing_cache
from .engine import Prefix, Stream, Work, encode, layer_stages
from .kernels import attention, isa, matmul
from .kernels.compiled import compile_for
from .kernels.keys_values import AT_ONCE, shapes
from .kernels.team import new_team
from .memory import room_for
from .progress import bar
from .rope import rope_table
from .steps import STEP_TOKENS, Range, plan
from .threads import Job, Pool, Team
from .weights import allocate, is_bfloat16, pack, pad

PRECISIONS = ("highest", "high", "medium")
BLOCK_PANELS = 16  # 256 tokens: a block's activations are 2 MB at the 0.6B's width
GATHER_PANELS = 64  # at a time: a stream of 32,768 tokens at once would take 400 MB beside itself
# bfloat16 parts of an activation, key or value on tiles. Pairs have one; 0 stands for float32.
PARTS = {"highest": 3, "high": 2, "medium": 1}


class Workspace:
    """What calls write and later calls use again: work arrays, the tables of RoPE, beginnings of texts."""

    def __init__(self, none: Beginning) -> None:
        self.kept = Beginnings(none)
        self.cos = self.sin = np.empty((0, 0), np.float32)
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """A work array, kept from step to step: zeros when new, then what the step before left."""
        size = int(np.prod(shape))
        if self._arrays.get(name, np.empty(0)).size < size:
            self._arrays[name] = allocate((size,), dtype)
        return self._arrays[name][:size].reshape(shape)


class NumbaBackend:
    """The backend on the kernels.

    Args:
        matmul_precision: "highest", "high" or "medium", as torch.set_float32_matmul_precision names them.
        num_threads: default: see cores.thread_count.
        reproducible: the same bits on every CPU, with "highest".
    """

    name = "numba"

    def __init__(
        self,
        checkpoint: Checkpoint,
        matmul_precision: str = "high",
        num_threads: int | None = None,
        reproducible: bool = False,
    ) -> None:
        if matmul_precision not in PRECISIONS:
            raise ValueError(f"matmul_precision = {matmul_precision!r} is not one of {', '.join(PRECISIONS)}")
        if reproducible and matmul_precision == "medium":
            raise ValueError(
                "matmul_precision = 'medium' and reproducible=True contradict each other: reproducible "
                "vectors are computed with 'highest'; leave one of them out"
            )
        self.reproducible = reproducible
        self.matmul_precision = matmul_precision = "highest" if reproducible else matmul_precision
        bfloat16 = is_bfloat16(checkpoint)
        self.isa = isa.choose(matmul_precision, bfloat16, reproducible)
        self._tiles = self.isa in (isa.AMX, isa.AMX_SPELLED_OUT)
        self._parts = PARTS[matmul_precision] if self._tiles else 1 if self.isa == isa.AVX512_BF16 else 0
        # Tiles stream the weights at the memory's speed with 128 tokens of two parts, and hold those in L2.
        self._block_panels = BLOCK_PANELS // self._parts // 2 * 2 if self._tiles else BLOCK_PANELS
        self._variant = f"{self.isa}, {'bfloat16' if bfloat16 else 'float32'} weights"
        self.config = checkpoint.config
        none = self._beginning(())
        self._new_workspace = partial(Workspace, none)
        self._sharing = cores_sharing_cache()
        self.pool: Pool[Workspace] = Pool(num_threads, self._new_workspace)
        self._embed_tokens = checkpoint.weights().embed_tokens
        self._release = checkpoint.release
        layers = checkpoint.config.num_hidden_layers
        shown = bar(total=layers, desc="packing weights", unit="layer", delay=2, leave=False)
        with room_for(checkpoint, bfloat16), shown:
            self._weights = pack(checkpoint, self.pool, shown.update, self._tiles)
        arguments, _ = self.pool.call(lambda job: self._arguments(job, [[0]], none, none))
        compile_for(encode, (*arguments, 0, 1), self._variant)

    def __repr__(self) -> str:
        reproducible = ", reproducible" if self.reproducible else ""
        precision = f"matmul_precision {self.matmul_precision}{reproducible}"
        return f"numba, {self.isa}, {precision}, {self.num_threads} threads"

    @property
    def num_threads(self) -> int:
        return self.pool.num_threads

    def encode(
        self,
        texts: Sequence[Sequence[int]],
        prefix: Sequence[int] = (),
        batch_size: int | None = None,
        progress: Callable[[int], object] = lambda texts: None,
    ) -> NDArray[np.float32]:
        """Token ids of each text -> the final state of its last token, [len(texts), hidden_size], not
        normalised.

        What all texts begin with is computed once, and kept for later calls; `prefix` is kept in any case, if
        the texts begin with it. Neither changes a bit. batch_size: texts computed at a time, at the most.
        progress: called with the number of texts that were computed since its last call. Safe to call from
        several Python threads: one at a time computes."""
        if len(texts) == 0:
            return np.empty((0, self.config.hidden_size), np.float32)
        return self.pool.call(lambda job: self._encode(job, texts, prefix, batch_size), progress)

    def _encode(
        self, job: Job[Workspace], texts: Sequence[Sequence[int]], prefix: Sequence[int], most: int | None
    ) -> NDArray[np.float32]:
        states = np.empty((len(texts), self.config.hidden_size), np.float32)
        kept = job.workspace.kept
        for ids in worth_computing(texts, prefix, kept):
            beginning = self._beginning(ids)
            self._run(job, [ids], kept.longest(ids), beginning)
            kept.add(beginning)
        known = kept.longest(shared_by(texts))

        def step(team: Team[Workspace], texts_of: Range) -> None:
            first, last = texts_of
            states[first:last] = self._run(team, texts[first:last], known, kept.none)
            job.advance(last - first)

        for threads, ranges in self._plan([len(ids) for ids in texts], len(known), most):
            job.in_teams(threads, step, ranges)
        return states

    def _plan(self, lengths: list[int], known: int, most: int | None) -> list[tuple[int, list[Range]]]:
        return plan(lengths, known, most, self.num_threads, self._sharing, 16 * self._block_panels)

    def _run(
        self, team: Team[Workspace], texts: Sequence[Sequence[int]], known: Beginning, saved: Beginning
    ) -> NDArray[np.float32]:
        arguments, pooled_x = self._arguments(team, texts, known, saved)
        team.run(encode, *arguments)
        pooled_TD = pooled_x.transpose(0, 2, 1).reshape(-1, pooled_x.shape[1])
        return pooled_TD[: len(texts), : self.config.hidden_size]

    def token_states(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Token ids of each text -> the final states of all its tokens, [len(ids), hidden_size]."""
        return self.pool.call(lambda job: [self._token_states(job, ids) for ids in texts])

    def _token_states(self, job: Job[Workspace], ids: Sequence[int]) -> NDArray[np.float32]:
        none = job.workspace.kept.none
        arguments, _ = self._arguments(job, [ids], none, none, every_token=True)
        job.run(encode, *arguments)
        x = arguments[2].x
        return x.transpose(0, 2, 1).reshape(-1, x.shape[1])[: len(ids), : self.config.hidden_size].copy("C")

    def _beginning(self, ids: tuple[int, ...]) -> Beginning:
        """Its keys and values are zeros yet."""
        kind: Any = np.uint16 if self._parts else np.float32
        layers = self.config.num_hidden_layers if ids else 1
        keys, values = self._key_shapes(pad(max(len(ids), 1), AT_ONCE))
        return Beginning(ids, allocate((layers, *keys), kind), allocate((layers, *values), kind))

    def _key_shapes(self, places: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        c = self.config
        return shapes(c.num_key_value_heads, places, c.head_dim, self._parts, self._tiles)

    def with_threads(self, num_threads: int) -> NumbaBackend:
        """A backend of its own on another number of threads, on the same packed weights."""
        other = copy.copy(self)
        other.pool = Pool(num_threads, self._new_workspace)
        return other

    def stages(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[str, NDArray[Any]]]:
        """The stages of parity.py, every layer computed for every token: `encode` to the bit, and slower."""
        yield from self.with_threads(self.num_threads)._stages(texts)  # encode may be called between two

    def _stages(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[str, NDArray[Any]]]:
        def prepare(job: Job[Workspace]) -> tuple[Any, ...]:
            none = job.workspace.kept.none
            return self._arguments(job, texts, none, none, every_token=True)[0]

        whole = self.pool.call(prepare)
        layers, weights, work, stream, *_, eps, group, head_dim, _ = whole
        ends = np.cumsum([len(ids) for ids in texts])
        parts = {"self_attn": np.zeros_like(work.x), "mlp": np.zeros_like(work.x)}

        def rows(x: NDArray[Any]) -> NDArray[Any]:
            x_TD = x.transpose(0, 2, 1).reshape(-1, x.shape[1])
            return np.array(x_TD[: ends[-1], : self.config.hidden_size])

        yield "embed_tokens", rows(work.x)
        for i in range(layers):
            for part in parts.values():
                part[:] = 0
            arguments = (i, weights, work, stream, *parts.values(), eps, group, head_dim)
            compile_for(layer_stages, (*arguments, new_team(), 0, 1), self._variant)
            self.pool.call(lambda job, a=arguments: job.run(layer_stages, *a, job.counters))  # type: ignore[misc]
            for name, part in parts.items():
                yield f"layers.{i}.{name}", rows(part)
            yield f"layers.{i}", rows(work.x)
        self.pool.call(lambda job: job.run(encode, 0, *whole[1:-1], job.counters))  # of no layer: the norm
        states = rows(work.x)
        yield "norm", states
        yield "pooled", reference.normalize(states[ends - 1])

    def _arguments(
        self,
        team: Team[Workspace],
        texts: Sequence[Sequence[int]],
        known: Beginning,
        saved: Beginning,
        every_token: bool = False,
    ) -> tuple[tuple[Any, ...], NDArray[Any]]:
        """What the kernel takes for one step, up to the thread's number; and the array of its result. With
        every_token the result is the stream, `Work.x`."""
        c, workspace = self.config, team.workspace
        lengths = np.array([len(ids) for ids in texts])
        own = lengths - len(known)  # tokens that the stream holds
        ends = np.cumsum(own)
        begins = ends - own
        D = pad(c.hidden_size, 32)
        places = -(-lengths // AT_ONCE) * AT_ONCE
        key_begins, keys = np.cumsum(places) - places, int(places.sum())
        panels, pooled_panels = -(-ends[-1] // 16), -(-len(texts) // 16)
        work = self._work(workspace, panels, keys, team.num_threads)
        ids = np.concatenate([np.asarray(ids[len(known) :], np.int64) for ids in texts])
        for first in range(0, panels, GATHER_PANELS):
            x = work.x[first : first + GATHER_PANELS]
            some = ids[first * 16 : (first + len(x)) * 16]
            rows = np.zeros((len(x) * 16, D), np.float32)
            rows[: len(some), : c.hidden_size] = self._embed_tokens[some]
            x[:] = rows.reshape(len(x), 16, D).transpose(0, 2, 1)
            if panels * 16 > STEP_TOKENS:  # the rows of a long text are all over the file: 300 MB of pages
                self._release()
        pooled_x = workspace.array("pooled", (pooled_panels, D, 16))
        pooled_x[:] = 0
        positions = len(known) + np.arange(ends[-1]) - np.repeat(begins, own)
        place = np.repeat(key_begins, own) + positions
        segments = text_segments(begins, ends, key_begins, len(known))
        everything = self._stream(workspace, place, keys, positions, *segments)
        segments = pooled_segments(lengths, key_begins)
        pooled = self._stream(workspace, place[ends - 1], keys, lengths - 1, *segments)
        group = c.num_attention_heads // c.num_key_value_heads
        prefixes = (
            Prefix(b.keys, b.values, pad(len(b), AT_ONCE), key_begins.astype(np.int64))
            for b in (known, saved)
        )
        fixed = (np.float32(c.rms_norm_eps), group, c.head_dim, team.counters)
        stream_arguments = (everything, pooled_x, pooled, ends[: 0 if every_token else None] - 1)
        return (c.num_hidden_layers, self._weights, work, *stream_arguments, *prefixes, *fixed), pooled_x

    def _stream(
        self,
        workspace: Workspace,
        key_places: Any,
        nowhere: int,
        positions: Any,
        panel_of: Any,
        segments: Any,
    ) -> Stream:
        c = self.config
        panels = -(-len(positions) // 16)
        longest = int(positions.max()) + 1
        if len(workspace.cos) < longest:
            workspace.cos, workspace.sin = rope_table(longest, c.head_dim, c.rope_theta)
        position = np.zeros(panels * 16, np.int64)
        position[: len(positions)] = positions
        places = np.full((panels, 16), nowhere, np.float32)  # of lanes behind the end, too
        places.ravel()[: len(key_places)] = key_places

        def lanes(table: NDArray[Any]) -> NDArray[Any]:
            return np.ascontiguousarray(table[position].reshape(panels, 16, -1).transpose(0, 2, 1))

        starts = np.searchsorted(panel_of, np.arange(panels + 1))
        return Stream(lanes(workspace.cos), lanes(workspace.sin), places, starts, segments)

    def _work(self, workspace: Workspace, panels: int, keys: int, num_threads: int) -> Work:
        c = self.config
        H, F = c.head_dim, pad(c.intermediate_size, 32)
        NH, KH = c.num_attention_heads * H, c.num_key_value_heads * H
        group = c.num_attention_heads // c.num_key_value_heads
        D = pad(c.hidden_size, 32)
        longest = max(D, F, pad(NH, 32))
        for_matmul = matmul.scratch_size(self._block_panels, longest)
        scratch = max(attention.scratch_size(H, group), for_matmul)
        fixed = min(panels, self._block_panels)
        kind: Any = np.uint16 if self._parts else np.float32
        key_shape, value_shape = self._key_shapes(
            keys + AT_ONCE
        )  # the last for lanes behind the stream's end
        return Work(
            x=workspace.array("x", (panels, D, 16)),
            keys=workspace.array("keys", key_shape, kind),
            values=workspace.array("values", value_shape, kind),
            h=self._operand(workspace, "h", D),
            q=workspace.array("q", (fixed, pad(NH, 32), 16)),
            kv=workspace.array("kv", (fixed, pad(2 * KH, 32), 16)),
            attended=self._operand(workspace, "attended", pad(NH, 32)),
            act=self._operand(workspace, "act", F),
            scratch=workspace.array("scratch", (num_threads, scratch)),
        )

    def _operand(self, workspace: Workspace, name: str, rows: int) -> NDArray[Any]:
        """Of one block. Its padding must be zero and stays it, since its shape is the same at every step."""
        if self._tiles:
            return workspace.array(name, (self._block_panels, self._parts, rows // 2, 32), np.uint16)
        if self._parts:
            return workspace.array(name, (self._block_panels, rows // 2, 32), np.uint16)
        return workspace.array(name, (self._block_panels, rows, 16))


def text_segments(
    begins: NDArray[Any], ends: NDArray[Any], key_begins: NDArray[Any], known: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """For every panel and every text with tokens in it: the panel, and a row of Stream.segments. A text's
    tokens in the stream are those behind the `known` ones."""
    counts = (ends - 1) // 16 - begins // 16 + 1
    text = np.repeat(np.arange(len(begins)), counts)
    panel = begins[text] // 16 + np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    lane = np.maximum(begins[text] - 16 * panel, 0)
    next_lane = np.minimum(ends[text] - 16 * panel, 16)
    last_key = 16 * panel + next_lane + (key_begins + known - begins)[text]
    return panel, np.stack([key_begins[text], last_key, lane, next_lane], axis=1)


def pooled_segments(lengths: NDArray[Any], key_begins: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same for the last tokens of the texts, each a lane of its own."""
    i = np.arange(len(lengths))
    return i // 16, np.stack([key_begins, key_begins + lengths, i % 16, i % 16 + 1], axis=1)
