"""qwen3np serve: the HTTP server, by flags and environment variables."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..server.settings import Settings
from . import options

EXAMPLES = (
    "qwen3np serve",
    "qwen3np serve Qwen/Qwen3-Embedding-0.6B Qwen/Qwen3-Reranker-0.6B --port 8080",
    "qwen3np serve ./my-model --hostname 0.0.0.0 --api-key SECRET --json-output",
    """curl localhost:8080/embed -d '{"inputs": "The capital of China is Beijing."}'""",
)

PREFIX = "QWEN3NP_"
# Flags whose variable is read without the prefix too: text-embeddings-inference's. HOSTNAME is not among
# them, as containers and shells set it to the machine's name.
TEI_FLAGS = (
    "model-id",
    "revision",
    "dtype",
    "pooling",
    "tokenization-workers",
    "served-model-name",
    "max-concurrent-requests",
    "max-batch-tokens",
    "max-client-batch-size",
    "auto-truncate",
    "default-prompt-name",
    "default-prompt",
    "port",
    "payload-limit",
    "api-key",
    "json-output",
    "cors-allow-origin",
    "huggingface-hub-cache",
    "hf-token",
)
# Kubernetes sets QWEN3NP_PORT to such an address in every pod beside a service that is called qwen3np.
SERVICE_LINK = "tcp://"
TRUTH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
DEFAULTS = Settings()
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")
DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer HTTP clients of text-embeddings-inference, OpenAI, Cohere's rerank and Ollama, with an "
        "embedding model, a reranker, or several of both. /ui is a page to try it, /docs lists the routes."
    )
    options.model_options(parser, None, otherwise=DEFAULTS.models[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="Hub ids or folders, as --model")
    add = parser.add_argument
    add("--model-id", action="append", metavar="MODEL", help="the same, as text-embeddings-inference has it")
    add(
        "--served-model-name",
        action="append",
        metavar="NAME",
        help="what answers call the model (repeatable, one per MODEL; default: its id, or the folder's name)",
    )
    address = parser.add_argument_group("address and access")
    add = address.add_argument
    add(
        "--hostname",
        default=DEFAULTS.hostname,
        help="the address to listen on; 0.0.0.0: all (default: %(default)s)",
    )
    add("-p", "--port", type=port, default=DEFAULTS.port, help="0: a free one (default: %(default)s)")
    add("--api-key", metavar="KEY", help="ask for Authorization: Bearer KEY")
    add(
        "--cors-allow-origin",
        action="append",
        metavar="ORIGIN",
        help="an origin whose pages may call this server, or * (repeatable)",
    )
    add("--json-output", action="store_true", help="print a JSON line per request, without any text of it")
    limits = parser.add_argument_group("limits")
    add = limits.add_argument
    add(
        "--max-concurrent-requests",
        type=count,
        default=DEFAULTS.max_concurrent_requests,
        metavar="N",
        help="requests in the server at a time; more get 429 (default: %(default)s)",
    )
    add(
        "--max-batch-tokens",
        type=count,
        metavar="N",
        help="tokens that are computed together (default: 256 per thread, at most 16384)",
    )
    add(
        "--max-client-batch-size",
        type=count,
        metavar="N",
        help="texts of one request (default: as many as the payload holds)",
    )
    add(
        "--payload-limit",
        type=count,
        default=DEFAULTS.payload_limit,
        metavar="BYTES",
        help="bytes of a request's body (default: %(default)s)",
    )
    add(
        "--request-timeout",
        type=seconds,
        default=int(DEFAULTS.request_timeout),
        metavar="SECONDS",
        help="when a request that waits or is computed gets 504 (default: %(default)s)",
    )
    add(
        "--body-timeout",
        type=seconds,
        default=int(DEFAULTS.body_timeout),
        metavar="SECONDS",
        help="how long a client may take to send a request's head, and its body, and not read its answer "
        "(default: %(default)s)",
    )
    texts = parser.add_argument_group("texts")
    add = texts.add_argument
    add(
        "--auto-truncate",
        action="store_true",
        help="truncate texts that are too long where the request does not say; otherwise they get 422",
    )
    add("--default-prompt-name", metavar="NAME", help="the prompt of requests that name none")
    add("--default-prompt", metavar="TEXT", help="the same, as a text")
    add(
        "--escape-special-tokens",
        action="store_true",
        help='take "<|im_end|>" and its like for plain text, so that no document can answer for the reranker',
    )
    add(
        "--accept-token-ids",
        action="store_true",
        help="take integers on /v1/embeddings for this model's token ids; many clients send another model's",
    )
    tei = parser.add_argument_group("of text-embeddings-inference, for what changes nothing here")
    add = tei.add_argument
    add("--pooling", help="last-token: the models' own")
    add("--dtype", choices=DTYPES, help="float32: what is computed in (see --matmul-precision)")
    add("--tokenization-workers", type=count, metavar="N", help="ignored: the threads of --threads do that")
    add("--huggingface-hub-cache", metavar="FOLDER", help="as --cache-folder")
    add("--hf-token", metavar="TOKEN", help="as --token")
    parser.epilog = f"{parser.epilog or ''}\n\n{_environment_help()}"
    for action in parser._actions:
        if (variable := _variable(action)) is not None:
            action.default = variable


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    # A container's first process has no default action: SIGTERM would be lost until the server handles it.
    signal.signal(signal.SIGTERM, lambda *received: sys.exit(0))
    try:
        from ..server.run import serve
    except ModuleNotFoundError as error:
        raise ImportError(
            f'serve needs packages that are not installed ({error.name}): pip install "qwen3np[server]"'
        ) from None
    return serve(settings)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return what flags and environment ask for.

    Raises:
        ValueError: They contradict each other, or ask for what this server does not do.
    """
    given = [*args.models, *(model for model in (args.model,) if isinstance(model, str))]
    if given and isinstance(args.model_id, Variable):
        args.model_id = None  # a flag beats the environment
    for name, value in vars(args).items():
        if isinstance(value, Variable):
            setattr(args, name, value.parsed())
    if not given and args.model:
        given = [args.model]
    models = tuple([*given, *(args.model_id or ())]) or DEFAULTS.models
    if values := {"true", "false"}.intersection(models):
        raise ValueError(f"{values.pop()!r} is no model: flags take no true or false, they are given or not")
    names = tuple(args.served_model_name or ())
    if names and len(names) != len(models):
        raise ValueError(f"--served-model-name: {len(names)} names for {len(models)} models")
    if args.api_key is not None:
        args.api_key = api_key(args.api_key)
    for origin in args.cors_allow_origin or ():
        if not ORIGIN.fullmatch(origin):
            raise ValueError(
                f"--cors-allow-origin {origin}: an origin is *, or as https://app.example.org:8443, with "
                "nothing behind it; browsers send no other"
            )
    if args.default_prompt is not None and args.default_prompt_name is not None:
        raise ValueError("--default-prompt and --default-prompt-name: give one of them")
    if args.pooling not in (None, "last-token"):
        raise ValueError(
            f"--pooling {args.pooling}: Qwen3's models are trained for the last token's state, and only "
            "last-token gives their vectors"
        )
    if args.dtype not in (None, "float32"):
        raise ValueError(
            f"--dtype {args.dtype}: weights stay as their files have them, and are computed with in float32; "
            "--matmul-precision medium rounds activations to bfloat16 where that is faster"
        )
    args.cache_folder = args.cache_folder or args.huggingface_hub_cache
    args.token = args.token or args.hf_token
    return Settings(
        models=models,
        model_arguments=options.model_arguments(args)
        | ({"escape_special_tokens": True} if args.escape_special_tokens else {}),
        served_model_names=names,
        hostname=args.hostname,
        port=args.port,
        api_key=args.api_key,
        max_concurrent_requests=args.max_concurrent_requests,
        max_batch_tokens=args.max_batch_tokens,
        max_client_batch_size=args.max_client_batch_size,
        auto_truncate=args.auto_truncate,
        default_prompt_name=args.default_prompt_name,
        default_prompt=args.default_prompt,
        payload_limit=args.payload_limit,
        request_timeout=args.request_timeout,
        body_timeout=args.body_timeout,
        json_output=args.json_output,
        cors_allow_origin=tuple(args.cors_allow_origin or ()),
        accept_token_ids=args.accept_token_ids,
    )


