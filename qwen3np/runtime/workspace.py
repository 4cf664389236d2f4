"""What calls write, and later calls use again: work arrays, the tables of RoPE, the prefix cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Work
from ..kernels import attention, matmul
from ..kernels.integer import rounded_shapes
from ..kernels.kv_layout import KV_ALIGN, shapes
from ..kernels.panels import Rounded
from ..loading.config import Config
from .packed_batch import Tables
from .packed_weights import allocate, pad
from .prefix_cache import CachedPrefix, PrefixCache
from .rope import rope_table


@dataclass(frozen=True)
class Layout:
    """The shapes of a model's arrays on one path.

    Attributes:
        config: the model's.
        parts: bfloat16 parts of an activation; 0 for float32.
        tiles: operands are AMX's.
        integers: what operands are rounded to, int16 or int8; None if they are not.
        block_panels: panels that pass a layer together.
    """

    config: Config
    parts: int
    tiles: bool
    block_panels: int
    integers: Any = None

    @property
    def dtype(self) -> Any:
        """The type of operands, keys and values."""
        return np.uint16 if self.parts else np.float32

    def operand(self, rows: int) -> tuple[int, ...]:
        """The shape of one block's operand of so many rows, if it is not of integers."""
        if self.tiles:
            return self.block_panels, self.parts, rows // 2, 32
        return (self.block_panels, rows // 2, 32) if self.parts else (self.block_panels, rows, 16)

    def keys_values(self, slots: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of one layer's keys and values."""
        c = self.config
        return shapes(c.num_key_value_heads, pad(slots, KV_ALIGN), c.head_dim, self.parts, self.tiles)

    def prefix(self, ids: Iterable[int] = ()) -> CachedPrefix:
        """Make an empty cache entry for a forward pass to fill; of no tokens, it means "no prefix"."""
        ids = tuple(ids)
        layers = self.config.num_hidden_layers if ids else 1
        keys, values = self.keys_values(max(len(ids), 1))
        return CachedPrefix(
            ids, allocate((layers, *keys), self.dtype), allocate((layers, *values), self.dtype)
        )


class Workspace:
    """What a team keeps from call to call."""

    def __init__(self, layout: Layout, no_prefix: CachedPrefix) -> None:
        self.layout = layout
        self.prefixes = PrefixCache(no_prefix)
        self._tables: Tables = (np.empty((0, 0), np.float32),) * 2
        self._arrays: dict[str, NDArray[Any]] = {}

    def tables(self, positions: int) -> Tables:
        """The tables of cos and sin, of so many positions or more."""
        c = self.layout.config
        if len(self._tables[0]) < positions:
            self._tables = rope_table(positions, c.head_dim, c.rope_theta)
        return self._tables

    def work(self, tokens: int, texts: int, slots: int, num_threads: int) -> Work:
        """The arrays for a packed batch of so many tokens.

        Operands keep their shape from batch to batch. Their padding is zero when new, and never written.
        """
        layout, c = self.layout, self.layout.config
        NH, KH = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        D, F, NH = pad(c.hidden_size, 32), pad(c.intermediate_size, 32), pad(NH, 32)
        panels, pooled = -(-tokens // 16), -(-texts // 16)
        block = min(panels, layout.block_panels)
        keys, values = layout.keys_values(slots + KV_ALIGN)  # the last are for lanes behind the batch's end
        scratch = max(
            attention.scratch_size(c.head_dim, c.num_attention_heads // c.num_key_value_heads),
            matmul.scratch_size(layout.block_panels, max(D, F, NH)),
        )
        return Work(
            x=self._array("x", (panels, D, 16)),
            pooled_x=self._array("pooled_x", (pooled, D, 16)),
            keys=self._array("keys", keys, layout.dtype),
            values=self._array("values", values, layout.dtype),
            h=self._operand("h", D),
            q=self._array("q", (block, NH, 16)),
            kv=self._array("kv", (block, pad(2 * KH, 32), 16)),
            attn_out=self._operand("attn_out", NH),
            act=self._operand("act", F),
            scratch=self._array("scratch", (num_threads, scratch)),
        )

    def _operand(self, name: str, rows: int) -> Any:
        """One block's operand of so many rows."""
        layout = self.layout
        if layout.integers is None:
            return self._array(name, layout.operand(rows), layout.dtype)
        shapes, dtypes = rounded_shapes(layout.block_panels, rows, layout.integers)
        names = (f"{name}.{field}" for field in Rounded._fields)
        return Rounded(*map(self._array, names, shapes, dtypes))

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """A work array, kept from batch to batch: zeros when new, then what the batch before left."""
        size = int(np.prod(shape))
        if self._arrays.get(name, np.empty(0)).size < size:
            self._arrays[name] = allocate((size,), dtype)
        return self._arrays[name][:size].reshape(shape)
