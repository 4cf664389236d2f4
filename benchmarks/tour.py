"""The tour in docs/architecture.md, from a text to its vector: runs its steps anew, and draws its pictures.

    python benchmarks/tour.py [MODEL]       default: qwen3np-tiny if it is installed, else a generated model

Writes what the steps print into the page, and docs/pictures/*.svg.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from parts import ROOT, fill

from qwen3np import Embedder
from qwen3np.errors import CheckpointError
from qwen3np.explain import explain
from qwen3np.explain import pictures as draw
from qwen3np.synth.checkpoints import is_generated, synthesize

PAGE, PICTURES = ROOT / "docs/architecture.md", ROOT / "docs/pictures"
TRAINED, GENERATED = "qwen3np-tiny", "tiny"
DOCUMENT, QUERY = "The capital of China is Beijing.", "What is the capital of China?"
NOTE = """The model here has random weights, so that what it computes means nothing; make it first:

```
qwen3np synth tiny
```"""


def installed(model: str) -> bool:
    try:
        Embedder(model, local_files_only=True)
    except (CheckpointError, OSError):
        return False
    return True


def run(page: str) -> str:
    """Return the page with every step's output as it is now. The steps are one session."""
    session: dict[str, Any] = {}

    def block(match: re.Match[str]) -> str:
        lines = []
        for example in doctest.DocTestParser().get_examples(match[1]):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(example.source, "<tour>", "single"), session)
            first, *rest = example.source.splitlines()
            lines += [
                f">>> {first}",
                *(f"... {line}".rstrip() for line in rest),
                *printed.getvalue().splitlines(),
            ]
        return "```pycon\n" + "\n".join(lines) + "\n```"

    return re.sub(r"```pycon\n(.*?)```", block, page, flags=re.S)


def pictures(model: Embedder) -> dict[str, str]:
    """Return name -> picture: of the document, and of a query that is compared with it."""
    one = explain(model, DOCUMENT)
    two = explain(model, QUERY, DOCUMENT, prompt=model.prompts["query"])
    return {
        "attention": draw.attention_picture(one.texts[0], 0),
        "sizes": draw.size_picture(one.texts[0]),
        "nearness": draw.nearness_picture(one),
        "layers": draw.layers_picture(two),
        "dimensions": draw.dims_picture(two),
    }


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else TRAINED if installed(TRAINED) else GENERATED
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if name == GENERATED:
            synthesize(Path(GENERATED), "tiny")
        model = Embedder(name)
        page = re.sub(r'Embedder\(".*?"\)', f'Embedder("{name}")', PAGE.read_text(encoding="utf-8"))
        page = fill(PAGE.name, page, {"the model": NOTE if is_generated(model.checkpoint) else ""})
        PAGE.write_text(run(page), encoding="utf-8")
        PICTURES.mkdir(exist_ok=True)
        for picture, svg in pictures(model).items():
            (PICTURES / f"{picture}.svg").write_text(draw.standalone(svg), encoding="utf-8")


if __name__ == "__main__":
    main()
