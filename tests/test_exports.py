"""Databases and indexes made of saved outputs, and texts that an output holds twice."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3np.cli.options import RERANKER
from qwen3np.files import duplicates as module
from qwen3np.files.duplicates import duplicates
from qwen3np.files.saved import open_saved
from qwen3np.files.work import WorkFolder
from qwen3np.quantization import VECTOR_PRECISIONS
from qwen3np.similarity import similarity
from qwen3np.synth.checkpoints import synthesize

PAGE = (Path(__file__).parent.parent / "docs" / "files.md").read_text(encoding="utf-8")
TEXTS = [f"the text with the number {n}" for n in range(40)]
TARGETS = {"duckdb": "duckdb", "lance": "lancedb", "faiss": "faiss", "usearch": "usearch"}


@pytest.fixture
def saved(embed, tmp_path):
    """Embeds texts into out + suffix, and returns the function that does."""

    def save(texts=TEXTS, ids=None, output="out.npy", *options) -> Path:
        rows = enumerate(texts) if ids is None else zip(ids, texts, strict=True)
        lines = (json.dumps({"id": id, "text": text}) + "\n" for id, text in rows)
        (tmp_path / "in.jsonl").write_text("".join(lines))
        assert embed("in.jsonl", "--output", output, "--overwrite", *options)[0] == 0
        return tmp_path / output

    return save


def table(path: Path, name: str = "embeddings") -> list[tuple]:
    """The rows of a table, by id."""
    if path.suffix == ".duckdb":
        duckdb = pytest.importorskip("duckdb")
        with duckdb.connect(str(path), read_only=True) as database:
            rows = database.execute(f'SELECT * FROM "{name}"').fetchall()
    else:
        lancedb = pytest.importorskip("lancedb")
        found = lancedb.connect(str(path.parent)).open_table(path.stem).to_arrow()
        rows = list(zip(*(found[name].to_pylist() for name in found.column_names), strict=True))
    return sorted((row[0], *row[1:-1], np.float32(row[-1])) for row in rows)


@pytest.mark.exports
@pytest.mark.parametrize("suffix", ["duckdb", "lance"])
@pytest.mark.parametrize("output", ["out.npy", "out.parquet", "out.jsonl", "out.safetensors"])
@pytest.mark.parametrize("ids", [None, [f"i{n:02}" for n in range(40)]], ids=["numbers", "names"])
def test_a_table_has_every_row_and_is_replaced_or_added_to_if_asked(
    run, model, saved, tmp_path, suffix, output, ids
):
    saved(TEXTS, ids, output)
    target = tmp_path / f"t.{suffix}"
    code, _, err = run("export", output, target.name)
    assert code == 0 and "40 rows x 96" in err
    rows, vectors = table(target), model.encode(TEXTS)
    assert [row[0] for row in rows] == (ids or [*range(40)])
    assert {row[1] for row in rows if len(row) == 3} in (set(), set(TEXTS))
    np.testing.assert_array_equal([row[-1] for row in rows], vectors)
    code, _, err = run("export", output, target.name)
    assert code == 2 and "exists; --overwrite replaces it, --append adds to it" in err
    more = ["another", *TEXTS[1:3], "one more"]
    saved(more, [rows[0][0], rows[1][0], rows[2][0], 99 if ids is None else "i99"], output)
    for _ in range(2):  # the same rows again change nothing
        assert run("export", output, target.name, "--append")[0] == 0
        after = table(target)
        assert len(after) == 41
        np.testing.assert_array_equal(after[0][-1], model.encode(["another"])[0])
        np.testing.assert_array_equal(after[-1][-1], model.encode(["one more"])[0])
        np.testing.assert_array_equal([row[-1] for row in after[1:-1]], vectors[1:])
    assert run("export", output, target.name, "--overwrite")[0] == 0
    assert len(table(target)) == 4


@pytest.mark.exports
@pytest.mark.parametrize("suffix", ["duckdb", "lance"])
def test_a_table_keeps_all_chunks_of_a_text_and_those_of_its_newest_version_alone(
    run, embed, tmp_path, suffix
):
    target, options = f"t.{suffix}", ["--chunk-tokens", 8, "--output", "out.parquet", "--overwrite"]
    for name in "ab":
        (tmp_path / f"{name}.md").write_text(f"of {name}: " + " ".join(TEXTS))
    assert embed("*.md", *options)[0] == 0 and run("export", "out.parquet", target)[0] == 0
    before = table(tmp_path / target)
    assert len(before) == open_saved(tmp_path / "out.parquet").count > 9
    assert {row[1] for row in before} == {"a.md", "b.md"}
    (tmp_path / "a.md").write_text("Short.")
    assert embed("a*.md", *options)[0] == 0
    for _ in range(2):
        assert run("export", "out.parquet", target, "--append")[0] == 0
        after = table(tmp_path / target)
        assert [row[1:3] for row in after if row[0] == "a.md"] == [("a.md", 0)]
        assert [row[1:3] for row in after[1:]] == [row[1:3] for row in before if row[0] == "b.md"]


@pytest.mark.exports
@pytest.mark.parametrize("suffix", ["duckdb", "lance"])
@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
@pytest.mark.parametrize("chunks", [[], ["--chunk-tokens", 8]], ids=["whole", "chunks"])
def test_rows_that_are_added_replace_those_of_the_same_file_and_id_alone(
    run, embed, tmp_path, suffix, output, chunks
):
    """Some ids are texts with quotes, some the numbers of rows; one stands in two files."""
    (tmp_path / "a.csv").write_text('id,text\no\'b,apple\n"say ""hi""",pear\n')
    (tmp_path / "b.csv").write_text('id,text\no\'b,boat\n"say ""hi""",ship\n')
    (tmp_path / "c.txt").write_text("one\ntwo\n")
    command = ["c.txt", "a.csv", "b.csv", "--output", output, "--overwrite", *chunks]
    assert embed(*command)[0] == 0 and run("export", output, f"t.{suffix}")[0] == 0
    before = {row[:2]: row for row in table(tmp_path / f"t.{suffix}")}
    changed = {("o'b", "a.csv"), ('say "hi"', "b.csv"), ("0", "c.txt")}
    assert len(before) == 6 and changed < before.keys()
    (tmp_path / "a.csv").write_text("id,text\no'b,another apple\n")
    (tmp_path / "b.csv").write_text('id,text\n"say ""hi""",another ship\n')
    (tmp_path / "c.txt").write_text("another one\n")
    assert embed(*command)[0] == 0
    for _ in range(2):
        assert run("export", output, f"t.{suffix}", "--append")[0] == 0
        after = {row[:2]: row for row in table(tmp_path / f"t.{suffix}")}
        assert after.keys() == before.keys()
        assert {key for key in after if str(after[key]) != str(before[key])} == changed


