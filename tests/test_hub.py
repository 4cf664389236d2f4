"""Where a model comes from: a folder, or the Hub's cache. No test here reaches a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import filter_repo_objects

from qwen3np import CheckpointError, Embedder
from qwen3np.loading.hub import NEEDED_FILES, locate

NAME = "Qwen/Qwen3-Embedding-0.6B"
COMMIT = "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


@pytest.fixture
def cache(tiny, tmp_path) -> Path:
    """A Hub cache that holds the tiny model under a published name, laid out as huggingface_hub does."""
    repository = tmp_path / "cache" / "models--Qwen--Qwen3-Embedding-0.6B"
    shutil.copytree(tiny, repository / "snapshots" / COMMIT)
    for ref in ("main", "v1.1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(COMMIT)
    return tmp_path / "cache"


def refusal(model: str | Path, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        Embedder(model, **options)
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tiny, monkeypatch):
    """Also relative, with ~, and when its name could be a Hub id: what is on this disk comes first."""
    monkeypatch.chdir(tiny.parent.parent)
    monkeypatch.setenv("HOME", str(tiny.parent))
    monkeypatch.setenv("USERPROFILE", str(tiny.parent))
    assert locate(tiny) == locate(str(tiny)) == tiny
    assert locate("~/tiny") == tiny
    assert locate(f"{tiny.parent.name}/tiny").resolve() == tiny.resolve()


@pytest.mark.parametrize("revision", [None, "main", "v1.1", COMMIT])
@pytest.mark.parametrize("local_files_only", [True, False])
def test_a_cached_model_is_found_without_a_network(cache, tiny, revision, local_files_only):
    """By branch, tag or commit; with local_files_only=True or HF_HUB_OFFLINE=1."""
    model = Embedder(NAME, cache_folder=cache, revision=revision, local_files_only=local_files_only)
    assert model.checkpoint.folder.name == COMMIT
    np.testing.assert_array_equal(model.encode("a"), Embedder(tiny).encode("a"))


@pytest.mark.parametrize(
    "model, reason",
    [
        ("./missing", "missing: no such folder"),
        ("/missing/folder", "no such folder"),
        ("~/missing", "no such folder"),
        ("~no-such-user/model", "no such folder"),
        ("models/a/b", "no such folder"),
        ("x" * 300, "no such folder"),
        ("two words", "neither a folder nor a valid Hub id"),
        ("a\0b", "neither a folder nor a valid Hub id"),
    ],
)
def test_a_path_that_is_not_there_is_no_hub_question(model, reason):
    assert reason in refusal(model)


def test_a_file_in_place_of_its_folder_says_so(tiny):
    assert "is a file; give the folder" in refusal(tiny / "model.safetensors")


def test_without_network_and_cache_it_says_what_was_looked_for_and_what_to_do(tmp_path):
    message = refusal(NAME)
    for part in (NAME, str(tmp_path / "empty"), "HF_HUB_OFFLINE", "download it once with a network"):
        assert part in message


def test_a_revision_that_is_not_cached_is_named(cache):
    message = refusal(NAME, cache_folder=cache, revision="v2", local_files_only=True)
    assert "'v2'" in message and str(cache) in message


def test_an_interrupted_download_is_no_model(cache):
    """The snapshot has its config but not yet its weights."""
    [weights] = cache.glob("models--*/snapshots/*/model.safetensors")
    weights.unlink()
    message = refusal(NAME, cache_folder=cache, local_files_only=True)
    assert "download" in message and "model.safetensors" in message


@pytest.mark.parametrize(
    "error, reason",
    [
        (errors.RepositoryNotFoundError, "no such Hub repository"),
        (errors.GatedRepoError, "must be granted"),
        (errors.RevisionNotFoundError, "no revision 'v2'"),
        (errors.LocalEntryNotFoundError, "HF_HUB_OFFLINE"),
        (ConnectionError, "the download failed (reset by peer)"),
    ],
)
def test_what_the_hub_answers_becomes_one_message(monkeypatch, error, reason):
    def fail(*args, **kwargs):
        raise error.__new__(error, "reset by peer")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refusal(NAME, revision="v2")
    assert NAME in message and reason in message


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only")])
def test_a_cache_that_cannot_be_written_is_used_as_it_is(cache, monkeypatch, caplog, error):
    """Where the Hub has a newer commit, a download fails in the cache's folder."""
    download = huggingface_hub.snapshot_download

    def newer(*args, local_files_only, **options):
        if not local_files_only:
            raise error
        return download(*args, local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", newer)
    assert locate(NAME, cache_folder=cache).name == COMMIT
    assert str(cache) in caplog.text and error.strerror in caplog.text and "HF_HOME" in caplog.text
    message = refusal(NAME, cache_folder=cache, revision="v2")
    for part in ("'v2'", str(cache), "cannot be written", error.strerror, "cache_folder="):
        assert part in message


def test_only_the_files_that_are_read_are_downloaded(monkeypatch, tmp_path):
    """A repository may hold the same weights several times; one copy of 1.2 GB is enough."""
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate(NAME, revision="v1", cache_folder=tmp_path, token="hf_x", local_files_only=True) == tmp_path
    assert asked == {
        "name": NAME,
        "revision": "v1",
        "cache_dir": tmp_path,
        "token": "hf_x",
        "local_files_only": True,
        "allow_patterns": NEEDED_FILES,
    }
    wanted = [
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "0_Transformer/config.json",
        "0_Transformer/model.safetensors",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "adapter_config.json",
    ]
    unwanted = [
        "README.md",
        "pytorch_model.bin",
        "model.gguf",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/config.json",
        "openvino/openvino_model.bin",
        "fp32/model.safetensors",
        "vocab.json",
        "merges.txt",
    ]
    assert list(filter_repo_objects(wanted + unwanted, allow_patterns=asked["allow_patterns"])) == wanted
