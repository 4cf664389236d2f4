"""What a kernel is compiled from: its module's source, and all that it imports of this package."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import marshal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]


@cache
def source_hash(module: str) -> str:
    """A hash of the source files whose code or constants may be in a kernel of `module`.

    It does not change with the folder the files lie in, nor with their times.
    """
    digest = hashlib.sha256()
    for name, source in sorted(_with_imports(module).items()):
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def _with_imports(module: str) -> dict[str, bytes]:
    """Map names to sources: the module's, those of what it imports of this package, and so on."""
    found: dict[str, bytes] = {}
    ahead = {module}
    while ahead:
        name = ahead.pop()
        found[name], imported = _read(name)
        ahead |= imported - found.keys()
    return found


@cache
def _read(module: str) -> tuple[bytes, set[str]]:
    """A module's source, and the modules of this package that it imports.

    An import counts wherever it stands. Where a frozen application has no source: its bytecode, and the
    kernels that are loaded.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.loader is not None, module
    loader: Any = spec.loader
    path = Path(spec.origin or "")
    source = path.read_bytes() if path.suffix == ".py" and path.is_file() else _from_archive(loader, module)
    if source is None:
        loaded = {name for name in sys.modules if name.startswith(f"{PACKAGE}.kernels.")}
        return marshal.dumps(loader.get_code(module)), loaded
    names = set()
    for node in _statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if _is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
            if _is_ours(base):
                names |= {_module_of(base, alias.name) for alias in node.names}
    return source, names


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements below a node, at any depth; expressions, nine nodes of ten, are not looked into."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, ast.expr):
            yield from _statements(child)


def _from_archive(loader: Any, module: str) -> bytes | None:
    source = loader.get_source(module)
    return None if source is None else source.encode()


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def _module_of(base: str, name: str) -> str:
    """The module that `from base import name` reads: base.name, if that is one."""
    spec = importlib.util.find_spec(base)
    inner = spec is not None and spec.submodule_search_locations is not None
    return f"{base}.{name}" if inner and importlib.util.find_spec(f"{base}.{name}") else base
