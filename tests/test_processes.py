"""Forks, signals and other processes: the usual bits, and no call that hangs."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen3np import Embedder, Reranker
from qwen3np.runtime import threads
from qwen3np.runtime.progress import progress_bar
from qwen3np.synth.checkpoints import synthesize

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

TEXTS = [f"text number {i} of a few, {'long ' * (i * i % 60)}" for i in range(16)]
LONG = " ".join(f"word{i}" for i in range(600))
TIMEOUT = 60  # seconds, of anything that may hang


def wrong(model: Embedder, expected: np.ndarray, times: int) -> int:
    """Vectors that are not the expected bits."""
    return sum(int((model.encode(TEXTS) != expected).any(axis=1).sum()) for _ in range(times))


def fork(work: Callable[[], int]) -> int:
    """The process id of a child that ends with the result of `work`, 255 if it raises."""
    child = os.fork()
    if child:
        return child
    code = 255
    try:
        code = min(work(), 254)
    finally:
        os._exit(code)


def join(children: list[int]) -> list[int]:
    """Exit codes; a child that hangs is killed and has -9."""
    end, codes = time.monotonic() + TIMEOUT, {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                if time.monotonic() > end:
                    os.kill(child, signal.SIGKILL)
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[child] for child in children]


@pytest.fixture(scope="module")
def expected(model) -> np.ndarray:
    return model.encode(TEXTS)


@pytest.mark.parametrize("times", [4, pytest.param(60, marks=pytest.mark.slow)])  # 16 vectors each
@pytest.mark.parametrize("when", ["loaded", "warm", "computing", "grandchild"])
def test_forked_children_and_their_parent(tiny, expected, when, times):
    """Four children and their parent compute at once, and all that they compute is right."""
    model = Embedder(tiny)
    if when != "loaded":
        wrong(model, expected, 1)
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            model.encode(LONG)

    background = threading.Thread(target=compute)
    if when == "computing":
        background.start()
    children = []
    try:
        for _ in range(4):
            time.sleep(0.003)  # another moment of the computing thread
            if when == "grandchild":
                children.append(fork(lambda: join([fork(lambda: wrong(model, expected, times))])[0]))
            else:
                children.append(fork(lambda: wrong(model, expected, times)))
        here = wrong(model, expected, times)
        codes = join(children)
    finally:
        ended.set()
        if when == "computing":
            background.join(TIMEOUT)
    assert (here, codes) == (0, [0] * 4)


@pytest.mark.slow
def test_forks_at_any_moment_of_a_computing_parent(model, expected):
    """The parent's other thread is anywhere: tokenising, between two steps, in a kernel."""
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            model.encode(TEXTS)

    background = threading.Thread(target=compute)
    background.start()
    codes = []
    try:
        for _ in range(60):
            time.sleep(random.random() * 0.02)
            codes += join([fork(lambda: wrong(model, expected, 2))])
    finally:
        ended.set()
        background.join(TIMEOUT)
    assert codes == [0] * 60


