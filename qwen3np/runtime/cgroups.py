"""The Linux control groups that limit this process, of version 1 and 2 (`man 7 cgroups`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Group:
    """One control group."""

    folder: Path
    version: int

    def read(self, file: str) -> str:
        """Read a file, or "" if it is not there."""
        return read(self.folder / file)

    def numbers(self, file: str) -> dict[str, int]:
        """Read a file of lines "name number", as memory.stat is."""
        pairs = (line.split() for line in self.read(file).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def own_groups(controller: str, root: Path = Path("/")) -> Iterator[Group]:
    """Yield this process's group for "cpu" or "memory", then its parents, as far as they are seen.

    On other systems than Linux there are none. `root` is where /proc and /sys are found.
    """
    for version, controllers, path in _memberships(root):
        for mount_version, options, mount_root, mount_point in _mounts(root):
            if version != mount_version or (version == 1 and controller not in controllers & options):
                continue
            # In a container the mount shows the group tree from mount_root on; a path outside of it, as
            # older container runtimes leave it, belongs to the top of what is seen.
            relative = os.path.relpath(path, mount_root)
            if relative.startswith(".."):
                relative = "."
            top = root / mount_point.lstrip("/")
            folder = top / relative
            yield Group(folder, version)
            while folder != top:
                folder = folder.parent
                yield Group(folder, version)


def _memberships(root: Path) -> Iterator[tuple[int, set[str], str]]:
    """Yield version, controllers and path from the "number:controllers:path" of /proc/self/cgroup."""
    for line in read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/"):
            yield (2 if number == "0" and not controllers else 1), set(controllers.split(",")), path


def _mounts(root: Path) -> Iterator[tuple[int, set[str], str, str]]:
    """Yield version, options, root and mount point of each group tree, from /proc/self/mountinfo.

    A line is "id parent device root point options optional... - type source options".
    """
    for line in read(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, kind = mount.split(), system.split()
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            version = 2 if kind[0] == "cgroup2" else 1
            yield version, set(kind[2].split(",")), _plain(fields[3]), _plain(fields[4])


def _plain(field: str) -> str:
    r"""Undo the escapes of mountinfo, which writes a space as \040."""
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
