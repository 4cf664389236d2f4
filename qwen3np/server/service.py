"""The models behind the routes: loading them, finding one for a request, waiting for its states."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from starlette.requests import Request

from ..embedder import Embedder
from ..loading.hub import locate
from ..loading.st_config import is_reranker
from ..reranker import Reranker
from .failures import BACKEND, NOT_FOUND, OVERLOADED, TIMEOUT, UNHEALTHY, VALIDATION, WRONG_MODEL, Failure
from .scheduler import Closed, Job, Scheduler, States
from .served import Served, ServedEmbedder, ServedReranker
from .settings import Settings

State = Literal["loading", "ready", "draining"]
Kind = TypeVar("Kind", ServedEmbedder, ServedReranker)
AnyKind = TypeVar("AnyKind", bound=Served[Any])
MOST_BYTES = 1 << 26  # of a request's states: 16,384 vectors of 1024, 180 MB of JSON
WHERE = ("revision", "cache_folder", "token", "local_files_only")


class ClientGone(Exception):
    """Ends a request whose client has closed the connection: nobody reads an answer."""


@dataclass
class Times:
    """What a request has cost so far, for the headers, the log and the metrics; in seconds."""

    started: float = field(default_factory=time.monotonic)
    characters: int = 0
    texts: int = 0
    tokens: int = 0
    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0

    @property
    def total(self) -> float:
        return time.monotonic() - self.started

    def headers(self, backend: str) -> dict[str, str]:
        """Return text-embeddings-inference's headers; times in whole milliseconds."""
        numbers = {
            "x-compute-characters": self.characters,
            "x-compute-tokens": self.tokens,
            "x-compute-time": round(1000 * (self.tokenization + self.inference)),
            "x-total-time": round(1000 * self.total),
            "x-tokenization-time": round(1000 * self.tokenization),
            "x-queue-time": round(1000 * self.queue),
            "x-inference-time": round(1000 * self.inference),
        }
        return {"x-compute-type": backend, **{name: str(value) for name, value in numbers.items()}}


