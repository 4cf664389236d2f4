"""Damaged weight files: whatever happened to the bytes, CheckpointError and never half a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qwen3np import CheckpointError, Embedder
from qwen3np.loading.checkpoint import SINGLE_FILE, Checkpoint, tensor_shapes
from qwen3np.synth.checkpoints import synthesize


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, bytes]:
    """A good model, and the bytes of its weight file: each damage below replaces the file."""
    folder = synthesize(tmp_path_factory.mktemp("damaged") / "model", "tiny", layers=1)
    return folder, (folder / SINGLE_FILE).read_bytes()


def replace_weights(folder: Path, content: bytes) -> None:
    (folder / SINGLE_FILE).unlink()  # not overwritten: the old file may still be mapped
    (folder / SINGLE_FILE).write_bytes(content)


def test_a_truncated_file_is_refused_wherever_it_ends(whole):
    folder, good = whole
    header_end = 8 + int.from_bytes(good[:8], "little")
    for size in (0, 1, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(good) // 2, len(good) - 1):
        replace_weights(folder, good[:size])
        with pytest.raises(CheckpointError, match=SINGLE_FILE):
            Embedder(folder)
    replace_weights(folder, good + b"\0")
    message = f"has {len(good) + 1} bytes where its header describes {len(good)}"
    with pytest.raises(CheckpointError, match=message):
        Embedder(folder)


def loads_whole_or_is_refused(folder: Path, content: bytes) -> None:
    replace_weights(folder, content)
    try:
        tensors = Checkpoint(folder).tensors
    except CheckpointError as error:
        assert str(folder) in str(error)
    else:
        shapes = tensor_shapes(Checkpoint(folder).config)
        assert {name: tensor.shape for name, tensor in tensors.items()} == shapes


FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@FUZZ
@given(data=st.data())
def test_damaged_bytes_load_whole_or_are_refused(whole, data):
    folder, good = whole
    content = bytearray(good)
    header_end = 8 + int.from_bytes(good[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    loads_whole_or_is_refused(folder, bytes(content[: data.draw(st.integers(0, 2 * len(content)))]))


@FUZZ
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(whole, content):
    loads_whole_or_is_refused(whole[0], content)


SIZES = st.integers(0, 70) | st.sampled_from([-1, 2**31, 2**62, 2**63, 2**64, 2**70, 1.5, None, True, "8"])


@FUZZ
@given(
    name=st.sampled_from(["norm.weight", "embed_tokens.weight", "new", "__metadata__"]),
    entry=st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["BF16", "F16", "F32", "F64", "I8", "F4", "bf16", "", 5, None]),
            "shape": st.lists(SIZES, max_size=4) | st.just([1] * 100) | st.just({}),
            "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | SIZES,
        },
    ),
)
@example(name="new", entry={"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]})
@example(name="new", entry={"dtype": "I8", "shape": [2**62, 0], "data_offsets": [0, 0]})
@example(name="norm.weight", entry={"shape": [96] + [1] * 100})
@example(name="norm.weight", entry={})
def test_a_wrong_header_entry_loads_whole_or_is_refused(whole, name, entry):
    """Well-formed JSON with sizes no array can have: beyond int64, 100 dimensions, overlapping, negative."""
    folder, good = whole
    header_end = 8 + int.from_bytes(good[:8], "little")
    header = json.loads(good[8:header_end])
    header[name] = {**header.get(name, {}), **entry}
    text = json.dumps(header).encode()
    loads_whole_or_is_refused(folder, len(text).to_bytes(8, "little") + text + good[header_end:])
