"""Kills runs over files at every file operation, and tries what a user may do next.

    python crashes.py MODEL OTHER_MODEL FOLDER OUTPUT SCENARIO STEP OFFSET

A program of its own for test_crashes.py, since it forks. A point is one operation at which the process dies
by SIGKILL: before each open, rename, unlink, mkdir, rmdir, listing and fsync, and before and in the middle of
each write. Where a point leaves the same files as the one before it, what follows is tried once. Prints a
JSON object: the number of points, of what was tried after them, and what went wrong at which.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from qwen3np import Embedder
from qwen3np.files import atomic, record, run, saved, work
from qwen3np.files.run import Job, embed_file, save
from qwen3np.files.sources import find

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.truncate")
ROWS = [{"text": f"text {n}", "id": f"i{n}"} for n in range(6)]
OLD_ROWS = [
    {"text": f"{kind} {n}", "id": f"o{n}"} for n, kind in enumerate(["old", "text", "text", "old", "old"])
]
USERS = ("out.partial/notes.txt", ".out", "out.bak", "{out}.partial.txt", "{out}.tmp", "{out}.ids.jsonl.mine")


class Killer:
    """Counts the file operations below a folder; kills the process at number `at`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.at, self.count = str(folder), -1, 0
        self._write = atomic.write
        atomic.write = self.write
        os.fsync = lambda fd: self.point()  # a killed process loses nothing that it has written
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple) -> None:
        if self.at >= 0 and event in EVENTS and str(arguments[0]).startswith(self.folder):
            self.point()

    def write(self, file, data) -> None:
        self.point()
        if self.at == self.count:
            whole = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
            file.write(whole[: len(whole) // 2])
            file.flush()
        self.point()
        self._write(file, data)

    def point(self) -> None:
        if self.at == self.count:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


class Memory:
    """An Embedder that computes each text once: a crash needs many runs of the same few texts."""

    def __init__(self, folder: str) -> None:
        self.model = Embedder(folder, backend="numpy")
        self.known: dict[tuple, np.ndarray] = {}

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def encode(self, inputs, **arguments):
        if not isinstance(inputs, str):
            return np.stack([self.encode(text, **arguments) for text in inputs])
        key = (inputs, *sorted(arguments.items()))
        if key not in self.known:
            self.known[key] = self.model.encode(inputs, **arguments)
        return self.known[key]


class Scene:
    def __init__(self, model: str, other: str, folder: Path, output: str) -> None:
        self.models = {"same": Memory(model), "other": Memory(other)}
        self.folder, self.output = folder / "scene", self.name(folder, output)
        self.killer = Killer(self.folder)

    @staticmethod
    def name(folder: Path, output: str) -> Path:
        return folder / "scene" / f"out{output}"

    # What a user does. Each returns nothing, and raises what the command would say.

    def embed(self, *options: str, model: str = "same", source: str = "in.jsonl", rows: int = 1000) -> None:
        """rows: Ctrl-C after so many."""

        def progress(sums, total) -> None:
            if sums.rows >= rows:
                raise KeyboardInterrupt

        job = Job(
            find([self.folder / source], self.output),
            self.output,
            on_error="skip",
            resume="--resume" in options,
            overwrite="--overwrite" in options,
            update="--update" in options,
        )
        loaded = self.models[model]
        embed_file(job, lambda: loaded, lambda m: "", model_name=model, progress=progress)

    def text(self, *options: str) -> None:
        vectors = self.models["same"].encode(["a text"], prompt="", truncate_dim=None)
        save(self.output, ["a text"], vectors, {"model": "same"}, "--overwrite" in options)

    def interrupted(self, *options: str, **how) -> None:
        try:
            self.embed(*options, **how)
        except KeyboardInterrupt:
            return
        raise AssertionError("it was to be interrupted")

    # What there is.

    def reset(self, source: Path | None = None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if source is not None:
            shutil.copytree(source, self.folder)
            return
        self.folder.mkdir(parents=True)
        for name, rows in (
            ("in.jsonl", ROWS),
            ("was.jsonl", [*ROWS[:3], *OLD_ROWS]),
            ("old.jsonl", OLD_ROWS),
        ):
            lines = [*map(json.dumps, rows), "no JSON"]
            (self.folder / name).write_text("\n".join(lines))
        for name in USERS:
            path = self.folder / name.format(out=self.output.name)
            path.parent.mkdir(exist_ok=True)
            path.write_text("the user's")

    def tree(self) -> dict[str, bytes]:
        paths = (path for path in self.folder.rglob("*") if not path.name.startswith("lock"))
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b"" for path in paths
        }

    def outputs(self) -> dict[str, bytes]:
        paths = [record.beside(self.output, suffix) for suffix in record.SUFFIXES]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def users(self) -> dict[str, bytes]:
        names = ["in.jsonl", "was.jsonl", "old.jsonl", *(name.format(out=self.output.name) for name in USERS)]
        return {name: (self.folder / name).read_bytes() for name in names}


SCENARIOS: dict[str, tuple[Callable[[Scene], None], Callable[[Scene], None], tuple[str, ...]]] = {
    # what is there before; the command that is killed; its options for those that follow
    "fresh": (lambda s: None, lambda s: s.embed(), ()),
    "resume": (lambda s: s.interrupted(rows=4), lambda s: s.embed("--resume"), ()),
    "overwrite": (
        lambda s: s.embed(source="old.jsonl"),
        lambda s: s.embed("--overwrite"),
        ("--overwrite",),
    ),
    "overwrite-numbered": (lambda s: s.text(), lambda s: s.embed("--overwrite"), ("--overwrite",)),
    "overwrite-work": (
        lambda s: (s.embed(source="old.jsonl"), s.interrupted("--overwrite", model="other", rows=5)),
        lambda s: s.embed("--overwrite"),
        ("--overwrite",),
    ),
    "resume-overwrite": (
        lambda s: (s.embed(source="old.jsonl"), s.interrupted("--overwrite", rows=3)),
        lambda s: s.embed("--resume"),
        (),
    ),
    "last": (lambda s: s.interrupted(rows=7), lambda s: s.embed("--resume"), ()),
    "text": (lambda s: s.embed(source="old.jsonl"), lambda s: s.text("--overwrite"), ("--overwrite",)),
    "update": (lambda s: s.embed(source="old.jsonl"), lambda s: s.embed("--update"), ("--update",)),
    "update-work": (
        lambda s: (s.embed(source="old.jsonl"), s.interrupted("--update", source="was.jsonl", rows=5)),
        lambda s: s.embed("--update"),
        ("--update",),
    ),
}


def follow_ups(
    scenario: str, options: tuple[str, ...]
) -> dict[str, tuple[Callable[[Scene], None], str, bool]]:
    """What is done next; of which run a new output is then; whether it must succeed."""
    again = ("--resume", *options)
    # A run of texts cannot be resumed, and not another model's, which is there until it is overwritten.
    must = scenario not in ("text", "overwrite-work")
    return {
        "same": (lambda s: s.embed(*options), "same", "--update" in options),
        "resume": (lambda s: s.embed(*again), "same", must),
        "overwrite": (lambda s: s.embed("--overwrite"), "same", True),
        "other": (lambda s: s.embed(model="other"), "other", False),
        "other resume": (lambda s: s.embed("--resume", model="other"), "other", False),
        "other overwrite": (lambda s: s.embed("--overwrite", model="other"), "other", True),
        "text": (lambda s: s.text(), "text", False),
        "text overwrite": (lambda s: s.text("--overwrite"), "text", True),
    }


def number_names(first: int) -> None:
    """Names that are random otherwise: the same files are left by the same operations."""
    numbers = count(first)
    secrets.token_hex = lambda size: f"{next(numbers):0{2 * size}x}"  # type: ignore[assignment]


def crash(scene: Scene, command: Callable[[Scene], None], at: int) -> bool:
    """Whether the command was killed."""
    child = os.fork()
    if child == 0:
        scene.killer.count, scene.killer.at = 0, at
        number_names(1_000_000)
        try:
            command(scene)
        except BaseException as error:
            print(f"point {at}: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def found_by_search(scene: Scene) -> dict[str, object] | None:
    """Vectors and ids as search sees them, or None if there is nothing or it is refused."""
    try:
        output = saved.open_saved(scene.output)
        ids = output.find(range(output.count if hasattr(output, "count") else 100))
        return {"vectors": np.concatenate(list(output.blocks())).tobytes(), "ids": str(sorted(ids.items()))}
    except ValueError:
        return None


def main(model: str, other: str, folder: Path, output: str, scenario: str, step: int, offset: int) -> None:
    run.CHUNK_ROWS = 2
    number_names(0)
    scene = Scene(model, other, folder, output)
    before, command, options = SCENARIOS[scenario]
    expected, known = {}, []
    for name, make in (
        ("same", lambda s: s.embed()),
        ("other", lambda s: s.embed(model="other")),
        ("text", lambda s: s.text()),
        ("old", lambda s: s.embed(source="old.jsonl")),
    ):
        scene.reset()
        make(scene)
        expected[name] = scene.outputs()
        known.append(found_by_search(scene))
    assert None not in known
    scene.reset()
    before(scene)
    start, users, faults, points, tried, last = folder / "start", scene.users(), [], 0, 0, None
    shutil.copytree(scene.folder, start)
    for at in range(offset, 10_000, step):
        scene.reset(start)
        if not crash(scene, command, at):
            break
        points += 1
        killed, state = folder / "killed", scene.tree()
        if state == last:
            continue
        last = state
        shutil.rmtree(killed, ignore_errors=True)
        shutil.copytree(scene.folder, killed)
        if (found := found_by_search(scene)) is not None and found not in known:
            faults.append(f"point {at}: search takes files that are not of one run")
        for name, (act, of, must) in follow_ups(scenario, options).items():
            scene.reset(killed)
            tried += 1
            try:
                act(scene)
                wrong = [] if scene.outputs() == expected[of] else ["another output"]
                wrong += ["the work folder is left"] if work.WorkFolder(scene.output).path.exists() else []
            except (ValueError, OSError) as error:
                clear = isinstance(error, (ValueError, FileExistsError)) and len(str(error)) > 40
                wrong = [] if clear and not must else [f"refused: {error!r}"]
                wrong += [] if scene.tree() == state else ["refused, and changed files"]
            wrong += [] if scene.users() == users else ["a file of the user's is changed"]
            faults += [f"point {at}, then {name}: {reason}" for reason in wrong]
    print(json.dumps({"points": points, "follow_ups": tried, "faults": faults}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:6], *map(int, sys.argv[6:8]))
