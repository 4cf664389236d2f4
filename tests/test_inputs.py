"""What embed reads: several files, folders and patterns, packed files, templates, long texts in chunks."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qwen3np.files import identity, lines, run
from qwen3np.files.cells import BadRow, Template
from qwen3np.files.chunking import Chunks
from qwen3np.files.names import find_files
from qwen3np.files.rows import read_rows
from qwen3np.loading.tokenizer import EmbeddingTokenizer

OUT = Path("out.npy")


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


def read(path: Path) -> tuple[list[dict], np.ndarray]:
    """Everything of an output but the vectors, and the vectors."""
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        rows = records(path)
    else:
        return records(path.with_name(path.name + ".ids.jsonl")), np.load(path)
    return rows, np.array([row.pop("embedding") for row in rows], np.float32)


FILES = {
    "docs/a.md": "A title\n\nand a text.\n",
    "docs/sub/b.txt": "one\ntwo\n",
    "docs/sub/c.csv.gz": gzip.compress(b"id,text\nx,first\ny,second\n"),
    "lines.txt": "three\nfour\n",
    "d.jsonl": '{"id": "x", "text": "fifth"}\n',
}
ROWS = [  # id, file, text
    ("docs/a.md", "docs/a.md", "A title\n\nand a text.\n"),
    ("docs/sub/b.txt", "docs/sub/b.txt", "one\ntwo\n"),
    ("x", "docs/sub/c.csv.gz", "first"),
    ("y", "docs/sub/c.csv.gz", "second"),
    (4, "lines.txt", "three"),
    (5, "lines.txt", "four"),
    ("x", "d.jsonl", "fifth"),
]


@pytest.mark.parametrize("output", [".jsonl", ".parquet", ".npy"])
def test_files_folders_and_patterns_are_one_input(embed, model, tmp_path, output):
    """In the order in which they are named; each row says which file it is of, and its id, or its number."""
    write(tmp_path, FILES)
    code, _, err = embed("docs", "lin*.txt", "d.jsonl", "--output", f"out{output}")
    assert code == 0 and "7 x 96" in err and "1 texts have an id that another has, as 'x'" in err
    found, vectors = read(tmp_path / f"out{output}")
    kind = str if output == ".parquet" else lambda id: id  # one column has one type
    assert [(row["id"], row["file"]) for row in found] == [(kind(id), file) for id, file, _ in ROWS]
    assert output == ".npy" or [row["text"] for row in found] == [text for *_, text in ROWS]
    np.testing.assert_array_equal(vectors, model.encode([text for *_, text in ROWS]))
    code, shown, _ = embed(f"out{output}", "first", "--json", command="search")
    assert code == 0 and {row["id"] for row in json.loads(shown)["results"]} == {kind(id) for id, *_ in ROWS}


@pytest.mark.skipif(os.name == "nt", reason="makes links")
def test_what_is_read_of_a_folder(embed, tmp_path):
    """Not what is hidden, of another kind, linked in a circle, twice there, or written by embed itself.

    So the same command reads the same again, whatever it has written into the folder.
    """
    write(tmp_path, {"in/b.md": "b", "in/a.txt": "a", "in/.x.md": "", "in/.git/y.md": "", "in/z.pdf": "z"})
    write(
        tmp_path, {"in/other.json": '["c"]', "in/old.npy.partial/manifest.json": "{}", "in/no.csv": "text\n"}
    )
    (tmp_path / "in/again").symlink_to("..", target_is_directory=True)
    (tmp_path / "in/c.md").symlink_to("b.md")
    assert embed("in/b.md", "--output", "in/older.jsonl")[0] == 0
    for options in ([], ["--resume"], ["--overwrite"]):
        code, _, err = embed("in", "in/b.md", "in/**/*.txt", "--output", "in/out.jsonl", *options)
        assert code == 0 and "not read, links to folders: in/again\n" in err
        assert "not read, of another kind: in/z.pdf\n" in err
        assert "named twice: in/c.md, in/b.md, in/a.txt\n" in err and "in/older.jsonl.json" in err
        assert [row["text"] for row in records(tmp_path / "in/out.jsonl")] == ["a", "b", "c"]
        assert ("is complete" in err) == ("--resume" in options) != ("files without texts: in/no.csv" in err)


def test_a_txt_is_lines_or_one_text(tmp_path):
    write(tmp_path, {"in/a.txt": "a\nb\n", "in/b.txt.gz": gzip.compress(b"c\n")})
    for names, txt, whole in [
        (["in"], None, True),
        (["in"], "lines", False),
        (["in/a.txt", "in/b.txt.gz"], None, False),
        (["in/*"], None, False),
        (["in/*"], "whole", True),
    ]:
        found = find_files([str(tmp_path / name) for name in names], OUT, txt).inputs
        assert [each.whole for each in found] == [whole] * 2
    [row] = read_rows(tmp_path / "in/a.txt", whole=True)
    assert row.text == "a\nb\n"


@pytest.mark.parametrize(
    "names, options, reason",
    [
        (["empty"], [], "empty: no file in this folder is read: names must end in .txt, .md,"),
        (["a.md", "b.md"], [], "a.md, b.md, missing.csv and 1 more: "),
        (["--input", "*.rst"], [], "*.rst: there is no such file, and none that is read has a name"),
        (["*.md"], [], "*.md: there is no such file; if it is a text: --text '*.md'"),
        (["in"], ["a text"], "in is taken for a file, which does not go with texts or stdin"),
        (["in"], ["--column", "body"], "in/a.md: a .md file has no columns; all of it is one text"),
        (["in/a.md", "in/n.jsonl"], ["--output", "in/n.jsonl", "--overwrite"], "in/n.jsonl: is the input"),
        (["in/e.csv", "in/f.txt"], [], "in/e.csv, in/f.txt: is empty: there is no text to embed"),
        (["in"], ["--overlap", "3"], "--overlap is for chunks: give --chunk-tokens, too"),
        (["in"], ["--chunk-tokens", "7"], "--chunk-tokens 7: must be 8 or more"),
        (["in"], ["--chunk-tokens", "9", "--overlap", "5"], "--overlap 5: must be between 0 and 4, half of"),
        (["in"], ["--chunk-tokens", "32768", "--query"], "32768 tokens, and "),
        (["a text"], ["--chunk-tokens", "9"], "--chunk-tokens is for an input file"),
        (["in"], ["--template", "{a} {b!r}"], "between braces stands the name of a column and nothing else"),
        (["in"], ["--template", "{a"], "the template '{a': "),
        (["in"], ["--template", "text"], "the template 'text' names no column, as '{title}: {body}' does"),
        (["in/t.csv"], ["--template", "{title}{body}"], "t.csv: there is no column 'body'; there are"),
        (["in/t.csv"], ["--template", "{title}", "--column", "title"], "not allowed with argument"),
    ],
)  # fmt: skip
def test_what_is_refused(embed, tmp_path, names, options, reason):
    write(tmp_path, {"in/a.md": "a", "in/n.jsonl": '"a"\n', "in/e.csv": "text\n", "in/f.txt": ""})
    if "t.csv" in reason or "--column" in options:
        write(tmp_path, {"in/t.csv": "title\na\n"})
    (tmp_path / "empty").mkdir()
    if names == ["a.md", "b.md"]:
        names, reason = [*names, "missing.csv", "d.csv"], "a.md: there is no such file"
    output = [] if "--output" in options else ["--output", "out.npy"]
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    code, out, err = embed(*names, *options, *output)
    assert (code, out) == (2, "") and reason in err.split("\n")[-2]
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


def test_bad_rows_are_named_with_their_file(embed, model, tmp_path, monkeypatch):
    """Before a model is loaded; or they are left out, and OUT.errors.jsonl says where they are."""
    monkeypatch.setattr(lines, "LONGEST_LINE", 80)
    write(tmp_path, {"in/a.md": b"good\nb\xff", "in/b.md": "x" * 81, "in/c.md": "good".encode("utf-16")})
    write(
        tmp_path, {"in/d.jsonl": '"fine"\n1\n', "in/e.txt.gz": gzip.compress(b"text")[:-3], "in/f.md": "last"}
    )
    reasons = [
        "in/a.md, line 2: is not UTF-8 (invalid start byte at byte 1)",
        "in/b.md, line 1: is longer than 0 MiB",
        "in/c.md, line 1: is UTF-16LE, expected UTF-8 text",
        "in/d.jsonl, line 2: is a number, expected an object",
        "in/e.txt.gz, line 1: is not a whole gzip file",
    ]
    with monkeypatch.context() as patch:
        patch.setattr("qwen3np.cli.options.load_embedder", lambda args: pytest.fail("the model was loaded"))
        code, _, err = embed("in", "--output", "out.jsonl")
    assert code == 2 and all(reason in err for reason in reasons) and "nothing was computed" in err
    code, _, err = embed("in", "--output", "out.jsonl", "--on-error", "skip")
    assert code == 0 and all(reason in err for reason in reasons)
    found, vectors = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["text"]) for row in found] == [(3, "fine"), ("in/f.md", "last")]
    np.testing.assert_array_equal(vectors, model.encode(["fine", "last"]))
    bad = [BadRow(**row) for row in records(tmp_path / "out.jsonl.errors.jsonl")]
    assert all(str(row).startswith(reason) for row, reason in zip(bad, reasons, strict=True))


def test_a_file_of_several_that_changes_is_named(embed, tmp_path, monkeypatch):
    write(tmp_path, {"in/a.md": "a", "in/b.md": "b"})
    digest = identity.model_digest

    def change(*arguments):
        (tmp_path / "in/b.md").write_text("c")
        return digest(*arguments)

    monkeypatch.setattr(identity, "model_digest", change)
    code, _, err = embed("in", "--output", "out.npy")
    assert code == 2 and "in/b.md: changed while it was read" in err and not (tmp_path / "out.npy").exists()
    monkeypatch.undo()
    os.chdir(tmp_path)


def test_a_run_does_not_go_on_with_other_files(embed, tmp_path, monkeypatch):
    """One more, another name, or the same files in chunks: each is another run."""
    monkeypatch.setattr(run, "CHUNK_ROWS", 1)
    write(tmp_path, {"in/a.md": "a b c d e f g h i j k l", "in/b.md": "b"})
    encode, calls = run.identity.rows_digest, []

    def interrupt(entries):
        calls.append(entries)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return encode(entries)

    with monkeypatch.context() as patch:
        patch.setattr(identity, "rows_digest", interrupt)
        assert embed("in", "--output", "out.npy")[0] == 130
    for names, reason in [
        (["in", "--chunk-tokens", "8"], "chunk tokens was null, is 8"),
        (["in/a.md", "in/b.md", "--txt", "whole"], None),
        (["./in/../in"], "input was"),
    ]:
        code, _, err = embed(*names, "--output", "out.npy", "--resume")
        if reason is None:  # the same files by the same names
            assert code == 0 and "1 rows were done before" in err
            break
        assert code == 2 and reason in err
    assert np.load(tmp_path / "out.npy").shape == (2, 96)


# Packed files.


@pytest.fixture
def zstd():
    try:
        from compression import zstd
    except ImportError:
        zstd = pytest.importorskip("backports.zstd")
    return zstd


@pytest.mark.parametrize("name", ["in.txt", "in.md", "in.jsonl", "in.json", "in.csv", "in.tsv"])
def test_a_zst_is_read_as_what_is_packed(zstd, tmp_path, name):
    """Also if it was packed in several frames."""
    content = {".txt": b"a\nb", ".md": b"a\n", ".jsonl": b'"a"\n"b"\n', ".json": b'["a", "b"]'}
    data = content.get(Path(name).suffix, b"text\na\nb\n")
    write(tmp_path, {name: data, f"{name}.zst": zstd.compress(data[:4]) + zstd.compress(data[4:])})
    plain, packed = ([*read_rows(tmp_path / each)] for each in (name, f"{name}.zst"))
    assert [row.text for row in plain] == [row.text for row in packed] and len(plain) == 1 + (name != "in.md")


def test_damaged_zst_files(zstd, embed, tmp_path, monkeypatch):
    """Found before anything is computed, and named with what to do."""
    checked = {zstd.CompressionParameter.checksum_flag: 1}
    data = zstd.compress(b"text\n" * 99, options=checked)
    window = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 30})
    wide = window.compress(b"text\n") + window.flush()
    for content, reason in [
        (data[:-5], "in.txt.zst: is not a whole zstd file (Compressed file ended before"),
        (data[:12] + b"y" + data[13:], "in.txt.zst: is not a whole zstd file ("),
        (b"text\n", "copy it here again (zstd -t tests a file)"),
        (b"", "in.txt.zst: is not a whole zstd file ("),
        (wide, "in.txt.zst: Unable to decompress Zstandard data: Frame requires too much memory"),
    ]:
        write(tmp_path, {"in.txt.zst": content})
        code, _, err = embed("in.txt.zst", "--output", "out.npy", "--on-error", "skip")
        assert code == 2 and reason in err and os.listdir(tmp_path) == ["in.txt.zst"], err
    write(tmp_path, {"in.txt": data})
    assert (
        "is zstd, expected UTF-8 text; unpack it, or let the file's name end in .zst"
        in embed("in.txt", "--output", "out.npy")[2]
    )
    for name in ("compression", "backports"):
        monkeypatch.setitem(sys.modules, name, None)
    assert (
        "in.txt.zst: .zst needs backports.zstd: pip install 'qwen3np[zstd]'"
        in embed("in.txt.zst", "--output", "out.npy")[2]
    )


# Templates.


def test_a_template_makes_a_text_of_several_columns(embed, model, tmp_path):
    rows = [{"title": "A {b}", "n": 7, "text": "x"}, {"title": "", "n": -1, "text": "中"}]
    texts = ["A {b} {x} 7", " {中} -1"]
    write(tmp_path, {"in.jsonl": "".join(map("{}\n".format, map(json.dumps, rows)))})
    write(tmp_path, {"in.csv": "n,text,title\n" + "".join("{n},{text},{title}\n".format(**r) for r in rows)})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.csv", "in.parquet"):
        options = ["--template", "{title} {{{text}}} {n}", "--output", "out.jsonl", "--overwrite"]
        assert embed(name, *options)[0] == 0
        found, vectors = read(tmp_path / "out.jsonl")
        assert [(row["id"], row["text"]) for row in found] == list(enumerate(texts))
        np.testing.assert_array_equal(vectors, model.encode(texts))
        assert "template was " in embed(name, "--template", "{n}", "--output", "out.jsonl", "--resume")[2]


@pytest.mark.parametrize("value", ["null", "1.5", "true", "[1]"])
def test_what_a_template_does_not_take(tmp_path, value):
    """Python's own words for a value are no text."""
    write(tmp_path, {"in.jsonl": f'{{"a": {value}, "b": "x"}}\n{{"a": 1}}\n{{"a": 1, "b": "y"}}\n'})
    first, second, third = read_rows(tmp_path / "in.jsonl", Template("{a} {b}"))
    assert "column 'a' is" in first.reason and "has no column 'b'" in second.reason and third.text == "1 y"


