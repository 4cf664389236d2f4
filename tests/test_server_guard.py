"""What the server does around its routes: who may ask, how much, how long, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen3np.server.failures import OVERLOADED, Failure
from qwen3np.server.guard import SMALL, Guard
from qwen3np.server.metrics import Metrics
from qwen3np.server.scheduler import Load
from qwen3np.server.service import ClientGone
from qwen3np.server.settings import Settings

SECRET = "the text of a request"
KEY = "schlüssel"


async def echo(scope, receive, send) -> None:
    """Answer with the body, as if it had been computed."""
    body = (await receive())["body"]
    if body:
        scope["state"]["times"].texts = scope["state"]["times"].tokens = 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Client:
    """A guard around an application, and the one end of ASGI that is the server's."""

    def __init__(self, app=echo, state="ready", **settings) -> None:
        self.settings = Settings(**settings)
        model = SimpleNamespace(backend=SimpleNamespace(name="numba"))
        served = [SimpleNamespace(kind="embedding", model=model)]
        overloaded = Failure(OVERLOADED, "too many", retry_after=7)
        self.service = SimpleNamespace(served=served, state=state, overloaded=lambda: overloaded)
        self.metrics = Metrics()
        self.guard = Guard(app, self.settings, self.service, self.metrics)

    async def send(self, method="GET", path="/health", body=(), **headers) -> SimpleNamespace:
        """Send a request, its body in parts; a part that is a number is a pause, None a client that leaves.

        Returns:
            The answer: status, headers, body, whether it is complete, and the parts that were `left` unread.
        """
        parts = [body] if isinstance(body, bytes) else list(body) or [b""]
        if body and "transfer_encoding" not in headers:
            size = sum(len(part) for part in parts if isinstance(part, bytes))
            headers.setdefault("content_length", str(size))
        answer = SimpleNamespace(status=None, headers={}, body=b"", complete=False, left=None)

        async def receive():
            while parts and isinstance(parts[0], (int, float)):
                await asyncio.sleep(parts.pop(0))
            if not parts or parts[0] is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message):
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
                return
            answer.body += message["body"]
            answer.complete = not message.get("more_body", False)
            if answer.left is None:
                answer.left = len(parts)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": SECRET.encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
            "client": ("10.0.0.1", 4321),
        }
        await self.guard(scope, receive, send)
        return answer

    def ask(self, *args, **options) -> SimpleNamespace:
        return asyncio.run(self.send(*args, **options))


def metric(metrics: Metrics, sample: str) -> float:
    content, _ = metrics.render()
    [value] = re.findall(rf"^{re.escape(sample)} (\S+)$", content.decode(), re.MULTILINE)
    return float(value)


@pytest.mark.parametrize("method, path, needed", [
    *[("GET", path, False) for path in ("/", "/health", "/ping", "/ui", "/docs", "/redoc", "/openapi.json")],
    ("GET", "/static-offline-docs/swagger-ui.css", False),
    *[("GET", path, True) for path in ("/metrics", "/info", "/v1/models", "/healthy", "/docs/other")],
    *[("POST", path, True) for path in ("/", "/health", "/embed", "/static-offline-docs/x")],
])  # fmt: skip
def test_the_key_is_asked_for_where_something_is_computed_or_told(method, path, needed):
    assert Client(api_key=KEY).ask(method, path).status == (401 if needed else 200)


