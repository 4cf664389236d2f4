"""qwen3np rerank, and info of a reranker: what they print, and one line for everything that can go wrong."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

from qwen3np import Reranker
from qwen3np.cli import main

QUERY = "Which planet is known as the Red Planet?"
DOCUMENTS = ["Venus is Earth's twin.", "", "火星\u2028红色的行星 😀", "Mars", "a\x00b"]


@pytest.fixture(scope="module")
def model(tiny_reranker) -> Reranker:
    return Reranker(tiny_reranker)


@pytest.fixture
def run(capsys, monkeypatch, tiny_reranker):
    """Runs `qwen3np rerank` with the tiny model in this process: (exit code, stdout, stderr)."""

    def run(*args: object, stdin: bytes = b"", command: str = "rerank") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        model = [] if "--model" in args else ["--model", tiny_reranker]
        try:
            code = main([str(arg) for arg in (command, *model, *args)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def results(out: str) -> list[dict]:
    return [json.loads(line) for line in out.split("\n") if line]


def test_every_source_gives_what_rank_gives(run, model, tmp_path):
    """Arguments, stdin, "-" and a file: the same documents, all digits of the scores.

    An empty line is a document, lines end at newlines only, and a NUL is a character.
    """
    expected = model.rank(QUERY, DOCUMENTS, return_documents=True)
    lines = "\n".join(DOCUMENTS).encode() + b"\n"
    (tmp_path / "d.txt").write_bytes(lines)
    (tmp_path / "d.tsv").write_text("n\tbody\n" + "".join(f"1\t{d}\n" for d in DOCUMENTS), newline="")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"id": "x", "body": d}) + "\n" for d in DOCUMENTS))
    for args, stdin in (
        (DOCUMENTS, b""),
        ([], lines),
        (["--documents", "-"], lines.replace(b"\n", b"\r\n")),
        (["--documents", tmp_path / "d.txt"], b"not read"),
        ([tmp_path / "d.txt"], b"not read"),
        (["-"], b"\xef\xbb\xbf" + lines),
        ([DOCUMENTS[0], "-"], lines.partition(b"\n")[2]),
        ([tmp_path / "d.tsv", "--column", "body"], b""),
        (["--documents", tmp_path / "d.jsonl", "--column", "body"], b""),
    ):
        code, out, err = run(QUERY, *args, "--json", stdin=stdin)
        assert (code, err) == (0, "")
        found = results(out)
        assert [(r["corpus_id"], r["text"]) for r in found] == [(r["corpus_id"], r["text"]) for r in expected]
        assert [np.float32(r["score"]) for r in found] == [np.float32(r["score"]) for r in expected]


@pytest.mark.parametrize(
    "options, arguments",
    [
        (["--top-k", 2], {"top_k": 2}),
        (["--raw-scores"], {"raw_scores": True}),
        (["--instruction", "Be kind"], {"instruction": "Be kind"}),
        (["--backend", "numpy", "--raw-scores"], {"raw_scores": True}),
    ],
)
def test_options_are_those_of_rank(run, model, options, arguments):
    _, out, _ = run(QUERY, *DOCUMENTS, "--json", *options)
    expected = model.rank(QUERY, DOCUMENTS, **arguments)
    assert [r["corpus_id"] for r in results(out)] == [r["corpus_id"] for r in expected]
    scores = [[r["score"] for r in ranked] for ranked in (results(out), expected)]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_the_table_has_a_line_a_document(run, model, monkeypatch):
    """Best first, whatever characters a document has, cut at the terminal's width."""
    monkeypatch.setenv("COLUMNS", "80")
    documents = [*DOCUMENTS, "\x1b[31mred\nnext line", "word " * 100]
    code, out, err = run(QUERY, *documents)
    lines = out.splitlines()
    ranked = model.rank(QUERY, documents)
    assert (code, err, len(lines)) == (0, "", 2 + len(documents)) and lines[0].split() == [
        "score", "corpus_id", "text",
    ]  # fmt: skip
    for line, entry in zip(lines[2:], ranked, strict=True):
        score, number, *_ = line.split()
        assert (float(score), int(number)) == (pytest.approx(entry["score"], rel=1e-5), entry["corpus_id"])
        assert len(line) <= 80 and line.isprintable()
    for part in ("火星 红色的行星 😀", "a b", "[31mred next line", "word wor...\n"):
        assert part in out


def test_no_documents_are_no_results(run, tmp_path):
    """Where a source was named; with none named, that is a mistake (below)."""
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    for name in ("empty.txt", "empty.jsonl"):
        for json_too in ([], ["--json"]):
            assert run(QUERY, "--documents", tmp_path / name, *json_too) == (0, "", "")
    code, out, err = run("", "", "")
    assert code == 0 and len(out.splitlines()) == 4  # an empty query and two empty documents
    assert run(QUERY, "--documents", "-", stdin=b"\n")[0] == 0


