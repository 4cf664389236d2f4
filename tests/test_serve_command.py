"""`qwen3np serve`: its flags, its environment, and one line for what cannot be."""

from __future__ import annotations

import argparse
import socket
import sys

import pytest

from qwen3np.cli import options, serve
from qwen3np.server.settings import Settings


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Variables are those that a test sets."""
    for flag in serve.TEI_FLAGS:
        for name in serve._names(flag):
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwen3np serve")
    serve.add_arguments(parser)
    return parser


def settings(*arguments: str) -> Settings:
    return serve.settings_of(parser().parse_args(arguments))


def test_without_arguments_all_is_as_settings_has_it():
    asked = settings()
    default = Settings(model_arguments=asked.model_arguments)
    assert asked == default
    assert asked.model_arguments == options.model_arguments(parser().parse_args([]))


@pytest.mark.parametrize("arguments, models", [
    (["a", "b"], ("a", "b")),
    (["--model", "a"], ("a",)),
    (["--model-id", "a", "--model-id", "b"], ("a", "b")),
    (["a", "-m", "b", "--model-id", "c"], ("a", "b", "c")),
])  # fmt: skip
def test_models(arguments, models):
    assert settings(*arguments).models == models


@pytest.mark.parametrize("name, value, field, expected", [
    ("QWEN3NP_PORT", "1", "port", 1),
    ("PORT", "2", "port", 2),
    ("QWEN3NP_MODEL_ID", "a/b, c", "models", ("a/b", "c")),
    ("MODEL_ID", "a", "models", ("a",)),
    ("QWEN3NP_MODEL", "a", "models", ("a",)),
    ("JSON_OUTPUT", "True", "json_output", True),
    ("QWEN3NP_AUTO_TRUNCATE", "false", "auto_truncate", False),
    ("QWEN3NP_ACCEPT_TOKEN_IDS", "1", "accept_token_ids", True),
    ("API_KEY", "a,b", "api_key", "a,b"),
    ("API_KEY", " a b\n", "api_key", "a b"),
    ("QWEN3NP_BODY_TIMEOUT", "1.5", "body_timeout", 1.5),
    ("MAX_BATCH_TOKENS", "9", "max_batch_tokens", 9),
    ("CORS_ALLOW_ORIGIN", "http://a,http://b", "cors_allow_origin", ("http://a", "http://b")),
    ("PORT", "", "port", 8080),
    ("HOSTNAME", "a-container", "hostname", "127.0.0.1"),
    ("BODY_TIMEOUT", "1", "body_timeout", 30),
    ("QWEN3NP_PORT", "tcp://10.0.0.1:8080", "port", 8080),
])  # fmt: skip
def test_environment(environment, name, value, field, expected):
    """Ours, and text-embeddings-inference's; a Kubernetes service called qwen3np sets a port of its own."""
    environment.setenv(name, value)
    assert getattr(settings(), field) == expected


@pytest.mark.parametrize("name, value, field", [
    ("QWEN3NP_THREADS", "3", "num_threads"),
    ("QWEN3NP_BACKEND", "numpy", "backend"),
    ("REVISION", "main", "revision"),
    ("HUGGINGFACE_HUB_CACHE", "/cache", "cache_folder"),
    ("HF_TOKEN", "hf_x", "token"),
])  # fmt: skip
def test_environment_of_model_options(environment, name, value, field):
    environment.setenv(name, value)
    assert str(settings().model_arguments[field]) == value


def test_a_flag_beats_our_variable_and_that_beats_theirs(environment):
    """Whatever nonsense is in what is not asked."""
    environment.setenv("PORT", "nonsense")
    environment.setenv("QWEN3NP_PORT", "1")
    environment.setenv("MODEL_ID", "a")
    environment.setenv("CORS_ALLOW_ORIGIN", "http://a")
    assert settings().port == 1
    asked = settings("b", "--port", "2", "--cors-allow-origin", "http://b")
    assert (asked.port, asked.models, asked.cors_allow_origin) == (2, ("b",), ("http://b",))