@pytest.mark.parametrize("given", [
    "", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer schl\xffssel",
])  # fmt: skip
def test_another_key_is_refused_in_the_words_of_the_path(given):
    answer = Client(api_key=KEY).ask("POST", "/v1/embeddings", authorization=given)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(answer.body)["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_key_opens(scheme):
    assert Client(api_key=KEY).ask("POST", "/embed", b"[]", authorization=f"{scheme} {KEY}").status == 200


def test_a_body_reaches_the_application_in_one_piece():
    client = Client(payload_limit=6)
    assert client.ask("POST", "/embed", [b"ab", b"cd", b"ef"]).body == b"abcdef"
    assert client.ask("POST", "/embed", [b"ab", b"cd"], transfer_encoding="chunked").body == b"abcd"


def test_a_body_too_large_is_refused_unread():
    """By its length at once, and where that is not told as soon as it is over the limit."""
    parts = [b"x" * SMALL] * 10
    for headers, left in ({}, 10), ({"transfer_encoding": "chunked"}, 7):
        answer = Client(payload_limit=2 * SMALL).ask("POST", "/embed", parts, **headers)
        assert (answer.status, answer.headers["connection"], answer.left) == (413, "close", left)
        assert "--payload-limit" in json.loads(answer.body)["error"]
        assert answer.complete


def test_a_slow_body_gets_408():
    answer = Client(body_timeout=0.05).ask("POST", "/embed", [b"[", 0.1, b"]"])
    assert (answer.status, answer.headers["connection"], answer.complete) == (408, "close", True)


def test_one_request_too_many_is_refused_before_its_body():
    """Others are not touched, GETs are never refused, and a place that is given back is free."""
    begun, end = asyncio.Event(), asyncio.Event()

    async def hold(scope, receive, send):
        if scope["method"] == "POST":
            begun.set()
            await end.wait()
        await echo(scope, receive, send)

    async def play():
        client = Client(hold, max_concurrent_requests=1)
        first = asyncio.ensure_future(client.send("POST", "/embed", b"[1]"))
        await begun.wait()
        assert metric(client.metrics, "qwen3np_running_requests") == 1
        second = await client.send("POST", "/embed", [b"[", b"2]"])
        assert (second.status, second.headers["retry-after"], second.left) == (429, "7", 2)
        assert "connection" not in second.headers  # such a body is skipped, and the connection goes on
        assert (await client.send("GET", "/health")).status == 200
        end.set()
        assert (await first).body == b"[1]"
        assert (await client.send("POST", "/embed", b"[3]")).status == 200

    asyncio.run(play())


def test_computed_answers_say_what_they_cost():
    computed = Client().ask("POST", "/embed", b"[]")
    assert computed.headers["x-compute-type"] == "numba"
    assert computed.headers["x-compute-tokens"] == "1"
    assert "x-compute-type" not in Client().ask().headers


def test_answers_of_a_server_that_ends_close_their_connections():
    assert Client(state="draining").ask("POST", "/embed", b"[]").headers["connection"] == "close"


@pytest.mark.parametrize("given, taken", [
    ("a-1", True), ("x" * 128, True), ("", False), ("x" * 129, False), ("a\tb", False), ("ü", False),
])  # fmt: skip
def test_request_ids(given, taken):
    answer = Client().ask(x_request_id=given)
    assert (answer.headers["x-request-id"] == given) == taken
    assert re.fullmatch("[ -~]{1,128}", answer.headers["x-request-id"])


def test_a_log_line_per_request_and_no_text_in_any(capsys, caplog):
    """Not of the body, the query string, a path that is not a route's, or an error's message."""

    async def broken(scope, receive, send):
        raise RuntimeError(SECRET)

    client = Client(json_output=True)
    client.ask("POST", "/", SECRET.encode(), x_request_id="seven")
    client.ask("GET", f"/{SECRET}")
    Client(broken, json_output=True).ask("POST", "/", SECRET.encode())
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/", 200),
        ("GET", "other", 200),
        ("POST", "/", 424),
    ]
    expected = {"texts": 1, "tokens": 1, "request_id": "seven", "client": "10.0.0.1:4321"}
    assert lines[0].items() >= expected.items()
    times = {"total_ms", "tokenization_ms", "queue_ms", "inference_ms"}
    assert set(lines[0]) == {"time", "method", "path", "status", *expected, *times}
    assert "RuntimeError" in caplog.text and "in broken" in caplog.text
    assert SECRET not in out + err + caplog.text


@pytest.mark.parametrize(
    "path, key", [("/embed", "error_type"), ("/v1/rerank", "code"), ("/api/embed", "error")]
)
def test_a_broken_application_gives_an_answer(path, key):
    async def broken(scope, receive, send):
        raise RuntimeError(SECRET)

    answer = Client(broken).ask("POST", path, b"[]", x_request_id="seven")
    assert answer.status == 424 and key in json.loads(answer.body)
    assert b"seven" in answer.body and SECRET.encode() not in answer.body


