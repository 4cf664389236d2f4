"""`qwen3np serve` against `Embedder.encode` and infinity_emb: the same generated model, texts and cores.

    python benchmarks/server.py --model DIR --reranker DIR     an hour with a 0.6B; writes results/server.json
    python benchmarks/server.py --model DIR --quick            a few rounds of everything, minutes

Servers, encode and clients have a process each, and one at a time computes: in rounds, in an order drawn anew
(pairs.py). Clients share the server's cores; what they take of them is in the table. The vectors of the first
round of each are compared with encode's afterwards. infinity_emb is found where benchmarks/setup_peers.sh
puts it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pairs
from machine import about, describe
from server_report import FEW, LONG, MANY, NEW, NOTHING, ONE, tables
from server_runs import Offline, RerankRounds, Rounds, Served, Texts, beside
from servers import Server, infinity, ours
from workers import Models, Worker, say
from workloads import BEFORE_DOCUMENT, VOCABULARY

from qwen3np.files.atomic import write_file
from qwen3np.kernels import isa
from qwen3np.loading.tokenizer import EmbeddingTokenizer, RerankerTokenizer
from qwen3np.runtime.cores import usable_cores

RESULTS = Path(__file__).parent / "results" / "server.json"
PACKAGES = "qwen3np", "numpy", "numba", "uvicorn"
INFINITY = Path(sys.prefix, "infinity", "bin", "python")
THREADS = min(2, usable_cores())

LOAD = 0.25  # of the queries per second of FEW clients, where long texts come between
DOCUMENTS = {16: (200, 50), 128: (60, 20)}  # tokens -> requests of one query, and of a new instruction each
SECONDS = {"a run": 15.0, "a peer": 120.0, "alone": 60.0, "mixed": 90.0}
QUICK = {"a run": 2.0, "a peer": 0.0, "alone": 5.0, "mixed": 10.0}
PARTS = "throughput", "prompted", "alone", "mixed", "rerank"
FEWEST_ALONE, MOST_ALONE = 10, 200  # requests of one client


class Bench:
    """Everything that runs, and what was measured of it."""

    def __init__(self, args: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self.folder, self.reranker = args.model, args.reranker
        self.seconds, self.mixed_rounds = (QUICK, 1) if args.quick else (SECONDS, 2)
        self.tokenizer = EmbeddingTokenizer(args.model / "tokenizer.json", VOCABULARY + 669)
        self.results: dict[str, Any] = {"about": about(THREADS), "model": args.model.name}
        # Where two precisions are the same code, one is measured.
        same = isa.choose("high") == isa.choose("medium")
        self.precisions = ["high"] if same or args.quick else ["high", "medium"]
        self.offline: dict[str, Worker] = {}
        self.servers: dict[str, Server] = {}
        models = [args.model, *([args.reranker] if args.reranker else [])]
        for precision in self.precisions:
            name = f"qwen3np {precision}"
            say(name)
            self.offline[name] = Worker(name, Models(args.model, args.reranker), THREADS)
            stack.callback(self.offline[name].close)
            self.start(stack, name, ours(*models, options=self.options(name)))
        for dtype in args.peers:
            name = f"infinity_emb {dtype}"
            say(name)
            try:
                self.start(stack, name, infinity(args.peer_python, args.model, dtype))
            except (OSError, RuntimeError) as error:
                say(f"left out: {name}: {error}")

    def options(self, name: str) -> list[str]:
        """Return the flags of a server."""
        return ["--matmul-precision", name.removeprefix("qwen3np "), "--threads", str(THREADS)]

    def start(self, stack: contextlib.ExitStack, name: str, command: list[str]) -> None:
        """Start a server that ends with the stack."""
        self.servers[name] = Server(command, {"OMP_NUM_THREADS": str(THREADS)})
        stack.callback(self.servers[name].stop)

    def peers(self) -> list[str]:
        return [name for name in self.servers if name not in self.offline]

    # ---- throughput

    def throughput(self, prompt_name: str | None = None) -> None:
        """FEW and MANY clients, encode and peers; with a prompt, FEW clients and encode."""
        prompt = prompt_of(self.folder, prompt_name) if prompt_name else ""
        suffix = f', prompt "{prompt_name}"' if prompt_name else ""
        contenders: dict[str, Offline | Served] = {}
        for name, worker in self.offline.items():
            contenders[f"{name}, encode{suffix}"] = Offline(worker, prompt)
            for clients in (FEW,) if prompt_name else (FEW, MANY):
                served = Served(self.servers[name], False, clients, prompt_name)
                contenders[f"{name}, {clients} clients{suffix}"] = served
        for name in () if prompt_name else self.peers():
            contenders[f"{name}, {FEW} clients"] = Served(self.servers[name], True, FEW)
        whole = self.fitting(next(iter(contenders.values())), MANY, 2 * MANY, 64 * MANY)
        runs: dict[str, Rounds] = {}
        for name, contender in contenders.items():
            count = whole
            if isinstance(contender, Served) and contender.peer:
                count = self.fitting(contender, FEW, 2 * FEW, whole)
            else:
                contender.encode(self.texts("warm-up")(0, MANY))
            if isinstance(contender, Served):
                contender.forget()
            many = isinstance(contender, Served) and contender.clients == MANY
            texts = self.texts(f"{MANY} clients" if many else f"throughput{suffix}")
            runs[name] = Rounds(contender, texts, count, whole)
        mine = [name for name in runs if f"{FEW} clients" in name and name.startswith("qwen3np")]
        measured = pairs.in_turns(dict(runs), mine, self.seconds["a peer"])
        rows = []
        for name, seconds in measured.items():
            contender, own = contenders[name], name.split(",")[0]
            beside = own if own in self.offline else next(iter(self.offline))
            offline = contenders[f"{beside}, encode{suffix}"]
            row = {
                "contender": name, "texts": whole, "seconds": seconds, "median": statistics.median(seconds),
                "ratios": {o: pairs.ratio(seconds, measured[o]) for o in mine if o != name},
            }  # fmt: skip
            if isinstance(contender, Served):
                row["1 - cosine"] = 1 - runs[name].compare(offline, own in self.offline)
                row["latency"] = quantiles(contender.latencies)
                row["client, ms"] = 1e3 * contender.busy / contender.asked
            rows.append(row)
            say(f"{name}: {whole / row['median']:.1f} texts/s")
        self.results.setdefault("throughput", []).extend(rows)

    def prompted(self) -> None:
        """The same behind the model's prompt for queries."""
        self.throughput("query")

    def texts(self, kind: str) -> Texts:
        """Return the texts of a kind of rounds."""
        return Texts(self.tokenizer, kind)

    def fitting(self, contender: Offline | Served, step: int, least: int, most: int) -> int:
        """Return how many texts take as long as a run should: a multiple of `step`, so that all are busy."""
        contender.encode(self.texts("first")(0, 2))  # what compiles on the first call does so here
        seconds, _ = contender.encode(self.texts("fitting")(0, step))
        return int(np.clip(round(self.seconds["a run"] / seconds), least // step, most // step)) * step

    # ---- one client

    def alone(self) -> None:
        """One request at a time, of a server that is idle: each text in turns."""
        contenders: dict[str, Offline | Served] = {
            f"{n}, encode": Offline(w) for n, w in self.offline.items()
        }
        for name, server in self.servers.items():
            contenders[f"{name}, 1 client"] = Served(server, name not in self.offline, 1)
        for contender in contenders.values():
            for turn in range(3):
                contender.encode(self.texts("warm-up alone")(turn, 1))
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        order, shuffle = list(contenders), random.Random(0).shuffle
        for turn in range(MOST_ALONE):
            shuffle(order)
            for name in order:
                contender = contenders[name]
                taken, _ = contender.encode(self.texts("alone")(turn, 1))
                # A server's is the latency of the request, without the connection's start.
                seconds[name].append(contender.latencies[-1] if isinstance(contender, Served) else taken)
            if turn >= FEWEST_ALONE:
                order = [name for name in order if sum(seconds[name]) < self.seconds["alone"]]
            if not any(name.startswith("qwen3np") for name in order):
                break
        mine = [f"{name}, 1 client" for name in self.offline]
        for name, taken in seconds.items():
            row = {"contender": name, "latency": quantiles(taken), "requests": len(taken)}
            row["ratios"] = {o: pairs.ratio(taken, seconds[o]) for o in mine if o != name}
            if name in mine:
                exact = seconds[name.replace("1 client", "encode")]
                both = min(len(taken), len(exact))
                row["overhead"] = pairs.interval(1e3 * np.subtract(taken[:both], exact[:both]))
            self.results.setdefault("alone", []).append(row)

    # ---- lengths mixed

    def mixed(self) -> None:
        """Queries at LOAD of what FEW clients get, with and without a long text after another."""
        name = next(iter(self.offline))
        server = self.servers[name]
        queries = Served(server, False, FEW)
        count = self.fitting(queries, FEW, 4 * FEW, 64 * FEW)
        rate = LOAD * count / queries.encode(self.texts("mixed")(0, count))[0]
        latencies: dict[str, list[float]] = {"alone": [], "with": []}
        refused = dict.fromkeys(latencies, 0)
        lasted: list[float] = []
        rng = np.random.default_rng(0)
        for turn in range(self.mixed_rounds):
            for kind in rng.permutation(list(latencies)):
                gaps = rng.exponential(1 / rate, int(rate * self.seconds["mixed"]))
                requests = [queries.request(text) for text in self.texts(f"mixed {kind}")(turn, len(gaps))]
                most = int(self.seconds["mixed"]) + 2 if kind == "with" else 0
                long = [queries.request(text) for text in self.texts("long")(turn, most, LONG - 1)]
                found, took = asyncio.run(beside(server.port, requests, np.cumsum(gaps), long))
                latencies[kind] += [seconds for seconds in found if seconds is not None]
                refused[kind] += found.count(None)
                lasted += took
        self.results["mixed"] = {
            "queries per second": rate, "alone": quantiles(latencies["alone"]),
            "with": quantiles(latencies["with"]), "long texts": len(lasted),
            "a long text, s": statistics.median(lasted), "refused": refused,
        }  # fmt: skip

    # ---- reranking

    def rerank(self) -> None:
        """One document per request, with a kept prefix and without.

        "nothing kept" is a server that keeps no prefix, and gets the same requests. "a new instruction each"
        has as many tokens, of which the server knows the system part and a digit or two of the instruction.
        """
        if not self.reranker:
            return say("left out: there is no --reranker")
        name = next(iter(self.offline))
        tokenizer = RerankerTokenizer(self.reranker / "tokenizer.json", VOCABULARY + 669)
        with contextlib.ExitStack() as stack:
            command = keeps_nothing(ours(self.reranker, options=self.options(name)))
            self.start(stack, "nothing kept", command)
            # A small tokenizer takes more tokens for the system part; what pairs share is as long.
            empty = len(tokenizer.encode([("", "")], "", 8192)[0]) - len(tokenizer.answer)
            tokens = max(16, BEFORE_DOCUMENT - empty)
            query, instruction = self.texts("query and instruction")(0, 2, tokens // 2)
            for tokens, (same, new) in DOCUMENTS.items():
                texts = [self.texts(f"rerank {tokens} {kind}") for kind in range(2)]
                asked = RerankRounds(
                    self.servers[name].port, texts[0], tokens, query, instruction, same, True
                )
                kinds = {
                    ONE: asked,
                    NOTHING: asked.at(self.servers["nothing kept"].port, texts[0], new, True),
                    NEW: asked.at(self.servers[name].port, texts[1], new, False),
                }
                measured = pairs.in_turns(dict(kinds), [ONE], self.seconds["a peer"] / new)
                documents = asked.texts(asked.turn - 1, same, tokens)
                exact = self.offline[name](
                    "rerank", self.reranker, asked.instruction_of(0), query, documents
                )[1]
                if not np.array_equal(asked.scores, exact):
                    raise ValueError("the server's scores are not those of predict")
                with_query = [(query, document) for document in documents]
                lengths = [len(i) for i in tokenizer.encode(with_query, asked.instruction_of(0), 8192)]
                self.results.setdefault("rerank", []).append({
                    "document": tokens, "tokens": statistics.mean(lengths),
                    "seconds": measured,
                    "ratios": {kind: pairs.ratio(measured[kind], measured[ONE]) for kind in (NOTHING, NEW)},
                    "requests": same,
                })  # fmt: skip


def keeps_nothing(command: list[str]) -> list[str]:
    """Return the command of a server that computes every prefix anew."""
    python, _, _, *arguments = command
    program = "from qwen3np.runtime import prefix_cache as p; p.MIN_PREFIX = 1 << 30; p.SMALL_CALL = 0; "
    return [python, "-c", program + "from qwen3np.cli import main; main()", *arguments]


def prompt_of(folder: Path, name: str) -> str:
    """Return a prompt of the model's folder."""
    found: str = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"][name]
    return found


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return milliseconds."""
    median, p95 = 1e3 * np.percentile(seconds, [50, 95])
    return {"median": float(median), "p95": float(p95), "max": 1e3 * max(seconds)}


def save(results: dict[str, Any]) -> None:
    """Put a model's results beside those of others."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found[results["model"]] = results
    write_file(RESULTS, json.dumps(found, indent=1).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a generated embedding model")
    parser.add_argument("--reranker", type=Path, help="a generated reranker of the same shape")
    parser.add_argument("--quick", action="store_true", help="few rounds; nothing is written")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts; nothing is written")
    parser.add_argument("--peers", nargs="*", metavar="DTYPE", default=["bfloat16", "float32"])
    parser.add_argument("--peer-python", type=Path, default=INFINITY, help="the Python that has infinity_emb")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        bench = Bench(args, stack)
        for part in args.only or PARTS:
            say(part)
            getattr(bench, part)()
    if not args.quick and not args.only:
        save(bench.results)
    print("\n\n".join(f"{title}\n\n{table}" for title, table in tables(bench.results).items()))
    print(f"\n{describe(bench.results['about'], PACKAGES)}")


if __name__ == "__main__":
    main()
