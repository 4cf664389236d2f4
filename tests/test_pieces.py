"""Long texts: the ids of the whole text, without tokenising all of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3np.loading.pieces import Pieces
from qwen3np.loading.tokenizer import EmbeddingTokenizer
from qwen3np.synth.checkpoints import BUILT_IN_TOKENIZER

# The others have the same merges as the first: they differ in added tokens, and in what ends a text.
SAME_MERGES = ("qwen3_embedding_4b_8b", "qwen3_base")
REAL_FILES = ("qwen3_embedding_0.6b", *(pytest.param(name, marks=pytest.mark.slow) for name in SAME_MERGES))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Where the tokenizer's parts reach over a cut: marks that compose and are reordered, jamo, characters that
# NFC makes others of, case folding, ends of lines, spaces of all kinds, digits, added tokens and parts.
ALPHABET = [
    *"aAzſK'sStT019 \t\n\r.,:!<|>_-\u0301\u0338\u0307\u1100\u1161\u11a8가각中。，",
    *"\u3000\u00a0\u2028\x85\x1c\x0b",
    *"\u200d👨🏽\u0958\u09c7\u09be\u212a\u037e\u1fef\u0f71\u0f72\u3099かé²Ⅷ٣\ufe0f\u20e3\0", " ", " ", "\n",
    *("'re", "'LL", "<|im_end|>", "<|im_start|>", "<think>", "</think>", "<|endoftext|>", "<|im_", "end|>"),
]  # fmt: skip
CHUNKS = st.lists(st.sampled_from(ALPHABET), max_size=40).map("".join)


def load(path: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def built_in() -> tokenizers.Tokenizer:
    return load(BUILT_IN_TOKENIZER)


@pytest.fixture(scope="module", params=["built-in", *REAL_FILES])
def library(request) -> tokenizers.Tokenizer:
    if request.param == "built-in":
        return load(BUILT_IN_TOKENIZER)
    return load(request.getfixturevalue("assets") / "tokenizers" / f"{request.param}.tokenizer.json")


def ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def cut(library) -> Pieces:
    return Pieces(library)


@settings(max_examples=300, deadline=None)
@given(text=CHUNKS, size=st.integers(1, 12))
def test_pieces_have_the_ids_of_the_whole_text(library, cut, text, size):
    pieces = list(cut(text, size))
    assert "".join(pieces) == text and all(pieces)
    assert [i for piece in pieces for i in ids(library, piece)] == ids(library, text)


def test_ordinary_texts_are_cut_and_no_piece_is_longer(cut):
    """Or the property above would hold for nothing."""
    for text in (
        "The capital of China, in 1949.\n",
        "中国的首都是北京。",
        '{"k":[1,2]}',
        "aGVsbG8gd29y1Zw",
        "x=1;\r\n",
    ):
        pieces = list(cut(text * 40, 100))
        assert len(pieces) >= len(text) * 40 / 100 and max(map(len, pieces)) <= 100


@pytest.mark.parametrize("text", ["e\u0301" * 250, "<think>" * 80, "'s" * 250, "٣" * 500])
def test_texts_without_a_place_to_cut_stay_right(library, cut, text):
    for more in ("", " and more"):
        pieces = list(cut(text + more, 10))
        assert [i for piece in pieces for i in ids(library, piece)] == ids(library, text + more)


RUNS = ["a", " ", "\n", "\t", "-", "中", "😀", "é", "ш", "ا", "ha", "\r\n", " \n", "-=", "👩\u200d👧"]


@pytest.mark.parametrize("run", RUNS)
def test_runs_of_one_character_are_cut_between_tokens(library, cut, run):
    """Runs of every length, and what could make other parts or other merges of their two ends."""
    count = 0
    for k in (*range(1, 130), *range(500, 560)):
        assert [i for piece in cut(run * k, 80) for i in cut.ids(piece)] == ids(library, run * k)
    for before in ("", "x", " ", "1", "'", "-", "-\n", "<|im_end|>"):
        for behind in ("", "x", " ", "'s", "-", "\n x", "  \n", "\u0338", "\u3099", "<|im_end|>"):
            text = before + run * 300 + behind
            pieces = list(cut(text, 120))
            count += len(pieces) - 1
            assert [i for piece in pieces for i in cut.ids(piece)] == ids(library, text)
    assert count > 40


def test_runs_are_cut_between_tokens(library, cut):
    """Letters, kana, Chinese without punctuation, emoji; with an end that could reach back into the run."""
    chosen, count = random.Random(0), 0
    for pool in (
        "abcdefgHIJKLMN",
        "ACGT",
        "かがきぎアイウエオンのはです",
        "中国的首都是北京她说一二三",
        "👨👩\u200d\ufe0f🏽🇨🇳😀",
    ):
        for end in ("", " x", "a", "。", "\u3099", "\u0301", "1", "<|im_end|>"):
            text = chosen.choice(["", "'", " ", "1", "!"]) + "".join(chosen.choices(pool, k=900)) + end
            pieces = list(cut(text, 400))
            count += len(pieces) - 1
            assert [i for piece in pieces for i in ids(library, piece)] == ids(library, text)
    assert count > 40


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(normalizer={"type": "NFKC"}),
        lambda content: content.update(normalizer=None),
        lambda content: content.update(pre_tokenizer={"type": "Whitespace"}),
        lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda content: content["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda content: content["added_tokens"][0].update(lstrip=True),
        lambda content: content["added_tokens"][0].update(content="末"),
    ],
)
def test_texts_of_another_kind_of_tokenizer_stay_whole(tmp_path, change):
    content = json.loads(BUILT_IN_TOKENIZER.read_text(encoding="utf-8"))
    change(content)
    content["post_processor"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert list(Pieces(load(path))("a b 1 " * 100, 10)) == ["a b 1 " * 100]


@pytest.fixture
def short_pieces(built_in, monkeypatch) -> EmbeddingTokenizer:
    """The small tokenizer, which takes texts of more than five characters in pieces."""
    tokenizer = EmbeddingTokenizer(BUILT_IN_TOKENIZER, 2048)
    monkeypatch.setattr("qwen3np.loading.tokenizer.PIECE", 5)

    class Short(Pieces):
        def __call__(self, text: str, size: int = 5) -> Iterator[str]:
            return super().__call__(text, size)

    monkeypatch.setattr(tokenizer, "_as_it_is", (built_in, Short(built_in)))
    return tokenizer


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=CHUNKS, most=st.integers(0, 30), prompt=st.sampled_from(["", "Query:", "x <"]))
def test_the_first_ids_are_those_of_the_whole_text(short_pieces, built_in, text, most, prompt):
    whole = ids(built_in, prompt + text)
    [leading] = short_pieces.leading([prompt + text], most)
    assert leading.ids == whole[:most] and leading.length <= len(whole)
    assert leading.length == len(whole) if leading.whole else leading.length > most
    [encoded] = short_pieces.encode([text], most + 1, prompt)
    assert encoded == [*whole[:most], short_pieces.end_of_text]


# VmHWM is this program's own; ru_maxrss would begin with that of pytest, which started it.
GROWTH = """
import json, re, sys
def memory(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
LONG = """
from qwen3np.loading.tokenizer import EmbeddingTokenizer
tokenizer = EmbeddingTokenizer(sys.argv[1], 1 << 20)
text = sys.argv[2] * ((8 << 20) // len(sys.argv[2]))
before = memory("VmRSS")
[ids] = tokenizer.encode([text], 32768)
print(json.dumps([memory("VmHWM") - before, len(ids)]))
"""
MANY = """
from qwen3np import Embedder
model = Embedder(sys.argv[1], max_seq_length=8)
model.encode("warm")
texts = [(f"{i} is the number of this text. " * 20)[:460] for i in range(100_000)]
before = memory("VmRSS")
vectors = model.encode(texts)
print(json.dumps([memory("VmHWM") - before, vectors.nbytes, len(vectors)]))
"""


def growth(code: str, *arguments: str | Path) -> list[int]:
    command = [sys.executable, "-c", GROWTH + code, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)


@LINUX
@pytest.mark.parametrize("text", ["The capital of China, in 1949. ", "a", " ", "\n", "-", "ha", " \n", "ا"])
def test_a_text_of_8_mib_that_is_cut_takes_little_memory(text):
    """3.5 GB if all of it is tokenised with offsets."""
    grown, length = growth(LONG, BUILT_IN_TOKENIZER, text)
    assert length == 32768 and grown < 150e6


@LINUX
@pytest.mark.slow
def test_100_000_texts_take_little_memory_beside_their_vectors(tiny):
    """46 MB of texts; 2.9 GB if all their tokens are Python's integers."""
    grown, vectors, count = growth(MANY, tiny)
    print(f"\n{grown / 1e6:.0f} MB, {vectors / 1e6:.0f} MB of them vectors")
    assert count == 100_000 and grown < vectors + 150e6


def test_the_warning_says_what_was_counted(tmp_path, caplog):
    tokenizer = EmbeddingTokenizer(BUILT_IN_TOKENIZER, 2048)
    short, long = "word " * 100, "word " * 20_000
    tokenizer.encode([short], 8)
    tokenizer.encode([short, long, "a"], 8)
    exact, at_least = (record.getMessage() for record in caplog.records)
    count = len(tokenizer.encode([short], 1 << 20)[0])
    assert exact == f"1 of 1 texts cut to max_seq_length = 8 tokens (the longest had {count})"
    assert at_least.startswith("2 of 3 texts cut to max_seq_length = 8 tokens (the longest had at least ")
    counted = int(at_least.rstrip(")").rpartition(" ")[2])
    assert 8 < counted <= len(tokenizer.encode([long], 1 << 20)[0])