@pytest.mark.parametrize("body", [[b"[", None], b"[]"], ids=["in the body", "behind it"])
def test_a_client_that_leaves_is_counted_and_not_answered(body, capsys):
    async def left(scope, receive, send):
        raise ClientGone

    client = Client(left, json_output=True)
    assert client.ask("POST", "/", body).status is None
    assert json.loads(capsys.readouterr().out)["status"] == 499
    assert metric(client.metrics, 'te_request_failure{err="dropped"}') == 1


def test_pages_of_an_allowed_origin_may_ask():
    """A browser asks first, without the key; and it shows an error to the page only with the header."""
    client = Client(api_key=KEY, cors_allow_origin=("http://a.example",))
    asks = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    allowed = client.ask("OPTIONS", "/embed", origin="http://a.example", **asks)
    assert (allowed.status, allowed.headers["access-control-allow-headers"]) == (200, "authorization")
    refused = client.ask("POST", "/embed", origin="http://a.example")
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "http://a.example")
    assert client.ask("OPTIONS", "/embed", origin="http://b.example", **asks).status == 400


def test_metrics_have_the_names_of_text_embeddings_inference():
    client = Client()
    client.ask("POST", "/", b"[]")
    client.ask("GET")
    metrics = client.metrics
    metrics.step(3, 40, 0.5)
    for sample in (
        'te_request_count{method="single",path="/"}',
        'te_request_success{method="single",path="/"}',
        "te_embed_count",
        "te_embed_success",
        "te_request_duration_count",
        "te_request_tokenization_duration_count",
        "te_request_queue_duration_count",
        "te_request_inference_duration_count",
        "te_request_input_length_sum",
        "te_batch_next_size_count",
    ):
        assert metric(metrics, sample) == 1, sample
    assert (
        metric(metrics, "te_batch_next_tokens_sum") == metric(metrics, "qwen3np_computed_tokens_total") == 40
    )
    content, content_type = metrics.render()
    assert b"_created" not in content and content_type.startswith("text/plain")


def test_a_step_shows_while_it_is_computed():
    metrics = Metrics()
    load: list[Load] = []
    metrics.watch(lambda: load[0] if load else None)
    assert metric(metrics, "te_queue_size") == 0
    load.append(Load(jobs=1, texts=2, tokens=30, running=4, running_tokens=500, longest_step=60.5))
    names = "te_queue_size qwen3np_queued_tokens qwen3np_running_texts qwen3np_running_tokens".split()
    assert [metric(metrics, name) for name in names] == [2, 30, 4, 500]
    assert metric(metrics, "qwen3np_longest_step_seconds") == 60.5


# The process.

# Every step takes SLOW seconds more, that of loading too.
SLOWLY = """
import os, sys, time
from qwen3np.server import scheduler
compute = scheduler.Scheduler._compute
def slowly(self, step, lane):
    time.sleep(float(os.environ.get("SLOW", 0)))
    return compute(self, step, lane)
scheduler.Scheduler._compute = slowly
from qwen3np.cli import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


class Process:
    """A server in a process of its own, on a free port."""

    def __init__(self, *arguments: object, slow: float = 0, **options) -> None:
        command = [sys.executable, "-c", SLOWLY, "--port", "0", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        environment = os.environ | {"SLOW": str(slow)}
        self.process = subprocess.Popen(command, env=environment, **pipes | options)
        self.lines: list[str] = []
        self.wait_for("listening on")
        self.port = int(re.search(r":(\d+) ", self.lines[-1])[1])

    def wait_for(self, words: str) -> None:
        while not self.lines or words not in self.lines[-1]:
            line = self.process.stderr.readline()
            assert line, f"it ended: {self.lines}"
            self.lines.append(line)

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method="GET", path="/health", body=None, connection=None, **headers) -> SimpleNamespace:
        connection = connection or self.connect()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return SimpleNamespace(status=response.status, headers=response.headers, body=response.read())

    def embed(self, text="a", connection=None) -> SimpleNamespace:
        return self.ask("POST", "/embed", json.dumps({"inputs": text}), connection)

    def raw(self, data: bytes, half_closed=False) -> bytes:
        """Send bytes; return all that comes until the connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            if half_closed:
                connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read()

    def metric(self, sample: str) -> float:
        content = self.ask(path="/metrics").body.decode()
        return float(re.search(rf"^{re.escape(sample)} (\S+)$", content, re.MULTILINE)[1])

    def wait_until_running(self, requests: int) -> None:
        while self.metric("qwen3np_running_requests") != requests:
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit code, and what was printed on stderr since."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@contextmanager
def serving(*arguments: object, ready: bool = True, **options) -> Iterator[Process]:
    server = Process(*arguments, **options)
    try:
        if ready:
            server.wait_for("ready in")
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def server(tiny) -> Iterator[Process]:
    with serving(tiny, "--body-timeout", 1) as server:
        yield server


