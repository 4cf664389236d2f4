"""qwen3np search: what it finds in an output, how it shows it, and what it refuses."""

from __future__ import annotations

import json
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from text_files import IDS, ONES, OUTPUTS, TEXTS, parquet, write_input

from qwen3np import Reranker
from qwen3np.cli import main


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("ids", [None, IDS], ids=["numbered", "named"])
def test_search_agrees_with_brute_force(embed, model, tmp_path, monkeypatch, output, ids):
    """With ids and texts, where the output has them or --texts names the input; over two blocks."""
    monkeypatch.setattr("qwen3np.files.saved.BLOCK", 4)
    write_input(tmp_path / "in.jsonl", TEXTS, ids)
    out = f"out{output}"
    assert embed("in.jsonl", "--output", out, "--dim", "48")[0] == 0
    queries = ["capital", "Who said hi?"]
    options = ["--texts", "in.jsonl"] if output == ".npy" else []
    code, found, _ = embed(out, *queries, "--top-k", 4, "--json", *options, command="search")
    assert code == 0
    scores = model.encode_query(queries, truncate_dim=48) @ model.encode(TEXTS, truncate_dim=48).T
    for query, row, line in zip(queries, scores, found.strip().split("\n"), strict=True):
        best = np.argsort(-row)[:4]
        record = json.loads(line)
        assert record["query"] == query
        assert [r["row"] for r in record["results"]] == best.tolist()
        assert [r["id"] for r in record["results"]] == [ids[i] if ids else i for i in best]
        assert [r["text"] for r in record["results"]] == [TEXTS[i] for i in best]
        np.testing.assert_allclose([r["score"] for r in record["results"]], row[best], atol=1e-6)
    code, shown, _ = embed(out, "capital", "--top-k", 1, *options, command="search")
    best = int(scores[0].argmax())
    assert f"{scores[0, best]:.4f}" in shown and "score" in shown and TEXTS[best][:20] in shown


def test_a_search_that_is_reranked(embed, tiny_reranker, tmp_path):
    """The reranker's best of the nearest four times as many rows, in its order; it needs their texts."""
    texts = [f"text {i} of some" for i in range(12)]
    write_input(tmp_path / "in.txt", texts)
    assert embed("in.txt", "--output", "out.jsonl")[0] == embed("in.txt", "--output", "out.npy")[0] == 0
    options = ["which text?", "--top-k", 2, "--json", "--reranker", tiny_reranker]
    _, near, _ = embed("out.jsonl", "which text?", "--top-k", 8, "--json", command="search")
    near = [hit["text"] for hit in json.loads(near)["results"]]
    expected = Reranker(tiny_reranker).rank("which text?", near, top_k=2)
    code, out, _ = embed("out.jsonl", *options, command="search")
    found = json.loads(out)["results"]
    assert code == 0 and [(hit["text"], hit["score"]) for hit in found] == [
        (near[one["corpus_id"]], one["score"]) for one in expected
    ]
    (tmp_path / "in.txt").unlink()
    code, _, err = embed("out.npy", *options, command="search")
    assert code == 2 and "no texts for --reranker" in err