def test_literal_arguments_are_texts(run, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a\n")
    code, out, err = run("notes.txt", "notes.txt", "-", "d.csv", "--literal", "--json")
    assert (code, err) == (0, "")
    assert {r["text"] for r in results(out)} == {"notes.txt", "-", "d.csv"}


def test_a_long_document_is_cut_and_reported(run, tmp_path, caplog):
    (tmp_path / "long.txt").write_text("word " * 20_000 + "\nshort\n")
    code, out, _ = run(QUERY, "--documents", tmp_path / "long.txt", "--json")
    assert code == 0 and sorted(len(r["text"]) for r in results(out)) == [5, 100_000]
    assert "1 of 2 pairs cut to max_length = 8192 tokens" in caplog.text


def test_info_says_that_it_is_a_reranker(run):
    code, out, err = run(command="info")
    assert (code, err) == (0, "")
    for part in ("reranker (qwen3np.Reranker, qwen3np rerank)", "max_length 8192", "'y' (88), 'n' (77)"):
        assert part in out
    assert "max_seq_length" not in out and "prompts" not in out


@pytest.mark.parametrize(
    "args, stdin, reason",
    [
        ([], b"", "arguments are required: QUERY (qwen3np rerank --help)"),
        (["q"], b"", "no text given"),
        (["q", "--documents", "-"], b"good\nb\xffd\n", "stdin, line 2: is not UTF-8"),
        (["q", "--documents", "bad.txt"], b"", "bad.txt, line 2: is not UTF-8"),
        (["q", "--documents", "bad.jsonl"], b"", "bad.jsonl, line 2: is not JSON"),
        (["q", "--documents", "null.jsonl", "--column", "text"], b"", "line 1: column 'text' is null"),
        (["q", "--documents", "other.jsonl", "--column", "body"], b"", "has no column 'body'; there"),
        (["q", "--documents", "bad.txt", "--column", "text"], b"", "a .txt file has no columns"),
        (["q", "--documents", "missing.txt"], b"", "missing.txt: there is no such file"),
        (["q", "--documents", "notes.md"], b"", "the name must end in .txt, .jsonl"),
        (["q", "d", "--documents", "bad.txt"], b"", "--documents bad.txt and documents as arguments ('d')"),
        (["q", "--column", "text"], b"d\n", "--column text: only a file has columns"),
        (["q", "d", "--delimiter", ";"], b"", "--delimiter ;: only a file has columns"),
        (["q", "d", "bad.txt"], b"", "bad.txt: is the name of a file; its content as a text"),
        (["q", "notes.md"], b"", "notes.md: is the name of a file; its content as a text"),
        (["q", "missing.jsonl"], b"", "missing.jsonl: there is no such file; if it is a text: --literal"),
        (["q", "d", "."], b"", ".: is the name of a folder; name a file in it"),
        (["notes.md", "d"], b"", "notes.md: is the name of a file; its content as a text"),
        (["-", "d"], b"d\n", "the query cannot come from stdin"),
        (["q", "d", "--instruction", "notes.md"], b"", "--instruction notes.md: is the name of a file"),
        (["q", "-"], "text".encode("utf-16"), "stdin: is UTF-16LE, expected UTF-8"),
        (["q", "d", "--top-k", "0"], b"", "top_k must be a positive integer, found 0"),
        (["q", "d", "--top-k", "many"], b"", "invalid int value: 'many'"),
        (["\udcff", "d"], b"", "the query of pair 0 is not valid Unicode"),
        (["q", "d", "--instruction", "\udcff"], b"", "the instruction is not valid Unicode"),
        (["q", "d", "--model", "TINY"], b"", "use qwen3np.Embedder (qwen3np embed, qwen3np similarity)"),
        (["q", "d", "--model", "./missing"], b"", "missing: no such folder"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run, tiny, tmp_path, monkeypatch, args, stdin, reason):
    (tmp_path / "bad.txt").write_bytes(b"good\nb\xffd\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (tmp_path / "null.jsonl").write_text('{"text": null}\n')
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "notes.md").write_text("a\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*[tiny if arg == "TINY" else arg for arg in args], stdin=stdin)
    assert (code, out) == (2, "")
    assert err.startswith("qwen3np") and ": error: " in err and reason in err and err.count("\n") == 1


@pytest.mark.parametrize("command, args", [("embed", ["text"]), ("similarity", ["-q", "a", "-d", "b"])])
def test_commands_of_embedding_models_name_the_right_one(run, command, args):
    code, out, err = run(*args, command=command)
    assert (code, out) == (2, "") and "use qwen3np.Reranker (qwen3np rerank)" in err and err.count("\n") == 1
