"""Packing: the tokens of several texts behind one another without padding, and where each is.

Text b's own tokens, those behind a cached prefix, are tokens begins[b] .. ends[b] - 1 of the batch; its
keys, the prefix's among them, have slots from first_slots[b] on. A panel is any 16 tokens in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Batch, Prefix
from ..kernels.kv_layout import KV_ALIGN
from ..kernels.panels import Tokens
from .packed_weights import pad
from .prefix_cache import CachedPrefix

Ids = Sequence[int]
Integers = NDArray[np.int64]
Tables = tuple[NDArray[np.float32], NDArray[np.float32]]  # cos and sin by position, [T, H/2]


def pack_batch(
    texts: Sequence[Ids],
    cached: CachedPrefix,
    saved: CachedPrefix,
    rows_of: Callable[[Integers], NDArray[Any]],
    tables: Tables,
    every_token: bool = False,
) -> Batch:
    """Make the packed batch that engine.forward takes.

    Args:
        texts: token ids of each.
        cached: what all of them begin with, or the prefix of no tokens.
        saved: gets the keys and values of the first text, if it has tokens.
        rows_of: returns the rows of embed_tokens for token ids.
        tables: of RoPE, for every position there is.
        every_token: ask for the states of all tokens, not for those of the last.
    """
    lengths = np.array([len(ids) for ids in texts])
    own = lengths - len(cached)
    ends = np.cumsum(own)
    begins, first_slots = ends - own, text_slots(lengths)
    positions = len(cached) + np.arange(ends[-1]) - np.repeat(begins, own)
    slots = np.repeat(first_slots, own) + positions
    trash_slot = slot_count(lengths)
    last = ends - 1
    prefixes = [Prefix(p.keys, p.values, pad(len(p), KV_ALIGN), first_slots) for p in (cached, saved)]
    segments = text_segments(begins, ends, first_slots, len(cached))
    pooled_ones = pooled_segments(lengths, first_slots)
    return Batch(
        rows=rows_of(np.concatenate([np.asarray(ids[len(cached) :], np.int64) for ids in texts])),
        tokens=_tokens(slots, trash_slot, positions, tables, *segments),
        pooled=_tokens(slots[last], trash_slot, lengths - 1, tables, *pooled_ones),
        pooled_at=last[: 0 if every_token else None],
        cached=prefixes[0],
        saved=prefixes[1],
    )


def text_slots(lengths: Integers) -> Integers:
    """Each text's first slot, a multiple of 32."""
    slots = pad(lengths, KV_ALIGN)
    return np.cumsum(slots) - slots


def slot_count(lengths: Integers) -> int:
    """The slots of all texts; the next one, the trash slot, is for lanes behind the batch's end."""
    return int(pad(lengths, KV_ALIGN).sum())


def _tokens(
    slots: Integers,
    trash_slot: int,
    positions: Integers,
    tables: Tables,
    panel_of: Integers,
    segments: Integers,
) -> Tokens:
    panels = -(-len(positions) // 16)
    position = np.zeros(panels * 16, np.int64)
    position[: len(positions)] = positions
    slot = np.full((panels, 16), trash_slot, np.float32)
    slot.ravel()[: len(slots)] = slots

    def lanes(table: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(table[position].reshape(panels, 16, -1).transpose(0, 2, 1))

    starts = np.searchsorted(panel_of, np.arange(panels + 1))
    cos, sin = map(lanes, tables)
    return Tokens(cos, sin, slot, starts, segments)


def text_segments(
    begins: Integers, ends: Integers, first_slots: Integers, cached: int = 0
) -> tuple[Integers, Integers]:
    """For every panel and every text with tokens in it: the panel, and a row of Tokens.segments.

    The first `cached` tokens of each text are not in the batch.
    """
    counts = (ends - 1) // 16 - begins // 16 + 1
    text = np.repeat(np.arange(len(begins)), counts)
    panel = begins[text] // 16 + np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    lane = np.maximum(begins[text] - 16 * panel, 0)
    next_lane = np.minimum(ends[text] - 16 * panel, 16)
    last_slot = 16 * panel + next_lane + (first_slots + cached - begins)[text]
    return panel, np.stack([first_slots[text], last_slot, lane, next_lane], axis=1)


def pooled_segments(lengths: Integers, first_slots: Integers) -> tuple[Integers, Integers]:
    """The same for the last tokens of the texts, each in a lane of its own."""
    i = np.arange(len(lengths))
    return i // 16, np.stack([first_slots, first_slots + lengths, i % 16, i % 16 + 1], axis=1)
