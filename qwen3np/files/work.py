"""The folder OUT.partial: what an unfinished run has computed, so that another can continue.

manifest.json says what the run is, and makes the folder ours: one without it is never touched. It appears
with the folder, at once, and goes last. Per chunk of rows there is a file 00000000.chunk: a line with the
digest of all that follows, a line of JSON, and the vectors. A chunk counts if it is whole and names the run
that the manifest names; it also says what it was made of. The file `lock` is locked while a run works, and
its lock ends with the process, however it ends.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from numpy.typing import NDArray

from .atomic import replace, sync_folder, write_file
from .cells import BadRow, parse_json

FORMAT = "qwen3np work 2"
OURS = re.compile(  # the names of all files that a run makes in its folder, half-written ones among them
    r"\.?(manifest\.json|\d{8}\.chunk|new\.[a-z.]+)(\.[0-9a-f]{8}\.tmp)?|lock(\..*)?|\.filelock-.*"
)
# What a manifest says from the start, and "ranges" where older ones are kept; "sums", "first_bad_rows" and
# "files" are added in the last step.
ENTRIES = {"id": str, "run": dict, "info": dict, "rows": int, "bad": int, "dim": int, "replaces": dict}
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # Lustre, DBFS and others


@dataclass
class Totals:
    """Totals of all chunks so far."""

    rows: int = 0  # read, bad ones included
    texts: int = 0  # embedded
    tokens: int = 0
    cut: int = 0  # texts longer than max_seq_length
    longest: int = 0  # tokens of the longest text, untruncated
    int_ids: bool = True  # all ids are integers of 64 bits
    numbered: bool = True  # all ids are the numbers of their vectors
    empty: int = 0  # empty texts
    placed: bool = False  # rows say where their texts are from


@dataclass(frozen=True)
class Chunk:
    """Rows that were computed together.

    Attributes:
        ids: Their ids.
        texts: Their texts.
        vectors: Their vectors, float32 [N, dim], or as the output stores them.
        bad: The bad rows among them.
        source: The digest of the rows as they were read.
        totals: The totals so far.
        where: Where the texts are from (Row.where), None where that is not said.
    """

    ids: Sequence[int | str]
    texts: Sequence[str]
    vectors: NDArray[Any]
    bad: Sequence[BadRow] = field(default=())
    source: str = ""
    totals: Totals = field(default_factory=Totals)
    where: Sequence[Mapping[str, int | str]] | None = None

    @property
    def rows(self) -> int:
        """Number of rows, bad ones included."""
        return len(self.ids) + len(self.bad)


class WorkFolder:
    """The folder of an unfinished run, used with `with`.

    Entering takes what is there of a run and creates nothing. `manifest` is what `begin` was given, None
    where there is no folder.

    Raises:
        BlockingIOError: Another run holds the folder.
        FileExistsError: The folder is not ours, or holds what is not.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self.manifest: dict[str, Any] | None = None
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> WorkFolder:
        if os.path.lexists(self.path):
            _read_manifest(self.path)
            self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def check_writable(self) -> None:
        """Raise OSError where `begin` would, which may come after hours of reading and loading."""
        if self.manifest is None:
            self._make_hidden().rmdir()

    def begin(self, manifest: dict[str, Any]) -> None:
        """Begin a run; what an older one left is deleted."""
        manifest = {"format": FORMAT, "id": secrets.token_hex(16), **manifest}
        if self.manifest is not None:
            self._write_manifest(manifest)  # from here on the older chunks are of another run
            self._delete(keep=("manifest.json", "lock"))
            return
        # The folder appears together with its manifest: an empty one is someone else's.
        new = self._make_hidden()
        try:
            write_file(new / "manifest.json", _json(manifest))
            if os.path.lexists(self.path):
                raise BlockingIOError(f"{self.output}: another run has begun to write it ({self.path})")
            replace(new, self.path)
        except BaseException:
            (new / "manifest.json").unlink(missing_ok=True)
            new.rmdir()
            raise
        sync_folder(self.path.parent)
        self._take()

    def update(self, **entries: Any) -> None:
        """Change entries of the manifest."""
        assert self.manifest is not None
        self._write_manifest(self.manifest | entries)

    def add(self, number: int, chunk: Chunk) -> None:
        """Write a chunk."""
        assert self.manifest is not None
        entry = {
            "run": self.manifest["id"],
            "source": chunk.source,
            "sums": asdict(chunk.totals),
            "ids": list(chunk.ids),
            "texts": list(chunk.texts),
            "where": chunk.where,
            "bad": [asdict(bad) for bad in chunk.bad],
            "shape": chunk.vectors.shape,
            "dtype": chunk.vectors.dtype.name,
        }
        head = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        vectors = np.ascontiguousarray(chunk.vectors)
        digest = hashlib.blake2b(head, digest_size=32)
        digest.update(vectors.data)
        write_file(self._chunk(number), digest.hexdigest().encode() + b"\n", head, vectors)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks in order, up to the first that is missing, damaged or of another run."""
        number = 0
        while (chunk := self._read(number)) is not None:
            yield chunk
            number += 1

    def totals(self) -> Totals:
        """Return the totals after all chunks."""
        totals = Totals()
        for chunk in self.chunks():
            totals = chunk.totals
        return totals

    def keep_first(self, count: int) -> int:
        """Delete all but the first `count` chunks, and return how many were deleted.

        The last goes first: those that are left are always the first ones.
        """
        names = (path.name for path in self.path.iterdir())
        numbers = [int(name[:8]) for name in names if re.fullmatch(r"\d{8}\.chunk", name)]
        gone = sorted((number for number in numbers if number >= count), reverse=True)
        for number in gone:
            self._chunk(number).unlink()
        return len(gone)

    def staged(self, suffix: str) -> Path:
        """Return where the file OUT + suffix is written before it takes its place."""
        return self.path / (f"new{suffix}" if suffix else f"new.vectors{self.output.suffix.lower()}")

    def remove(self) -> None:
        """Delete what a run made, and nothing else; the manifest goes last."""
        self._delete(keep=("manifest.json", "lock"))
        if os.name == "nt" or isinstance(self._lock, SoftFileLock):
            self._release()  # Windows does not move or delete an open file; a soft lock is the file itself
        others = [path for path in self.path.iterdir() if not OURS.fullmatch(path.name)]
        if others:  # other programs' files, which came while the run worked
            self._delete(keep=("manifest.json",))
            (self.path / "manifest.json").unlink(missing_ok=True)
        else:
            # It goes at once, as it came: no folder of this name is ever half ours.
            gone = self._hidden()
            self.path.rename(gone)
            for path in gone.iterdir():
                path.unlink(missing_ok=True)
            gone.rmdir()
        sync_folder(self.path.parent)
        self.manifest = None
        self._release()

    def _take(self) -> None:
        """Lock the folder and read its manifest."""
        busy = f"{self.output}: another run is writing it ({self.path})"
        try:
            try:
                self._lock = _acquired(FileLock(self.path / "lock", timeout=0))
            except (OSError, NotImplementedError):
                if not _flock_is_missing(self.path / "lock"):
                    raise
                soft = self.path / "lock.soft"
                busy += f"; if none is, it was killed: delete {soft}"
                self._lock = _acquired(SoftFileLock(soft, timeout=0))
            self.manifest = _read_manifest(self.path)
        except BaseException as error:
            self._release()
            if isinstance(error, Timeout) or not os.path.lexists(self.path):  # just finished, and removed
                raise BlockingIOError(busy) from None
            raise

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _hidden(self) -> Path:
        """Return a new name for the folder, under which it is made and deleted."""
        return self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")

    def _make_hidden(self) -> Path:
        """Make a folder under a new name; an OSError names the output, which the user knows."""
        new = self._hidden()
        try:
            new.mkdir()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.output)) from error
        return new

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        write_file(self.path / "manifest.json", _json(manifest))
        self.manifest = manifest

    def _delete(self, keep: Sequence[str]) -> None:
        """Delete the files of a run except those to keep."""
        self.keep_first(0)
        for path in self.path.iterdir():
            if OURS.fullmatch(path.name) and path.name not in keep:
                path.unlink(missing_ok=True)

    def _chunk(self, number: int) -> Path:
        return self.path / f"{number:08}.chunk"

    def _read(self, number: int) -> Chunk | None:
        """Return a chunk, or None where it is missing, damaged or of another run."""
        assert self.manifest is not None
        try:
            data = self._chunk(number).read_bytes()
        except FileNotFoundError:
            return None
        digest, _, rest = data.partition(b"\n")
        if hashlib.blake2b(rest, digest_size=32).hexdigest().encode() != digest:
            return None
        head, _, _ = rest.partition(b"\n")
        entry = json.loads(head)
        if entry["run"] != self.manifest["id"]:
            return None
        vectors = np.frombuffer(rest, entry["dtype"], offset=len(head) + 1).reshape(entry["shape"])
        bad = [BadRow(**bad) for bad in entry["bad"]]
        totals = Totals(**entry["sums"])
        return Chunk(entry["ids"], entry["texts"], vectors, bad, entry["source"], totals, entry.get("where"))


def kept(output: Path) -> tuple[Path, int] | None:
    """Return the work folder of an output and the number of rows done in it, if there is one."""
    work = WorkFolder(output)
    with suppress(OSError):
        work.manifest = _read_manifest(work.path)
        return work.path, work.totals().rows
    return None


def _flock_is_missing(lock: Path) -> bool:
    """Return whether the file system has no locks.

    filelock may say the same of that as of a lock that is taken.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_FLOCK
    finally:
        os.close(file)
    return False


