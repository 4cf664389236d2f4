"""Ways to run the same model on the same CPU, each in a process of its own.

A contender takes token ids, a list of lists, and gives unit vectors [texts, hidden_size] of the last tokens.
Texts of unequal length are sorted and padded in batches of 32 where the contender needs padding. A peer that
is not installed, or whose export fails, says so and is left out.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

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
    """qwen3np. options: matmul_precision, and the instruction path for QWEN3NP_ISA."""

    def __init__(self, folder: Path, threads: int, precision: str, path: str = "") -> None:
        if path:
            os.environ["QWEN3NP_ISA"] = path
        from qwen3np import Embedder

        self.model = Embedder(folder, matmul_precision=precision, num_threads=threads)
        self.options = {"matmul_precision": precision, "num_threads": threads}

    def encode(self, ids: Ids) -> np.ndarray:
        return normalize(self.model.backend.encode(ids))

    def rerank(self, folder: Path, query: str, documents: list[str]) -> np.ndarray:
        from qwen3np import Reranker

        if not hasattr(self, "reranker"):
            self.reranker = Reranker(folder, **self.options)
        return self.reranker.predict([(query, d) for d in documents], raw_scores=True)


class WithoutSharing(Ours):
    """qwen3np as if no two texts began alike."""

    def encode(self, ids: Ids) -> np.ndarray:
        from qwen3np import beginnings

        beginnings.SHORTEST = 1 << 30
        return super().encode(ids)


class Transformers:
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
            with self.torch.no_grad():
                states = self.model(self.torch.from_numpy(padded), **masked).last_hidden_state
            return states.float().numpy()

        return in_batches(ids, run)

    def rerank(self, folder: Path, query: str, documents: list[str]) -> np.ndarray:
        """The model card's code: padded in front, the logits of the last position."""
        from transformers import AutoModelForCausalLM

        from qwen3np.reranker import INSTRUCTION
        from qwen3np.tokenizer import RerankerTokenizer

        if not hasattr(self, "reranker"):
            self.reranker = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()
        tokenizer = RerankerTokenizer(folder / "tokenizer.json", self.reranker.config.vocab_size)
        ids = tokenizer.encode([(query, d) for d in documents], INSTRUCTION, 8192)
        yes, no = tokenizer.token_id("yes"), tokenizer.token_id("no")
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        scores = np.empty(len(ids), np.float32)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            width = len(ids[rows[0]])
            padded = self.torch.tensor([[0] * (width - len(ids[i])) + ids[i] for i in rows])
            mask = self.torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in rows])
            with self.torch.no_grad():
                logits = self.reranker(padded, attention_mask=mask, logits_to_keep=1).logits[:, -1]
            scores[rows] = (logits[:, yes] - logits[:, no]).float().numpy()
        return scores


class SentenceTransformers:
    """From token ids too: its tokenizer is replaced by one that looks them up."""

    def __init__(self, folder: Path, threads: int, dtype: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        options = {"dtype": getattr(torch, dtype)}
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs=options)

    def encode_texts(self, texts: list[str], prompt: str) -> np.ndarray:
        return self.model.encode(texts, prompt=prompt, batch_size=BATCH)


def _last_states(folder: Path) -> Any:
    """transformers' model in float32 as a module of two tensors, for exporters."""
    import torch
    from transformers import AutoModel

    class LastStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            ).eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            options = {"use_cache": False, "attention_mask": attention_mask}
            return self.model(input_ids, **options).last_hidden_state

    return LastStates().eval()