@pytest.mark.exports
@pytest.mark.parametrize("suffix", ["duckdb", "lance"])
def test_rows_of_other_columns_are_not_added(run, embed, tmp_path, suffix):
    """They would replace those of every file that have their id, or lose the texts."""
    (tmp_path / "a.csv").write_text("id,text\na,apple\n")
    made = {
        "plain": ["a.csv", "--output", "plain.parquet"],
        "without texts": ["a.csv", "--output", "vectors.npy"],
        "numbered": ["a.csv", "--id-column", "", "--column", "text", "--output", "numbered.parquet"],
        "shorter": ["a.csv", "--dim", 64, "--output", "shorter.parquet"],
        "of files": ["a.c*", "--output", "files.parquet"],
        "in chunks": ["a.csv", "--chunk-tokens", 8, "--output", "chunks.parquet"],
    }
    assert all(embed(*command)[0] == 0 for command in made.values())
    outputs = [command[-1] for command in made.values()]
    for first in outputs:
        target = f"{first}.{suffix}"
        assert run("export", first, target)[0] == 0
        before = table(tmp_path / target)
        for other in outputs:
            code, _, err = run("export", other, target, "--append")
            assert code == (0 if other == first else 2), (first, other)
            assert code == 0 or ("has other columns (" in err and err.count("\n") == 1)
            assert str(table(tmp_path / target)) == str(before)


@pytest.mark.exports
@pytest.mark.parametrize("suffix", ["duckdb", "lance"])
def test_rows_of_another_model_or_prompt_are_not_added(run, tiny, tmp_path, monkeypatch, suffix):
    """They would be compared with the others, which means nothing. A model's two names are no two models."""
    monkeypatch.chdir(tmp_path)
    renamed = shutil.copytree(tiny, "renamed")
    other = synthesize("other", "tiny", seed=7)
    made = {"first": [tiny], "again": [renamed], "other": [other], "query": [tiny, "--query"]}
    for name, options in made.items():
        Path(f"{name}.txt").write_text("one\ntwo\n")
        command = ["embed", f"{name}.txt", "--output", f"{name}.parquet", "--model", *options]
        assert run(*command)[0] == 0
    target = tmp_path / f"t.{suffix}"
    assert run("export", "first.parquet", target)[0] == 0
    before = table(target)
    for name, refused in {"other": "model", "query": "prompt", "again": ""}.items():
        code, _, err = run("export", f"{name}.parquet", target, "--append")
        assert code == (2 if refused else 0), err
        assert not refused or (f"has vectors of {refused} " in err and str(table(target)) == str(before))


