"""The backend on the kernels: batches of token ids, through engine.forward, to states."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import engine, reference
from ..kernels import isa
from ..kernels.jit import compile_for
from ..kernels.team import new_team
from ..loading.checkpoint import Checkpoint
from .cores import cores_sharing_cache
from .memory import room_for
from .micro_batches import MICRO_BATCH_TOKENS, Range, plan
from .packed_batch import Ids, Integers, pack_batch, slot_count
from .packed_weights import PackedWeights, is_bfloat16, pack, pad
from .prefix_cache import CachedPrefix, steps
from .progress import bar
from .stages import Stage
from .threads import Job, Pool, Team
from .workspace import Layout, Workspace

FLOATING = ("highest", "high", "medium")  # precisions of float32 and bfloat16
PRECISIONS = (*FLOATING, "low")
WEIGHTS = ("stored", "lossless", "int8")
BLOCK_PANELS = 16  # 256 tokens: a block's activations are 2 MB at the 0.6B's width
# bfloat16 parts of an activation, key or value in tiles. Pairs have one; 0 stands for float32.
PARTS = {"highest": 3, "high": 2, "medium": 1, "low": 1}
INTEGERS = {isa.INT16: np.int16, isa.INT8: np.int8}


class Arguments(NamedTuple):
    """What engine.forward takes before the thread's number."""

    weights: PackedWeights
    dims: engine.Dims
    batch: engine.Batch
    work: engine.Work
    counters: NDArray[np.int64]