@pytest.mark.parametrize("name, value, message", [
    ("PORT", "x", "environment variable PORT='x': must be a port, 0 to 65535"),
    ("QWEN3NP_PAYLOAD_LIMIT", "0", "environment variable QWEN3NP_PAYLOAD_LIMIT='0': must be an integer of 1"),
    ("QWEN3NP_REQUEST_TIMEOUT", "inf", "QWEN3NP_REQUEST_TIMEOUT='inf': must be seconds, more than 0"),
    ("JSON_OUTPUT", "maybe", "environment variable JSON_OUTPUT='maybe': must be true or false"),
    ("QWEN3NP_BACKEND", "cuda", "QWEN3NP_BACKEND='cuda': must be one of auto, numba, numpy"),
    ("QWEN3NP_THREADS", "x", "environment variable QWEN3NP_THREADS='x': must be an integer"),
])  # fmt: skip
def test_a_variable_that_is_wrong_is_named(run, environment, name, value, message):
    environment.setenv(name, value)
    code, out, err = run("serve")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
    (["a", "b", "--served-model-name", "c"], "--served-model-name: 1 names for 2 models"),
    (["--default-prompt", "a", "--default-prompt-name", "query"], "give one of them"),
    (["--pooling", "mean"], "--pooling mean: Qwen3's models are trained for the last token's state"),
    (["--dtype", "float16"], "--dtype float16: weights stay as their files have them"),
    (["--api-key", ""], "--api-key, or QWEN3NP_API_KEY, is empty"),
    (["--api-key", " \n"], "--api-key, or QWEN3NP_API_KEY, is empty"),
    (["--api-key", "a\nb"], "--api-key holds what no header can hold"),
    (["--cors-allow-origin", "https://a.example/"], "https://a.example/: an origin is *, or as https://"),
    (["--cors-allow-origin", "a.example"], "a.example: an origin is *, or as https://"),
    (["--port", "65536"], "argument -p/--port: must be a port, 0 to 65535"),
    (["--max-concurrent-requests", "0"], "must be an integer of 1 or more"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(run, arguments, message):
    code, out, err = run("serve", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_an_empty_key_in_the_environment_is_no_open_server(run, environment):
    environment.setenv("QWEN3NP_API_KEY", "")
    code, _, err = run("serve")
    assert code == 2 and "QWEN3NP_API_KEY, is empty" in err


def test_what_changes_nothing_is_accepted():
    settings("--pooling", "last-token", "--dtype", "float32", "--tokenization-workers", "4")


def test_help_has_examples_and_the_environment(run, environment):
    environment.setenv("QWEN3NP_API_KEY", "secret")
    code, out, _ = run("serve", "--help")
    assert code == 0
    for words in (*serve.EXAMPLES, "QWEN3NP_FLAG_NAME", "MAX_BATCH_TOKENS"):
        assert words in out
    assert "secret" not in out


def test_a_missing_package_is_one_line(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "qwen3np.server.run", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("serve")
    assert code == 2 and err.endswith('(uvicorn): pip install "qwen3np[server]"\n') and err.count("\n") == 1


def test_a_port_in_use_is_one_line_before_anything_is_loaded(run):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        code, _, err = run("serve", "no/such-model", "--port", port)
    assert code == 2 and f"cannot listen on 127.0.0.1, port {port}: the port is in use; take another" in err
    assert err.count("\n") == 1


def test_a_model_that_cannot_be_loaded_ends_the_server(run, tmp_path):
    code, _, err = run("serve", tmp_path / "none", "--port", 0)
    assert (code, err.splitlines()[-1]) == (2, f"qwen3np: error: {tmp_path / 'none'}: no such folder")


@pytest.mark.parametrize("arguments, message", [
    (["--default-prompt-name", "nope"], "--default-prompt-name 'nope' is not one of document, query"),
    (["{tiny}"], "two models are called"),
    (["{tiny}", "--served-model-name", "a", "--served-model-name", "a"], "two models are called 'a'"),
])  # fmt: skip
def test_what_is_found_out_when_models_are_loaded_is_one_line(run, tiny, arguments, message):
    arguments = [argument.replace("{tiny}", str(tiny)) for argument in arguments]
    code, _, err = run("serve", tiny, *arguments, "--port", 0)
    assert code == 2 and message in err.splitlines()[-1] and len(err.splitlines()) == 2