@pytest.mark.exports
@pytest.mark.parametrize("suffix", ["duckdb", "lance"])
def test_another_programs_rows_need_not_all_say_where_they_are_from(run, tmp_path, suffix):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"id": ["a", "b"], "file": ["x", None], "start": ["today", "later"], "text": ["t", "u"]}
    vectors = pa.array([[1.0] * 96] * 2, pa.list_(pa.float32(), 96))
    pq.write_table(pa.table(columns | {"embedding": vectors}), tmp_path / "other.parquet")
    code, _, err = run("export", tmp_path / "other.parquet", tmp_path / f"t.{suffix}")
    assert code == 0, err
    assert [row[:-1] for row in table(tmp_path / f"t.{suffix}")] == [("a", "x", "t"), ("b", None, "u")]


@pytest.mark.exports
@pytest.mark.parametrize(
    "target, options, expected",
    [
        ("t.lance", ["--table", "mine"], "--table is for .duckdb"),
        ("t.usearch", ["--table", "mine"], "--table is for .duckdb"),
        ("t.duckdb", ["--index", "f16"], "--index is for .faiss and .usearch"),
        ("t.lance", ["--index", "f16"], "--index is for .faiss and .usearch"),
    ],
)
def test_an_option_of_another_target_is_refused(run, saved, tmp_path, target, options, expected):
    saved()
    code, _, err = run("export", "out.npy", target, *options)
    assert code == 2 and expected in err and not (tmp_path / target).exists()


@pytest.mark.exports
def test_what_a_killed_export_left_is_made_anew_with_the_option_that_it_names(run, embed, saved, tmp_path):
    pytest.importorskip("usearch.index")
    saved()
    with WorkFolder(tmp_path / "t.usearch") as work:
        work.begin({"run": {}, "info": {}, "rows": 40, "bad": 0, "dim": 96, "replaces": {}})
    code, _, err = run("export", "out.npy", "t.usearch")
    assert code == 2 and "interrupted run; --overwrite begins anew" in err and "--resume" not in err
    assert run("export", "out.npy", "t.usearch", "--overwrite")[0] == 0
    code, _, err = embed("t.usearch", "x", "--rescore", "out.npy", command="search")
    assert code == 2 and "--rescore is for what embed wrote" in err


@pytest.mark.exports
@pytest.mark.parametrize("suffix", ["faiss", "usearch"])
@pytest.mark.parametrize("precision", VECTOR_PRECISIONS)
def test_an_index_finds_what_a_search_of_the_vectors_finds(embed, run, saved, tmp_path, suffix, precision):
    pytest.importorskip(TARGETS[suffix])
    saved(TEXTS, [f"i{n}" for n in range(40)], "out.npy", "--precision", precision)
    target = f"out.{suffix}"
    assert run("export", "out.npy", target)[0] == 0
    command = ["number 7", "number 31", "--top-k", 5, "--json"]
    expected, found = (embed(name, *command, command="search")[1] for name in ("out.npy", target))
    for one, other in zip(*(map(json.loads, out.splitlines()) for out in (expected, found)), strict=True):
        scores = [[hit["score"] for hit in results["results"]] for results in (one, other)]
        if "binary" in precision:  # of signs, and not of floats with signs
            assert len(scores[1]) == 5 and scores[1] == sorted(scores[1], reverse=True)
        else:
            np.testing.assert_allclose(
                *scores, atol=2e-2 if suffix == "usearch" and "int8" in precision else 1e-5
            )
        assert all(
            TEXTS[hit["row"]] == hit["text"] and hit["id"] == f"i{hit['row']}" for hit in other["results"]
        )
    before = (tmp_path / target).read_bytes()
    assert "exists; --overwrite replaces it" in run("export", "out.npy", target)[2]
    assert (tmp_path / target).read_bytes() == before
    assert run("export", "out.npy", target, "--overwrite")[0] == 0
    (tmp_path / f"{target}.json").write_text("{}")
    assert "is not as qwen3np wrote it" in run("export", "out.npy", target, "--overwrite")[2]


@pytest.mark.exports
def test_faiss_makes_the_index_that_it_is_asked_for(embed, run, saved, tmp_path):
    faiss = pytest.importorskip("faiss")
    saved()
    assert run("export", "out.npy", "out.faiss", "--index", "HNSW16")[0] == 0
    assert isinstance(faiss.read_index(str(tmp_path / "out.faiss")), faiss.IndexHNSW)
    code, found, _ = embed("out.faiss", TEXTS[7], "--prompt", "", "--top-k", 1, "--json", command="search")
    assert code == 0 and json.loads(found)["results"][0]["row"] == 7
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = run("export", "out.npy", "out.faiss", "--index", "nonsense", "--overwrite")
    assert code == 2 and "FAISS makes no index 'nonsense' of these vectors" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("suffix, name", TARGETS.items())
