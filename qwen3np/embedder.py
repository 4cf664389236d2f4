"""Embedder: texts in, unit vectors out. The argument names and their meaning are sentence-transformers'."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import reference
from .backends import check_backend, make_backend
from .checkpoint import Checkpoint
from .hub import locate
from .modules import load_modules, max_seq_length_of, open_embedder
from .pickling import PickledByArguments
from .progress import progress_bar
from .quantization import PRECISIONS, quantize_embeddings
from .search import check_similarity, similarity, similarity_pairwise
from .soundness import check_states
from .torch_only import refuse

logger = logging.getLogger("qwen3np")

Vectors = NDArray[np.float32]

OUTPUT_VALUES = ("sentence_embedding", "token_embeddings")
INSTRUCTION = "Instruct: {}\nQuery:"  # model card; nothing between the colon and the text


class Embedder(PickledByArguments):
    """A Qwen3-Embedding model.

    Args:
        model_name_or_path: a Hub id (downloaded once into the Hub cache) or a folder in the Hub's layout.
        revision, cache_folder, local_files_only, token: as in huggingface_hub.
        prompts: name -> text put before every text of that kind; goes before those of
        config_sentence_transformers.json, name by name. "query" and "document" are always there, empty by
        default. default_prompt_name: the prompt used where a call names none.
        truncate_dim: keep that many leading channels (32 to hidden_size), then normalise (Matryoshka).
        max_seq_length: longest text in tokens, the appended one included; default: the model's own, upper
        bound: its number of positions. escape_special_tokens: "<|endoftext|>" and its like in a text or
        prompt are text. backend: "numpy" is the reading copy; "auto" the fastest this machine can run.

    Raises CheckpointError if the model's files are missing, damaged or of a model this package does not
    compute.
    """

    SETTINGS = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "max_seq_length")

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
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        max_seq_length: int | None = None,
        escape_special_tokens: bool = False,
        backend: str = "auto",
        matmul_precision: str = "high",
        num_threads: int | None = None,
        **torch_only: Any,
    ) -> None:
        refuse(torch_only, "Embedder")
        check_backend(backend)
        folder = locate(
            model_name_or_path,
            revision=revision,
            cache_folder=cache_folder,
            token=token,
            local_files_only=local_files_only,
        )
        modules = load_modules(folder)
        self.checkpoint = Checkpoint(folder, modules.path)
        self.config = self.checkpoint.config
        self.tokenizer, modules = open_embedder(folder, self.checkpoint, modules, escape_special_tokens)
        self.prompts = {"query": "", "document": "", **modules.prompts, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or modules.default_prompt_name
        if self.default_prompt_name is not None:
            self._prompt(self.default_prompt_name)
        self.similarity_fn_name = check_similarity(similarity_fn_name or modules.similarity_fn_name)
        self._normalizes = modules.normalizes
        self.truncate_dim = self._check_dim(modules.truncate_dim if truncate_dim is None else truncate_dim)
        own = max_seq_length_of(modules.transformer, self.checkpoint.transformer_folder, self.config)
        limit = max(self.config.max_position_embeddings, own)
        self.max_seq_length = own if max_seq_length is None else max_seq_length
        if type(self.max_seq_length) is not int or not 1 <= self.max_seq_length <= limit:
            raise ValueError(
                f"max_seq_length = {max_seq_length!r} must be between 1 and {limit} (max_position_embeddings)"
            )
        self.backend = make_backend(self.checkpoint, backend, matmul_precision, num_threads)

    def __repr__(self) -> str:
        folder, backend = str(self.checkpoint.folder), self.backend.name
        return f"Embedder({folder!r}, dimension={self.dimension}, backend={backend!r})"

    @property
    def dimension(self) -> int:
        """Channels of the vectors that `encode` returns."""
        return self.truncate_dim or self.config.hidden_size

    def encode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        *,
        instruction: str | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        calibration_embeddings: ArrayLike | None = None,
        ranges: ArrayLike | None = None,
        **torch_only: Any,
    ) -> Any:
        """Texts -> float32 unit vectors [len(inputs), dimension]; one str -> one vector [dimension].

        Args:
            inputs: a str, or any iterable of them.
            prompt_name: a key of `prompts`. prompt: the text itself, and it wins over prompt_name.
            instruction: a task in words, which makes the prompt "Instruct: {instruction}\\nQuery:".
            batch_size: texts computed at a time, at the most; by default as many as have 2048 tokens
            together. It changes memory and speed, never a vector.
            show_progress_bar: None shows it when the logger "qwen3np" is at INFO or below.
            output_value: "token_embeddings" gives the states of all tokens after the final norm, an array
            [tokens, hidden_size] a text, as they are: not cut, not normalised.
            precision: "int8", "uint8", "binary" or "ubinary" quantises the vectors: see
            `quantize_embeddings`, whose ranges and calibration_embeddings can be given.
            normalize_embeddings: by default vectors are unit vectors, cut or whole, unless the model's
            modules.json has no Normalize; then they are as they were pooled. False leaves cut vectors as they
            were cut. truncate_dim: for this call, in place of the model's.

        A text's vector has the same bits in any call and any batch. What texts begin with and identical texts
        are computed once. Raises TypeError or ValueError for a text that is no valid str, an unknown
        prompt_name, a batch_size below 1, a truncate_dim outside 32 .. hidden_size, and for arguments that
        only make sense with PyTorch, with what to do instead."""
        refuse(torch_only, "encode")
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise ValueError(f"batch_size must be a positive integer, found {batch_size!r}")
        if output_value not in OUTPUT_VALUES:
            raise ValueError(f"output_value {output_value!r} is not one of {', '.join(OUTPUT_VALUES)}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        dim = self._check_dim(truncate_dim) or self.dimension
        before = self._prompt_text(prompt_name, prompt, instruction)
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        # Each text once, and longest first: texts of a step have like lengths, and one too large for the
        # memory fails at once.
        ids = [tuple(i) for i in self.tokenizer.encode(texts, self.max_seq_length, before)]
        number = {i: n for n, i in enumerate(sorted(set(ids), key=lambda i: (-len(i), i)))}
        distinct, rows = [list(i) for i in number], [number[i] for i in ids]
        with progress_bar(len(distinct), show_progress_bar, "texts") as bar:
            if output_value == "token_embeddings":
                tokens: list[Vectors] = []
                for i in distinct:
                    tokens += self.backend.token_states([i])
                    check_states(tokens[-1], [i], self.checkpoint, self.backend)
                    bar.update()
                return tokens[0] if isinstance(inputs, str) else [tokens[row] for row in rows]
            states = self.backend.encode(distinct, self._kept_prefix(before), batch_size, bar.update)
        check_states(states, distinct, self.checkpoint, self.backend)
        if normalize_embeddings is None:
            normalize_embeddings = self._normalizes
        vectors = reference.normalize(states) if self._normalizes or normalize_embeddings else states
        if dim < vectors.shape[1]:
            vectors = reference.normalize(states, dim) if normalize_embeddings else vectors[:, :dim]
        vectors = vectors[rows]
        if precision != "float32":
            vectors = quantize_embeddings(vectors, precision, ranges, calibration_embeddings)
        return vectors[0] if isinstance(inputs, str) else vectors

    def encode_stream(
        self, inputs: Iterable[str], chunk_size: int = 4096, **arguments: Any
    ) -> Iterator[NDArray[Any]]:
        """`encode` for more texts than fit into memory: an array of vectors for every `chunk_size` texts, as
        they are read. Takes encode's arguments."""
        if isinstance(inputs, str):
            raise TypeError("encode_stream takes an iterable of texts, found one str")
        if type(chunk_size) is not int or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive integer, found {chunk_size!r}")
        texts = iter(inputs)
        while chunk := list(islice(texts, chunk_size)):
            yield self.encode(chunk, **arguments)

    def encode_query(
        self, inputs: str | Iterable[str], prompt_name: str | None = None, **arguments: Any
    ) -> Any:
        """`encode` with the prompt named "query" where the call names none and the model has one."""
        return self.encode(inputs, prompt_name=self._first_prompt(prompt_name, ("query",)), **arguments)

    def encode_document(
        self, inputs: str | Iterable[str], prompt_name: str | None = None, **arguments: Any
    ) -> Any:
        """`encode` with the first of the prompts "document", "passage", "corpus" that the model has."""
        names = ("document", "passage", "corpus")
        return self.encode(inputs, prompt_name=self._first_prompt(prompt_name, names), **arguments)

    def tokenize(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
    ) -> list[list[int]]:
        """Texts -> lists of token ids exactly as `encode` uses them: prompt in front, cut, `<|endoftext|>`
        appended."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        before = self._prompt_text(prompt_name, prompt, instruction)
        return self.tokenizer.encode(texts, self.max_seq_length, before)

    def get_embedding_dimension(self) -> int:
        """`dimension`, by sentence-transformers' name."""
        return self.dimension

    get_sentence_embedding_dimension = get_embedding_dimension

    def similarity(self, a: ArrayLike, b: ArrayLike) -> Vectors:
        """Every vector of `a` [A, dim] with every one of `b` [B, dim] -> [A, B], by `similarity_fn_name`.

        Larger is more alike: the euclidean and manhattan distances are negative.
        """
        return similarity(a, b, self.similarity_fn_name)

    def similarity_pairwise(self, a: ArrayLike, b: ArrayLike) -> Vectors:
        """Vector i of `a` with vector i of `b` -> [len(a)]."""
        return similarity_pairwise(a, b, self.similarity_fn_name)

    def _prompt_text(self, name: str | None, prompt: str | None, instruction: str | None) -> str:
        if prompt is not None and instruction is not None:
            raise ValueError("prompt and instruction are two ways to say what stands before a text: give one")
        for what, value in (("prompt", prompt), ("instruction", instruction)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{what} is {type(value).__name__}, expected str")
        if instruction is not None:
            return INSTRUCTION.format(instruction)
        return prompt if prompt is not None else self._prompt(name or self.default_prompt_name)

    def _kept_prefix(self, prompt: str) -> list[int]:
        """The tokens of one of the model's own prompts that stand in front of every text with it. Its last
        token may join the text's first: ":" and "What"."""
        if not prompt or prompt not in self.prompts.values():
            return []
        return self.tokenizer.encode([prompt], self.max_seq_length)[0][: -1 - len(self.tokenizer.after)]

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