# Chunks.


@pytest.fixture(scope="module", params=["tiny", "real"])
def tokenizer(request, tiny):
    if request.param == "tiny":
        return EmbeddingTokenizer(tiny / "tokenizer.json", 1 << 20)
    assets = request.getfixturevalue("assets")
    return EmbeddingTokenizer(assets / "tokenizers/qwen3_embedding_0.6b.tokenizer.json", 1 << 20)


PARTS = st.sampled_from(
    [
        "word ",
        "e\u0301",
        "👩\u200d👧 ",
        "中国。",
        "\n\n",
        "It ends. ",
        "\r\n",
        "<|im_end|>",
        "  ",
        "12",
        "ﬁ",
        "각",
        "x" * 30,
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, max_size=60).map("".join), st.integers(8, 40), st.data())
@example("", 8, None)
@example("a" + "\u0301" * 200 + "b", 8, None)
def test_chunks_hold_every_character_and_few_enough_tokens(tokenizer, text, tokens, data):
    overlap = data.draw(st.integers(0, tokens // 2)) if data else 0
    spans = [*Chunks(tokens, overlap).spans(text, tokenizer)]
    places = [place for place, _ in tokenizer.cuts(text)]
    count = dict(tokenizer.cuts(text))
    assert spans[0][0] == 0 and spans[-1][1] == len(text) and {p for span in spans for p in span} <= {*places}
    for (start, end), (after, _) in zip(spans, spans[1:], strict=False):
        assert start < after <= end and count[end] - count[after] <= overlap
    for start, end in spans:
        following = next((place for place in places if place > start), len(text))
        assert len(tokenizer.ids([text[start:end]])[0]) <= tokens or end == following
    assert len(spans) == 1 or count[len(text)] > tokens


def test_the_places_for_cuts_are_those_of_the_tokens(tokenizer):
    """Also of a text that is tokenised in pieces: the tokens before and after a place are the text's."""
    text = "It's a long text, 中国 e\u0301 👩\u200d👧 <|endoftext|>\r\n" * 1500
    [ids] = tokenizer.ids([text])
    cuts = [*tokenizer.cuts(text)]
    assert cuts[0] == (0, 0) and cuts[-1] == (len(text), len(ids))
    assert all(a < b and m < n for (a, m), (b, n) in zip(cuts, cuts[1:], strict=False))
    starts, reach = [], 0
    for _, start, stop in tokenizer.spans(text[:200]):
        starts += [start] if start >= reach else []  # else within a character, or across two
        reach = max(reach, stop)
    assert [place for place, _ in cuts if place < 150] == [start for start in starts if start < 150]


def test_a_chunk_rather_ends_where_a_sentence_does(tokenizer):
    text = "This is one sentence of a text. " * 40
    chunks = [text[start:end] for start, end in Chunks(100).spans(text, tokenizer)]
    assert len(chunks) > 3 and all(chunk.endswith("text.") for chunk in chunks[:-1])


@pytest.mark.parametrize("output", [".jsonl", ".parquet", ".npy"])
def test_chunks_are_embedded_as_texts_of_their_own(embed, model, tmp_path, output):
    texts = {"in/a.md": "A sentence with é and 中国. " * 30, "in/b.md": "", "in/c.md": "short"}
    write(tmp_path, texts)
    code, _, err = embed("in", "--chunk-tokens", 40, "--overlap", 8, "--output", f"out{output}")
    assert code == 0 and "were cut" not in err
    found, vectors = read(tmp_path / f"out{output}")
    chunks = [texts[row["file"]][row["start"] : row["end"]] for row in found]
    assert output == ".npy" or chunks == [row["text"] for row in found]
    assert [row["chunk"] for row in found] == [*range(len(found) - 2), 0, 0] and len(found) > 6
    np.testing.assert_array_equal(vectors, model.encode(chunks))


def test_one_file_in_chunks_keeps_its_ids(embed, tmp_path):
    text = "word " * 50
    write(tmp_path, {"in.jsonl": json.dumps({"id": 7, "text": text}) + "\n"})
    assert embed("in.jsonl", "--chunk-tokens", 32, "--output", "out.jsonl")[0] == 0
    found, _ = read(tmp_path / "out.jsonl")
    assert {(*row, row["id"]) for row in found} == {("id", "chunk", "start", "end", "text", 7)}
    assert "".join(row["text"] for row in found) == text and len(found) > 1


@pytest.mark.skipif(os.name == "nt", reason="no signals from one process to another")
@pytest.mark.slow
def test_a_killed_run_of_chunks_goes_on_bit_for_bit(tiny, embed, tmp_path):
    """In the middle of a text: what is done of it is kept."""
    write(
        tmp_path, {"in/a.md": "".join(f"Sentence {i * 7919 % 1000}. " for i in range(4500)), "in/b.txt": "b"}
    )
    command = ["in", "--chunk-tokens", 8, "--overlap", 2]
    assert embed(*command, "--output", "whole.parquet")[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen3np", "embed", "--model", tiny, *map(str, command), "-o", "out.parquet"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "out.parquet.partial" / "00000000.chunk").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    code, _, err = embed(*command, "--output", "out.parquet", "--resume")
    assert code == 0 and "rows were done before" in err
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
