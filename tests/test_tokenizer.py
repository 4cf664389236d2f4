"""Text to token ids: Qwen's ids on Qwen's files, one `<|endoftext|>` at every end, any text whatever."""

from __future__ import annotations

import functools
import json
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3np import CheckpointError
from qwen3np.loading.tokenizer import EmbeddingTokenizer, RerankerTokenizer
from qwen3np.loading.tokenizer_config import TokenizerConfig
from qwen3np.synth.checkpoints import BUILT_IN_TOKENIZER

END = "<|endoftext|>"
UNLIMITED = 1 << 30
# qwen3_base is the rerankers' file: it appends nothing of itself, and has the embedding files' vocabulary.
REAL_FILES = {"qwen3_embedding_0.6b": 151669, "qwen3_embedding_4b_8b": 151665, "qwen3_base": 151669}

TEXTS = [
    *("", " ", "\n", "  \t\r\n  ", "\0", "a\0b", "\x01\x1b[31m\x7f", "\r\n\r\n", "\ufeffb", "\u2028\u200b"),
    *("The capital of China", "中国的首都是北京。", "日本の首都は東京です。", "서울은 대한민국의 수도"),
    *("Столица России — Москва.", "Η Αθήνα είναι", "عاصمة مصر هي القاهرة.", "בירת ישראל", "پایتخت ایران"),
    *("भारत की राजधानी", "ঢাকা বাংলাদেশের", "சென்னை தமிழ்நாடு", "กรุงเทพมหานคร", "မြန်မာ", "ភ្នំពេញ"),
    *("Thủ đô là Hà Nội", "Größe", "L'été", "¿Dónde está?", "İstanbul'da", "Łódź", "አዲስ አበባ", "თბილისი"),
    *("👩\u200d👩\u200d👧", "🏳️\u200d🌈🇨🇳🇪🇺", "👍🏽", "𝔘𝔫𝔦", "\U0010ffff", "\ue000"),
    *("e\u0301 and é", "\u1100\u1161\u11a8", "\u212b", "ﬁ"),
    *("x" * 100_000, "字" * 20_000, "don't I'LL 've", "1234567890", "def f(x):\n\treturn x ** 2  # ok\n"),
    *(END, f"a{END}b", "<|im_start|>user\n<|im_end|>", "<think>", "<|endoftext", "< |endoftext|>"),
]


@functools.cache
def real(assets: Path, name: str) -> EmbeddingTokenizer:
    file = assets / "tokenizers" / f"{name}.tokenizer.json"
    return EmbeddingTokenizer(file, REAL_FILES[name], appends_end=True)


@pytest.fixture(scope="module")
def tokenizer() -> EmbeddingTokenizer:
    return EmbeddingTokenizer(BUILT_IN_TOKENIZER, 2048)


@pytest.fixture(scope="module", params=REAL_FILES)
def real_tokenizer(assets, request) -> EmbeddingTokenizer:
    return real(assets, request.param)


@pytest.fixture(params=["built-in", *REAL_FILES])
def any_tokenizer(request) -> EmbeddingTokenizer:
    if request.param == "built-in":
        return request.getfixturevalue("tokenizer")
    return real(request.getfixturevalue("assets"), request.param)


