"""Whole files: every format to every other, bad rows, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from text_files import IDS, OUTPUTS, TEXTS, parquet, write_input

from qwen3np.files import lines, rows
from qwen3np.files.rows import BadRow, Row, read_rows


def read_output(path: Path):
    """Vectors, ids (None: not there) and texts, as other programs read them."""
    beside = path.with_name(path.name + ".ids.jsonl")
    ids = [json.loads(line) for line in beside.read_text("utf-8").splitlines()] if beside.exists() else None
    if path.suffix == ".npy":
        return np.load(path), ids, None
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        return tensors["embeddings"], tensors["ids"].tolist() if "ids" in tensors else ids, None
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        vectors = np.array(table["embedding"].to_pylist(), np.float32)
        return vectors, table["id"].to_pylist(), table["text"].to_pylist()
    records = [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]
    vectors = np.array([record["embedding"] for record in records], np.float32)
    return vectors, [r["id"] for r in records], [r["text"] for r in records]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("source", [".txt", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("ids", [None, IDS], ids=["numbered", "named"])
def test_every_format_to_every_other(embed, model, source, output, ids, tmp_path):
    """The vectors are encode's, bit for bit; ids and texts go with them; nothing else is left."""
    if source == ".txt" and ids:
        pytest.skip("has no ids")
    write_input(tmp_path / f"in{source}", TEXTS, ids)
    out = tmp_path / f"out{output}"
    code, stdout, stderr = embed(f"in{source}", "--output", out.name)
    assert (code, stdout) == (0, "") and f"{out.name}: 6 x 96 float32" in stderr
    vectors, found_ids, texts = read_output(out)
    np.testing.assert_array_equal(vectors, model.encode(TEXTS))
    assert vectors.dtype == np.float32 and texts in (None, TEXTS)
    assert found_ids == (ids or (None if output == ".npy" else list(range(6))))
    beside = {".json"}
    if output in (".npy", ".safetensors"):  # which hold no texts
        beside |= {".hashes.npy", ".ids.jsonl"} if ids else {".hashes.npy"}
    assert {p.name for p in tmp_path.iterdir()} == {f"in{source}", out.name, *(out.name + b for b in beside)}


@pytest.mark.parametrize("output", OUTPUTS)
def test_texts_that_are_no_file_go_to_every_format(embed, model, output, tmp_path):
    """In place of an older output, and of the ids that were beside it."""
    out = tmp_path / f"out{output}"
    write_input(tmp_path / "in.jsonl", TEXTS, IDS)
    assert embed("in.jsonl", "--output", out.name)[0] == 0
    assert embed("one", "--text", "a.csv", "--output", out.name, "--overwrite")[0] == 0
    vectors, ids, texts = read_output(out)
    np.testing.assert_array_equal(vectors, model.encode(["one", "a.csv"]))
    assert ids in (None, [0, 1]) and texts in (None, ["one", "a.csv"])


@pytest.mark.parametrize(
    "ids, parquet", [([3, -(2**63)], [3, -(2**63)]), ([1, "x"], ["1", "x"]), ([2**63, 5], [str(2**63), "5"])]
)
def test_ids_keep_their_type_where_they_can(embed, ids, parquet, tmp_path):
    """Integers of 64 bits are integers; in the one column of Parquet, others are strings all."""
    write_input(tmp_path / "in.jsonl", ["a", "b"], ids)
    for output in OUTPUTS:
        assert embed("in.jsonl", "--output", f"out{output}")[0] == 0
        assert read_output(tmp_path / f"out{output}")[1] == (parquet if output == ".parquet" else ids)
    assert (tmp_path / "out.safetensors.ids.jsonl").exists() == (ids != parquet)