def _acquired(lock: BaseFileLock) -> BaseFileLock:
    lock.acquire()
    return lock


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a work folder; FileExistsError for a folder that is not ours."""
    advice = "it is left alone: move it away, or name another --output"
    try:
        if path.is_symlink() or not path.is_dir():
            raise ValueError("is not a folder")
        if not (path / "manifest.json").is_file():
            raise ValueError("there is no manifest.json")
        found = parse_json((path / "manifest.json").read_bytes())
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("manifest.json is of another format, or of another version")
        wrong = [name for name, kind in ENTRIES.items() if not isinstance(found.get(name), kind)]
        if wrong:
            raise ValueError(f"manifest.json has no {wrong[0]!r}, or not as it was written")
    except ValueError as error:
        raise FileExistsError(
            f"{path}: is not what this version of qwen3np left of a run ({error}); {advice}"
        ) from error
    others = sorted(entry.name for entry in path.iterdir() if not OURS.fullmatch(entry.name))
    if others:
        raise FileExistsError(f"{path}: holds {others[0]!r}, which is not of a run; {advice}")
    return found


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def npy_header(shape: Sequence[int], dtype: str = "float32") -> bytes:
    """Return the header of an array, as numpy.save writes it (numpy.lib.format)."""
    from io import BytesIO

    header = BytesIO()
    fields = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
