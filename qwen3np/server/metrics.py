"""Metrics for Prometheus: text-embeddings-inference's names, and what shows long work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

from .scheduler import Load
from .service import Times

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From 0.1 ms by half as much again to 10 minutes: the default of --request-timeout.
SECONDS = [1e-4 * 1.5**i for i in range(40)]
POWERS = [2**i for i in range(21)]
# What a status is called in te_request_failure, in text-embeddings-inference's words where it has one.
ERRORS = {
    400: "validation",
    401: "unauthorized",
    404: "not_found",
    405: "not_found",
    408: "slow_body",
    413: "payload",
    422: "validation",
    429: "overloaded",
    499: "dropped",
    503: "unhealthy",
    504: "timeout",
}
# prometheus_client ends the names of counters with _total, and adds when each was created.
TOTAL = re.compile(rb"^((?:# (?:HELP|TYPE) )?te_\w+)_total\b", re.MULTILINE)
CREATED = re.compile(rb"^(?:# (?:HELP|TYPE) )?\w+_created\b.*\n", re.MULTILINE)


class Metrics:
    """The metrics of a server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, registry=registry, buckets=SECONDS)

        def sizes(name: str, text: str) -> Histogram:
            return Histogram(name, text, registry=registry, buckets=POWERS)

        self._count = counter("te_request_count", "POST requests that ended", "method", "path")
        self._success = counter("te_request_success", "POST requests answered with 200", "method", "path")
        self._failure = counter("te_request_failure", "POST requests that were not", "err")
        self._texts = {
            kind: (
                counter(f"te_{kind}_count", f"{texts} of all requests"),
                counter(f"te_{kind}_success", f"{texts} of requests answered with 200"),
            )
            for kind, texts in (("embed", "Texts"), ("predict", "Query-document pairs"))
        }
        self._duration = seconds("te_request_duration", "Seconds from a request's head to its answer")
        self._tokenization = seconds("te_request_tokenization_duration", "Seconds of tokenisation")
        self._queue = seconds("te_request_queue_duration", "Seconds until the first step began")
        self._inference = seconds("te_request_inference_duration", "Seconds of the steps")
        self._length = sizes("te_request_input_length", "Tokens per text of a request, on average")
        self._batch_texts = sizes("te_batch_next_size", "Texts of a step")
        self._batch_tokens = sizes("te_batch_next_tokens", "Tokens of a step")
        self._answers = counter("qwen3np_answers", "Answers to all requests", "method", "path", "status")
        self._computed = counter("qwen3np_computed_tokens", "Tokens of the steps that ended")
        self._busy = counter("qwen3np_step_seconds", "Seconds of the steps that ended")
        self.running_requests = Gauge(
            "qwen3np_running_requests", "POST requests that are read, wait or are computed", registry=registry
        )

    def watch(self, load: Callable[[], Load | None]) -> None:
        """Ask for the queue's load whenever metrics are collected; None: there is no queue yet."""
        self._registry.register(_Queue(load))

    def step(self, texts: int, tokens: int, seconds: float) -> None:
        """Count a step that has ended."""
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)
        self._computed.inc(tokens)
        self._busy.inc(seconds)

    def request(self, method: str, path: str, status: int, times: Times, kind: str) -> None:
        """Count a request that has ended.

        Args:
            method: Of HTTP.
            path: The route's.
            status: Of the answer.
            times: What it has cost.
            kind: "embed" or "predict": whether its texts were embedded, or scored for a query.
        """
        self._answers.labels(method, path, str(status)).inc()
        if method != "POST":
            return
        labels = ("batch" if times.texts > 1 else "single", path)
        self._count.labels(*labels).inc()
        texts, texts_done = self._texts[kind]
        texts.inc(times.texts)
        if status != 200:
            unknown = "inference" if times.texts else "model_type"  # 424
            self._failure.labels(ERRORS.get(status, unknown)).inc()
            return
        self._success.labels(*labels).inc()
        texts_done.inc(times.texts)
        if times.texts:
            self._duration.observe(times.total)
            self._tokenization.observe(times.tokenization)
            self._queue.observe(times.queue)
            self._inference.observe(times.inference)
            self._length.observe(times.tokens / times.texts)

    def render(self) -> tuple[bytes, str]:
        """Return the answer to GET /metrics, and its content type."""
        content = generate_latest(self._registry)
        return CREATED.sub(b"", TOTAL.sub(rb"\1", content)), CONTENT_TYPE


class _Queue:
    """Shows what waits and what is computed now, so that a step of minutes is seen before it ends."""

    def __init__(self, load: Callable[[], Load | None]) -> None:
        self._load = load

    def collect(self) -> Iterator[GaugeMetricFamily]:
        load = self._load() or Load(0, 0, 0, 0, 0, 0.0)
        for name, text, value in (
            ("te_queue_size", "Texts that wait", load.texts),
            ("qwen3np_queued_tokens", "Tokens that wait", load.tokens),
            ("qwen3np_running_texts", "Texts of the steps that are computed now", load.running),
            ("qwen3np_running_tokens", "Tokens of the steps that are computed now", load.running_tokens),
            ("qwen3np_longest_step_seconds", "Seconds that the oldest of them takes", load.longest_step),
        ):
            yield GaugeMetricFamily(name, text, value)