@pytest.mark.parametrize(
    "name, content, options, expected",
    [
        ("in.txt", b"\xef\xbb\xbfa\r\n\r\nb\0c\nlast", {}, [(0, "a"), (1, ""), (2, "b\0c"), (3, "last")]),
        ("in.txt", b"a\rb\x0bc\x85\xc2\x85d\n", {}, [(0, BadRow)]),
        ("in.jsonl", b'"x"\n\n  \r\n{"text": "y"}\r\n', {}, [(0, "x"), (1, "y")]),
        ("in.jsonl", b'{"a": "x", "id": "k"}', {}, [("k", "x")]),
        ("in.jsonl", b'{"a": "x", "id": "k"}', {"id_column": ""}, None),
        ("in.jsonl", b'{"a": "x", "id": "k"}', {"id_column": "", "column": "a"}, [(0, "x")]),
        ("in.jsonl", b'{"id": "k"}', {}, [(0, "k")]),
        ("in.jsonl", b'{"id": "k", "key": 7}', {"column": "id", "id_column": "key"}, [(7, "k")]),
        (
            "in.csv",
            b'\xef\xbb\xbftext,id\r\n"a\r\n""b""",1\r\n\r\n,2\r\n',
            {},
            [("1", 'a\r\n"b"'), ("2", "")],
        ),
        ("in.csv", b"body\nx", {}, [(0, "x")]),
        ("in.csv", b"id,body\nk,x", {}, [("k", "x")]),
        ("in.csv", b"a,b\n1,x\n", {"column": "b", "id_column": "a"}, [("1", "x")]),
        ("in.csv", b"a,b\n1,x\n", {}, None),
        ("IN.CSV", b"text\nx", {}, [(0, "x")]),
        ("in.tsv", b'id\ttext\r\n1\ta, b; c\r\n2\t"x\ty"\r\n', {}, [("1", "a, b; c"), ("2", "x\ty")]),
        ("in.tsv", b"text\na, b; c\n", {}, [(0, "a, b; c")]),
        ("in.tsv", b"id\ttext, long\n1\tx\n", {}, [("1", "x")]),
        ("in.csv", b"id;text\n1;a, b\n", {}, [("1", "a, b")]),
        ("in.csv", b"id|text\n1|a, b\n", {}, [("1", "a, b")]),
        ("in.csv", b"id\ttext\n1\ta, b\n", {}, [("1", "a, b")]),
        ("in.csv", b'"id";"text, long"\n1;a, b\n', {}, [("1", "a, b")]),
        ("in.csv", b'id,"text; or\n|none"\n1,a\n', {}, [("1", "a")]),
        ("in.csv", b'\xef\xbb\xbfsep=;\r\nid;text\r\n1;"a,\r\nb"\r\n', {}, [("1", "a,\r\nb")]),
        ("in.csv", b'"sep=\t"\n\nid\ttext,a;b\n1\tx\n', {}, [("1", "x")]),
        ("in.csv", b"id;text,a\n1;x\n", {"delimiter": ";"}, [("1", "x")]),
        ("in.csv", b"sep=,\nid;text,a\n1;x\n", {"delimiter": ";"}, [("1", "x")]),
        ("in.csv", b"id:text\n1:x\n", {"delimiter": ":"}, [("1", "x")]),
        ("in.csv", b"text\n\nb\n,\n", {}, [(0, "b"), (1, BadRow)]),
        ("in.json", b'\xef\xbb\xbf["a", {"text": 1}, 2]\n', {}, [(0, "a"), (1, BadRow), (2, BadRow)]),
        ("in.json", b'[{"a": "x", "id": 7}, {"a": "\\ud800", "id": 8}]', {}, [(7, "x"), (1, BadRow)]),
        ("in.json", b"[]", {}, []),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["", "gz"])
def test_what_is_a_row(name, content, options, expected, packed, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    if packed:
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(content))
    read = read_rows(path, **options)
    if expected is None:
        with pytest.raises(ValueError, match="say with --column which holds the texts; there are"):
            list(read)
        return
    found = [(e.id, e.text) if isinstance(e, Row) else (e.row, BadRow) for e in read]
    assert found == expected


BAD_ROWS = [
    ("in.txt", b"good\nb\xffd\nlast", 2, "is not UTF-8 (invalid start byte at byte 1)"),
    ("in.txt", b"good\n" + b"x" * 100 + b"\nlast", 2, "is longer than 0 MiB"),
    ("in.jsonl", b'{"text": "good"}\n{"text": \n{"text": "last"}', 2, "is not JSON (Expecting value"),
    ("in.jsonl", b'"good"\n"\xff"\n"last"', 2, "is not UTF-8"),
    ("in.jsonl", b'"good"\n[1]\n"last"', 2, "is an array, expected an object"),
    ("in.jsonl", b'"good"\n' + b"[" * 60 + b'\n"last"', 2, "is not JSON"),
    ("in.jsonl", b'"good"\n"\\ud800"\n"last"', 2, "is not valid Unicode: lone surrogate '\\ud800'"),
    ("in.jsonl", b'{"text": "good"}\n{"a": 1, "b": 2}\n{"text": "last"}', 2, "has no column 'text'"),
    ("in.jsonl", b'{"text": "good"}\n\n{"text": null}\n{"text": "last"}', 3, "column 'text' is null"),
    ("in.jsonl", b'{"text": "good"}\n{"text": 5}\n{"text": "last"}', 2, "the text is a number"),
    ("in.jsonl", b'{"text":"good","id":1}\n{"text":"x","id":1.5}\n{"text":"last","id":3}', 2, "is a number"),
    ("in.jsonl", b'{"text":"good","id":1}\n{"text":"x","id":true}\n{"text":"last","id":3}', 2, "a boolean"),
    ("in.csv", b'text\n"go\nod"\nb\xe4d\nlast\n', 4, "is not UTF-8 (invalid continuation byte at byte 1)"),
    ("in.csv", b"text,b\ngood,1\nx, y,2\nlast,3\n", 3, "has 3 fields, the header 2"),
    ("in.csv", b'text,b\ngood,1\n"x"y,2\nlast,3\n', 3, "is not CSV"),
    ("in.parquet", ["good", None, "last"], None, "column 'text' is null"),
    ("in.parquet", [b"good", b"\xff", b"last"], None, "is not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, line, reason", BAD_ROWS)
def test_bad_rows(embed, model, tmp_path, monkeypatch, name, content, line, reason):
    """By default they are found before anything is computed; or they are left out and listed."""
    monkeypatch.setattr(lines, "LONGEST_LINE", 80)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:  # unchecked bytes in a column that says it is text
        kind = pa.string() if content[1] is None else pa.binary()
        pq.write_table(pa.table({"text": pa.array(content, kind).view(pa.string())}), path)
    place = "row 1 (the first is 0)" if line is None else f"line {line}"
    code, out, err = embed(name, "--output", "out.npy")
    assert (code, out) == (2, "") and f"{name}, {place}: " in err and reason in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == [name]

    code, out, err = embed(name, "--output", "out.npy", "--on-error", "skip")
    assert (code, out) == (0, "") and "2 x 96" in err and "1 bad rows were left out" in err and reason in err
    vectors, ids, _ = read_output(tmp_path / "out.npy")
    good = ["go\nod" if b"go\nod" in content else "good", "last"]
    np.testing.assert_array_equal(vectors, model.encode(good))
    assert ids == ([1, 3] if b'"id"' in content else [0, 2])
    [bad] = [json.loads(x) for x in (tmp_path / "out.npy.errors.jsonl").read_text().splitlines()]
    assert (bad["row"], bad["line"]) == (1, line) and reason in bad["reason"]
    assert not (tmp_path / "out.npy.partial").exists()


@pytest.mark.parametrize(
    "name, content, options, reason",
    [
        ("in.txt", b"", [], "in.txt: is empty"),
        ("in.txt", b"\xef\xbb\xbf", [], "in.txt: is empty"),
        ("in.csv", b"text\n", [], "in.csv: is empty"),
        ("in.jsonl", b"\n \n", [], "in.jsonl: is empty"),
        ("in.jsonl", b"1\n2\n", ["--on-error", "skip"], "no row is good"),
        ("in.csv", b"a,b\n1,2\n", ["--column", "text"], "there is no column 'text'; there are 'a', 'b'"),
        ("in.csv", b"text,b\n1,2\n", ["--id-column", "id"], "there is no column 'id'; there are 'text', 'b'"),
        ("in.jsonl", b'{"a": "x"}\n', ["--column", "text"], "line 1: has no column 'text'; there are 'a'"),
        ("in.csv", b"a,a\n1,2\n", ["--column", "a"], "two columns have the same name: 'a', 'a'"),
        ("in.csv", b'text\ngood\n"open\nx\n', ["--on-error", "skip"], "line 3: is not CSV (unexpected end"),
        ("in.txt", b"a\rb\r", [], "in.txt: its lines end in CR, expected LF or CRLF"),
        ("in.csv", b"id,text\r1,a", [], "in.csv: its lines end in CR, expected LF or CRLF"),
        ("in.txt", b"caf\xe9 \n", [], "skip leaves bad rows out; a file in another encoding"),
        ("in.txt", b"a\n", ["--column", "text"], "a .txt file has no columns"),
        ("in.jsonl", b'"a"\n', ["--delimiter", ";"], "only .csv and .tsv files have a delimiter"),
        ("in.csv", b"a\n", ["--delimiter", ";;"], "invalid delimiter value: ';;'"),
        ("in.csv", b"a;b,c\n1;2,3\n", [], "its header has ',' and ';': say with --delimiter which"),
        ("in.tsv", b"a|b,c\n1|2,3\n", ["--on-error", "skip"], "its header has ',' and '|': say with"),
        ("in.csv", b"x" * 200 + b"\n1\n", [], "line 1: is not CSV (a line is longer than 0 MiB)"),
        ("in.json", b'"a"\n"b"\n', [], "); if it holds one value per line, its name must end in .jsonl"),
        ("in.json", b'{"text": ["a"]}', [], "is an object, expected an array of strings or objects"),
        ("in.json", b"[" + b'"a", ' * 50 + b'"b"]', [], "is longer than 0 MiB, and an array is read whole"),
        ("in.json", b"\xff", ["--on-error", "skip"], "is not UTF-8"),
        ("in.txt.gz", b"a\n", [], "in.txt.gz: is not a whole gzip file (Not a gzipped file"),
        ("in.txt.gz", gzip.compress(b"a\n" * 99)[:-9], [], "in.txt.gz: is not a whole gzip file"),
        ("in.csv.gz", gzip.compress(b"a\n" * 99)[:12] + b"x" * 40, [], "in.csv.gz: is not a whole gzip file"),
        ("in.txt", gzip.compress(b"a\n"), ["--on-error", "skip"], "is gzip, expected UTF-8 text; unpack it"),
        ("in.csv", b"PK\x03\x04" + b"x" * 40, [], "a zip archive or an Excel workbook, expected"),
        ("in.parquet.gz", b"x", [], "the name must end in .txt, .md, .jsonl"),
        ("in.txt", b"a\n", ["--dim", "7"], "truncate_dim = 7 must be between 32 and 96"),
        ("in.parquet", b"PAR1 is not all", [], "in.parquet: cannot be read as Parquet ("),
        ("in.parquet", parquet(["text"], [["a"]])[:-9], [], "in.parquet: cannot be read as Parquet ("),
        ("in.parquet", parquet(["text", "text"], [["a"], ["b"]]), [], "two columns have the name 'text'"),
        ("in.txt", b"a\n", ["-x"], "unrecognized arguments: -x; what begins with \"-\" and is not an option"),
        ("in.txt", b"a\n", ["--output", "in.txt"], "the name must end in .npy, .jsonl, .parquet or"),
        ("in.jsonl", b'"a"\n', ["--output", "in.jsonl", "--overwrite"], "in.jsonl: is the input"),
        ("in.txt", b"a\n", ["--output", "missing/out.npy"], "there is no folder missing"),
        ("in.txt", b"a\n", ["--output", "/proc/out.npy"], "/proc/out.npy"),
        ("in.txt", b"a\n", ["--query", "--prompt", "x"], "not allowed with argument"),
        ("in.txt", b"a\n", ["another text"], "in.txt is taken for a file, which does not go with texts"),
        ("in.txt", b"a\n", ["--text", "b"], "in.txt is taken for a file, which does not go with texts"),
        ("in.txt", b"a\n", ["-"], "in.txt is taken for a file, which does not go with texts"),
        ("in.txt", b"a\n", ["--prompt", "in.txt"], "--prompt in.txt: is the name of a file; its content:"),
        ("other.md", b"a\n", [], "in.txt: there is no such file; if it is a text: --text 'in.txt'"),
    ],
)  # fmt: skip
def test_what_is_refused(embed, tmp_path, monkeypatch, name, content, options, reason):
    monkeypatch.setattr(lines, "LONGEST_LINE", 150)
    monkeypatch.setattr(rows, "LARGEST_JSON", 150)
    (tmp_path / name).write_bytes(content)
    source = "in.txt" if name == "other.md" else name
    output = [] if "--output" in options else ["--output", "out.npy"]
    code, out, err = embed(source, *options, *output)
    assert (code, out, err.count("\n")) == (2, "", 1) and reason in err
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, content)]


