"""What the model is worth on texts it never saw: retrieval and similarity, beside BM25 and the teacher.

python training/evaluate.py --work build/training
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import card
import numpy as np
import pairs
import sources
import torch
import wordnet
from export import export
from numpy.typing import NDArray
from safetensors.torch import load_file
from student import CONFIG, THETA
from teacher import Teacher
from texts import DIMENSIONS, LENGTH
from transformers import Qwen3Config, Qwen3Model
from vocabulary import SIZE

from qwen3np import Embedder
from qwen3np.quantization import quantize_embeddings
from qwen3np.search import semantic_search

RESULTS = Path(__file__).parent / "RESULTS.json"
MODEL = Path(__file__).parent.parent / "qwen3np/models/qwen3np-tiny"
GROUPS = Path(__file__).parent.parent / "tests/meaning_groups.json"
COUNT = 1000  # pairs of a task
LOGGED = 200  # steps between the losses that are recorded
WORD_PAIRS = 600

Matrix = NDArray[np.float32]
Encoder = Callable[[list[str], bool], Matrix]  # texts, and whether they are queries


class Task:
    """Queries, the documents, and which one answers each query."""

    def __init__(self, found: list[pairs.Pair]) -> None:
        self.queries = [pair.query for pair in found]
        self.documents = list(dict.fromkeys(pair.document for pair in found))
        place = {document: i for i, document in enumerate(self.documents)}
        self.answers = np.array([place[pair.document] for pair in found])

    def ndcg(self, scores: Matrix) -> float:
        """Return nDCG@10 of scores [queries, documents]: 1 / log2(1 + rank) of the one right answer."""
        own = scores[np.arange(len(scores)), self.answers][:, None]
        # Of equal scores half are before it, so that a constant score is worth nothing.
        rank = (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
        return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())

    def ndcg_of(self, encode: Encoder) -> float:
        """Return that of an encoder's cosines."""
        return self.ndcg(encode(self.queries, True) @ encode(self.documents, False).T)


def bm25(task: Task, k: float = 1.2, b: float = 0.75) -> Matrix:
    """Return Okapi BM25's scores [queries, documents]."""
    words = [Counter(re.findall(r"\w+", text.lower())) for text in task.documents]
    sizes = np.array([sum(count.values()) for count in words])
    holders: dict[str, list[int]] = {}
    for i, count in enumerate(words):
        for word in count:
            holders.setdefault(word, []).append(i)
    scores = np.zeros((len(task.queries), len(words)), np.float32)
    for row, query in zip(scores, task.queries, strict=True):
        for word in set(re.findall(r"\w+", query.lower())) & holders.keys():
            at = np.array(holders[word])
            times = np.array([words[i][word] for i in at])
            rarity = math.log(1 + (len(words) - len(at) + 0.5) / (len(at) + 0.5))
            row[at] += rarity * times * (k + 1) / (times + k * (1 - b + b * sizes[at] / sizes.mean()))
    return scores


def groups_right(encode: Encoder) -> int:
    """Return in how many of the hand-written groups the right document is the nearest."""
    groups = json.loads(GROUPS.read_text(encoding="utf-8"))
    queries = encode([query for query, _ in groups], True)
    documents = encode([text for _, texts in groups for text in texts], False).reshape(len(groups), 4, -1)
    return int((np.einsum("gd,gnd->gn", queries, documents).argmax(1) == 0).sum())


def spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Return the correlation of ranks; equal values have the mean of theirs."""

    def ranks(x: NDArray[np.floating]) -> NDArray[np.float64]:
        _, inverse, count = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def encoder(model: Embedder, dimensions: int | None = None) -> Encoder:
    """Return the encoder of a model of this package."""

    def encode(texts: list[str], query: bool) -> Matrix:
        name = "query" if query else "document"
        return model.encode(texts, name, truncate_dim=dimensions)

    return encode


def binary(task: Task, model: Embedder) -> float:
    """Return nDCG@10 of a search among bits, the nearest forty scored again with the floats."""
    documents = model.encode_document(task.documents)
    found = semantic_search(
        model.encode_query(task.queries), quantize_embeddings(documents, "ubinary"), 10,
        corpus_precision="ubinary", rescore_embeddings=documents,
    )  # fmt: skip
    ranks = (
        [hit["corpus_id"] for hit in hits].index(own) if any(hit["corpus_id"] == own for hit in hits) else 10
        for hits, own in zip(found, task.answers.tolist(), strict=True)
    )
    return float(np.mean([1 / math.log2(rank + 2) if rank < 10 else 0.0 for rank in ranks]))


def untrained(work: Path, folder: Path) -> Embedder:
    """Return the same model with random weights."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": THETA}
    model = Qwen3Model(Qwen3Config(**CONFIG, vocab_size=SIZE, rope_parameters=rope))
    export(model.state_dict(), work / "tokenizer.json", folder)
    return Embedder(folder)