@pytest.fixture(scope="module")
def slow_server(tiny) -> Iterator[Process]:
    with serving(tiny, "--max-concurrent-requests", 2, slow=2) as server:
        yield server


HEAD = b"POST /embed HTTP/1.1\r\nhost: localhost\r\n"
BODY = b'{"inputs": "a"}'


def answer_of(received: bytes) -> tuple[int, dict]:
    """Status and JSON of a single answer, after which the connection was closed."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.slow
def test_a_server_that_loads_is_there_and_not_healthy(tiny):
    with serving(tiny, ready=False, slow=2) as server:
        answers = [server.ask(path=path) for path in ("/health", "/ping", "/")] + [server.embed()]
        assert [(answer.status, "retry-after" in answer.headers) for answer in answers] == [(503, True)] * 4
        server.wait_for("ready in")
        assert [server.ask().status, server.embed().status] == [200, 200]


@pytest.mark.slow
def test_a_key_and_a_log_on_demand(tiny):
    with serving(tiny, "--api-key", "secret", "--json-output") as server:
        assert [server.ask().status, server.ask(path="/metrics").status, server.embed().status] == [
            200,
            401,
            401,
        ]
        answer = server.ask("POST", "/embed", BODY, authorization="Bearer secret")
        assert answer.status == 200 and answer.headers["x-compute-tokens"] == "2"
        lines = [json.loads(server.process.stdout.readline()) for _ in range(4)]
        assert [(line["path"], line["status"], line["texts"]) for line in lines][-2:] == [
            ("/embed", 401, 0),
            ("/embed", 200, 1),
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", [b"", HEAD[:30], HEAD + b"x: y", b"\r\n"], ids=["nothing", "a", "two", "empty"]
)
def test_a_head_that_is_not_complete_in_time_closes_the_connection(server, sent):
    assert server.raw(sent) == b""


@pytest.mark.slow
def test_a_head_that_comes_byte_by_byte_is_no_more_complete(server):
    """Behind an answer, too: what comes there ends the time that idle connections have."""
    body = b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(HEAD + body)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(OSError):
            for byte in HEAD * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)


@pytest.mark.slow
def test_bodies_that_do_not_end(server):
    """Slow ones get 408, cut ones 400: read by the client, and others are not touched."""
    began = HEAD + b"content-length: 100\r\n\r\n" + BODY
    chunk = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n"
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(server.raw, data) for data in (began, chunk)]
        cut = [pool.submit(server.raw, data, half_closed=True) for data in (began, chunk)]
        assert server.embed().status == 200
    for status, answers in (408, slow), (400, cut):
        for future in answers:
            found, body = answer_of(future.result())
            assert found == status and body["error_type"] == "Validation"


@pytest.mark.slow
def test_a_body_of_100_megabytes_gets_an_answer(server):
    """A client that sends it whole before it looks gets the answer too, and no reset."""
    body = b"x" * 100_000_000
    before = server.metric("process_resident_memory_bytes")
    assert server.ask("POST", "/v1/embeddings", body).status == 413
    chunks = (body[i : i + 1_000_000] for i in range(0, len(body), 1_000_000))
    answer = server.ask("POST", "/v1/embeddings", chunks)
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert "--payload-limit" in json.loads(answer.body)["error"]["message"]
    assert server.metric("process_resident_memory_bytes") < before + 20e6
    assert server.embed().status == 200


@pytest.mark.slow
def test_what_is_not_a_request_gets_an_answer(server):
    for data, status in (b"hello\r\n\r\n", 400), (HEAD + b"x: " + b"y" * (4 * SMALL), 431):
        found, body = answer_of(server.raw(data))
        assert found == status and body["error_type"] == "Validation"


@pytest.mark.slow
def test_a_client_that_would_like_http_2_is_answered(server):
    """Java's, for one: uvicorn's parser would take the body for another protocol's."""
    asks = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAA"}
    assert server.ask("POST", "/embed", BODY, **asks).status == 200


