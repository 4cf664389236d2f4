"""What 8 bits cost where it is hard: a model with outlier channels, 1,000 queries, 2,000 documents.

    python benchmarks/agreement.py [FOLDER]                  writes results/agreement.json
    python benchmarks/agreement.py [FOLDER] --only NAME ...  of contenders.py; writes nothing

FOLDER holds such a model (`qwen3np synth FOLDER --like 0.6B --outliers`), and gets the peers' files; without
it one is made in a temporary folder, which takes 8 GB with them. benchmarks/setup_peers.sh makes an
environment with all peers; those that are missing are named.

The truth is qwen3np at "highest", 4e-13 from float64 (accuracy.py). A contender's error is that of its
vectors, and that of the rankings by them: who else's first document, and whose first ten. Texts are of 200
topics, so that there is something to find, and begin with a massive activation, as all do in the real model.
PyTorch's bfloat16 is left out where the CPU has no such products: in software it takes hours.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS
from machine import about, describe
from numpy.typing import NDArray
from report import far, markdown
from workers import LAYERS, Models, Worker, say
from workloads import VOCABULARY, Ids

from qwen3np.files.atomic import write_file
from qwen3np.kernels import isa
from qwen3np.loading.checkpoint import Checkpoint
from qwen3np.loading.tokenizer import EmbeddingTokenizer
from qwen3np.runtime.cores import usable_cores
from qwen3np.runtime.numba_backend import FLOATING, PRECISIONS
from qwen3np.synth.checkpoints import massive_token_ids, synthesize

RESULTS = Path(__file__).parent / "results" / "agreement.json"
TOPICS, WORDS = 200, 24  # words of a topic
OF_TOPIC = 0.7  # words of a text that are its topic's
QUERIES, QUERY = 1000, (4, 8)  # words
DOCUMENTS, DOCUMENT = 2000, (8, 16)
TOP = 10
TRUTH = "qwen3np highest"
PEERS = [
    "transformers bf16", "transformers int8", "ONNX Runtime int8", "ONNX Runtime MatMulNBits-8",
    "OpenVINO int8",
]  # fmt: skip
PACKAGES = "numpy", "torch", "transformers", "onnxruntime", "openvino", "nncf"


def corpus(folder: Path) -> tuple[Ids, Ids]:
    """Token ids of the queries, and of the documents."""
    rng = np.random.default_rng(0)
    config = Checkpoint(folder).config
    tokenizer = EmbeddingTokenizer(folder / "tokenizer.json", config.vocab_size)
    massive = massive_token_ids(config, seed=0)
    topics = rng.integers(0, min(VOCABULARY, config.vocab_size - 64), (TOPICS, WORDS))

    def text(topic: int, shortest: int, longest: int) -> list[int]:
        words = int(rng.integers(shortest, longest + 1))
        of_topic = rng.random(words) < OF_TOPIC
        ids = np.where(of_topic, rng.choice(topics[topic], words), rng.choice(topics.ravel(), words))
        return [int(rng.choice(massive)), *ids.tolist(), tokenizer.end_of_text]

    queries = [text(i % TOPICS, *QUERY) for i in range(QUERIES)]
    return queries, [text(i % TOPICS, *DOCUMENT) for i in range(DOCUMENTS)]


def ours() -> list[str]:
    """Those that compute something of their own here: most CPUs have one way to multiply float32."""
    names, seen = [], set()
    for weights, precisions in (("", FLOATING), (" int8", PRECISIONS)):
        for precision in precisions:
            path = weights, isa.choose(precision)
            if path not in seen:
                names.append(f"qwen3np {precision}{weights}")
            if path[1] in (isa.SIMD, isa.AVX2, isa.AVX512_BF16):
                seen.add(path)
    return names


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return np.float64(vectors) / np.linalg.norm(np.float64(vectors), axis=1, keepdims=True)


def apart(vectors: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
    """1 - cosine of each pair."""
    return np.maximum(1 - np.einsum("ij,ij->i", unit(vectors), unit(truth)), 0)


def ranking(vectors: NDArray[Any]) -> NDArray[Any]:
    """Each query's TOP documents, the best first; the first QUERIES vectors are the queries'."""
    similarities = unit(vectors[:QUERIES]) @ unit(vectors[QUERIES:]).T
    return np.argsort(-similarities, axis=1, kind="stable")[:, :TOP]


def agreement(vectors: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    errors, best, right = apart(vectors, truth), ranking(vectors), ranking(truth)
    found = np.mean([len(np.intersect1d(*both)) for both in zip(best, right, strict=True)])
    return {
        "median": float(np.median(errors)),
        "largest": float(errors.max()),
        "first": float((best[:, 0] == right[:, 0]).mean()),
        "ten": float(found / TOP),
    }


def measure(folder: Path, names: list[str], threads: int) -> Iterator[dict[str, Any]]:
    """Yield the results so far, after each contender."""
    queries, documents = corpus(folder)
    texts = queries + documents
    rows: list[dict[str, Any]] = []
    model = asdict(Checkpoint(folder).config)
    results = {"about": about(threads), "model": model, "tokens": sum(map(len, texts)), "rows": rows}
    truth: Any = None
    for name in dict.fromkeys([TRUTH, *names]):
        say(name)
        worker = Worker(name, Models(folder, folder), threads)
        seconds, vectors = worker("run", texts, [], "")
        worker.close()
        truth = vectors if name == TRUTH else truth
        if truth is None:
            raise SystemExit(worker.error)
        if worker.error and name.startswith("qwen3np"):
            continue  # precision and weights that do not go together
        row = {"missing": worker.error} if worker.error else agreement(vectors, truth) | {"seconds": seconds}
        rows.append({"contender": name} | row)
        say(" ".join(map(str, rows[-1].values())))
        yield results


def table(results: dict[str, Any]) -> str:
    lines = []
    for r in results["rows"]:
        if "missing" in r:
            cells = [r["missing"], "", "", ""]
        else:
            cells = [far(r["median"]), far(r["largest"]), f"{r['first']:.1%}", f"{r['ten']:.1%}"]
        lines.append([r["contender"], *cells])
    header = ["", "1 - cosine, median", "largest", "same first document", "of the first ten"]
    model = results["model"]
    return markdown(header, lines) + (
        f"\n\n{QUERIES:,} queries and {DOCUMENTS:,} documents of {results['tokens']:,} tokens in all; "
        f"hidden_size {model['hidden_size']:,}, {model['num_hidden_layers']} layers; "
        f"{describe(results['about'], PACKAGES)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of the model, and of the peers' files")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the model that is made")
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CONTENDERS)
    args = parser.parse_args()
    slow = [] if isa.has_feature("avx512bf16") or isa.has_feature("amx-bf16") else ["transformers bf16"]
    names = args.only or [*ours(), *(peer for peer in PEERS if peer not in slow)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder
        if folder is None:
            folder = synthesize(Path(temporary) / "0.6B", "0.6B", layers=args.layers, outliers=True)
        for results in measure(folder, names, args.threads):
            if not args.only:
                write_file(RESULTS, json.dumps(results, indent=1).encode() + b"\n")
    print(table(results))


if __name__ == "__main__":
    main()