@dataclass
class Variable:
    """The default of a flag whose environment variable is set; it is parsed if the flag is not given.

    Attributes:
        name: The variable.
        value: Its text.
        action: The flag.
    """

    name: str
    value: str
    action: argparse.Action

    def parsed(self) -> Any:
        """Return what the flag would give for it; a list is separated by commas."""
        action, value = self.action, self.value
        try:
            if action.nargs == 0:
                return boolean(value)
            if isinstance(action, argparse._AppendAction):
                return [part.strip() for part in value.split(",") if part.strip()]
            parse: Callable[[str], Any] = action.type or str  # type: ignore[assignment]
            found = parse(value)
            if action.choices is not None and found not in action.choices:
                raise ValueError(f"must be one of {', '.join(action.choices)}")
            return found
        except (argparse.ArgumentTypeError, ValueError) as error:
            shown = "" if "KEY" in self.name or "TOKEN" in self.name else f"={value[:80]!r}"
            reason = "must be an integer" if action.type is int else error
            raise ValueError(f"environment variable {self.name}{shown}: {reason}") from None

    def __copy__(self) -> list[str]:
        """Return what argparse appends a repeatable flag's value to: nothing of the environment."""
        return []

    def __str__(self) -> str:  # in --help
        return self.value


def _variable(action: argparse.Action) -> Variable | None:
    flags = [flag[2:] for flag in action.option_strings if flag.startswith("--") and flag != "--help"]
    for name in [name for flag in flags for name in _names(flag)]:
        value = os.environ.get(name, "")
        empty_key = name == f"{PREFIX}API_KEY" and name in os.environ  # a server that was to have one
        if (value or empty_key) and not value.startswith(SERVICE_LINK):
            return Variable(name, value, action)
    return None