class NumbaBackend:
    """The backend on the kernels.

    Args:
        checkpoint: the weights.
        matmul_precision: "highest", "high" or "medium", as torch.set_float32_matmul_precision names them, or
            "low": weights="int8", multiplied by activations that are rounded to integers, too.
        num_threads: default: see cores.thread_count.
        reproducible: compute the same bits on every CPU, with "highest".
        weights: "stored", or in fewer bits "int8" or "lossless" (kernels/compact.py).
    """

    name = "numba"

    def __init__(
        self,
        checkpoint: Checkpoint,
        matmul_precision: str = "high",
        num_threads: int | None = None,
        reproducible: bool = False,
        weights: str = "stored",
    ) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"weights = {weights!r} is not one of {', '.join(WEIGHTS)}")
        if matmul_precision not in PRECISIONS:
            raise ValueError(f"matmul_precision = {matmul_precision!r} is not one of {', '.join(PRECISIONS)}")
        if reproducible and matmul_precision in ("medium", "low"):
            raise ValueError(
                f"matmul_precision = {matmul_precision!r} and reproducible=True contradict each other: "
                "reproducible vectors are computed with 'highest'; leave one of them out"
            )
        self.reproducible = reproducible
        self.matmul_precision = matmul_precision = "highest" if reproducible else matmul_precision
        if checkpoint.is_int8:
            if weights == "lossless":
                raise ValueError('weights = "lossless": the files hold int8 weights already; leave it out')
            weights = "int8"
        if matmul_precision == "low":
            if weights == "lossless":
                raise ValueError(
                    'matmul_precision = "low" multiplies int8 weights, and weights = "lossless" are none: '
                    "leave one of them out"
                )
            weights = "int8"
        self.weights = weights
        if weights == "lossless" and not is_bfloat16(checkpoint):
            raise ValueError(
                'weights = "lossless" is for bfloat16 checkpoints, and this one is not: leave it out, or '
                'take "int8"'
            )
        bfloat16 = is_bfloat16(checkpoint) or weights == "int8"  # what the products are made of
        self.isa = isa.choose(matmul_precision, bfloat16, reproducible)
        tiles = self.isa in (isa.AMX, isa.AMX_SPELLED_OUT)
        parts = PARTS[matmul_precision] if tiles else 1 if self.isa == isa.AVX512_BF16 else 0
        # With tiles, 128 tokens of two parts stream the weights at the memory's speed, and stay in L2.
        block_panels = BLOCK_PANELS // parts // 2 * 2 if tiles else BLOCK_PANELS
        self.config = c = checkpoint.config
        integers = INTEGERS.get(self.isa)
        if integers or (weights == "int8" and not checkpoint.is_int8):
            self.arithmetic = "low"
        else:
            self.arithmetic = matmul_precision if parts and matmul_precision != "highest" else "float32"
        self._dims = engine.Dims(
            np.float32(c.rms_norm_eps), c.num_attention_heads // c.num_key_value_heads, c.head_dim
        )
        self._layout = Layout(c, parts, tiles, block_panels, integers)
        self._none = self._layout.prefix()
        stored = "bfloat16" if bfloat16 else "float32"
        self._variant = f"{self.isa}, {stored if weights == 'stored' else weights} weights"
        self._sharing = cores_sharing_cache()
        self._checkpoint = checkpoint
        self.pool: Pool[Workspace] = Pool(num_threads, partial(Workspace, self._layout, self._none))
        shown = bar(total=c.num_hidden_layers, desc="packing weights", unit="layer", delay=2, leave=False)
        with room_for(checkpoint, weights), shown:
            self._weights = pack(checkpoint, self.pool, shown.update, tiles, weights)
        arguments = self.pool.call(lambda job: self._arguments(job, [[0]], self._none, self._none))
        compile_for(engine.forward, (*arguments, 0, 1), self._variant)

    def __repr__(self) -> str:
        reproducible = ", reproducible" if self.reproducible else ""
        precision = f"matmul_precision {self.matmul_precision}{reproducible}"
        weights = "" if self.weights == "stored" else f", {self.weights} weights"
        return f"numba, {self.isa}, {precision}{weights}, {self.num_threads} threads"

    @property
    def num_threads(self) -> int:
        return self.pool.num_threads

    def forward(
        self,
        texts: Sequence[Ids],
        prefix: Ids = (),
        batch_size: int | None = None,
        progress: Callable[[int], object] = lambda texts: None,
    ) -> NDArray[np.float32]:
        """Token ids of each text -> the final state of its last token, not normalised.

        It is safe to call from several Python threads: one at a time computes. What texts begin with, those
        of a call or of several, is computed once, and kept for later calls, which changes no bit.

        Args:
            texts: token ids of each text.
            prefix: kept in any case, if the texts begin with it.
            batch_size: the most texts to compute at a time.
            progress: called with the number of texts that were computed since its last call.

        Returns:
            [len(texts), hidden_size].
        """
        if len(texts) == 0:
            return np.empty((0, self.config.hidden_size), np.float32)
        return self.pool.call(lambda job: self._forward(job, texts, prefix, batch_size), progress)

    def _forward(
        self, job: Job[Workspace], texts: Sequence[Ids], prefix: Ids, most: int | None
    ) -> NDArray[np.float32]:
        states = np.empty((len(texts), self.config.hidden_size), np.float32)
        cache = job.workspace.prefixes
        for step in steps(texts, prefix, cache):
            saved = self._layout.prefix(step.kept) if step.kept else self._none
            states[step.texts] = self._step(job, [texts[i] for i in step.texts], step.cached, saved, most)
            if step.kept:
                cache.add(saved)
        return states

    def _step(
        self,
        job: Job[Workspace],
        texts: list[Ids],
        cached: CachedPrefix,
        saved: CachedPrefix,
        most: int | None,
    ) -> NDArray[np.float32]:
        """Compute the states of texts that begin with `cached`; if `saved` has tokens, there is only one."""
        states = np.empty((len(texts), self.config.hidden_size), np.float32)

        def micro_batch(team: Team[Workspace], texts_of: Range) -> None:
            first, last = texts_of
            states[first:last] = self._pooled(team, texts[first:last], cached, saved)
            job.advance(last - first)

        for threads, ranges in self._plan([len(ids) for ids in texts], len(cached), most):
            job.in_teams(threads, micro_batch, ranges)
        return states

    def _plan(self, lengths: list[int], cached: int, most: int | None) -> list[tuple[int, list[Range]]]:
        block = 16 * self._layout.block_panels
        return plan(lengths, cached, most, self.num_threads, self._sharing, block)

    def _pooled(
        self, team: Team[Workspace], texts: Sequence[Ids], cached: CachedPrefix, saved: CachedPrefix
    ) -> NDArray[np.float32]:
        """Compute the states of the last tokens: a view of the work arrays."""
        arguments = self._arguments(team, texts, cached, saved)
        team.run(engine.forward, *arguments)
        return self._rows(arguments.work.pooled_x, len(texts))

    def token_states(self, texts: Sequence[Ids]) -> list[NDArray[np.float32]]:
        """Token ids of each text -> the final states of all its tokens, [len(ids), hidden_size]."""

        def states(job: Job[Workspace], ids: Ids) -> NDArray[np.float32]:
            arguments = self._arguments(job, [ids], self._none, self._none, every_token=True)
            job.run(engine.forward, *arguments)
            return self._rows(arguments.work.x, len(ids)).copy("C")

        return self.pool.call(lambda job: [states(job, ids) for ids in texts])

    def with_threads(self, num_threads: int) -> NumbaBackend:
        """Make a backend on the same packed weights, with its own threads and prefix cache."""
        other = copy.copy(self)
        other.pool = Pool(num_threads, partial(Workspace, self._layout, self._none))
        return other

    def stages(self, texts: Sequence[Ids], probabilities: Collection[int] = ()) -> Iterator[Stage]:
        """Yield the stages, every layer computed for every token: `forward` to the bit, but slower.

        Args:
            texts: token ids of each.
            probabilities: layers whose attention is a stage too; there is one text then.
        """
        apart = self.with_threads(self.num_threads)  # forward may be called between two
        if probabilities:  # a layer's queries must be there together: one block
            panels = max(self._layout.block_panels, pad(-(-len(texts[0]) // 16), 2))
            apart._layout = replace(self._layout, block_panels=panels)
            apart = apart.with_threads(self.num_threads)
        yield from apart._stages(texts, probabilities)

    def _stages(self, texts: Sequence[Ids], probabilities: Collection[int]) -> Iterator[Stage]:
        none = self._none
        arguments = self.pool.call(lambda job: self._arguments(job, texts, none, none, every_token=True))
        work = arguments.work
        sums = {"self_attn": np.zeros_like(work.x), "mlp": np.zeros_like(work.x)}
        ends = np.cumsum([len(ids) for ids in texts])

        def run(layer: int) -> NDArray[np.float32]:
            whole = (layer, *arguments[:-1], *sums.values())  # each job has counters of its own
            compile_for(engine.stage, (*whole, new_team(), 0, 1), self._variant)
            self.pool.call(lambda job: job.run(engine.stage, *whole, job.counters))
            return np.array(self._rows(work.x, ends[-1]))

        yield "embed_tokens", run(-1)
        layers = self.config.num_hidden_layers
        for i in range(layers):
            for part in sums.values():
                part[:] = 0
            after = run(i)
            for name, part in sums.items():
                yield f"layers.{i}.{name}", np.array(self._rows(part, ends[-1]))
            yield f"layers.{i}", after
            if i in probabilities:
                yield f"layers.{i}.probabilities", self._probabilities(work.q, work.kv, len(texts[0]))
        states = run(layers)
        yield "norm", states
        yield "pooled", reference.normalize(states[ends - 1])

    def _probabilities(
        self, q: NDArray[np.float32], kv: NDArray[np.float32], tokens: int
    ) -> NDArray[np.float32]:
        """Compute what softmax gives for the queries and keys that a layer left: [N, T, S].

        The kernel never has them at once. Where it rounds q and k to bfloat16, these are from before that.
        """
        c = self.config
        N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        q_NTH, k_KSH = (
            self._rows(x, tokens, heads * H).reshape(tokens, heads, H).swapaxes(0, 1)
            for x, heads in ((q, N), (kv, K))
        )
        scores_NTS = q_NTH @ np.repeat(k_KSH, N // K, axis=0).swapaxes(1, 2) * np.float32(H**-0.5)
        scores_NTS[:, np.triu(np.ones((tokens, tokens), bool), k=1)] = -np.inf
        return reference.softmax(scores_NTS)

    def _rows(
        self, panels: NDArray[np.float32], tokens: int, width: int | None = None
    ) -> NDArray[np.float32]:
        """View panels [P, D', 16] as [tokens, width]; the default width is hidden_size."""
        states = panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])
        return states[:tokens, : width or self.config.hidden_size]

    def _arguments(
        self,
        team: Team[Workspace],
        texts: Sequence[Ids],
        cached: CachedPrefix,
        saved: CachedPrefix,
        every_token: bool = False,
    ) -> Arguments:
        lengths = np.array([len(ids) for ids in texts])
        tables = team.workspace.tables(int(lengths.max()))
        batch = pack_batch(texts, cached, saved, self._embedding_rows, tables, every_token)
        work = team.workspace.work(len(batch.rows), len(texts), slot_count(lengths), team.num_threads)
        return Arguments(self._weights, self._dims, batch, work, team.counters)

    def _embedding_rows(self, ids: Integers) -> NDArray[Any]:
        """Rows of embed_tokens as stored, which engine.embed widens; float16 as float32.

        Those of a long text are all over the file: its pages, 300 MB, are given back as they are read.
        """
        stored = self._checkpoint.weights().embed_tokens
        if len(ids) <= MICRO_BATCH_TOKENS:
            return stored.raw(ids)
        parts = []
        for first in range(0, len(ids), MICRO_BATCH_TOKENS):
            parts.append(stored.raw(ids[first : first + MICRO_BATCH_TOKENS]))
            self._checkpoint.release()
        return np.concatenate(parts)
