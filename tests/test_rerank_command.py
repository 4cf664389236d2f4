"""qwen3np rerank, and info of a reranker: what they print, and one line for everything that can go wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qwen3np import Reranker

QUERY = "Which planet is known as the Red Planet?"
DOCUMENTS = ["Venus is Earth's twin.", "", "火星\u2028红色的行星 😀", "Mars", "a\x00b"]


@pytest.fixture(scope="module")
def model(tiny_reranker) -> Reranker:
    return Reranker(tiny_reranker)


@pytest.fixture
def run(run, tiny_reranker):
    """Run `qwen3np rerank` with the tiny model in this process: (exit code, stdout, stderr)."""

    def rerank(*args: object, stdin: bytes = b"", command: str = "rerank") -> tuple[int, str, str]:
        model = [] if "--model" in args else ["--model", tiny_reranker]
        return run(command, *model, *args, stdin=stdin)

    return rerank


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
