"""What is installed and what is imported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy
import pytest
import wcwidth

ROOT = Path(__file__).parent.parent
HEAVY = set("torch transformers numba llvmlite numpy tokenizers safetensors huggingface_hub".split())


def python(code: str, cwd: Path, executable: str | Path = sys.executable) -> str:
    """What the code prints, run outside the repository with no model in reach."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "VIRTUAL_ENV"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home"), "PYTHONUTF8": "1"}
    options = {"cwd": cwd, "env": environment, "capture_output": True, "encoding": "utf-8", "timeout": 120}
    done = subprocess.run([executable, "-c", code], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_by(code: str, cwd: Path) -> set[str]:
    return HEAVY & set(python(f"{code}\nimport sys\nprint(*sys.modules)", cwd).split())


def test_import_loads_nothing(tmp_path):
    """`qwen3np --help`, or a program that may not embed at all, does not wait for a library."""
    assert imported_by("import qwen3np, qwen3np.cli", tmp_path) == set()


def test_the_reading_copy_needs_no_numba_and_a_folder_no_hub(tiny, tmp_path):
    assert imported_by("from qwen3np import Embedder", tmp_path) == {"numpy", "tokenizers", "safetensors"}
    code = f"from qwen3np import Embedder\nEmbedder({str(tiny)!r}, backend='numpy').encode('a')"
    assert imported_by(code, tmp_path) == {"numpy", "tokenizers", "safetensors"}


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the repository: a build leaves folders behind."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    return Path(shutil.copytree(ROOT, tmp_path / "tree", ignore=ignore))


AS_ON_WINDOWS = """
import os, signal, sys
import filelock, huggingface_hub, hypothesis, numba, pyarrow, pytest, tokenizers  # they do as they do there
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "torch", "tty"):
    sys.modules[name] = None
for name in ("fork", "mkfifo", "register_at_fork", "sched_getaffinity"):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "setitimer"):
    delattr(signal, name)
sys.exit(pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there it needs no pretending")
def test_tests_can_be_collected_without_what_windows_does_not_have(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS],
        cwd=ROOT / "tests",
        env=os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_source_distribution_has_its_tests(tree, tmp_path):
    """All that the documents link to and all tests, which can be run from it."""
    build = "from setuptools import build_meta; print(build_meta.build_sdist('.'))"
    name = subprocess.run(
        [sys.executable, "-c", build], cwd=tree, check=True, capture_output=True, encoding="utf-8"
    ).stdout.split()[-1]
    shutil.unpack_archive(tree / name, tmp_path)
    [unpacked] = tmp_path.glob("qwen3np-*")
    files = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    for folder in ("tests", "benchmarks", "docs", "deploy", "kernels", "qwen3np"):
        kept = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}
        left = ("__pycache__", "egg-info", "/.")  # by other runs: caches, and what editors hide
        assert {name for name in kept if not any(part in name for part in left)} <= files
    for arguments in (["--collect-only"], ["tests/test_config.py", "tests/test_docs.py"]):
        run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        subprocess.run(run, cwd=unpacked, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_the_wheel_works_away_from_the_repository(tree, tmp_path):
    """Built, installed into a fresh environment and run there: complete, without tests or benchmarks."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = tmp_path / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, tree], check=True)
    [wheel] = wheels.glob("qwen3np-*-py3-none-any.whl")
    shutil.rmtree(tree)

    away = tmp_path / "away"
    away.mkdir()
    venv.create(tmp_path / "venv", with_pip=False, symlinks=os.name != "nt")
    executable = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([*pip, "--python", executable, "install", "--no-deps", "--no-index", wheel], check=True)
    [site_packages] = (tmp_path / "venv").rglob("site-packages")
    # The dependencies are this environment's; its .pth files, an editable install's among them, are not read.
    folders = {str(Path(module.__file__).parents[1]) for module in (numpy, wcwidth)}
    (site_packages / "dependencies.pth").write_text("\n".join(folders))

    files = {str(p.relative_to(site_packages)).replace(os.sep, "/") for p in site_packages.rglob("*.*")}
    assert {"qwen3np/py.typed", "qwen3np/synth/tokenizer.json", "qwen3np/kernels/__init__.py"} <= files
    assert {"qwen3np/server/page/ui.html", "qwen3np/models/qwen3np-tiny/model.safetensors"} <= files
    pages = {f"qwen3np/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("docs/**/*.*")}
    assert pages == {name for name in files if name.startswith("qwen3np/docs/")}
    assert not {name for name in files if name.startswith(("tests", "benchmarks", "kernels", "training"))}
    modules = [p.relative_to(ROOT) for p in sorted(ROOT.glob("qwen3np/**/*.py"))]
    modules += [Path("qwen3np") / p.relative_to(ROOT) for p in sorted(ROOT.glob("kernels/**/*.py"))]
    installed = {name for name in files if name.startswith("qwen3np/") and name.endswith(".py")}
    assert installed == {module.as_posix() for module in modules}

    code = """
import importlib.util, pathlib, sys
import qwen3np, qwen3np.kernels
assert pathlib.Path(sys.prefix) in pathlib.Path(qwen3np.__file__).parents, qwen3np.__file__
assert pathlib.Path(sys.prefix) in pathlib.Path(qwen3np.kernels.__file__).parents, qwen3np.kernels.__file__
for name in ("kernels", "tests", "benchmarks"):
    assert importlib.util.find_spec(name) is None, name
from qwen3np.cli import main
sys.exit(main(["demo"]))
"""
    assert "this is qwen3np-tiny" in python(code, away, executable)
    script = executable.with_name("qwen3np.exe" if os.name == "nt" else "qwen3np")
    subprocess.run([script, "--version"], cwd=away, check=True, stdout=subprocess.DEVNULL)


def test_contributors_get_what_the_tests_need():
    """The group `test` is the extra `test`: pip knows groups of a checkout only, users have the extra."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra, group = re.findall(r"^test = (\[.*?\])$", project, re.MULTILINE)
    assert extra == group


def test_the_oldest_dependencies_are_those_that_ci_tests():
    """Of pyproject.toml's lower bounds, each is in the list that .ci/run installs."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [dependencies] = re.findall(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', dependencies))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests/oldest.txt").read_text(), re.MULTILINE))
    assert len(bounds) == dependencies.count('"') // 2
    for name, bound in bounds.items():
        assert f"{pinned[name]}.".startswith(f"{bound}."), name
