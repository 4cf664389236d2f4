"""Runs over files that are killed anywhere, and files that are not a run's: nothing of a user's is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3np.synth import synthesize

OUTPUTS = [".npy", ".jsonl", ".parquet", ".safetensors"]
SCENARIOS = (
    *("fresh", "resume", "overwrite", "overwrite-numbered", "overwrite-work", "resume-overwrite"),
    *("last", "text"),
)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "output, scenario",
    [*((".npy", s) for s in SCENARIOS), *((o, s) for o in OUTPUTS[1:] for s in ("overwrite", "last"))],
)
def test_a_kill_at_any_file_operation_loses_nothing(tiny, other_model, tmp_path, output, scenario):
    """Then the same command, --resume, --overwrite, another model, or texts: the right bytes, or a refusal
    that changes nothing; --resume and --overwrite always lead on. Search never mixes two runs."""
    found = crashes(tiny, other_model, tmp_path, output, scenario)
    assert found["faults"] == [] and found["points"] > 40
    print(f"{output} {scenario}: {found['points']} points")


@pytest.mark.parametrize("scenario, step, offset", [("overwrite", 13, 5), ("last", 11, 3)])
def test_a_kill_at_some_file_operations_loses_nothing(tiny, other_model, tmp_path, scenario, step, offset):
    found = crashes(tiny, other_model, tmp_path, ".npy", scenario, step, offset)
    assert found["faults"] == [] and found["points"] > 4