class Service:
    """The models of a server, and its queue.

    Args:
        settings: What was asked for.
        on_step: Called with the texts, tokens and seconds of every step.

    Attributes:
        state: "loading" until the models are loaded and compiled, "ready", and "draining" once the server
            is to end.
        loaded: Whether the models are loaded and compiled.
        error: What loading failed with.
    """

    def __init__(
        self, settings: Settings, on_step: Callable[[int, int, float], None] = lambda *step: None
    ) -> None:
        self.settings = settings
        self.state: State = "loading"
        self.error: BaseException | None = None
        self.served: list[ServedEmbedder | ServedReranker] = []
        self.scheduler: Scheduler | None = None
        self.max_batch_tokens = 0
        self.loaded = False
        self.started = time.time()
        self._on_step = on_step

    def load(self, loaded: Callable[[], object] = lambda: None) -> None:
        """Start loading the models on a thread of its own.

        Args:
            loaded: Called on that thread once `state` is "ready", or `error` is set.
        """
        threading.Thread(target=self._load, args=(loaded,), daemon=True, name="loading").start()

    def _load(self, loaded: Callable[[], object]) -> None:
        try:
            names = self.settings.served_model_names or short_names(self.settings.models)
            if again := {name for name in names if names.count(name) > 1}:
                raise ValueError(
                    f"two models are called {again.pop()!r}, and requests could ask for one of them only: "
                    "name them with --served-model-name"
                )
            for model, name in zip(self.settings.models, names, strict=True):
                self.served.append(self._open(model, name))
            threads = max(served.model.backend.num_threads for served in self.served)
            self.max_batch_tokens = self.settings.batch_tokens(threads)
            self.scheduler = Scheduler(self.max_batch_tokens, self._on_step)
            for served in self.served:  # memory is touched, and a model that cannot compute is found out, now
                self.scheduler.submit(served.target, [[0, 1, 2]]).future.result()
            self.loaded = True
            if self.state == "loading":
                self.state = "ready"
        except BaseException as error:
            self.error = error
        loaded()

    def _open(self, model: str, name: str) -> ServedEmbedder | ServedReranker:
        arguments: dict[str, Any] = dict(self.settings.model_arguments)
        folder = locate(model, **{name: arguments[name] for name in WHERE if name in arguments})
        if is_reranker(folder):
            return ServedReranker(Reranker(folder, **arguments), name, self.settings)
        served = ServedEmbedder(Embedder(folder, **arguments), name, self.settings)
        try:
            served.prompt(None, None)
        except Failure as failure:
            words = failure.message.removeprefix("prompt_name ")
            raise ValueError(f"--default-prompt-name {words}") from None
        return served

    def close(self) -> None:
        """Take no more jobs; return when those that were taken are done."""
        self.state = "draining"
        if self.scheduler:
            self.scheduler.close()

    def check_ready(self) -> None:
        """Raise Failure until the models are loaded; a server that ends finishes what it has accepted."""
        if self.loaded:
            return
        if self.state == "draining":
            raise shutting_down()
        raise Failure(UNHEALTHY, "the model is being loaded: try again in a few seconds", retry_after=2)

    def embedder(self, name: str | None = None) -> ServedEmbedder:
        """Return the embedding model that a request means.

        Args:
            name: The request's `model`. With one embedding model, any name is that one's: clients must send
                one, and few know which.

        Raises:
            Failure: There is none, or of several none has that name.
        """
        return self._find(ServedEmbedder, name)

    def reranker(self, name: str | None = None) -> ServedReranker:
        """Return the reranker that a request means, as `embedder` does."""
        return self._find(ServedReranker, name)

    def any(self, name: str | None = None) -> ServedEmbedder | ServedReranker:
        """Return the model of that name, or else the first."""
        self.check_ready()
        return next((served for served in self.served if name in served.names), self.served[0])

    def _find(self, kind: type[Kind], name: str | None) -> Kind:
        self.check_ready()
        models = [served for served in self.served if isinstance(served, kind)]
        if not models:
            others = ", ".join(served.name for served in self.served)
            raise Failure(
                WRONG_MODEL,
                f"no {kind.kind} model is served here, only {others}: start the server with one as well",
                "model",
            )
        if name is None or len(models) == 1:
            return models[0]
        return named(name, models)

    async def states(
        self,
        request: Request,
        served: Served[Any],
        ids: Sequence[list[int]],
        prefix: Sequence[int] = (),
        every_token: bool = False,
    ) -> States:
        """Queue texts, and return their states when all are computed.

        What they cost is added to request.state.times.

        Args:
            request: Whose client, if it leaves, takes its texts out of the queue.
            served: The model.
            ids: Token ids of each text.
            prefix: What all of them begin with.
            every_token: Ask for the states of all tokens.

        Raises:
            Failure: The server is loading, ending or overloaded, the time is over, or the model's result is
                unsound.
            ClientGone: The client has left.
        """
        self.check_ready()
        scheduler = self.scheduler
        assert scheduler is not None
        rows = sum(map(len, ids)) if every_token else len(ids)
        if (size := 4 * rows * served.model.config.hidden_size) > MOST_BYTES:
            raise Failure(
                VALIDATION,
                f"the answer would hold {size >> 20} MB of numbers, and {MOST_BYTES >> 20} is the most: send "
                "fewer texts per request",
            )
        times: Times = request.state.times
        numbers = {text: n for n, text in enumerate(dict.fromkeys(map(tuple, ids)))}  # equal texts are one
        try:
            job = scheduler.submit(served.target, [list(text) for text in numbers], prefix, every_token)
        except Closed:
            raise shutting_down() from None
        times.texts += len(ids)
        times.tokens += job.tokens
        states = await self._wait(request, job, scheduler)
        times.queue += job.queue_time
        times.inference += job.compute_time
        return [states[numbers[tuple(text)]] for text in ids]

    async def _wait(self, request: Request, job: Job, scheduler: Scheduler) -> States:
        done: asyncio.Future[Any] = asyncio.wrap_future(job.future)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
        left = self.settings.request_timeout - request.state.times.total
        try:
            await asyncio.wait({done, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            if gone.done():
                raise ClientGone
            raise Failure(
                TIMEOUT,
                f"not done within {self.settings.request_timeout:g} seconds (--request-timeout): send fewer "
                "or shorter texts, or when less waits",
                retry_after=self.retry_after(),
            )
        except (ClientGone, Failure):
            raise
        except Exception as error:  # of the step: other requests of it fail alike
            raise Failure(BACKEND, f"the model could not compute this: {error}") from error
        finally:
            gone.cancel()
            if not done.done():
                scheduler.cancel(job)

    def overloaded(self) -> Failure:
        """Return what a request gets that is one too many."""
        return Failure(
            OVERLOADED,
            f"{self.settings.max_concurrent_requests} requests are waiting or computed already "
            "(--max-concurrent-requests): try again later",
            retry_after=self.retry_after(),
        )

    def retry_after(self) -> int:
        """Estimate the seconds after which what waits now is computed: 1 to 60."""
        seconds = self.scheduler.seconds_to_drain() if self.scheduler else 1
        return min(60, max(1, math.ceil(seconds)))


def shutting_down() -> Failure:
    """Return what a request gets that comes too late."""
    return Failure(UNHEALTHY, "the server is shutting down: send it to another", retry_after=1)


def named(name: str, models: Sequence[AnyKind]) -> AnyKind:
    """Return the model of that name; raise Failure, with the names there are, if none has it."""
    for served in models:
        if name in served.names:
            return served
    known = ", ".join(served.name for served in models)
    raise Failure(NOT_FOUND, f"model {name[:80]!r} is not served here, only {known}", "model")


def short_names(models: Sequence[str]) -> list[str]:
    """Return Hub ids as they are, and folders by their last part, unless two have the same."""
    names = [Path(model).resolve().name if Path(model).is_dir() else model for model in models]
    return names if len(set(names)) == len(names) else list(models)


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