def evaluate(work: Path) -> dict[str, dict[str, float]]:
    """Return task -> what is scored -> score."""
    held = sorted(
        (p for p in pairs.read(work / "pairs.jsonl") if p.held_out), key=lambda p: pairs.hashed(p.query)
    )
    tasks = {
        "word or question -> gloss": Task([p for p in held if p.kind == "gloss"][:COUNT]),
        "example -> gloss": Task([p for p in held if p.kind == "example"][:COUNT]),
        "heading or sentence -> paragraph": Task(
            [p for p in held if p.kind in ("question", "sentence")][:COUNT]
        ),
    }
    teacher = Teacher(sources.teacher(work / "sources"))
    model = Embedder(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        encoders = {
            "qwen3np-tiny": encoder(model),
            "random weights": encoder(untrained(work, Path(folder))),
            "teacher": lambda texts, query: teacher.encode(texts),
            **{f"{d} dimensions": encoder(model, d) for d in DIMENSIONS[:-1]},
            "medium": encoder(Embedder(MODEL, matmul_precision="medium")),
            "low": encoder(Embedder(MODEL, matmul_precision="low")),
            "int8 weights": encoder(Embedder(MODEL, weights="int8")),
        }
        results = {}
        for name, task in tasks.items():
            results[f"nDCG@10, {name}"] = {
                **{who: task.ndcg_of(encode) for who, encode in encoders.items()},
                "BM25": task.ndcg(bm25(task)),
                "binary, rescored": binary(task, model),
            }
        results["groups of 50 that rank right"] = {w: groups_right(e) for w, e in encoders.items()}
        sentences = tasks["example -> gloss"]
        of_teacher = np.einsum("nd,nd->n", *both(encoders["teacher"], sentences))
        results["Spearman with the teacher, sentence pairs"] = {
            who: spearman(np.einsum("nd,nd->n", *both(encode, sentences)), of_teacher)
            for who, encode in encoders.items()
        }
        words = wordnet.word_pairs(wordnet.read(work / "sources/wordnet/package/dict"), WORD_PAIRS)
        nearness = np.array([near for *_, near in words])
        results["Spearman with WordNet's path similarity, word pairs"] = {
            who: spearman(
                np.einsum("nd,nd->n", *(encode([pair[i] for pair in words], False) for i in (0, 1))), nearness
            )
            for who, encode in encoders.items()
        }
    return {task: {who: round(score, 4) for who, score in row.items()} for task, row in results.items()}


def both(encode: Encoder, task: Task) -> tuple[Matrix, Matrix]:
    """Return the vectors of sentence pairs: half of an example and its gloss, half of one and another's."""
    answers = task.answers.copy()
    answers[::2] = np.roll(answers[::2], 1)
    return encode(task.queries, False), encode(task.documents, False)[answers]


def report(work: Path) -> None:
    """Evaluate the packaged model; write RESULTS.json and the model card."""
    log = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in log if line["step"] % LOGGED == 0}
    scores = evaluate(work)
    facts = {
        "parameters": sum(math.prod(t.shape) for t in load_file(MODEL / "model.safetensors").values()) / 1e6,
        "megabytes": (MODEL / "model.safetensors").stat().st_size / 1e6,
        "layers": CONFIG["num_hidden_layers"],
        "vocabulary": SIZE,
        "size": CONFIG["hidden_size"],
        "dimensions": ", ".join(map(str, DIMENSIONS[:-1])),
        "dimensions_all": ", ".join(map(str, DIMENSIONS)),
        "length": LENGTH,
        "taught": len(np.load(work / "vectors.npy", mmap_mode="r")),
        "steps": log[-1]["step"],
    }
    results = {"scores": scores, **facts, "seconds": log[-1]["seconds"], "losses": losses}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    card.write(MODEL / "README.md", scores, facts)
    for task, row in scores.items():
        print(task, row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    report(parser.parse_args().work)