def test_search_says_which_part_of_which_file_it_found(embed, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.md").write_text(" ".join(f"{name}{i} is a text." for i in range(20)))
    for out in ("out.npy", "out.jsonl"):
        assert embed("*.md", "--output", out, "--chunk-tokens", 30)[0] == 0
    found = {}
    for out in ("out.npy", "out.jsonl"):
        code, lines, err = embed(out, "a7", "--json", command="search")
        assert code == 0
        found[out] = json.loads(lines)["results"]
        assert ("`embed` to a .parquet or .jsonl" in err) == (out == "out.npy")
    for hit, same in zip(*found.values(), strict=True):
        assert hit == same | {"text": None}
        assert (tmp_path / hit["file"]).read_text()[hit["start"] : hit["end"]] == same["text"]
    assert " chunk " in embed("out.jsonl", "a7", command="search")[1]


def test_texts_of_another_output_leave_where_they_are_from(embed, tmp_path):
    """What holds no texts takes them from an output of the same rows."""
    for name in "ab":
        (tmp_path / f"{name}.md").write_text(f"{name} falls. " * 30)
    for output in ("out.npy", "out.parquet"):
        assert embed("*.md", "--chunk-tokens", 16, "--output", output)[0] == 0
    search = ["a falls.", "--top-k", 3, "--json"]
    _, expected, _ = embed("out.parquet", *search, command="search")
    code, found, err = embed("out.npy", *search, "--texts", "out.parquet", command="search")
    assert (code, found, err) == (0, expected, "")
    assert "--texts names one of the same rows" in embed("out.npy", *search, command="search")[2]
    code, _, err = embed("out.npy", "x", "--top-k", -3, "--reranker", "none", command="search")
    assert code == 2 and "top_k must be a positive integer, found -3" in err


def test_search_takes_the_model_from_the_output(embed, model, tiny, tmp_path, capsys, monkeypatch):
    write_input(tmp_path / "in.txt", TEXTS)
    loaded = []
    monkeypatch.setattr("qwen3np.cli.options.load_embedder", lambda args: loaded.append(args.model) or model)
    for output in OUTPUTS:
        assert embed("in.txt", "--output", f"out{output}")[0] == 0
        loaded.clear()
        assert main(["search", f"out{output}", "capital", "--instruction", "x"]) == 0
        assert loaded == [str(tiny)]
        assert "does not say which model made it" not in capsys.readouterr().err
        (tmp_path / f"out{output}.json").unlink()
        assert main(["search", f"out{output}", "capital"]) == 0
        recorded = output in (".parquet", ".safetensors")
        assert loaded[1:] == [str(tiny) if recorded else "Qwen/Qwen3-Embedding-0.6B"]
        assert ("does not say which model made it" in capsys.readouterr().err) != recorded


@pytest.mark.parametrize(
    "name, make, options, reason",
    [
        ("c.npy", lambda p: np.save(p, np.ones((3, 128), "f")), [], "128 dimensions, and "),
        ("c.npy", lambda p: np.save(p, np.ones((3, 31), "f")), [], "31 dimensions, and "),
        ("c.npy", lambda p: np.save(p, np.ones((3, 96), "i1")), [], "holds int8 [3, 96], not vectors"),
        ("c.npy", lambda p: np.save(p, np.ones(96, "f")), [], "holds float32 [96]"),
        ("c.npy", lambda p: p.write_bytes(b"x"), [], "c.npy: "),
        ("c.npy", lambda p: np.save(p, np.ones((3, 96), "f")), ["--top-k", 0], "top_k must be a positive"),
        ("c.npy", lambda p: np.save(p, np.ones((3, 96), "f")), ["--texts", "t.txt"], "t.txt: has 2 texts"),
        ("c.jsonl", lambda p: p.write_text(""), [], "c.jsonl: is empty"),
        ("c.jsonl", lambda p: p.write_text('{"text": "a"}'), [], "line 1 has no embedding"),
        ("c.parquet", lambda p: pq.write_table(pa.table({"a": [1]}), p), [], "no column 'embedding'"),
        ("c.parquet", lambda p: pq.write_table(pa.table({"embedding": [1]}), p), [], "holds int64 [1, 0]"),
        ("c.safetensors", lambda p: p.write_bytes(b"x" * 99), [], "c.safetensors: "),
        ("c.npy", lambda p: np.savez(open(p, "wb"), x=np.ones(3)), [], "c.npy: "),
        ("c.npy", lambda p: np.save(p, np.array([{}])), [], "c.npy: "),
        ("c.jsonl", lambda p: p.write_text("[" * 10**5), [], "c.jsonl: line 1 is not JSON that can be read"),
        ("c.jsonl", lambda p: p.write_text('{"embedding": []}'), [], "has an embedding of no dimensions"),
        ("c.jsonl", lambda p: p.write_text(json.dumps({"embedding": [10**400] * 96})), [], "is too large"),
        ("c.parquet", lambda p: p.write_bytes(b"PAR1"), [], "c.parquet: cannot be read as Parquet"),
        ("c.parquet", lambda p: p.write_bytes(parquet(["embedding"], [[None]])), [], "holds null [1, 0]"),
        (
            "c.parquet",
            lambda p: p.write_bytes(parquet(["embedding"] * 2, [[[1.0]], [[2.0]]])),
            [],
            "two columns have the name 'embedding'",
        ),
        ("c.parquet", lambda p: p.write_bytes(parquet(["embedding"], [[ONES, [1]]])), [], "other lengths"),
        (
            "c.safetensors",
            lambda p: save_file({"embeddings": np.ones((2, 96)), "ids": np.ones(1, int)}, p),
            [],
            "holds 2 vectors, but ids I64 [1]",
        ),
        ("c.txt", lambda p: p.write_bytes(b"x"), [], "the name must end in .npy"),
        ("missing.npy", lambda p: None, [], "there is no such file"),
    ],
)  # fmt: skip
def test_what_search_refuses(embed, tmp_path, name, make, options, reason):
    make(tmp_path / name)
    (tmp_path / "t.txt").write_text("a\nb\n")
    code, out, err = embed(name, "query", *options, command="search")
    assert (code, out, err.count("\n")) == (2, "", 1) and reason in err and err.count(name) <= 2


@pytest.mark.parametrize(
    "id, text", [(datetime(2026, 1, 2), 5), (b"k", None), (None, "a"), (1.5, ["a"]), (True, True)]
)
def test_search_shows_ids_and_texts_of_other_types(embed, tmp_path, id, text):
    """Of a file that another program wrote."""
    embedding = [1.0] * 96
    (tmp_path / "c.parquet").write_bytes(parquet(["id", "text", "embedding"], [[id], [text], [embedding]]))
    if not isinstance(id, (datetime, bytes)):
        (tmp_path / "c.jsonl").write_text(json.dumps({"id": id, "text": text, "embedding": embedding}))
    for file in tmp_path.glob("c.*"):
        code, out, _ = embed(file.name, "query", "--json", command="search")
        [found] = json.loads(out)["results"]
        assert code == 0 and found["id"] == (0 if id is None else id if id is True else str(id))
        assert found["text"] == (None if text is None else str(text))
        assert embed(file.name, "query", command="search")[0] == 0


def test_search_shows_no_text_that_was_not_embedded(embed, tmp_path):
    """The input has changed: as many rows, with the same ids, but another text."""
    write_input(tmp_path / "in.txt", TEXTS)
    assert embed("in.txt", "--output", "out.npy")[0] == 0
    code, found, err = embed("out.npy", TEXTS[0], "-k", 1, "--json", command="search")
    assert (code, err) == (0, "") and json.loads(found)["results"][0]["text"] == TEXTS[0]
    write_input(tmp_path / "in.txt", ["another", *TEXTS[1:]])
    code, found, err = embed("out.npy", TEXTS[0], "-k", 1, "--json", command="search")
    assert code == 0 and json.loads(found)["results"][0]["text"] is None
    assert "in.txt: has changed since it was embedded; --texts names the file" in err
    code, found, err = embed("out.npy", TEXTS[0], "--texts", "in.txt", command="search")
    assert code == 0 and "another" in found and "is not the file that was embedded, byte for byte" in err


def test_search_does_not_take_other_texts(embed, tmp_path):
    """The input has other ids than the output, or the ids beside it are of another run."""
    write_input(tmp_path / "in.jsonl", TEXTS, IDS)
    assert embed("in.jsonl", "--output", "out.npy")[0] == 0
    write_input(tmp_path / "other.jsonl", TEXTS, IDS[::-1])
    assert (
        "not the file that was embedded"
        in embed("out.npy", "x", "--texts", "other.jsonl", command="search")[2]
    )
    (tmp_path / "out.npy.ids.jsonl").write_text('"a"\n')
    assert "is of another run than out.npy.json" in embed("out.npy", "x", command="search")[2]
    (tmp_path / "out.npy.json").unlink()
    assert "it is of another run" in embed("out.npy", "x", command="search")[2]
