"""Embedder: texts in, unit vectors out. The argument names and their meaning are sentence-transformers'."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import parity, reference
from .checkpoint import Checkpoint
from .hub import locate
from .modules import load_modules
from .tokenizer import EmbeddingTokenizer

logger = logging.getLogger("qwen3np")

Vectors = NDArray[np.float32]

BACKENDS = ("auto", "numba", "numpy")


class Backend(Protocol):
    """What runs the encoder."""

    name: str

    def encode(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """Token ids of each text -> the final state of its last token, [len(texts), hidden_size], not
        normalised."""

    def stages(self, texts: Sequence[Sequence[int]]) -> Iterable[parity.Stage]:
        """The same computation, stopped at each stage (see parity.py)."""


class NumpyBackend:
    """The reading copy, reference.py. Its memory is one layer's float32 weights and one head's S x S
    scores."""

    name = "numpy"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.weights = checkpoint.weights(np.float32)

    def __repr__(self) -> str:
        return "numpy, the reading copy"

    def encode(self, texts: Sequence[Sequence[int]]) -> Vectors:
        c, w = self.config, self.weights
        states = reference.encode(
            texts, w.embed_tokens, w.layers, w.norm, c.rms_norm_eps, c.rope_theta, c.head_dim
        )
        return np.stack([reference.pool(x_TD) for x_TD in states])

    def stages(self, texts: Sequence[Sequence[int]]) -> Iterable[parity.Stage]:
        return parity.reference_stages(texts, self.weights, reference)


class Embedder:
    """A Qwen3-Embedding model.

    Args:
        model_name_or_path: a Hub id (downloaded once into the Hub cache) or a folder in the Hub's layout.
        revision, cache_folder, local_files_only, token: as in huggingface_hub.
        prompts: name -> text put before every text of that kind; replaces those of
        config_sentence_transformers.json. default_prompt_name: the prompt used where a call names none.
        truncate_dim: keep that many leading channels (32 to hidden_size), then normalise (Matryoshka).
        max_seq_length: longest text in tokens, the appended one included; default and upper bound: the
        model's own. backend: "numpy" is the reading copy; "auto" the fastest this machine can run.

    Raises CheckpointError if the model's files are missing, damaged or of a model this package does not
    compute.
    """

    def __init__(
        self,
        model_name_or_path: str | Path = "Qwen/Qwen3-Embedding-0.6B",
        *,
        revision: str | None = None,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        max_seq_length: int | None = None,
        backend: str = "auto",
        matmul_precision: str = "high",
        num_threads: int | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend = {backend!r} is not one of {', '.join(BACKENDS)}")
        folder = locate(
            model_name_or_path,
            revision=revision,
            cache_folder=cache_folder,
            token=token,
            local_files_only=local_files_only,
        )
        modules = load_modules(folder)
        self.checkpoint = Checkpoint(folder)
        self.config = self.checkpoint.config
        self.tokenizer = EmbeddingTokenizer(folder / "tokenizer.json", self.config.vocab_size)
        self.prompts = dict(modules.prompts if prompts is None else prompts)
        self.default_prompt_name = default_prompt_name or modules.default_prompt_name
        if self.default_prompt_name is not None:
            self._prompt(self.default_prompt_name)
        self.similarity_fn_name = modules.similarity_fn_name
        self.truncate_dim = self._check_dim(truncate_dim)
        limit = self.config.max_position_embeddings
        self.max_seq_length = (
            min(modules.max_seq_length or limit, limit) if max_seq_length is None else max_seq_length
        )
        if type(self.max_seq_length) is not int or not 1 <= self.max_seq_length <= limit:
            raise ValueError(
                f"max_seq_length = {max_seq_length!r} must be between 1 and {limit} (max_position_embeddings)"
            )
        self.backend: Backend
        if backend == "numpy":
            self.backend = NumpyBackend(self.checkpoint)
        else:
            from .numba_backend import NumbaBackend  # and with it Numba, which only the kernels need

            self.backend = NumbaBackend(self.checkpoint, matmul_precision, num_threads)

    def __repr__(self) -> str:
        folder, backend = str(self.checkpoint.folder), self.backend.name
        return f"Embedder({folder!r}, dimension={self.dimension}, backend={backend!r})"

    @property
    def dimension(self) -> int:
        """Channels of the vectors that `encode` returns."""
        return self.truncate_dim or self.config.hidden_size

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        truncate_dim: int | None = None,
    ) -> Vectors:
        """Texts -> float32 unit vectors [len(sentences), dimension]; one str -> one vector [dimension].

        Args:
            prompt_name: a key of `prompts`. prompt: the text itself, and it wins over prompt_name.
            batch_size: texts handed to the backend at a time; it changes memory and speed, never a vector.
            show_progress_bar: None shows it when the logger "qwen3np" is at INFO or below.
            truncate_dim: for this call, in place of the model's. Cut vectors are unit vectors too.

        Raises TypeError or ValueError for a text that is no valid str, an unknown prompt_name, a batch_size
        below 1, or a truncate_dim outside 32 .. hidden_size.
        """
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, found {batch_size!r}")
        dim = self._check_dim(truncate_dim) or self.dimension
        ids = self.tokenize(sentences, prompt_name=prompt_name, prompt=prompt)
        states = np.empty((len(ids), self.config.hidden_size), np.float32)
        # Longest first: texts of a batch have like lengths, and a text too large for the memory fails at
        # once.
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        with _progress(len(ids), show_progress_bar) as bar:
            for start in range(0, len(ids), batch_size):
                batch = order[start : start + batch_size]
                states[batch] = self.backend.encode([ids[i] for i in batch])
                bar.update(len(batch))
        vectors = reference.normalize(states, dim)
        return vectors[0] if isinstance(sentences, str) else vectors

    def encode_query(
        self, sentences: str | Sequence[str], prompt_name: str | None = None, **kwargs: Any
    ) -> Vectors:
        """`encode` with the prompt named "query" where the call names none and the model has one."""
        return self.encode(sentences, prompt_name=self._first_prompt(prompt_name, ("query",)), **kwargs)

    def encode_document(
        self, sentences: str | Sequence[str], prompt_name: str | None = None, **kwargs: Any
    ) -> Vectors:
        """`encode` with the first of the prompts "document", "passage", "corpus" that the model has."""
        return self.encode(
            sentences,
            prompt_name=self._first_prompt(prompt_name, ("document", "passage", "corpus")),
            **kwargs,
        )

    def tokenize(
        self, texts: str | Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> list[list[int]]:
        """Texts -> lists of token ids exactly as `encode` uses them: prompt in front, cut, `<|endoftext|>`
        appended."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if prompt is None:
            prompt = self._prompt(prompt_name or self.default_prompt_name)
        elif not isinstance(prompt, str):
            raise TypeError(f"prompt is {type(prompt).__name__}, expected str")
        return self.tokenizer.encode(texts, self.max_seq_length, prompt)

    def similarity(self, a: ArrayLike, b: ArrayLike) -> Vectors:
        """Every vector of `a` [A, dim] with every one of `b` [B, dim] -> [A, B], by the model's
        similarity_fn_name.

        Larger is more alike: the euclidean and manhattan distances are negative.
        """
        a, b = _matrix(a), _matrix(b)
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"vectors of {a.shape[1]} and of {b.shape[1]} channels cannot be compared")
        if self.similarity_fn_name == "cosine":
            return reference.normalize(a) @ reference.normalize(b).T
        if self.similarity_fn_name == "dot":
            return a @ b.T
        scores = np.empty((len(a), len(b)), np.float32)
        for i, row in enumerate(
            a
        ):  # a row at a time: the differences of all pairs would be len(a) times larger
            scores[i] = _pairwise(self.similarity_fn_name, row, b)
        return scores

    def similarity_pairwise(self, a: ArrayLike, b: ArrayLike) -> Vectors:
        """Vector i of `a` with vector i of `b` -> [len(a)]."""
        a, b = _matrix(a), _matrix(b)
        if a.shape != b.shape:
            raise ValueError(
                f"pairs need as many vectors on both sides, found {list(a.shape)} and {list(b.shape)}"
            )
        return _pairwise(self.similarity_fn_name, a, b)

    def _prompt(self, name: str | None) -> str:
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(f"prompt name {name!r} is not one of {sorted(self.prompts)}")
        return self.prompts[name]

    def _first_prompt(self, asked: str | None, names: Sequence[str]) -> str | None:
        return asked or next((name for name in names if name in self.prompts), None)

    def _check_dim(self, dim: int | None) -> int | None:
        smallest = min(32, self.config.hidden_size)
        if dim is not None and (type(dim) is not int or not smallest <= dim <= self.config.hidden_size):
            raise ValueError(
                f"truncate_dim = {dim!r} must be between {smallest} and {self.config.hidden_size}"
            )
        return dim


def _matrix(x: ArrayLike) -> Vectors:
    x = np.atleast_2d(np.asarray(x, np.float32))
    if x.ndim != 2:
        raise ValueError(f"expected one vector or a matrix of vectors, found shape {list(x.shape)}")
    return x


def _pairwise(similarity_fn_name: str, a: Vectors, b: Vectors) -> Vectors:
    """Along the last axis; `a` and `b` broadcast."""
    if similarity_fn_name == "cosine":
        a, b = reference.normalize(a), reference.normalize(b)
    if similarity_fn_name in ("cosine", "dot"):
        return np.sum(a * b, axis=-1)
    if similarity_fn_name == "euclidean":
        return -np.linalg.norm(a - b, axis=-1)
    return -np.sum(np.abs(a - b), axis=-1)


def _progress(total: int, show: bool | None) -> Any:
    from tqdm.auto import tqdm

    show = logger.isEnabledFor(logging.INFO) if show is None else show
    return tqdm(total=total, desc="texts", disable=not show)
