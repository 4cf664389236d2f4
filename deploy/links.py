"""Links of the pages, for mkdocs: files outside docs/ that pages link to become part of the site.

Pages link to files of the repository as GitHub shows them. docs/ lies at the site's root, and what is outside
it keeps its path: ../kernels/matmul.py -> kernels/matmul.py. A link to a file that does not exist fails the
build (--strict).
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)#:\s]+)")
PAGES = "kernels/README.md", "CONTRIBUTING.md", "CHANGELOG.md"  # of the site, outside docs/


def on_files(files, config):
    """Adds PAGES, and every file outside docs/ that a page links to."""
    linked = set(PAGES)
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in PAGES)]:
        folder = page.parent.relative_to(ROOT).as_posix()
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            linked.add(posixpath.normpath(posixpath.join(folder, match[2])))
    for path in sorted(linked):
        if (ROOT / path).is_file() and not path.startswith("docs/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Moves links: docs/x.md is x.md in the site."""
    name = page.file.src_uri
    here = posixpath.dirname(name if name in PAGES else f"docs/{name}")

    def moved(match):
        path = posixpath.normpath(posixpath.join(here, match[2])).removeprefix("docs/")
        return match[1] + posixpath.relpath(path, posixpath.dirname(name) or ".")

    return LINK.sub(moved, markdown)
