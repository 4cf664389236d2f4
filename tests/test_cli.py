"""The command line: what it prints, and one line with exit code 2 for everything that can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from tolerances import channel
from wcwidth import width

from qwen3np import Embedder, __version__
from qwen3np.cli import demo, options, program
from qwen3np.loading.hub import locate
from qwen3np.runtime.backend import BACKENDS
from qwen3np.runtime.numba_backend import PRECISIONS
from qwen3np.verify.published import CARD_MODEL, CARD_QUERIES

TEXTS = ["The capital of China is Beijing.", "中国\u2028首都", ""]


@pytest.fixture(scope="module")
def model(tiny) -> Embedder:
    return Embedder(tiny)


@pytest.fixture
def run(run):
    """Run a command in this process, with nothing on stdin: (exit code, stdout, stderr)."""
    return partial(run, stdin=b"")


def as_user(*args: object, cwd: Path, **options) -> subprocess.CompletedProcess:
    """Runs one command as a user does, where no model can be downloaded or is in the cache."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home"), "PYTHONUTF8": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", "qwen3np", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", **options)


def embeddings(lines: str) -> np.ndarray:
    return np.array([json.loads(line)["embedding"] for line in lines.split("\n") if line], np.float32)


def test_embed_prints_a_json_line_for_each_argument(run, tiny, model):
    """Every digit of the float32 vectors survives; the text is there as it was given."""
    code, out, err = run("embed", "--model", tiny, *TEXTS)
    assert (code, err) == (0, "")
    assert [json.loads(line)["text"] for line in out.split("\n") if line] == TEXTS
    np.testing.assert_array_equal(embeddings(out), model.encode(TEXTS))


def test_tokenize_prints_what_the_model_reads(run, tiny, model):
    code, out, _ = run("tokenize", "--model", tiny, "--query", *TEXTS)
    lines = [json.loads(line) for line in out.split("\n") if line]
    ids = model.tokenizer.encode(TEXTS, model.max_seq_length, model.prompts["query"])
    assert code == 0 and [line["ids"] for line in lines] == ids
    assert [line["text"] for line in lines] == TEXTS and lines[0]["pieces"][-1] == "<|endoftext|>"
    assert run("tokenize", "--model", tiny, "--query", "--count", *TEXTS)[1].split() == [
        str(len(each)) for each in ids
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open"])
def test_embed_reads_a_text_a_line_from_stdin(run, tiny, end, last):
    """Lines end at newlines only, not at U+2028; an empty line is an empty text."""
    stdin = end.join([*TEXTS, "last"]) + (end if last else "")
    code, out, _ = run("embed", "--model", tiny, stdin=stdin.encode())
    assert (code, out) == (0, run("embed", "--model", tiny, *TEXTS, "last")[1])


@pytest.mark.parametrize(
    "options, arguments",
    [
        (["--query"], {"prompt_name": "query"}),
        (["--prompt", "Classify: "], {"prompt": "Classify: "}),
        (["--dim", "32"], {"truncate_dim": 32}),
        (["--query", "--dim", "40", "--backend", "numpy"], {"prompt_name": "query", "truncate_dim": 40}),
    ],
)
def test_embed_options_are_those_of_encode(run, tiny, model, options, arguments):
    _, out, _ = run("embed", "--model", tiny, *options, *TEXTS)
    expected = model.encode(TEXTS, **arguments)
    tolerance = channel(model.backend, expected.shape[1])
    np.testing.assert_allclose(embeddings(out), expected, atol=tolerance)
    if options == ["--query"]:
        np.testing.assert_array_equal(embeddings(out), model.encode_query(TEXTS))


def test_embed_writes_an_array(run, tiny, model, tmp_path):
    """In place of an older one, if asked; stdout stays empty and no temporary file is left."""
    (tmp_path / "out.npy").write_bytes(b"older")
    command = ["embed", "--model", tiny, "--output", tmp_path / "out.npy", *TEXTS]
    code, _, err = run(*command)
    assert code == 2 and "exists; --overwrite replaces it" in err
    assert (tmp_path / "out.npy").read_bytes() == b"older"
    code, out, err = run(*command, "--overwrite")
    assert (code, out) == (0, "") and "3 x 96 float32" in err
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.encode(TEXTS))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "out.npy.hashes.npy", "out.npy.json"]


def test_similarity_prints_the_scores(run, tiny, model):
    queries, documents = ["What is the capital?", "Gravity"], ["Beijing.", "It attracts.", "三"]
    args = [x for q in queries for x in ("-q", q)] + [x for d in documents for x in ("-d", d)]
    code, out, err = run("similarity", "--model", tiny, "--dim", "48", *args)
    assert (code, err) == (0, "")
    expected = model.similarity(
        model.encode_query(queries, truncate_dim=48), model.encode_document(documents, truncate_dim=48)
    )
    for query, row in zip(queries, expected, strict=True):
        [line] = [line for line in out.split("\n") if line.startswith(query)]
        np.testing.assert_allclose([float(x) for x in line.split()[-3:]], row, atol=6e-5)
    assert all(f"[{i}] {d}" in out for i, d in enumerate(documents, 1))