POOL = """
import multiprocessing, sys
import numpy as np
from qwen3np import Embedder
TEXTS = [f"text {i}" for i in range(8)]
def start(model):
    global here
    here = model
def encode(_):
    return here.encode(TEXTS)
if __name__ == "__main__":
    model = Embedder(sys.argv[1], truncate_dim=64)
    model.max_seq_length = 9
    expected = model.encode(TEXTS)
    context = multiprocessing.get_context(sys.argv[2])
    with context.Pool(2, start, (model,)) as pool:
        for vectors in pool.imap_unordered(encode, range(40)):
            assert np.array_equal(vectors, expected)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tiny, tmp_path, method):
    """The model is an argument of the workers: inherited, or loaded anew from its constructor's arguments."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    (tmp_path / "main.py").write_text(POOL)
    os.symlink(tiny, tmp_path / "model")
    command = [sys.executable, "main.py", "model", method]  # a relative path, as users have it
    done = subprocess.run(command, cwd=tmp_path, timeout=4 * TIMEOUT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


def test_pickle_carries_the_arguments_and_copies_share_the_weights(tiny, tiny_reranker, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    model = Embedder(tiny.name, truncate_dim=64, prompts={"query": "Q: "}, token="secret")
    model.max_seq_length, model.default_prompt_name = 9, "query"
    expected = model.encode(TEXTS)
    data = pickle.dumps(model)
    assert len(data) < 2000 and b"secret" not in data
    monkeypatch.chdir("/")
    for other in (pickle.loads(data), copy.deepcopy(model), copy.copy(model)):
        np.testing.assert_array_equal(other.encode(TEXTS), expected)
        other.max_seq_length, other.prompts["query"] = 5, "another "
        assert not np.array_equal(other.encode(TEXTS), expected)
    np.testing.assert_array_equal(model.encode(TEXTS), expected)
    assert copy.deepcopy(model).backend is model.backend
    reranker = Reranker(tiny_reranker, instruction="Judge.")
    pairs = [("a", "b"), ("c", "d" * 500)]
    other = pickle.loads(pickle.dumps(reranker))
    np.testing.assert_array_equal(other.predict(pairs), reranker.predict(pairs))


class Named(Embedder):
    """A user's subclass, with arguments of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(folder)
        self.name = name


def test_a_relative_folder_is_meant_from_where_the_model_was_loaded(tiny, expected, tmp_path, monkeypatch):
    """Also where the process is elsewhere by now, and another model has that name there."""
    os.symlink(tiny, tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    synthesize(tmp_path / "elsewhere" / "model", seed=1)
    monkeypatch.chdir(tmp_path)
    model = Embedder("model")
    monkeypatch.chdir("elsewhere")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(TEXTS), expected)
    model.save_pretrained("saved")
    np.testing.assert_array_equal(Embedder("saved").encode(TEXTS), expected)
    named = Named("model", tiny)  # a folder has this name; it is not the argument that names the model
    assert pickle.loads(pickle.dumps(named)).name == "model"


class Struck(BaseException):
    """What a signal handler raises: not an Exception, not a KeyboardInterrupt."""


def strike_at(moments: set[int], call: Callable[[], object]) -> int:
    """Run `call`, and raise Struck at these bytecodes of threads.py on this thread. Returns their number."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != threads.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count in moments:
                raise Struck
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Struck:
        pass
    finally:
        sys.settrace(before)
    return count


def in_time(call: Callable[[], np.ndarray]) -> np.ndarray:
    """What `call` returns; fails if it hangs."""
    results: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not results:
        pytest.fail("the call hangs")
    return results[0]


@pytest.mark.parametrize(
    "step, second",
    [(7, 0), *(pytest.param(1, second, marks=pytest.mark.slow) for second in (0, 1, 5, 14))],
)
def test_an_exception_at_any_bytecode_of_a_call(model, expected, step, second):
    """One, or a second behind it, wherever it strikes the caller: the next call gives its usual bits."""
    encode, (long, short) = model.backend.forward, model.tokenize([LONG, TEXTS[7]])
    moments = strike_at(set(), lambda: encode([long]))
    assert moments > 50
    usual = encode([short])
    for first in range(1, moments + 30, step):
        strike_at({first, first + second}, lambda: encode([long]))
        np.testing.assert_array_equal(in_time(lambda: encode([short])), usual)
    np.testing.assert_array_equal(model.encode(TEXTS), expected)


def test_an_exception_of_the_progress_bar_ends_the_call(model, expected):
    ids = model.tokenize(TEXTS) * 20

    def fail(texts: int) -> None:
        raise Struck

    with pytest.raises(Struck):
        model.backend.forward(ids, batch_size=1, progress=fail)
    np.testing.assert_array_equal(in_time(lambda: model.encode(TEXTS)), expected)


def test_a_signal_handler_and_a_progress_bar_may_call_encode(model, expected):
    ids, results = model.tokenize(TEXTS), []

    def handler(*_: object) -> None:
        results.append(model.encode(TEXTS))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        model.encode(LONG)
        deadline = time.monotonic() + TIMEOUT
        while not results and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGALRM, before)
    model.backend.forward(ids, progress=lambda texts: results.append(model.encode(TEXTS)))
    assert len(results) > 1
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_a_call_that_waits_behind_others_can_be_left_at_once():
    """What no thread has started needs no waiting for, and is never run."""
    pool, release, ended, run = threads.Pool(1), threading.Event(), [], []
    other = threading.Thread(target=lambda: pool.call(lambda job: ended.append(release.wait(TIMEOUT))))
    other.start()

    def expire(*_: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGALRM, expire)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Struck):
            pool.call(run.append)
        assert ended == []
    finally:
        signal.signal(signal.SIGALRM, before)
        release.set()
        other.join()
    assert pool.call(lambda job: 1) == 1 and run == []


def test_a_call_that_was_left_keeps_no_weights_alive(tiny):
    """Neither the exception nor the cancelled job is in a cycle that only the garbage collector ends."""

    def fail(*_: object) -> None:
        raise Struck

    gc.collect()
    gc.disable()
    try:
        for how in ("progress", "job"):
            model = Embedder(tiny)
            ids = model.tokenize(TEXTS) * 5
            with pytest.raises(Struck):
                if how == "progress":
                    model.backend.forward(ids, batch_size=1, progress=fail)
                else:
                    model.backend.pool.call(lambda job, kept=model.backend: fail(kept))
            backend = weakref.ref(model.backend)
            del model
            assert backend() is None, how
    finally:
        gc.enable()


def test_a_fork_between_two_steps_of_a_call_leaves_no_child_waiting():
    """A signal handler may fork before the job is handed over: the child has none of the pool's threads."""
    pool, children = threads.Pool(1), []
    pool.call(lambda job: None)
    parent = os.getpid()

    def trace(frame, event, argument):
        if frame.f_code is threads.Job.__init__.__code__ and not children:
            children.append(os.fork())

    sys.settrace(trace)
    try:
        assert pool.call(lambda job: 1) == 1
        code = 1
    except RuntimeError as error:
        code = 7 if "the process was forked inside a call" in str(error) else 2
    finally:
        sys.settrace(None)
        if os.getpid() != parent:
            os._exit(code)
    assert join(children) == [7]


