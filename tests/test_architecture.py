"""What may import what: the layout shows the architecture, and this says that it is true."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up: a module imports from layers below its own, and within it.
LAYERS = [
    ["kernels"],
    ["errors", "table"],
    ["reference", "engine", "loading"],
    ["runtime"],
    ["interface", "quantization", "similarity"],
    ["nearest"],
    ["search"],
    ["embedder", "reranker"],
    ["synth"],
    ["files", "verify", "server", "explain", "integrations"],
    ["cli"],
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}
FILES = sorted([*(ROOT / "qwen3np").rglob("*.py"), *(ROOT / "kernels").glob("*.py")])
OF_THE_SERVER = {
    "fastapi",
    "fastapi_offline",
    "starlette",
    "uvicorn",
    "pydantic",
    "orjson",
    "prometheus_client",
    "anyio",
}
ROOTS = ("__init__.py", "__main__.py")  # of the package: they import what users import


def imported(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports, wherever in it."""
    package = ["qwen3np", *path.relative_to(ROOT).parts[:-1]]
    if package[1:2] == ["qwen3np"]:
        del package[1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [*base, *(node.module or "").split(".")]
            module = ".".join(filter(None, names))
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    layer = parts[0] if parts[0] == "kernels" else parts[1]
    for name in imported(path):
        module = name.split(".")
        if module[0] == "torch":
            assert parts[-2:] == ("verify", "transformers"), f"{path} imports torch"
        if module[0] in OF_THE_SERVER:
            assert layer == "server", f"{path} imports {name}, which only the extra installs"
        if module[0] != "qwen3np" or path.name in ROOTS and len(parts) == 2:
            continue
        if module[1] == "__version__":
            continue
        assert RANK[module[1]] <= RANK[layer], f"{path} imports {name}, which is above it"
        if layer == "kernels":
            assert module[1] == "kernels", f"{path} imports {name}: kernels know nothing of the package"


def test_every_layer_is_there():
    """A renamed folder would make the test above pass by testing nothing."""
    files = (p.relative_to(ROOT).parts for p in FILES)
    found = {parts[1].removesuffix(".py") for parts in files if parts[0] == "qwen3np"}
    assert found - {"__init__", "__main__"} == set(RANK) - {"kernels"}