def test_info_describes_machine_and_model(run, tiny):
    code, machine, _ = run("info")
    assert code == 0 and "CPU features" in machine and f"qwen3np       {__version__}" in machine
    code, out, _ = run("info", "--model", tiny)
    for part in ("652,384 in 46 tensors, BF16", "6 query heads, 2 key/value", "2048 rows", "query, document"):
        assert code == 0 and part in out


def test_synth_writes_a_model_that_embeds(run, tmp_path):
    assert run("synth", tmp_path / "m", "--layers", 2, "--seed", 7)[:2] == (0, "")
    assert run("embed", "--model", tmp_path / "m", "a")[0] == 0
    code, _, err = run("synth", tmp_path / "m")
    assert code == 2 and "nothing was written" in err


@pytest.mark.slow  # it compiles for all precisions; CI runs the demo itself, too
def test_the_demo_runs_without_a_network(tmp_path):
    """It says which model this is; the card's texts rank right, and so does its own documentation."""
    done = as_user("demo", cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"this is {demo.SMALL}" in done.stdout
    table = [line.split()[-2:] for line in done.stdout.splitlines() if line.startswith(tuple(CARD_QUERIES))]
    [[right, wrong], [other, own]] = [[float(score) for score in row] for row in table]
    assert right > wrong and own > other
    answers = done.stdout.partition(demo.QUESTIONS[0])[2].partition(demo.QUESTIONS[1])[0]
    assert "--resume" in answers and "docs/" in answers


def test_the_demo_does_not_take_an_interrupted_download_for_the_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--Qwen--Qwen3-Embedding-0.6B" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_bytes((tiny / "config.json").read_bytes())
    assert locate(CARD_MODEL, local_files_only=True) == snapshot  # what is there of it
    assert demo._published_model(print)[0] is None


def test_bare_it_shows_its_help(run):
    code, out, err = run()
    assert (code, out) == (2, "") and "usage: qwen3np" in err and "similarity" in err


@pytest.mark.parametrize("command", program.COMMANDS)
def test_every_help_has_an_example(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "") and f"examples:\n  qwen3np {command}" in out


def test_choices_are_all_that_there_is():
    """Written out where loading what knows them would take a second."""
    assert options.MATMUL_PRECISIONS == PRECISIONS
    parser = program._parser("embed")
    for backend in ("auto", *BACKENDS):
        parser.parse_args(["embed", "--backend", backend])


def test_stdin_stands_where_its_dash_does(run, tiny):
    """A byte order mark is no text, and --literal takes a dash for one."""
    code, out, _ = run("embed", "-m", tiny, "a", "-", "--text", "-", stdin="\ufeffb\r\nc".encode())
    assert code == 0
    assert [json.loads(line)["text"] for line in out.split("\n") if line] == ["a", "b", "c", "-"]
    code, out, _ = run("similarity", "-m", tiny, "-q", "x", "-d", "-", stdin=b"one\ntwo\n")
    assert code == 0 and "[1] one\n[2] two\n" in out
    code, out, _ = run("similarity", "-m", tiny, "-q", "-", "-d", __file__, "--literal")
    assert code == 0 and f"[1] {__file__}" in out and "\n-  " in out


def test_how_a_model_is_found_goes_through(run, tiny, tmp_path):
    """--cache-folder and --local-files-only, for a Hub id and for every command."""
    repository = tmp_path / "models--some--model"
    shutil.copytree(tiny, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    options = ["--cache-folder", tmp_path, "--local-files-only", "--token", "hf_x"]
    assert run("embed", "a", "-m", "some/model", *options) == run("embed", "a", "-m", tiny)
    code, out, _ = run("info", "some/model", *options)
    assert code == 0 and "652,384 in 46 tensors" in out
    assert run("info", "other/model", *options)[0] == 2


# Shell, exit code, what is on stdout, what is on stderr.
STREAMS = [
    ("embed a >&-", 2, "", "error: stdout is closed"),
    ("embed a 2>&-", 0, '"text": "a"', ""),
    ("embed a >/dev/full", 2, "", "error: stdout: No space left on device"),
    ("embed - <many >/dev/full", 2, "", "error: stdout: No space left on device"),
    ("embed a b -o out.npy >&- 2>&- <&-", 0, "", ""),
    ("embed two.txt -o out.npy >&- 2>/dev/full", 0, "", ""),
    ("embed bad.txt 2>&-", 2, "", ""),
    ("embed bad.txt 2>/dev/full", 2, "", ""),
    ("--help >/dev/full", 2, "", "error: stdout: No space left on device"),
    ("embed a <&-", 0, '"text": "a"', ""),
    ("embed - <&-", 2, "", "error: no text given"),
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("shell, code, out, err", STREAMS)
def test_streams_that_are_closed_or_full(tiny, tmp_path, shell, code, out, err):
    """An exit code and a line; what can be delivered is. A closed number is given to no other file."""
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "many").write_text("a\n" * 200)
    model = "" if "--help" in shell else f'-m "{tiny}"'
    command, _, rest = shell.partition(" ")
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m qwen3np {command} {model} {rest}'],
        cwd=tmp_path, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == code
    assert out in done.stdout and (out or not done.stdout)
    assert err in done.stderr and done.stderr.count("\n") == bool(err)
    if "out.npy" in shell:
        assert np.load(tmp_path / "out.npy").shape == (2, 96)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16"])
def test_output_is_utf_8_whatever_the_locale(tiny, tmp_path, encoding):
    """JSON lines, tables and messages."""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    (tmp_path / "中.txt").write_text("中国\n")
    for args, expected in (
        (["embed", "中国"], '"text": "中国"'),
        (["similarity", "-q", "中国", "-d", "首都"], "中国"),
        (["embed", "中.txt", "-o", "中.npy"], "中.npy: 1 x 96 float32"),
    ):
        command = [sys.executable, "-m", "qwen3np", *args, "--model", str(tiny)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0 and expected in (done.stdout + done.stderr).decode()


def test_a_lone_surrogate_of_a_file_is_escaped(run, tiny, tmp_path):
    """As JSON escapes it: what search finds in files of others is printed too."""
    vector = json.dumps([1.0] * 96)
    (tmp_path / "c.jsonl").write_text(f'{{"id": "\\udc00", "text": "a\\ud800", "embedding": {vector}}}\n')
    code, out, _ = run("search", tmp_path / "c.jsonl", "q", "-m", tiny, "--json")
    [hit] = json.loads(out)["results"]
    assert code == 0 and (hit["id"], hit["text"]) == ("\udc00", "a\ud800")
    assert run("search", tmp_path / "c.jsonl", "q", "-m", tiny)[0] == 0


def test_a_newline_in_a_name_breaks_no_message(run, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a\nb.txt").write_text("x\n")
    code, out, err = run("embed", "-m", tiny, "a\nb.txt", "-o", "c.npy")
    assert (code, out) == (0, "") and "c.npy: 1 x 96" in err and err.count("\n") == 1
    code, _, err = run("search", "-m", tiny, "c\nd.npy", "x")
    assert code == 2 and "c\\nd.npy: there is no such file" in err and err.count("\n") == 1
    code, _, err = run("embed", "-m", tiny, "a\nb.txt", "-o", "c\nd.npy")
    assert code == 2 and "'c\\nd.npy': the name holds a control character" in err and err.count("\n") == 1


@pytest.mark.slow
def test_on_a_terminal(on_terminal, tiny, tiny_reranker, tmp_path):
    """Progress where it takes a while, a word of what it waits for, and tables as wide as it is."""
    (tmp_path / "d.txt").write_text("".join(f"{i} 中国首都的文本" * 40 + "\n" for i in range(60)))
    code, shown = on_terminal("rerank", "-m", tiny_reranker, "q", "d.txt")
    assert code == 0 and "pairs:   0%" in shown and "60/60" in shown
    table = shown.split("text\r\n")[1].splitlines()
    assert len(table) == 61 and all(width(line) in (59, 60) for line in table[1:])
    code, shown = on_terminal("embed", "-m", tiny, "-", typed=b"abc\n\x04")
    assert code == 0 and "Ctrl-D after the last" in shown and '{"text": "abc"' in shown
    assert "no text given" in on_terminal("embed", "-m", tiny)[1]
    assert "0%" not in on_terminal("embed", "-m", tiny, "short")[1]


def test_a_damaged_model_with_many_problems_is_one_line_too(run, tiny_copy):
    for name in ("config.json", "1_Pooling/config.json"):
        (tiny_copy / name).write_text((tiny_copy / name).read_text().replace("96", "64"))
    code, _, err = run("embed", "--model", tiny_copy, "x")
    assert code == 2 and err.count("\n") == 1 and "embed_tokens.weight is [2048, 96]" in err


@pytest.mark.parametrize("args", [["--dim", "7", "x"], ["\udcff"], ["--prompt-name", "x"]])
def test_a_failing_run_leaves_an_existing_output_alone(run, tiny, tmp_path, args):
    (tmp_path / "out.npy").write_bytes(b"precious")
    assert run("embed", "--model", tiny, "--output", tmp_path / "out.npy", *args)[0] == 2
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.npy", b"precious")]


def test_a_reader_that_has_seen_enough_is_no_error(tiny, model, tmp_path):
    """`qwen3np embed ... | head -1`: far more output than a pipe holds, and nobody to read it.

    `model`: its kernels are compiled, and nothing is said of that.
    """
    command = [sys.executable, "-m", "qwen3np", "embed", "--model", str(tiny)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(b"a\n" * 300)
        process.stdin.close()
        assert json.loads(process.stdout.readline())["text"] == "a"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_as_a_module_and_as_a_program(tmp_path):
    assert as_user("--version", cwd=tmp_path).stdout == f"qwen3np {__version__}\n"
    script = Path(sys.executable).with_name("qwen3np")
    assert subprocess.run([script, "--version"], capture_output=True).stdout.split() == [
        b"qwen3np",
        __version__.encode(),
    ]
    failed = as_user("embed", "x", cwd=tmp_path)
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.count("\n") == 1 and "HF_HUB_OFFLINE" in failed.stderr
