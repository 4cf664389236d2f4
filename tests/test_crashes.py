"""Runs over files that are killed anywhere, and files that are not a run's: nothing of a user's is lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from qwen3np.files import identity, run, saved, work
from qwen3np.synth.checkpoints import synthesize

OUTPUTS = [".npy", ".jsonl", ".parquet", ".safetensors"]
SCENARIOS = (
    *("fresh", "resume", "overwrite", "overwrite-numbered", "overwrite-work", "resume-overwrite"),
    *("last", "text", "update", "update-work"),
)


MANIFEST = {"run": {}, "info": {}, "rows": 1, "bad": 0, "dim": 1, "replaces": {}}


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    return synthesize(tmp_path_factory.mktemp("models") / "other", "tiny", seed=1)


def crashes(tiny, other, folder, output, scenario, step=1, offset=0) -> dict:
    program = Path(__file__).with_name("crashes.py")
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, program, tiny, other, folder, output, scenario, step, offset]
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@FORKS
@pytest.mark.slow
@pytest.mark.parametrize(
    "output, scenario, step",
    [
        *((".npy", s, 1) for s in SCENARIOS),
        *((o, s, 1) for o in OUTPUTS[1:] for s in ("overwrite", "last")),
        *((o, "update", 4) for o in OUTPUTS[1:]),  # a fourth of the operations, which are as of .npy
    ],
)
def test_a_kill_at_any_file_operation_loses_nothing(tiny, other_model, tmp_path, output, scenario, step):
    """Then the same command, --resume, --overwrite, another model, or texts.

    They give the right bytes, or a refusal that changes nothing; --resume and --overwrite always lead on.
    Search never mixes two runs.
    """
    found = crashes(tiny, other_model, tmp_path, output, scenario, step)
    assert found["faults"] == [] and found["points"] > 40 // step
    print(f"{output} {scenario}: {found['points']} points")


@FORKS
@pytest.mark.parametrize("scenario, step, offset", [("overwrite", 29, 7), ("update", 31, 9)])
def test_a_kill_at_some_file_operations_loses_nothing(tiny, other_model, tmp_path, scenario, step, offset):
    found = crashes(tiny, other_model, tmp_path, ".npy", scenario, step, offset)
    assert found["faults"] == [] and found["points"] > 4


TEXTS = [f"text {n}" for n in range(9)]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, links as what they point to."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(text + "\n" for text in TEXTS))
    return path


@pytest.fixture
def interrupt(embed, monkeypatch):
    """Runs the command, and presses Ctrl-C when so many rows are done."""

    def interrupt(*args: object, rows: int = 4) -> None:
        def show(bar, sums, total) -> None:
            bar._bar, bar.rows = bar, total
            if sums.rows >= rows:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qwen3np.cli.embed._Bar.show", show)
            patch.setattr("qwen3np.cli.embed._Bar.close", lambda bar: None)
            assert embed(*args)[0] == 130

    monkeypatch.setattr(run, "CHUNK_ROWS", 2)
    return interrupt


def a_folder(path: Path, there: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years")


def an_empty_folder(path: Path, there: Path) -> None:
    path.mkdir()


def a_link(path: Path, there: Path) -> None:
    a_folder(there, path)
    path.symlink_to(there)


def a_link_to_a_run(path: Path, there: Path) -> None:
    with work.WorkFolder(there.with_suffix("")) as folder:
        folder.begin(MANIFEST)
    folder.path.rename(there)
    path.symlink_to(there)


def a_file(path: Path, there: Path) -> None:
    path.write_text("years")


def another_program(path: Path, there: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"format": "something else"}')
    (path / "00000000.chunk").write_text("years")


def a_run_and_more(path: Path, there: Path) -> None:
    with work.WorkFolder(path.with_suffix("")) as folder:
        folder.begin(MANIFEST)
    (path / "thesis.tex").write_text("years")


KINDS = [a_folder, an_empty_folder, a_link, a_link_to_a_run, a_file, another_program, a_run_and_more]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"], ["--dim", "7"]], ids=" ".join)
def test_a_folder_that_is_not_of_a_run_is_left_alone(embed, source, tmp_path, make, options):
    """A folder called as the work folder would be.

    Also for a command that fails for another reason, for one of texts, and if the input lies in it.
    """
    partial = tmp_path / "out.npy.partial"
    make(partial, tmp_path / "there")
    inside = partial / "in.txt"
    if partial.is_dir():
        inside.write_text("a text\n")
    before = tree(tmp_path)
    inputs = [["in.txt"], [str(inside)] if inside.exists() else []]
    inputs += [] if "--resume" in options else [["a text"]]
    for texts in filter(None, inputs):
        code, out, err = embed(*texts, "--output", "out.npy", *options)
        assert (
            (code, out, err.count("\n")) == (2, "", 1) and "move it away" in err and str(partial.name) in err
        )
        assert tree(tmp_path) == before


@pytest.mark.parametrize("suffix", [".ids.jsonl", ".errors.jsonl", ".json"])
@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"]], ids=" ".join)
@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
def test_a_file_beside_the_output_that_is_not_of_it_is_left_alone(
    embed, source, tmp_path, suffix, options, older
):
    """Whether there is an output or not; and one that a run wrote and somebody edited."""
    if older:
        assert embed("in.txt", "--output", "out.npy")[0] == 0
    (tmp_path / f"out.npy{suffix}").write_text("years\n")
    before = tree(tmp_path)
    for texts in [["in.txt"], *([] if "--resume" in options else [["a text"]])]:
        code, _, err = embed(*texts, "--output", "out.npy", *options)
        assert code == 2 and f"out.npy{suffix}: would be replaced, and " in err and "move it away" in err
        no_record = "no out.npy.json says that qwen3np wrote it (older versions had none)"
        assert (no_record if suffix != ".json" and not older else "is not as qwen3np wrote it") in err
        assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["out.npy.json", "out.npy.partial/manifest.json"])
@pytest.mark.parametrize(
    "make",
    [
        getattr(os, "mkfifo", Path.mkdir),  # Windows has no pipes with names of files
        Path.mkdir,
        lambda path: path.write_text("[" * 10**5),
        lambda path: path.write_text(json.dumps({"format": work.FORMAT})),
        lambda path: path.write_text(json.dumps(MANIFEST | {"format": work.FORMAT, "id": "", "dim": "x"})),
    ],
    ids=["pipe", "folder", "deep", "short", "wrong"],
)
def test_what_is_read_first_may_be_anything(embed, source, tmp_path, name, make):
    """It is not waited for, no traceback, and left alone."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    make(path)
    for options in ([], ["--resume"], ["--overwrite"]):
        code, _, err = embed("in.txt", "--output", "out.npy", *options)
        assert code == 2 and err.count("\n") == 1 and "move it away" in err
    assert {p.name for p in path.parent.iterdir()} <= {path.name, "in.txt"}