def test_a_library_that_is_missing_is_named(run, saved, tmp_path, monkeypatch, suffix, name):
    saved()
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    before = sorted(tmp_path.iterdir())
    code, _, err = run("export", "out.npy", f"t.{suffix}")
    assert code == 2 and f"t.{suffix}: needs {name}: pip install 'qwen3np[{name}]'" in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.exports
@pytest.mark.parametrize("suffix", TARGETS)
def test_what_is_someone_elses_is_left_alone(run, saved, tmp_path, suffix):
    pytest.importorskip(TARGETS[suffix])
    saved()
    target = tmp_path / f"t.{suffix}"
    target.mkdir() if suffix == "lance" else target.write_bytes(b"precious" * 1000)
    for options in ([], ["--append"], ["--overwrite"]):
        code, _, err = run("export", "out.npy", target.name, *options)
        # An index may be replaced, if asked, as an output of embed may.
        if options == ["--overwrite"] and suffix in ("faiss", "usearch"):
            assert code == 0
        else:
            assert code == 2 and err.count("\n") == 1 and f"t.{suffix}" in err
            assert target.is_dir() or target.read_bytes() == b"precious" * 1000


def slow_duplicates(vectors: np.ndarray, texts: list[str], threshold: float) -> list[tuple[int, int, bool]]:
    """As the promise reads: in order, each text against those that stay."""
    found, stays = [], []
    scores = similarity(vectors, vectors)
    for i, text in enumerate(texts):
        near = [j for j in stays if scores[i, j] >= threshold]
        if text in texts[:i]:
            found.append((i, texts.index(text), True))
        elif near:
            found.append((i, near[0], False))
        else:
            stays.append(i)
    return found


@pytest.mark.parametrize("block", [3, 7, 4096])
@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_duplicates_are_found_whatever_the_blocks(embed, model, saved, monkeypatch, block, output):
    """And what is left has no two that are as near, nor the same text twice."""
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(0)
    texts = [
        TEXTS[i] + "." * n for i, n in zip(rng.integers(40, size=60), rng.integers(3, size=60), strict=True)
    ]
    opened = open_saved(saved(texts, output=output))
    vectors = model.encode(texts)
    for threshold in (0.5, 0.9, 0.97, 2):
        found = [*duplicates(opened, opened.hashes(), threshold)]
        assert [(d.row, d.of, d.exact) for d in found] == slow_duplicates(vectors, texts, threshold)
        for one in found:
            np.testing.assert_allclose(one.cosine, similarity(vectors[one.row], vectors[one.of]), atol=1e-6)
    assert found and not all(one.exact for one in duplicates(opened, opened.hashes(), 0.9))


def test_the_report_of_duplicates(run, saved):
    saved(
        ["a text", "another, quite different text", "a text", "a text."], ["x", "y", "z", "w"], "out.parquet"
    )
    code, out, err = run("duplicates", "out.parquet", "--exact")
    assert code == 0 and out.splitlines()[-1].split() == ["z", "x", "1.0000", "a", "text"]
    assert "of 4 texts 1 repeat an earlier one word for word; 3 are left without them" in err
    code, out, err = run("duplicates", "out.parquet", "--threshold", 0.1, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["id"], row["of_id"], row["exact"]) for row in rows] == [
        ("y", "x", False), ("z", "x", True), ("w", "x", False)
    ]  # fmt: skip
    assert "2 nearly (cosine 0.1 or more); 1 are left" in err
    assert run("duplicates", "out.parquet", "--threshold", "1.5")[0] == 2


@pytest.mark.exports
def test_every_command_of_the_page_runs(run, tiny, tiny_reranker, tmp_path, monkeypatch):
    zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qwen3np.cli.options.EMBEDDER", str(tiny))
    rows = (json.dumps({"url": f"u{n}", "body": text}) + "\n" for n, text in enumerate(TEXTS))
    table = "title,body\r\n" + "".join(f"Number {n},{text}\r\n" for n, text in enumerate(TEXTS))
    files = {"articles.jsonl": "".join(rows), "articles.csv": table, "texts.txt": "\n".join(TEXTS) + "\n"}
    files |= {"notes/a.md": " ".join(TEXTS), "manuals/deep/b.md": TEXTS[0], "manuals/c.md": TEXTS[1]}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, newline="")
    (tmp_path / "more.csv.zst").write_bytes(zstd.compress(b"text\r\none more\r\n"))
    page = PAGE.replace(RERANKER, str(tiny_reranker))
    commands = [*map(shlex.split, re.findall("^qwen3np .*", page, re.M))]
    assert len(commands) >= 18
    assert {command[1] for command in commands} == {"embed", "search", "export", "duplicates"}
    for command in commands:
        chosen = ["--model", tiny] if command[1] == "embed" else []
        assert run(*command[1:], *chosen)[0] == 0, command