def _names(flag: str) -> list[str]:
    """Return the environment variables of a flag, the first to be asked first."""
    name = flag.upper().replace("-", "_")
    return [PREFIX + name, name] if flag in TEI_FLAGS else [PREFIX + name]


def _environment_help() -> str:
    bare = [_names(flag)[1] for flag in TEI_FLAGS]
    lines = [", ".join(bare[i : i + 4]) for i in range(0, len(bare), 4)]
    return "\n  ".join(
        [
            "environment:",
            f"Every --FLAG-NAME that is not given is read from {PREFIX}FLAG_NAME, as {PREFIX}PORT=8080,",
            f"{PREFIX}JSON_OUTPUT=true, {PREFIX}MODEL_ID=EMBEDDER,RERANKER; and then from",
            "text-embeddings-inference's variables:",
            *(f"  {line}" for line in lines),
        ]
    )


def boolean(text: str) -> bool:
    """Parse a variable of a flag that takes no value."""
    if text.lower() not in TRUTH:
        raise argparse.ArgumentTypeError("must be true or false")
    return TRUTH[text.lower()]


def api_key(text: str) -> str:
    """Return a key as clients can send it: without the spaces around, and the newline of a file it was in."""
    key = text.strip()
    if not key:
        raise ValueError(
            "--api-key, or QWEN3NP_API_KEY, is empty: give a key, or leave it out to ask for none"
        )
    if not key.isprintable():
        raise ValueError("--api-key holds what no header can hold, as control characters")
    return key


def port(text: str) -> int:
    """Parse a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a port, 0 to 65535")
    return int(text)


def count(text: str) -> int:
    """Parse a number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be an integer of 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """Parse a time."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError("must be seconds, more than 0")
    return found
