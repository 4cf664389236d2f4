"""What docs/server.md has from the server itself: its flags, its statuses, its metrics."""

from __future__ import annotations

import argparse
import os
import re
from unittest import mock

from qwen3np.cli import serve
from qwen3np.server import failures
from qwen3np.server.metrics import Metrics

STATUSES = {
    "EMPTY": "no text, or no token ids",
    "INVALID": "not JSON; token ids on `/v1/embeddings`",
    "UNAUTHORIZED": "no API key, or another",
    "NOT_FOUND": "no such route; no such model among several",
    "WRONG_METHOD": "GET where POST is meant, or the reverse",
    "SLOW_BODY": "the body did not come within `--body-timeout`",
    "TOO_LARGE": "a body over `--payload-limit`",
    "VALIDATION": "a field of another type or value; a text that is too long",
    "WRONG_MODEL": "no model of the kind that the route needs",
    "BACKEND": "the model gave no sound result",
    "OVERLOADED": "`--max-concurrent-requests` are in the server",
    "UNHEALTHY": "loading, or shutting down",
    "TIMEOUT": "not done within `--request-timeout`",
}


def flags() -> str:
    """A table of the parser's flags; every default is that of an empty environment."""
    parser = argparse.ArgumentParser()
    with mock.patch.dict(os.environ, clear=True):
        serve.add_arguments(parser)
    lines = ["| flag | | also read from |", "|---|---|---|"]
    for action in parser._actions:
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            continue
        flag = max(action.option_strings, key=len)
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        if action.choices:
            value = f" {'|'.join(action.choices)}"
        bare = ", ".join(f"`{name}`" for name in serve._names(flag.removeprefix("--"))[1:])
        text = (action.help or "") % {"default": action.default}
        lines.append(f"| `{_escaped(flag + value)}` | {_escaped(text)} | {bare} |")
    return "\n".join(lines)


def statuses() -> str:
    """A table of the kinds of failures."""
    kinds = {name: kind for name, kind in vars(failures).items() if isinstance(kind, failures.Kind)}
    assert kinds.keys() == STATUSES.keys(), kinds.keys() ^ STATUSES.keys()
    lines = ["| status | when | `error_type` | OpenAI's `type` |", "|---|---|---|---|"]
    for name, kind in sorted(kinds.items(), key=lambda item: item[1].status):
        lines.append(f"| {kind.status} | {STATUSES[name]} | {kind.tei} | {kind.openai} |")
    return "\n".join(lines)


def metrics() -> str:
    """A table of the metrics that GET /metrics gives, as it gives them."""
    made = Metrics()
    made.watch(lambda: None)
    content = made.render()[0].decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", content, re.M))
    lines = ["| metric | | |", "|---|---|---|"]
    for name, text in re.findall(r"^# HELP (\S+) (.*)$", content, re.M):
        if not name.startswith("process_"):
            lines.append(f"| `{name}` | {kinds[name]} | {_escaped(text.rstrip('.'))} |")
    lines.append("| `process_...` | gauge, counter | memory, CPU time and open files of the process |")
    return "\n".join(lines)


def parts() -> dict[str, str]:
    """The generated parts of docs/server.md."""
    return {"flags": flags(), "statuses": statuses(), "metrics": metrics()}


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