def test_what_is_a_file_does_not_depend_on_what_lies_around(embed, model, tmp_path):
    """A text that ends like a file's name is an error where there is no such file.

    --text says what it is; any name can be given with --input.
    """
    assert embed("read notes.txt")[0] == 2
    assert "there is no such file" in embed("x" * 5000 + ".txt")[2]
    write_input(tmp_path / "read notes.txt", TEXTS)
    assert embed("read notes.txt")[0] == 2, "a file needs --output"
    code, out, _ = embed("--text", "read notes.txt")
    assert code == 0 and json.loads(out)["text"] == "read notes.txt"
    assert embed("--input", "read notes.txt", "--output", "out.npy")[0] == 0
    assert np.load(tmp_path / "out.npy").shape == (6, 96)
    code, out, _ = embed("notes.txt is a file")
    assert code == 0 and json.loads(out)["text"] == "notes.txt is a file"
    (tmp_path / "d.txt").mkdir()
    code, _, err = embed("d.txt", "--output", "o.npy")
    assert code == 2 and "d.txt: no file in this folder is read" in err


NAMES = ["notes.rst", "d/page.html", "plain", os.devnull, "d/*.md", "d/no.pdf", "no.json.gz", "no.md.zst"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_is_no_text(embed, tmp_path, name):
    """Neither one that is not read, nor what looks like a file that is not there.

    --text is the cure.
    """
    (tmp_path / "d").mkdir()
    for made in ("notes.rst", "d/page.html", "plain"):
        (tmp_path / made).write_text("a\n")
    for options in ([], ["--output", "out.npy"], ["a text"]):
        code, out, err = embed(name, *options)
        assert (code, out, err.count("\n")) == (2, "", 1) and name in err and "--text" in err
    code, out, _ = embed("--text", name)
    assert code == 0 and json.loads(out)["text"] == name
    assert embed("d/notes", "see page.html", "http://a.b/c")[0] == 0  # no names


@pytest.mark.parametrize("kind", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["in.txt", "in.csv", "in.tsv", "in.jsonl", "in.json", "in.txt.gz"])
def test_utf_16_is_named(tmp_path, name, kind):
    """With or without a byte order mark, also where its bytes happen to be UTF-8."""
    for text in ("text\nvalue\n", "\n\nтекст и текст\n", '["naïve — text", "b"]\n'):
        if name.endswith(".json") != text.startswith("["):
            continue
        data = text.encode(kind)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        with pytest.raises(ValueError, match=r"is UTF-(16|32).E, expected UTF-8 text; convert it: iconv -f"):
            list(read_rows(tmp_path / name))


def test_empty_texts_are_counted(embed, tmp_path):
    """Over all runs it took, and bad rows are not among them."""
    (tmp_path / "in.csv").write_bytes(b"id,text\n1,\n2,a\n3,\n4\n5, \n")
    code, _, err = embed("in.csv", "--output", "out.npy", "--on-error", "skip")
    assert code == 0 and "2 empty texts" in err and "1 bad rows" in err
    (tmp_path / "in.txt").write_bytes(b"a\n")
    assert "empty" not in embed("in.txt", "--output", "o.npy")[2]


def test_the_delimiter_goes_with_the_run(embed, tmp_path):
    """search reads the input by it again, and it is part of what a run is."""
    (tmp_path / "in.csv").write_bytes(b"id;text,a\n1;first, text\n2;second\n")
    assert embed("in.csv", "--delimiter", ";", "--output", "out.safetensors")[0] == 0
    code, out, err = embed("out.safetensors", "x", "--json", command="search")
    assert (code, err) == (0, "")
    assert {r["text"] for r in json.loads(out)["results"]} == {"first, text", "second"}


VIEW = getattr(pa, "string_view", pa.string)()  # since pyarrow 16


@pytest.mark.parametrize("kind", [VIEW, pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_of_other_libraries(tmp_path, kind):
    """polars writes string_view, and categories."""
    columns = {"id": pa.array(["k", "l"], kind), "text": pa.array(["中", ""], kind)}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    assert list(read_rows(tmp_path / "p.parquet")) == [Row(0, "k", "中"), Row(1, "l", "")]


def test_without_pyarrow_it_says_what_to_install(embed, tmp_path, monkeypatch):
    """Before anything is computed, and only where Parquet is asked for."""
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    write_input(tmp_path / "in.txt", TEXTS)
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    for command in (["in.txt", "--output", "out.parquet"], ["in.parquet", "--output", "out.npy"]):
        code, _, err = embed(*command)
        assert code == 2 and "Parquet needs pyarrow: pip install 'qwen3np[parquet]'" in err
    assert embed("in.txt", "--output", "out.safetensors")[0] == 0


def test_prompts_and_dim(embed, model, tmp_path):
    write_input(tmp_path / "in.txt", TEXTS)
    prompt = "Instruct: Find the like\nQuery:"
    for options, arguments in [
        (["--instruction", "Find the like", "--dim", "40"], {"prompt": prompt, "truncate_dim": 40}),
        (["--query"], {"prompt_name": "query"}),
    ]:
        assert embed("in.txt", "--output", "out.npy", "--overwrite", *options)[0] == 0
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.encode(TEXTS, **arguments))


def test_cut_texts_are_counted(embed, model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(model, "max_seq_length", 20)
    write_input(tmp_path / "in.txt", TEXTS)
    code, _, err = embed("in.txt", "--output", "out.npy")
    longest = len(model.tokenizer.encode([TEXTS[5]], 10**6)[0])
    lengths = map(len, model.tokenizer.encode(TEXTS, 10**6))
    assert code == 0 and f"{sum(n > 20 for n in lengths)} texts were cut to 20 tokens" in err
    assert f"the longest had {longest}" in err and not caplog.records


def test_an_output_is_replaced_only_if_asked(embed, model, tmp_path):
    write_input(tmp_path / "in.jsonl", TEXTS, IDS)
    (tmp_path / "out.npy").write_bytes(b"precious")
    code, _, err = embed("in.jsonl", "--output", "out.npy")
    assert code == 2 and "out.npy: exists; --overwrite replaces it" in err
    assert (tmp_path / "out.npy").read_bytes() == b"precious"
    assert embed("in.jsonl", "--output", "out.npy", "--resume")[0] == 2
    assert embed("in.jsonl", "--output", "out.npy", "--overwrite")[0] == 0
    write_input(tmp_path / "in.txt", TEXTS[:2])
    assert embed("in.txt", "--output", "out.npy", "--overwrite")[0] == 0
    names = ["in.jsonl", "in.txt", "out.npy", "out.npy.hashes.npy", "out.npy.json"]  # and no older ids
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert np.load(tmp_path / "out.npy").shape == (2, 96)


def test_a_dry_run_counts_and_writes_nothing_and_a_limit_reads_the_first_rows(embed, model, tmp_path):
    write_input(tmp_path / "in.txt", texts := [f"text {i}" for i in range(600)])
    before = sorted(tmp_path.iterdir())
    code, out, _ = embed("in.txt", "--output", "out.jsonl", "--dry-run", "--query")
    tokens = sum(map(len, model.tokenizer.encode(texts, 99, model.prompts["query"])))
    assert code == 0 and f"would hold 600 vectors, of {tokens:,} tokens" in out
    assert sorted(tmp_path.iterdir()) == before
    assert embed("in.txt", "--output", "out.jsonl", "--limit", 7)[0] == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts[:7]
    code, _, err = embed("in.txt", "--output", "out.jsonl", "--limit", 8, "--resume")
    assert code == 2 and "limit" in err
    assert "invalid positive value" in embed("in.txt", "--output", "out.jsonl", "--limit", 10**20)[2]


def test_a_pattern_that_a_file_matches_is_no_text(embed, tmp_path):
    write_input(tmp_path / "notes.txt", ["one", "two"])
    for pattern in ("notes*", "n?tes.t*", "*"):
        assert embed(pattern, "--output", "out.jsonl", "--overwrite")[0] == 0
        assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["file"] == "notes.txt"
        code, _, err = embed(pattern)
        assert code == 2 and f"--text '{pattern}'" in err
    for text in ("why?", "other*", "**bold**", "[1]", "notes* are"):
        code, out, _ = embed(text)
        assert code == 0 and json.loads(out)["text"] == text


def test_an_update_with_a_limit_adds_rows_and_removes_none(embed, tmp_path):
    write_input(tmp_path / "in.txt", [f"text {i}" for i in range(10)])
    command = ["in.txt", "--output", "out.npy", "--update"]
    assert embed(*command, "--limit", 3)[0] == 0
    assert "3 rows kept, 2 new or changed, 0 gone" in embed(*command, "--limit", 5)[2]
    for made in ([], ["--limit", 10]):
        assert embed(*command, *made)[0] == 0
        before = (tmp_path / "out.npy").read_bytes()
        code, _, err = embed(*command, "--limit", 9)
        assert code == 2 and "of more than 9 rows, and --update would remove the others" in err
        assert (tmp_path / "out.npy").read_bytes() == before
    assert "9 rows kept, 0 new or changed, 1 gone" in embed(*command, "--limit", 9, "--overwrite")[2]


@pytest.mark.parametrize(
    "options", [["--precision", "int8"], ["--dim", 5], ["--precision", "int8", "--dim", 32]]
)
@pytest.mark.parametrize("words", [1, 100])
def test_a_dry_run_refuses_what_the_run_does(embed, tmp_path, options, words):
    """The chunks of one text are enough for the ranges of int8; one chunk is not."""
    (tmp_path / "in.md").write_text("word " * words)
    command = ["in.md", "--chunk-tokens", 8, "--output", "out.npy", *options]
    planned, printed, why = embed(*command, "--dry-run")
    code, _, err = embed(*command)
    assert planned == code == (0 if words > 1 and options[1] == "int8" else 2)
    if code == 0:
        count = len(np.load(tmp_path / "out.npy"))
        tokens = err.partition("int8, ")[2].partition(" tokens")[0]
        assert f"would hold {count} vectors, of {tokens} tokens" in printed
    else:
        assert why == err


def test_no_text_is_computed_for_an_output_that_cannot_be_written(embed, tmp_path, monkeypatch):
    """Its own name is short enough, that of the folder the work is kept in is not."""
    monkeypatch.setattr("qwen3np.cli.options.load_embedder", lambda args: pytest.fail("the model was loaded"))
    name = "x" * 245 + ".npy"
    code, _, err = embed("a text", "--output", name)
    assert code == 2 and f"File name too long: '{name}'" in err


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode")
@pytest.mark.parametrize("output", OUTPUTS)
def test_names_that_are_no_unicode(embed, tmp_path, output):
    source = write_input(tmp_path / "in\udcff.parquet", TEXTS, IDS)
    assert embed(source.name, "--output", f"out\udcff{output}")[0] == 0
    code, found, _ = embed(f"out\udcff{output}", TEXTS[0], "-k", 1, "--json", command="search")
    assert code == 0 and json.loads(found)["results"][0]["id"] == IDS[0]