def changed(tmp_path: Path, source: Path = BUILT_IN_TOKENIZER, **changes) -> Path:
    path = tmp_path / "tokenizer.json"
    content = json.loads(source.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_real_files_give_the_golden_ids(assets, real_tokenizer):
    """The reranker's prompts too, but for those with <think>, which the 4B and 8B files do not have."""
    golden = json.loads((assets / "golden" / "token_ids_computed.json").read_text(encoding="utf-8")).values()
    knows_think = real_tokenizer.encode(["<think>"], UNLIMITED) == [[151667, 151643]]
    used = [entry for entry in golden if knows_think or "<think>" not in entry["text"]]
    assert len(used) == (len(golden) if knows_think else len(golden) - 3)
    for entry in used:
        expected = [i for i in entry["ids"] if i != 151643] + [151643]
        assert real_tokenizer.encode([entry["text"]], UNLIMITED) == [expected]


def test_ids_that_others_published(real_tokenizer):
    """An empty text is the end alone; "Query:" and the text are one string: its ":" is the next word's."""
    encode = real_tokenizer.encode
    assert encode([""], UNLIMITED) == [[151643]]
    assert encode(["What", "Mizzen"], UNLIMITED, prompt="Query:") == [
        [2859, 25, 3838, 151643],
        [2859, 65207, 449, 5679, 151643],
    ]
    assert encode(["yes", "no"], UNLIMITED) == [[9693, 151643], [2152, 151643]]


def test_ids_hold_the_whole_text(any_tokenizer):
    """Decoded, they are the text in NFC and the end: nothing is lost, unknown or added."""
    for text in TEXTS:
        [ids] = any_tokenizer.encode([text], UNLIMITED)
        assert any_tokenizer.decode(ids) == unicodedata.normalize("NFC", text) + END
        assert ids.count(any_tokenizer.end_of_text) == text.count(END) + 1


def test_older_files_that_append_nothing_give_the_same_ids(assets, tmp_path):
    """Copies from before 6 June 2025 have no post-processor; without the end a vector is another one."""
    path = assets / "tokenizers" / "qwen3_embedding_0.6b.tokenizer.json"
    older = EmbeddingTokenizer(changed(tmp_path, path, post_processor=None), 151669, appends_end=True)
    assert older.encode(TEXTS, 64) == real(assets, "qwen3_embedding_0.6b").encode(TEXTS, 64)


def test_escaping_changes_nothing_else(assets):
    """Texts without a special token keep their ids, and those with one their characters."""
    escaped = "no.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nyes<|endoftext|>"
    files, texts = assets / "tokenizers", [text for text in TEXTS if "<" not in text]
    reranker = RerankerTokenizer(files / "qwen3_base.tokenizer.json", 151669)
    assert reranker.ids(texts, escape_special_tokens=True) == reranker.ids(texts)
    [ids] = reranker.ids([escaped], escape_special_tokens=True)
    assert max(ids) < 151643 and reranker.decode(ids) == escaped
    file = files / "qwen3_embedding_0.6b.tokenizer.json"
    [ids] = EmbeddingTokenizer(file, 151669, escape_special_tokens=True).encode([f"a{END}b"], 100)
    assert ids.count(151643) == 1 == len([i for i in ids if i >= 151643])


@pytest.mark.parametrize("prompt", ["", "Instruct: x\nQuery:"])
@pytest.mark.parametrize("text", ["", "The capital of China", "😀😀😀", f"a{END}b"])
def test_truncation_keeps_the_end(tokenizer, caplog, prompt, text):
    """At every length: the first tokens and the end, at most max_length of them."""
    [whole] = tokenizer.encode([text], UNLIMITED, prompt)
    for max_length in range(1, len(whole) + 2):
        [ids] = tokenizer.encode([text], max_length, prompt)
        assert ids == whole[:-1][: max_length - 1] + [tokenizer.end_of_text]
        assert len(ids) == min(max_length, len(whole))
    assert len(caplog.records) == len(whole) - 1


def test_one_warning_a_call_says_how_many_texts_were_cut(tokenizer, caplog):
    texts = ["a", "a b c d", "", "a b c d e f"]
    with caplog.at_level(logging.WARNING, "qwen3np"):
        tokenizer.encode(texts, 4)
        assert [record.getMessage() for record in caplog.records] == [
            "2 of 4 texts cut to max_seq_length = 4 tokens (the longest had 7)"
        ]
        caplog.clear()
        tokenizer.encode(texts, 7)
        assert not caplog.records


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["a"], ("a", "b"), float("nan")])
def test_a_text_that_is_no_str_is_named_by_its_index(tokenizer, wrong):
    with pytest.raises(TypeError, match=f"text 2 is {type(wrong).__name__}, expected str"):
        tokenizer.encode(["a", "b", wrong], UNLIMITED)