ATEXIT = """
import atexit, sys
import numpy as np
atexit.register(lambda: print(np.array_equal(model.encode("a text"), expected)))
from qwen3np import Embedder
model = Embedder(sys.argv[1])
expected = model.encode("a text")
"""


def test_a_function_that_runs_at_exit_may_encode(tiny):
    """It was registered before the model was loaded: it runs when all that was registered later has run."""
    command = [sys.executable, "-c", ATEXIT, str(tiny)]
    done = subprocess.run(command, timeout=TIMEOUT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_where_no_thread_can_be_started(tiny):
    """One line says so, and a later call works."""
    pool = threads.Pool(2)
    threading.stack_size(2**46)  # no system has that much
    try:
        with pytest.raises(OSError, match=r"thread 1 of \d+ cannot be started"):
            pool.call(lambda job: 1)
        with progress_bar(1, True, "texts") as bar:  # without a clock
            bar.update()
    finally:
        threading.stack_size(0)
    assert pool.call(lambda job: 1) == 1


def raise_when(event: str, function: str, call: Callable[[], object]) -> None:
    """Run `call`, and raise Timeout at this event (of sys.setprofile) of a function of that name."""

    def profile(frame, happened, argument):
        name = getattr(argument, "__name__", "") if happened.startswith("c_") else frame.f_code.co_name
        if (happened, name) == (event, function):
            sys.setprofile(None)
            raise TimeoutError("struck")

    sys.setprofile(profile)
    try:
        with pytest.raises(TimeoutError, match="struck"):
            call()
    finally:
        sys.setprofile(None)


def test_an_exception_of_a_handler_is_raised_as_it_is(tiny):
    """Not as a message on the file that was being read; nor is a bar's clock left behind."""
    raise_when("c_call", "from_file", lambda: Embedder(tiny))
    gc.collect()  # models that other tests have left end their threads now, not below
    before = threading.active_count()

    def show() -> None:
        with progress_bar(1, True, "texts"):
            pass

    raise_when("return", "start", show)
    assert threading.active_count() == before


STRUCK = """
import os, random, signal, sys, threading, time
import numpy as np
from qwen3np import Embedder
from qwen3np.runtime import threads
kind, moments, seed = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
TEXTS = [f"text number {i} of a few, {'long ' * (i * i % 60)}" for i in range(16)]
LONG = " ".join(f"word{i}" for i in range(int(sys.argv[5])))
model, rng = Embedder(sys.argv[1]), random.Random(seed)
expected = model.encode(TEXTS)
start = time.perf_counter()
model.encode(LONG)
lasts = time.perf_counter() - start

jobs, create = [], threads.Job.__init__
def remember(job, *arguments):
    create(job, *arguments)
    jobs.append(job)
threads.Job.__init__ = remember

class Timeout(BaseException):
    pass
def expire(*_):
    raise Timeout
signal.signal(signal.SIGALRM, expire)
struck = 0
for _ in range(moments):
    jobs.clear()
    delay = rng.random() * lasts
    senders = []
    try:
        try:
            if kind == "alarm":
                signal.setitimer(signal.ITIMER_REAL, delay)
            else:
                for gap in [0] if kind == "interrupt" else [0, rng.random() * 0.02]:
                    delay += gap
                    senders.append(threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)))
                for sender in senders:
                    sender.start()
            model.encode(LONG)
            time.sleep(60)  # for a signal that comes late
        finally:
            running = [job for job in jobs if not job.done]
            for sender in senders:
                sender.join()
            time.sleep(0.001)  # a bytecode at which a late signal strikes
    except (Timeout, KeyboardInterrupt):
        struck += 1
    assert not running, "a thread computes on"
    assert np.array_equal(model.encode(TEXTS), expected)
assert struck == moments, struck
"""


@pytest.mark.parametrize(
    "kind, moments, words",
    [
        ("alarm", 12, 600),
        *(pytest.param(kind, 70, 1200, marks=pytest.mark.slow) for kind in ("alarm", "interrupt", "two")),
    ],
)
def test_signals_at_random_moments(tiny, kind, moments, words):
    """Real ones, in a long text: a handler that raises, Ctrl-C, two of them within 20 ms."""
    command = [sys.executable, "-c", STRUCK, str(tiny), kind, str(moments), "1", str(words)]
    done = subprocess.run(command, timeout=10 * TIMEOUT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


def test_memory_of_work_and_weights_is_private(model):
    """Not one page of it is shared with other processes."""
    address = model.backend._weights.q_proj.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(x, 16) for x in line.split()[0].split("-"))
        if first <= address < last:
            assert line.split()[1] == "rw-p"
            return
    pytest.fail("not found in /proc/self/maps")
