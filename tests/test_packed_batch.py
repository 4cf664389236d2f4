"""The packing of texts into one stream, against loops that say the same token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3np.engine import Batch
from qwen3np.loading.config import Config
from qwen3np.runtime.packed_batch import pack_batch, slot_count
from qwen3np.runtime.workspace import Layout

LAYOUT = Layout(Config(32, 64, 2, 4, 2, 8, 500, 4096, 1e-6, 1e6, True), parts=0, tiles=False, block_panels=16)
POSITIONS = 400
TABLES = tuple(
    np.float32(offset + np.arange(POSITIONS)[:, None] + np.linspace(0, 0.5, 4)) for offset in (0, 1000)
)


def packed(texts: list[list[int]], cached: list[int]) -> Batch:
    def rows_of(ids: np.ndarray) -> np.ndarray:
        return np.repeat(ids[:, None], 32, axis=1).astype(np.float32)

    return pack_batch(texts, LAYOUT.prefix(cached), LAYOUT.prefix(), rows_of, TABLES)


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(0, 40), st.randoms())
def test_every_token_has_its_row_its_angles_its_slot_and_its_keys(lengths, cached, random):
    prefix = [random.randrange(500) for _ in range(cached)]
    texts = [prefix + [random.randrange(500) for _ in range(n)] for n in lengths]
    batch = packed(texts, prefix)
    slots_of = []  # of every key of every text
    for text in texts:
        first = 32 * sum(-(-len(t) // 32) for t in texts[: len(slots_of)])
        slots_of.append(list(range(first, first + len(text))))
    assert sorted({s for slots in slots_of for s in slots}) == sorted(s for slots in slots_of for s in slots)
    assert max(map(max, slots_of)) < slot_count(np.array([len(t) for t in texts]))
    token = 0
    for text, slots in zip(texts, slots_of, strict=True):
        for position in range(cached, len(text)):
            panel, lane = divmod(token, 16)
            assert (batch.rows[token] == text[position]).all()
            np.testing.assert_array_equal(batch.tokens.cos[panel, :, lane], TABLES[0][position])
            np.testing.assert_array_equal(batch.tokens.sin[panel, :, lane], TABLES[1][position])
            assert batch.tokens.slots[panel, lane] == slots[position]
            assert keys_seen(batch.tokens, panel, lane) == (slots[0], slots[position])
            token += 1
    assert token == len(batch.rows)
    nowhere = slot_count(np.array([len(t) for t in texts]))
    for lane in range(token, 16 * len(batch.tokens.slots)):
        assert batch.tokens.slots.ravel()[lane] == nowhere  # behind the end: nobody's key is overwritten
    assert [list(b.slots) for b in (batch.cached, batch.saved)] == [[s[0] for s in slots_of]] * 2
    assert batch.cached.size == -(-cached // 32) * 32


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=40))
def test_pooled_tokens_are_the_last_and_see_their_whole_text(lengths):
    texts = [[i] * n for i, n in enumerate(lengths)]
    batch = packed(texts, [])
    assert list(batch.pooled_at) == list(np.cumsum(lengths) - 1)
    for i, text in enumerate(texts):
        panel, lane = divmod(i, 16)
        first = 32 * sum(-(-n // 32) for n in lengths[:i])
        assert keys_seen(batch.pooled, panel, lane) == (first, first + len(text) - 1)
        np.testing.assert_array_equal(batch.pooled.cos[panel, :, lane], TABLES[0][len(text) - 1])


def keys_seen(stream, panel: int, lane: int) -> tuple[int, int]:
    """The first and last slot that attention lets a lane see: its segment's, up to its own."""
    mine = stream.segments[stream.starts[panel] : stream.starts[panel + 1]]
    [(first, end, *_)] = [s for s in mine if s[2] <= lane < s[3]]
    own = int(stream.slots[panel, lane])
    assert first <= own < end
    return int(first), own


def test_every_token_is_asked_for_by_pooling_none():
    batch = pack_batch([[1, 2]], LAYOUT.prefix(), LAYOUT.prefix(), lambda ids: ids[:, None], TABLES, True)
    assert batch.pooled_at.size == 0


@pytest.mark.parametrize("cached", [0, 31, 32, 33])
def test_a_prefix_is_copied_in_whole_groups_of_slots(cached):
    batch = packed([[7] * (cached + 1)], [7] * cached)
    assert batch.cached.size % 32 == 0 and batch.cached.size >= cached
    assert batch.cached.size <= slot_count(np.array([cached + 1]))