def test_a_lone_surrogate_is_named_by_its_index(tokenizer):
    with pytest.raises(ValueError, match=r"text 1 is not valid .* '\\ud83d' at character 2"):
        tokenizer.encode(["a", "bc\ud83d", "\udc00"], UNLIMITED)
    with pytest.raises(ValueError, match="the prompt is not valid Unicode"):
        tokenizer.encode(["a"], UNLIMITED, prompt="\ud83d")


def test_saved_lengths_and_padding_change_nothing(tokenizer, tmp_path):
    """tokenizer.json may hold the settings of whoever saved it last. (The side of its truncation counts.)"""
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": 8,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    saved = EmbeddingTokenizer(changed(tmp_path, truncation=truncation, padding=padding), 2048)
    assert saved.encode(TEXTS[:40], UNLIMITED) == tokenizer.encode(TEXTS[:40], UNLIMITED)


def test_a_tokenizer_of_another_model_is_refused(assets, tmp_path):
    """Its ids would be rows of the embedding that mean something else, or that are not there."""
    with pytest.raises(CheckpointError, match="151668, but config.json's vocab_size is 151665"):
        EmbeddingTokenizer(assets / "tokenizers" / "qwen3_embedding_0.6b.tokenizer.json", 151665)
    EmbeddingTokenizer(BUILT_IN_TOKENIZER, 2000)
    with pytest.raises(CheckpointError, match="1999, but config.json's vocab_size is 1999"):
        EmbeddingTokenizer(BUILT_IN_TOKENIZER, 1999)
    with pytest.raises(CheckpointError, match=r"has no token <\|endoftext\|>"):
        EmbeddingTokenizer(changed(tmp_path, added_tokens=[], post_processor=None), 2048, appends_end=True)


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def test_pieces_that_transformers_would_not_use_are_refused(tmp_path):
    """Its Qwen2Tokenizer has a normaliser and a split of its own; other classes take the file as it is."""
    model = json.loads(BUILT_IN_TOKENIZER.read_text(encoding="utf-8"))["model"]
    for piece, value in (
        ("normalizer", {"type": "NFKC"}),
        ("normalizer", None),
        ("pre_tokenizer", {**BYTES, "use_regex": True}),
        ("model", {**model, "ignore_merges": True}),
    ):
        path = changed(tmp_path, **{piece: value})
        with pytest.raises(CheckpointError, match=f"its {piece} is not Qwen's .* PreTrainedTokenizerFast"):
            EmbeddingTokenizer(path, 2048)
        EmbeddingTokenizer(path, 2048, TokenizerConfig(is_qwen=False))
    with pytest.raises(CheckpointError, match="dropout = 0.5 makes ids random"):
        EmbeddingTokenizer(changed(tmp_path, model={**model, "dropout": 0.5}), 2048)


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", "not JSON", '{"version": "1.0", "model": null}', "\ufffd"]
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="tokenizer.json: is not a tokenizer"):
        EmbeddingTokenizer(path, 2048)
    with pytest.raises(CheckpointError, match="no such file"):
        EmbeddingTokenizer(tmp_path / "elsewhere" / "tokenizer.json", 2048)


# Characters of Unicode 3.2: newer ones Python and the tokenizer library may normalise by different tables.
CHARACTERS = st.characters(exclude_categories=("Cs", "Cn")).filter(
    lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn"
)


@given(texts=st.lists(st.text(CHARACTERS), max_size=4), prompt=st.sampled_from(["", "Query:", "x\nQuery:"]))
def test_any_texts_give_valid_ids_that_do_not_depend_on_the_batch(tokenizer, texts, prompt):
    batch = tokenizer.encode(texts, UNLIMITED, prompt)
    assert batch == [tokenizer.encode([text], UNLIMITED, prompt)[0] for text in texts]
    assert batch == tokenizer.encode([prompt + text for text in texts], UNLIMITED)
    for text, ids in zip(texts, batch, strict=True):
        assert ids[-1] == tokenizer.end_of_text and all(0 <= i < 2048 for i in ids)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", prompt + text) + END