@pytest.mark.slow
def test_a_burst_is_refused_and_health_is_not(slow_server):
    with ThreadPoolExecutor() as pool:
        accepted = [pool.submit(slow_server.embed) for _ in range(2)]
        slow_server.wait_until_running(2)
        refused = slow_server.embed()
        assert slow_server.ask().status == 200
        assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        assert [future.result().status for future in accepted] == [200, 200]


@pytest.mark.slow
def test_a_client_that_leaves_gives_its_place_back(slow_server):
    connection = slow_server.connect()
    connection.request("POST", "/embed", BODY)
    slow_server.wait_until_running(1)
    connection.close()
    slow_server.wait_until_running(0)
    assert slow_server.metric('te_request_failure{err="dropped"}') == 1
    assert slow_server.metric("te_queue_size") == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_first_signal_finishes_what_was_accepted(tiny, number):
    """Idle connections do not hold it up; the exit code is 0."""
    with serving(tiny, slow=1) as server, ThreadPoolExecutor() as pool:
        idle = server.connect()
        assert server.ask(connection=idle).status == 200
        accepted = [pool.submit(server.embed, text) for text in "abc"]
        server.wait_until_running(3)
        code, err = server.end(number)
        assert (code, err) == (
            0,
            f"qwen3np: {number.name}: finishing 3 requests; a second signal ends at once\n",
        )
        answers = [future.result() for future in accepted]
        assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(200, "close")] * 3
        with pytest.raises(ConnectionRefusedError):
            server.ask()


@pytest.mark.slow
def test_a_client_that_does_not_read_does_not_hold_up_the_end(tiny):
    with serving(tiny, "--body-timeout", 1) as server:
        body = json.dumps({"inputs": ["a"] * 9999}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
            while server.metric("te_embed_success") == 0:
                time.sleep(0.1)
            assert server.end(signal.SIGTERM)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_second_signal_ends_at_once(tiny, second):
    with serving(tiny, slow=2) as server, ThreadPoolExecutor() as pool:
        accepted = pool.submit(server.embed)
        server.wait_until_running(1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("finishing 1 request;")
        assert server.end(second)[0] == 128 + second
        assert isinstance(accepted.exception(), OSError)


@pytest.mark.slow
def test_a_signal_ends_loading(tiny):
    with serving(tiny, ready=False, slow=600) as server:
        assert server.end(signal.SIGTERM)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrapper", [[], ["unshare", "--user", "--pid", "--fork", "--kill-child"]], ids=["", "PID 1"]
)
def test_nothing_but_a_model_is_needed(tiny, wrapper):
    """No home, no stdout, no stderr; and as a container's first process, whose signals have no defaults."""
    if wrapper and subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make namespaces")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"{sys.executable} -m qwen3np serve {tiny} --port {port} --json-output"
    serve = f"exec {command} --backend numpy <&- >&- 2>&-"  # kernels would compile: there is no cache
    environment = os.environ | {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"}
    process = subprocess.Popen([*wrapper, "sh", "-c", serve], env=environment)
    try:
        status = None
        while status != 200:
            assert process.poll() is None, "it ended"
            time.sleep(0.1)
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            with suppress(ConnectionRefusedError):
                connection.request("GET", "/health")
                response = connection.getresponse()
                status = response.status if response.read() else None
        connection.request("POST", "/embed", BODY)
        assert connection.getresponse().status == 200
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]) if wrapper else process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