@pytest.mark.parametrize(
    "wrong",
    [
        ["--dim", "7"],
        ["--column", "x"],
        ["--prompt", "\udcff"],
        ["--model", "missing"],
        ["--text", "another"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("kept", [False, True], ids=["output", "output and work"])
def test_overwrite_destroys_nothing_if_it_fails(embed, source, interrupt, monkeypatch, tmp_path, wrong, kept):
    """A wrong option, or, for the last one, a bad row: the older output and the kept work stay."""
    assert embed("in.txt", "--output", "out.npy", "--dim", "40")[0] == 0
    if kept:
        interrupt("in.txt", "--output", "out.npy", "--overwrite")
    before = tree(tmp_path)
    if "--model" in wrong:

        def load(args):
            raise ValueError("no such model")

        monkeypatch.setattr("qwen3np.cli.options.load_embedder", load)
    assert embed("in.txt", "--output", "out.npy", "--overwrite", *wrong)[0] == 2
    assert tree(tmp_path) == before
    (tmp_path / "bad.jsonl").write_text('"good"\n{"a": \n')
    assert embed("bad.jsonl", "--output", "out.npy", "--overwrite")[0] == 2
    (tmp_path / "bad.jsonl").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_older_output_stays_until_the_new_one_is_complete(
    embed, model, source, interrupt, tmp_path, output
):
    out = tmp_path / f"out{output}"
    assert embed("in.txt", "--output", out.name, "--dim", "40")[0] == 0
    before = tree(tmp_path)
    interrupt("in.txt", "--output", out.name, "--overwrite")
    assert {name: data for name, data in tree(tmp_path).items() if ".partial" not in name} == before
    code, _, err = embed("in.txt", "--output", out.name, "--resume")  # what it replaces was agreed on
    assert code == 0 and "(2 rows were done before)" in err
    vectors = np.concatenate(list(saved.open_saved(out).blocks()))
    np.testing.assert_array_equal(vectors, model.encode(TEXTS))


def test_an_output_that_appears_while_a_run_works_is_not_replaced(embed, model, source, interrupt, tmp_path):
    interrupt("in.txt", "--output", "out.npy")
    (tmp_path / "out.npy").write_bytes(b"precious")
    code, _, err = embed("in.txt", "--output", "out.npy", "--resume")
    assert code == 2 and "out.npy: exists; --overwrite replaces it" in err
    assert (tmp_path / "out.npy").read_bytes() == b"precious"
    (tmp_path / "out.npy").unlink()
    digest = run.identity.file_digest

    def digest_late(path):
        if len(list((tmp_path / "out.npy.partial").glob("*.chunk"))) == 5:  # all that there are
            (tmp_path / "out.npy").write_bytes(b"precious")
        return digest(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.identity, "file_digest", digest_late)
        code, _, err = embed("in.txt", "--output", "out.npy", "--resume")
    assert code == 2 and "was written by another program while this run worked; move it away" in err
    assert (tmp_path / "out.npy").read_bytes() == b"precious"
    (tmp_path / "out.npy").unlink()
    assert embed("in.txt", "--output", "out.npy", "--resume")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.encode(TEXTS))


@pytest.mark.parametrize("when", ["while it is interrupted", "while it works"])
def test_rows_of_another_content_are_computed_again(embed, model, source, interrupt, tmp_path, when):
    """The input is another for a while, and then the same again, to the nanosecond."""
    right, stat = source.read_bytes(), source.stat()
    digest, rows = run.identity.file_digest, run.Job.rows

    def put_back(*args):
        source.write_bytes(right)
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return digest(*args)

    def rows_of_another(job):
        """What _compute reads; others read what is there."""
        if sys._getframe(1).f_code.co_name == "_compute":
            source.write_bytes(right.replace(b"text", b"next"))
        else:
            put_back(source)
        return rows(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Job, "rows", rows_of_another)
        if when == "while it works":
            code, _, err = embed("in.txt", "--output", "out.npy")
            assert code == 2 and "in.txt: changed while it was read" in err
            assert not (tmp_path / "out.npy").exists()
        else:
            interrupt("in.txt", "--output", "out.npy")
    put_back(source)
    assert embed("in.txt", "--output", "out.npy", "--resume")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.encode(TEXTS))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def of_another_run(path: Path) -> None:
    head, _, rest = path.read_bytes().partition(b"\n")
    rest = rest.replace(b'{"run": "', b'{"run": "0', 1)
    path.write_bytes(hashlib.blake2b(rest, digest_size=32).hexdigest().encode() + b"\n" + rest)


@pytest.mark.parametrize("damage", [flip, of_another_run, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_chunk_that_is_damaged_or_of_another_run_is_computed_again(
    embed, model, source, interrupt, tmp_path, damage
):
    interrupt("in.txt", "--output", "out.npy", rows=7)
    damage(tmp_path / "out.npy.partial" / "00000001.chunk")
    code, _, err = embed("in.txt", "--output", "out.npy", "--resume")
    assert code == 0 and "(2 rows were done before)" in err
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.encode(TEXTS))


def test_resume_knows_a_weight_in_the_middle(tiny, model):
    """One bit of any tensor, wherever it is."""
    before = identity.model_digest(model.checkpoint)
    assert identity.model_digest(model.checkpoint, 3) == before
    for name, tensor in model.checkpoint.tensors.items():
        changed = np.array(tensor.data)
        changed.reshape(-1)[changed.size // 2] ^= 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(model.checkpoint.tensors, name, type(tensor)(name, tensor.dtype, changed))
            assert identity.model_digest(model.checkpoint) != before


@pytest.mark.parametrize("output", OUTPUTS)
def test_resume_of_a_finished_run_says_that_it_is_complete(embed, source, tmp_path, output):
    """`until qwen3np embed ... --resume; do :; done` ends; another run's output is refused."""
    command = ["in.txt", "--output", f"out{output}", "--resume"]
    assert embed(*command)[0] == 0
    before = tree(tmp_path)
    for options in ([], ["--overwrite"]):
        code, _, err = embed(*command, *options)
        assert code == 0 and "9 x 96 float32" in err and "is complete" in err and tree(tmp_path) == before
    code, _, err = embed(*command, "--dim", 40)
    assert code == 2 and "exists, of another run (dim was 96, is 40); --overwrite replaces it" in err
    source.write_text("another text\n")
    code, _, err = embed(*command)
    assert code == 2 and "exists, of another run (input was" in err
    source.write_bytes(before["in.txt"])
    flip(tmp_path / f"out{output}")
    code, _, err = embed(*command)
    assert code == 2 and "exists, and is not as its run wrote it; --overwrite replaces it" in err
    assert embed(*command, "--overwrite")[0] == 0 and tree(tmp_path) == before


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_chunk_ends_after_some_time_and_the_bytes_do_not_depend_on_it(
    embed, source, tmp_path, monkeypatch, output
):
    """Here after each call of one row."""
    monkeypatch.setattr("qwen3np.files.outputs.ROW_GROUP", 4)
    assert embed("in.txt", "--output", f"out{output}")[0] == 0
    whole, chunks = tree(tmp_path), []
    monkeypatch.setattr(run, "CALL_BYTES", 1)
    monkeypatch.setattr(run, "CHUNK_SECONDS", 1e-9)
    add = work.WorkFolder.add
    monkeypatch.setattr(work.WorkFolder, "add", lambda *args: chunks.append(args[1]) or add(*args))
    assert embed("in.txt", "--output", f"out{output}", "--overwrite")[0] == 0
    assert tree(tmp_path) == whole and len(chunks) == 9


def test_without_flock_a_run_works_and_a_lock_that_is_left_is_named(embed, source, interrupt, monkeypatch):
    """As on Lustre and DBFS."""
    pytest.importorskip("fcntl")

    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert embed("in.txt", "--output", "out.npy")[0] == 0
    interrupt("in.txt", "--output", "out.npy", "--overwrite")
    with work.WorkFolder(source.with_name("out.npy")):
        code, _, err = embed("in.txt", "--output", "out.npy", "--resume")
        assert code == 2 and "another run is writing it" in err and "delete out.npy.partial/lock.soft" in err
    assert embed("in.txt", "--output", "out.npy", "--resume")[0] == 0
    names = ["in.txt", "out.npy", "out.npy.hashes.npy", "out.npy.json"]
    assert sorted(p.name for p in source.parent.iterdir()) == names


def test_a_name_with_a_newline_is_one_line(embed, source, tmp_path):
    code, _, err = embed("in.txt", "--output", "a\nb.npy")
    assert code == 2 and err.count("\n") == 1 and "'a\\nb.npy': the name holds a control character" in err


def test_search_takes_no_ids_that_are_not_of_the_output(embed, tmp_path):
    """A stray file of ids, an output that was replaced, ids that were edited."""
    lines = [json.dumps({"text": text, "id": f"i{n}"}) for n, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    for name, options in (("named.npy", []), ("numbered.npy", ["--id-column", ""])):
        assert embed("in.jsonl", "--output", name, "--column", "text", *options)[0] == 0
    (tmp_path / "numbered.npy.ids.jsonl").write_bytes((tmp_path / "named.npy.ids.jsonl").read_bytes())
    code, found, _ = embed("numbered.npy", "text 3", "--top-k", 1, "--json", command="search")
    assert code == 0 and isinstance(json.loads(found)["results"][0]["id"], int)
    ids = tmp_path / "named.npy.ids.jsonl"
    whole = ids.read_bytes()
    ids.write_bytes(whole.replace(b"i3", b"i4"))
    assert "is of another run than named.npy.json" in embed("named.npy", "x", command="search")[2]
    ids.write_bytes(whole)
    np.save(tmp_path / "named.npy", np.load(tmp_path / "named.npy")[::-1])
    assert "named.npy: is of another run than named.npy.json" in embed("named.npy", "x", command="search")[2]


@pytest.mark.parametrize("output", OUTPUTS)
def test_search_refuses_an_output_with_a_vector_that_is_not_finite(embed, tmp_path, output):
    name = tmp_path / f"c{output}"
    vectors = np.ones((3, 96), np.float32)
    vectors[1, 2] = np.nan
    if output == ".npy":
        np.save(name, vectors)
    elif output == ".jsonl":
        name.write_text("".join(json.dumps({"embedding": v.tolist()}) + "\n" for v in vectors))
    elif output == ".parquet":
        pq.write_table(pa.table({"embedding": pa.array(vectors.tolist(), pa.list_(pa.float32()))}), name)
    else:
        save_file({"embeddings": vectors}, name)
    code, out, err = embed(name.name, "x", command="search")
    assert (code, out) == (2, "") and f"c{output}: corpus row 1 holds a NaN" in err