class OpenVINO:
    def __init__(self, folder: Path, threads: int, hint: str) -> None:
        import openvino
        import torch

        example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            model = openvino.convert_model(_last_states(folder), example_input=example)
        options = {
            "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        self.model = openvino.Core().compile_model(model, "CPU", options)

    def encode(self, ids: Ids) -> np.ndarray:
        return in_batches(ids, lambda padded, mask: self.model([padded, mask])[0])


class ONNXRuntime:
    def __init__(self, folder: Path, threads: int, precision: str) -> None:
        import onnxruntime
        import torch

        self.temporary = tempfile.TemporaryDirectory()  # the exported weights are mapped from here
        path = str(Path(self.temporary.name) / "model.onnx")
        batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
        example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in range(2))
        with torch.no_grad():
            torch.onnx.export(
                _last_states(folder), example, path, dynamo=True, external_data=True,
                input_names=["input_ids", "attention_mask"],
                dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
            )  # fmt: skip
        if precision == "int8":
            from onnxruntime.quantization import quantize_dynamic

            quantized = path.replace("model", "int8")
            options = {"op_types_to_quantize": ["MatMul"], "per_channel": True}
            quantize_dynamic(path, quantized, use_external_data_format=True, **options)
            path = quantized
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, session, providers=["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]

    def encode(self, ids: Ids) -> np.ndarray:
        def run(padded: np.ndarray, mask: np.ndarray) -> np.ndarray:
            return self.session.run(None, dict(zip(self.names, (padded, mask), strict=True)))[0]

        return in_batches(ids, run)


class LlamaCpp:
    """llama.cpp on a GGUF of the same weights. precision: "bf16" or "q8_0"."""

    def __init__(self, folder: Path, threads: int, precision: str) -> None:
        import llama_cpp
        from gguf_file import write

        self.llama_cpp = llama_cpp
        with tempfile.TemporaryDirectory() as temporary:
            path = write(folder, Path(temporary) / f"{precision}.gguf", precision)
            self.model = llama_cpp.Llama(
                str(path), embedding=True, n_ctx=16384, n_batch=2048, n_ubatch=2048, n_threads=threads,
                n_threads_batch=threads, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST, verbose=False,
                use_mmap=False,
            )  # fmt: skip

    def encode(self, ids: Ids) -> np.ndarray:
        return normalize([self._embed(text) for text in ids])

    def _embed(self, text: list[int]) -> np.ndarray:
        batch = self.model._batch
        batch.reset()
        batch.add_sequence(text, 0, True)
        self.llama_cpp.llama_memory_clear(self.llama_cpp.llama_get_memory(self.model._ctx.ctx), True)
        self.model._ctx.decode(batch)
        pointer = self.llama_cpp.llama_get_embeddings_seq(self.model._ctx.ctx, 0)
        return np.array(pointer[: self.model.n_embd()], np.float32)


CONTENDERS: dict[str, tuple[Any, dict[str, str]]] = {
    "qwen3np highest": (Ours, {"precision": "highest"}),
    "qwen3np high": (Ours, {"precision": "high"}),
    "qwen3np medium": (Ours, {"precision": "medium"}),
    "qwen3np simd": (Ours, {"precision": "medium", "path": "simd"}),
    "qwen3np high, no sharing": (WithoutSharing, {"precision": "high"}),
    "transformers bf16": (Transformers, {"dtype": "bfloat16"}),
    "transformers float32": (Transformers, {"dtype": "float32"}),
    "sentence-transformers bf16": (SentenceTransformers, {"dtype": "bfloat16"}),
    "OpenVINO bf16": (OpenVINO, {"hint": "bf16"}),
    "OpenVINO float32": (OpenVINO, {"hint": "f32"}),
    "ONNX Runtime float32": (ONNXRuntime, {"precision": "float32"}),
    "ONNX Runtime int8": (ONNXRuntime, {"precision": "int8"}),
    "llama.cpp bf16": (LlamaCpp, {"precision": "bf16"}),
    "llama.cpp Q8_0": (LlamaCpp, {"precision": "q8_0"}),
}


def worker(connection: Connection, name: str, folder: Path, threads: int) -> None:
    """One contender, in its process: answers (method, arguments) with ("ok", seconds, result) or ("error",
    text)."""
    # Threads that wait by spinning would take the cores from the contender that is being timed.
    os.environ.update(
        OMP_WAIT_POLICY="PASSIVE", KMP_BLOCKTIME="0", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="0"
    )
    made: Any = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            start = time.perf_counter()
            if method == "load":
                make, options = CONTENDERS[name]
                made, result = make(folder, threads, **options), None
            elif method == "memory":
                result = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # KB on Linux
            else:
                result = getattr(made, method)(*arguments)
            connection.send(("ok", time.perf_counter() - start, result))
        except ImportError as error:
            connection.send(("error", f"not installed: {error.name or error}", None))
        except BaseException as error:  # an exporter's bug must not end the run
            traceback.print_exc()
            connection.send(("error", f"{type(error).__name__}: {str(error).splitlines()[:1]}", None))
