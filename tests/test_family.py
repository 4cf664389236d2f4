"""Models that others made from Qwen3: their widths on all kinds of weights; verify knows their prompts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qwen3np import Embedder
from qwen3np.loading import model_cards
from qwen3np.synth.checkpoints import LIKE, synthesize
from qwen3np.verify import verify
from qwen3np.verify.embedding import EmbedderChecks

NARROW = ["F2LLM-v2-80M", "F2LLM-v2-160M", "F2LLM-v2-330M"]
TEXTS = ["a", "one text " * 40, *(f"number {i} of some" for i in range(20))]


@pytest.fixture(scope="module", params=NARROW)
def narrow(request, tmp_path_factory) -> Path:
    """A model of 320, 640 or 896 channels: two layers of it, and few tokens, so that it is small."""
    with pytest.MonkeyPatch.context() as patch:
        small = dataclasses.replace(LIKE[request.param], vocab_size=2048, num_hidden_layers=2)
        patch.setitem(LIKE, request.param, small)
        return synthesize(tmp_path_factory.mktemp("family") / request.param, request.param)


@pytest.mark.slow
def test_every_kind_of_weights_computes_an_odd_width(narrow):
    """lossless has stored's bits; all are the reference's vectors, int8 up to its rounding."""
    expected = Embedder(narrow, backend="numpy").encode(TEXTS)
    stored = Embedder(narrow).encode(TEXTS)
    np.testing.assert_allclose(stored, expected, atol=2e-5)
    np.testing.assert_array_equal(Embedder(narrow, weights="lossless").encode(TEXTS), stored)
    rounded = Embedder(narrow, weights="int8").encode(TEXTS)
    assert 0.998 < (rounded * stored).sum(axis=1).min() < 1 - 1e-7


@pytest.mark.hf
def test_an_odd_width_agrees_with_transformers(narrow):
    result = verify(Embedder(narrow), against="transformers")
    assert result.held, result.bad


@pytest.fixture(scope="module")
def member(assets, tmp_path_factory) -> Path:
    """A tiny model with all else of F2LLM-v2-80M, where the Hub cache would have that."""
    folder = tmp_path_factory.mktemp("hub") / "models--codefuse-ai--F2LLM-v2-80M" / "snapshots" / "6faa7738"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LIKE, NARROW[0], dataclasses.replace(LIKE["tiny"], vocab_size=151936))
        return synthesize(folder, NARROW[0], tokenizer=assets / "tokenizers" / "qwen3_base.tokenizer.json")


def token_rows(folder: Path) -> dict[str, str]:
    checks = EmbedderChecks(Embedder(folder, backend="numpy"))
    return {check.name: check.verdict for check in checks.token_checks(is_published=False)}


def change_prompt(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    prompt = {"query": model_cards.F2LLM_PROMPT.rstrip()}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompt}))


def append_nothing(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))


def append_endoftext(folder: Path) -> None:
    path = folder / "tokenizer.json"
    text = json.dumps(json.loads(path.read_text())["post_processor"])
    ends = json.loads(text.replace("<|im_end|>", "<|endoftext|>").replace("151645", "151643"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": ends}))


def test_verify_knows_the_prompt_and_the_end_of_a_member(member):
    rows = token_rows(member)
    assert set(rows.values()) == {"ok"}, rows
    assert {"query prompt", "what ends every text", "ids of query 'Mizzen'"} <= set(rows)


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        (change_prompt, "query prompt"),
        (append_nothing, "what ends every text"),
        (append_endoftext, "what ends every text"),
    ],
)
def test_verify_finds_a_member_that_reads_other_tokens(member, tmp_path, change, bad):
    """The colon without its space, and a missing or another last token."""
    folder = tmp_path.joinpath(*member.parts[-3:])
    shutil.copytree(member, folder)
    change(folder)
    assert token_rows(folder)[bad] == "BAD"
