"""qwen3np against what people would pick instead: one generated 0.6B, the same token ids and threads.

    python benchmarks/run.py [--folder FOLDER] [--quick] [--only WORKLOAD ...]

Writes benchmarks/results/run.json (not with --only or --quick); benchmarks/report.py makes the README's table
and plots of it. benchmarks/setup_peers.sh makes an environment with all peers; those that are missing are
named.

Every contender has a process of its own. A peer's runs alternate with those of "qwen3np high" and "qwen3np
medium": whatever disturbs the machine disturbs all, and the ratio is of medians of the same minutes. Before
it is timed a contender's vectors are compared with qwen3np at "highest" (cosine), which is also its warm-up.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import processes
import roofline
from contenders import CONTENDERS, Ids, worker
from llvmlite import binding
from qwen3np.kernels import isa

from qwen3np.synth import synthesize
from qwen3np.threads import usable_cores
from qwen3np.tokenizer import EmbeddingTokenizer

RESULTS = Path(__file__).parent / "results" / "run.json"
THREADS = min(2, usable_cores())
RERANK = "rerank 1x100"
OURS = ("qwen3np high", "qwen3np medium")
FIRST = [
    "qwen3np highest", "qwen3np simd", "transformers bf16", "transformers float32",
    "qwen3np high, no sharing", "sentence-transformers bf16",
]  # fmt: skip
SECONDS = 5  # of timed runs of a contender, at the least one and at the most ROUNDS
ROUNDS = 9
GROWTH_LAYERS = 4  # of 28: 32,768 tokens would take ten minutes with all
LONG = 8.0  # seconds: a run that long is its own warm-up
LOWEST_COSINE = 0.98  # of quantised contenders; below it something else is computed
PACKAGES = (
    "qwen3np", "numpy", "numba", "torch", "transformers", "sentence-transformers", "openvino", "onnxruntime",
    "llama-cpp-python",
)  # fmt: skip


@dataclass
class Workload:
    """`peers` are timed beside OURS."""

    ids: Ids
    peers: list[str]
    texts: list[str] = field(default_factory=list)
    prompt: str = ""
    threads: int = THREADS


def workloads(tokenizer: EmbeddingTokenizer) -> dict[str, Workload]:
    rng = np.random.default_rng(0)

    def random(count: int, tokens: int) -> Ids:
        return [
            [*ids, tokenizer.end_of_text] for ids in rng.integers(0, 151000, (count, tokens - 1)).tolist()
        ]

    peers = [
        n for n in CONTENDERS if n not in (*OURS, "sentence-transformers bf16", "qwen3np high, no sharing")
    ]
    torch = ["transformers bf16", "transformers float32"]
    some = ["transformers bf16", "OpenVINO bf16", "llama.cpp Q8_0"]
    words = "the capital of gravity is a force that attracts two bodies and responsible for movement".split()

    def sentences(lengths: Any) -> list[str]:
        return [" ".join(rng.choice(words, length)) for length in lengths]

    mixed = sentences(np.clip(np.exp(rng.normal(4.2, 1.0, 256)), 5, 800).astype(int))
    queries = sentences(rng.integers(7, 19, 256))
    prompt = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    return {
        "1x16": Workload(random(1, 16), peers),
        "1x128": Workload(random(1, 128), some),
        "1x512": Workload(random(1, 512), some),
        "8x128": Workload(random(8, 128), peers),
        "4x512": Workload(random(4, 512), [*torch, "qwen3np highest", "qwen3np simd", "OpenVINO bf16"]),
        "1x8192": Workload(random(1, 8192), ["transformers bf16"]),
        "256 mixed": Workload(
            tokenizer.encode(mixed, 32768), ["sentence-transformers bf16"], mixed
        ),
        "256 instructed": Workload(
            tokenizer.encode(queries, 32768, prompt),
            ["qwen3np high, no sharing", "sentence-transformers bf16"], queries, prompt,
        ),
        "1x16, 1 thread": Workload(random(1, 16), ["transformers bf16"], threads=1),
        "8x128, 1 thread": Workload(random(8, 128), ["transformers bf16"], threads=1),
    }  # fmt: skip


class Worker:
    """A contender's process."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=worker, args=(there, name, folder, threads), daemon=True)
        self.process.start()
        there.close()
        self.name, self.load_seconds, self.error = name, 0.0, ""
        self.load_seconds, _ = self("load")

    def __call__(self, method: str, *arguments: Any) -> tuple[float, Any]:
        if self.error:
            return 0.0, None
        try:
            self.connection.send((method, arguments))
            status, seconds, result = self.connection.recv()
        except (EOFError, OSError):
            status, seconds, result = "error", "its process ended (out of memory?)", None
        if status == "error":
            self.error = str(seconds)
            print(f"  {self.name}: {self.error}", file=sys.stderr)
            return 0.0, None
        return seconds, result

    def encode(self, work: Workload) -> tuple[float, Any]:
        if self.name.startswith("sentence-transformers"):
            return self("encode_texts", work.texts, work.prompt)
        return self("encode", work.ids)

    def close(self) -> None:
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def timed(name: str, workers: list[Worker], run: Any, check: Any, seconds: float) -> list[dict[str, Any]]:
    """A row for each worker: alternating rounds. check(result) -> (figure, whether it is right)."""
    rows, running, warm = [], [], 0.0
    for w in workers:
        first, result = run(w)
        if w.error:
            rows.append({"workload": name, "contender": w.name, "missing": w.error})
            continue
        closeness, right = check(result)
        row = {"workload": name, "contender": w.name, "cosine": closeness, "seconds": []}
        rows.append(row)
        if not right:
            row["missing"] = f"computes something else (cosine {closeness:.3f})"
            continue
        if first < LONG:
            first, _ = run(w)
        warm += first
        row["seconds"].append(first)
        running.append((w, row))
    rounds = int(np.clip(seconds * len(running) / max(warm, 1e-9), 1, ROUNDS)) - 1
    for _ in range(rounds):
        for w, row in running:
            row["seconds"].append(run(w)[0])
    for w, row in running:
        values = row["seconds"]
        row |= {"median": statistics.median(values), "range": [min(values), max(values)]}
        row["load_seconds"] = w.load_seconds
    return rows


