"""Outputs that follow an input that grows, and outputs of one byte or one bit per dimension."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qwen3np import quantize_embeddings
from qwen3np.files import run, work
from qwen3np.files.saved import open_saved
from qwen3np.quantization import VECTOR_PRECISIONS, quantization_ranges

OUTPUTS = [".npy", ".jsonl", ".parquet", ".safetensors"]
TEXTS = [f"the text with the number {n}" for n in range(12)]


def write_input(path: Path, texts, ids=None) -> None:
    rows = enumerate(texts) if ids is None else zip(ids, texts, strict=True)
    path.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in rows))


def files(folder: Path, output: str) -> dict[str, bytes]:
    return {path.name.replace(output, ""): path.read_bytes() for path in folder.glob(f"{output}*")}


def stored(path: Path) -> np.ndarray:
    return np.concatenate(list(open_saved(path).blocks()))


@pytest.fixture
def computed(model, monkeypatch) -> list[str]:
    """The texts whose vectors were computed, but for the one that tells the dimensions."""
    found: list[str] = []
    encode = type(model).encode

    def counted(self, inputs, **options):
        found.extend([] if isinstance(inputs, str) else inputs)
        return encode(self, inputs, **options)

    monkeypatch.setattr(type(model), "encode", counted)
    return found


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_update_is_what_a_new_run_would_be_and_computes_new_texts_only(
    embed, computed, tmp_path, monkeypatch, output
):
    """Rows added, changed, removed, moved, repeated, and with other ids; over many chunks. Every byte."""
    monkeypatch.setattr(run, "CHUNK_ROWS", 3)
    rng = np.random.default_rng(0)
    texts, known = TEXTS, set(TEXTS)
    write_input(tmp_path / "in.jsonl", texts)
    assert embed("in.jsonl", "--output", f"out{output}", "--update")[0] == 0  # there is nothing to update
    for step in range(6):
        added = [f"new {step} {n}" for n in range(rng.integers(0, 4))]
        removed = set(rng.choice(texts, rng.integers(0, 4)).tolist())
        after = [text for text in texts if text not in removed] + added + texts[:1]
        after = [after[i] for i in rng.permutation(len(after))] if step % 2 else after
        write_input(tmp_path / "in.jsonl", after, [f"{step} {n}" for n in range(len(after))])
        computed.clear()
        code, _, err = embed("in.jsonl", "--output", f"out{output}", "--update")
        new = [text for text in after if text not in known]
        assert code == 0 and computed == new
        gone = sum(text not in after for text in texts)
        assert (
            f"; {len(after) - len(new)} rows kept, {len(new)} new or changed, {gone} gone and removed" in err
        )
        texts, known = after, set(after)
        assert embed("in.jsonl", "--output", f"whole{output}", "--overwrite")[0] == 0
        assert files(tmp_path, f"out{output}") == files(tmp_path, f"whole{output}")
    before = files(tmp_path, f"out{output}")
    computed.clear()
    code, _, err = embed("in.jsonl", "--output", f"out{output}", "--update")
    assert code == 0 and "is complete" in err and not computed and files(tmp_path, f"out{output}") == before


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_update_of_chunks_of_several_files(embed, computed, tmp_path, output):
    """Chunks that are as they were are not computed again, in whichever file they stand now."""
    words = [f"{n} " * 8 for n in range(6)]
    (tmp_path / "a.txt").write_text("".join(words[:4]) + "\n")
    (tmp_path / "b.txt").write_text("b\n")
    command = ["a.txt", "b.txt", "--chunk-tokens", 16]
    assert embed(*command, "--output", f"out{output}")[0] == 0
    first = set(computed)
    (tmp_path / "b.txt").write_text("b\n" + "".join(words[:4]) + "and more\n")
    computed.clear()
    code, _, err = embed(*command, "--output", f"out{output}", "--update")
    assert code == 0 and computed and not first & set(computed) and " 0 gone and removed" in err
    assert embed(*command, "--output", f"whole{output}")[0] == 0
    assert files(tmp_path, f"out{output}") == files(tmp_path, f"whole{output}")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("precision", VECTOR_PRECISIONS[1:])
def test_quantised_outputs_are_quantised_vectors_and_keep_their_bytes(
    embed, model, tmp_path, monkeypatch, output, precision
):
    """The ranges are those of all vectors; an update keeps them, and says what is outside."""
    monkeypatch.setattr(run, "CHUNK_ROWS", 5)
    out = tmp_path / f"out{output}"
    write_input(tmp_path / "in.jsonl", TEXTS)
    code, _, err = embed("in.jsonl", "--output", out.name, "--precision", precision)
    binary = "binary" in precision
    assert code == 0 and f"12 x {12 if binary else 96} {precision}" in err
    vectors = model.encode(TEXTS)
    first = stored(out)
    np.testing.assert_array_equal(first, quantize_embeddings(vectors, precision))
    beside = tmp_path / f"{out.name}.ranges.npy"
    assert beside.exists() != binary
    if not binary:
        np.testing.assert_array_equal(np.load(beside), quantization_ranges(vectors))
    more = ["something else", "中国的首都是北京", *TEXTS[::-1]]
    write_input(tmp_path / "in.jsonl", more)
    code, _, err = embed("in.jsonl", "--output", out.name, "--precision", precision, "--update")
    assert code == 0 and "12 rows kept, 2 new or changed, 0 gone" in err
    assert ("outside the ranges of the older rows and were clipped" in err) == (not binary)
    after = stored(out)
    np.testing.assert_array_equal(after[2:], first[::-1])
    ranges = None if binary else quantization_ranges(vectors)
    np.testing.assert_array_equal(after[:2], quantize_embeddings(model.encode(more[:2]), precision, ranges))
    code, found, _ = embed(out.name, TEXTS[3], "--top-k", 1, "--prompt", "", "--json", command="search")
    [best] = json.loads(found)["results"]
    assert code == 0 and best["row"] == more.index(TEXTS[3]) and best["score"] > (0.6 if binary else 0.99)


def test_a_quantised_search_is_rescored_by_the_vectors_in_float32(embed, model, tmp_path):
    write_input(tmp_path / "in.jsonl", TEXTS)
    for precision in ("float32", "ubinary", "int8"):
        assert embed("in.jsonl", "--output", f"{precision}.npy", "--precision", precision)[0] == 0
    command = ["number 7", "--top-k", 3, "--json"]
    exact = embed("float32.npy", *command, command="search")[1]
    for precision in ("ubinary", "int8"):
        assert embed(f"{precision}.npy", *command, command="search")[1] != exact
        found = embed(f"{precision}.npy", *command, "--rescore", "float32.npy", command="search")[1]
        assert found == exact
    write_input(tmp_path / "in.jsonl", TEXTS[:3])
    assert embed("in.jsonl", "--output", "three.npy")[0] == 0
    code, _, err = embed("int8.npy", "x", "--rescore", "three.npy", command="search")
    assert code == 2 and "three.npy: holds 3 vectors, int8.npy 12" in err


def test_texts_of_the_command_line_may_be_quantised(embed, model, tmp_path):
    assert embed("one", "two", "--output", "out.npy", "--precision", "uint8")[0] == 0
    expected = quantize_embeddings(model.encode(["one", "two"]), "uint8")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_ranges_need_two_texts(embed, tmp_path):
    write_input(tmp_path / "in.jsonl", TEXTS[:1])
    code, _, err = embed("in.jsonl", "--output", "out.npy", "--precision", "int8")
    assert code == 2 and "int8 takes its ranges from the vectors, and needs two texts or more" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--dim", "40"], "dim was 96, is 40"),
        (["--prompt", "x"], 'prompt was "", is "x"'),
        (["--precision", "int8"], 'precision was "float32", is "int8"'),
    ],
)
def test_vectors_that_mean_something_else_are_not_updated(embed, tmp_path, options, reason):
    write_input(tmp_path / "in.jsonl", TEXTS)
    assert embed("in.jsonl", "--output", "out.npy")[0] == 0
    before = files(tmp_path, "out.npy")
    write_input(tmp_path / "in.jsonl", TEXTS[1:])
    code, _, err = embed("in.jsonl", "--output", "out.npy", "--update", *options)
    assert code == 2 and "out.npy: exists, of another run (" in err and reason in err
    assert files(tmp_path, "out.npy") == before


def test_an_output_that_was_edited_is_not_updated(embed, tmp_path):
    write_input(tmp_path / "in.jsonl", TEXTS)
    assert embed("in.jsonl", "--output", "out.npy")[0] == 0
    np.save(tmp_path / "out.npy", np.load(tmp_path / "out.npy")[::-1])
    before = files(tmp_path, "out.npy")
    code, _, err = embed("in.jsonl", "--output", "out.npy", "--update")
    assert code == 2 and "exists, and is not as its run wrote it" in err
    (tmp_path / "out.npy.hashes.npy").unlink()
    assert embed("in.jsonl", "--output", "out.npy", "--update")[0] == 2
    (tmp_path / "out.npy.json").unlink()
    assert "out.npy: exists; --overwrite" in embed("in.jsonl", "--output", "out.npy", "--update")[2]
    assert files(tmp_path, "out.npy")[""] == before[""]


def test_vectors_of_another_version_are_kept_and_named(embed, tmp_path, monkeypatch):
    write_input(tmp_path / "in.jsonl", TEXTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwen3np.files.identity.__version__", "0.0.1")
        assert embed("in.jsonl", "--output", "out.npy")[0] == 0
    before = np.load(tmp_path / "out.npy")
    write_input(tmp_path / "in.jsonl", [*TEXTS, "new"])
    for _ in range(2):  # the second time there is nothing to do
        assert embed("in.jsonl", "--output", "out.npy", "--update")[0] == 0
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[:12], before)
        assert json.loads((tmp_path / "out.npy.json").read_text())["info"]["also_by"].startswith(
            "0.0.1 numba"
        )


def test_an_interrupted_run_is_updated_as_far_as_its_rows_are_the_same(
    embed, computed, tmp_path, monkeypatch
):
    """The same command after a kill: also if the input has grown in the meantime."""
    monkeypatch.setattr(run, "CHUNK_ROWS", 2)
    write_input(tmp_path / "in.jsonl", TEXTS[:4])
    assert embed("in.jsonl", "--output", "out.npy", "--update")[0] == 0
    write_input(tmp_path / "in.jsonl", TEXTS)
    add = work.WorkFolder.add

    def interrupted(self, number, chunk):
        if number == 4:
            raise KeyboardInterrupt
        add(self, number, chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.WorkFolder, "add", interrupted)
        assert embed("in.jsonl", "--output", "out.npy", "--update")[0] == 130
    after = [*TEXTS[:6], "inserted", *TEXTS[6:]]
    write_input(tmp_path / "in.jsonl", after)
    computed.clear()
    code, _, err = embed("in.jsonl", "--output", "out.npy", "--update")
    assert code == 0 and "(6 rows were done before); 4 rows kept" in err
    assert computed == after[6:]
    assert embed("in.jsonl", "--output", "whole.npy")[0] == 0
    assert files(tmp_path, "out.npy") == files(tmp_path, "whole.npy")