def cosine_with(expected: Any) -> Any:
    def check(vectors: Any) -> tuple[float, bool]:
        lowest = float((np.asarray(vectors) * expected).sum(axis=1).min())
        return lowest, lowest >= LOWEST_COSINE

    return check


def compare(
    folder: Path, works: dict[str, Workload], peers: list[str], seconds: float
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each peer in turn, with OURS beside it; a peer is loaded once for all workloads of its
    thread count."""
    for threads in sorted({w.threads for w in works.values()}, reverse=True):
        mine = {name: w for name, w in works.items() if w.threads == threads and set(w.peers) & set(peers)}
        if not mine:
            continue
        ours = [Worker(name, folder, threads) for name in OURS]
        exact = Worker("qwen3np highest", folder, threads)
        # The long ones are compared with "high", which was compared with "highest" in the others.
        expected = {n: (exact if size(w) < 4096 else ours[0]).encode(w)[1] for n, w in mine.items()}
        exact.close()
        for peer in [p for p in peers if any(p in w.peers for w in mine.values())]:
            print(f"{peer} ({threads} threads)", file=sys.stderr)
            rows = []
            beside = Worker(peer, folder, threads)
            for name, work in mine.items():
                if peer in work.peers:
                    check = cosine_with(expected[name])
                    rows += [
                        row | {"threads": threads, "beside": peer}
                        for row in timed(
                            name, [*ours, beside], lambda w, work=work: w.encode(work), check, seconds
                        )
                    ]
                    for row in rows:
                        if row["workload"] == name and "median" in row:
                            row["tokens_per_second"] = size(work) / row["median"]
            _, memory = beside("memory")
            for row in rows:
                if row["contender"] == peer:
                    row["memory_GB"] = memory
            beside.close()
            yield rows
        for w in ours:
            w.close()


def size(work: Workload) -> int:
    """Tokens."""
    return sum(map(len, work.ids))


def rerank(folder: Path, reranker: Path, seconds: float) -> list[dict[str, Any]]:
    """One query, 100 documents of 200 tokens; query and instruction 60 tokens."""
    rng = np.random.default_rng(0)
    words = "the capital of gravity is a force that attracts two bodies and responsible for movement".split()
    query = " ".join(rng.choice(words, 41))
    documents = [" ".join(rng.choice(words, 195)) for _ in range(100)]
    workers = [Worker(name, folder, THREADS) for name in (*OURS, "transformers bf16")]
    expected = workers[0]("rerank", reranker, query, documents)[1]

    def check(scores: Any) -> tuple[float, bool]:
        correlation = float(np.corrcoef(scores, expected)[0, 1])
        return correlation, correlation >= LOWEST_COSINE

    rows = timed(RERANK, workers, lambda w: w("rerank", reranker, query, documents), check, seconds)
    for w in workers:
        w.close()
    return [row | {"threads": THREADS, "beside": "transformers bf16"} for row in rows]


def growth(folder: Path, longest: int) -> list[dict[str, Any]]:
    """Time and memory of "qwen3np high" and "medium" against the length of one text, and against the tokens
    of a batch of texts of 128."""
    rows = []
    rng = np.random.default_rng(0)
    for name in OURS:
        w = Worker(name, folder, THREADS)
        w("encode", [[1] * 64])
        for kind, step in (("sequence length", 0), ("batch tokens", 128)):
            tokens = max(16, step)
            while tokens <= (longest if kind == "sequence length" else min(longest, 16384)):
                count = tokens // step if step else 1
                ids = rng.integers(0, 151000, (count, step or tokens)).tolist()
                seconds = [w("encode", ids)[0] for _ in range(3 if tokens <= 2048 else 1)]
                memory = w("memory")[1]
                rows.append(
                    {"contender": name, "kind": kind, "tokens": tokens, "memory_GB": memory}
                    | {"seconds": statistics.median(seconds)}
                )
                tokens *= 2
        w.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a generated 0.6B (default: one is made, 20 seconds)")
    parser.add_argument("--tokenizer", type=Path, help="a real tokenizer.json for generated models")
    parser.add_argument(
        "--quick", action="store_true", help="under five minutes: two workloads, PyTorch only"
    )
    parser.add_argument(
        "--proceed", action="store_true", help="keep the figures of run.json, measure the rest"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORKLOAD")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or synthesize(Path(temporary) / "0.6B", "0.6B", tokenizer=args.tokenizer)
        tokenizer = EmbeddingTokenizer(folder / "tokenizer.json", 151669)
        works = {n: w for n, w in workloads(tokenizer).items() if not args.only or n in args.only}
        if args.quick:
            works = {n: w for n, w in works.items() if n in ("1x16", "8x128")}
            for w in works.values():
                w.peers = [p for p in w.peers if p.startswith("transformers")]
        seconds = 5 if args.quick else SECONDS
        whole = not args.only and not args.quick
        results: dict[str, Any] = {"rows": []}
        if args.proceed and RESULTS.exists():
            results = json.loads(RESULTS.read_text())
        else:
            results |= {"about": about(), "roofline": roofline.measure(THREADS)}
        rows = results["rows"]
        done = {row["beside"] for row in rows}

        def save() -> None:
            """After every peer: half an hour's figures are not lost with the last of them."""
            if whole:
                partial = RESULTS.with_suffix(".partial")
                partial.write_text(json.dumps(results, indent=1) + "\n")
                partial.replace(RESULTS)

        def peers(names: list[str]) -> None:
            for new in compare(folder, works, [name for name in names if name not in done], seconds):
                rows.extend(new)
                save()

        peers(FIRST)
        if (whole or "rerank" in args.only) and not any(row["workload"] == RERANK for row in rows):
            reranker = Path(temporary) / "reranker"
            synthesize(reranker, "reranker-0.6B", tokenizer=folder / "tokenizer.json")
            rows += rerank(folder, reranker, seconds)
            save()
        if whole and "processes" not in results:
            results["processes"] = processes.measure(folder)
            save()
        if whole and "growth" not in results:
            shallow = synthesize(Path(temporary) / "shallow", "0.6B", layers=GROWTH_LAYERS)
            results["growth"] = growth(shallow, 32768)
            save()
        peers([name for name in CONTENDERS if name not in FIRST])
        for row in rows:
            print(line(row))
        print(json.dumps(results["roofline"]))


def line(row: dict[str, Any]) -> str:
    if "missing" in row:
        return f"{row['workload']:18}{row['contender']:28}{row['missing']}"
    low, high = row["range"]
    return (
        f"{row['workload']:18}{row['contender']:28}{1e3 * row['median']:10.1f} ms "
        f"({1e3 * low:.1f}-{1e3 * high:.1f}, {len(row['seconds'])} runs)  cosine {row['cosine']:.6f}"
    )


def about() -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": binding.get_host_cpu_name(),
        "isa": {precision: isa.choose(precision) for precision in ("highest", "high", "medium")},
        "cores": usable_cores(),
        "threads": THREADS,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    main()
