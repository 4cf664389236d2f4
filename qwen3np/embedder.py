"""Embedder: texts in, unit vectors out. The argument names and their meaning are sentence-transformers'."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import reference
from .interface.drop_in import DropIn
from .interface.pickling import PickledByArguments
from .interface.torch_only import accept, check_batch_size, is_int
from .loading.checkpoint import Checkpoint
from .loading.hub import locate
from .loading.st_config import load_modules, max_seq_length_of, open_embedder
from .loading.texts import as_texts, iterate_texts
from .loading.tokenizer import Cut, batches
from .quantization import PRECISIONS, quantize_embeddings
from .runtime.backend import check_backend, make_backend
from .runtime.distinct import Distinct
from .runtime.progress import progress_bar
from .runtime.soundness import check_states
from .search import SIMILARITIES, check_similarity, similarity, similarity_pairwise

logger = logging.getLogger("qwen3np")

Vectors = NDArray[np.float32]

OUTPUT_VALUES = ("sentence_embedding", "token_embeddings")
INSTRUCTION = "Instruct: {}\nQuery:"  # model card; nothing between the colon and the text


class Embedder(DropIn, PickledByArguments):
    """A Qwen3-Embedding model.

    Args:
        model_name_or_path: a Hub id (downloaded once into the Hub cache) or a folder in the Hub's layout.
        revision, cache_folder, local_files_only, token: as in huggingface_hub.
        prompts: name -> text put before every text of that kind; added to those of
        config_sentence_transformers.json, and stronger. "query" and "document" are there in any case, empty
        where nobody sets them.
        default_prompt_name: the prompt used where a call names none.
        truncate_dim: keep that many leading channels (32 to hidden_size), then normalise (Matryoshka).
        max_seq_length: longest text in tokens, the appended one included; default: the model's own, upper
        bound: its number of positions.
        escape_special_tokens: "<|endoftext|>" and its like in a text or prompt are text.
        backend: "numpy" is the reading copy; "auto" the fastest this machine can run.
        reproducible: the same vectors, to the bit, on every CPU: float32 sums in one order, and no other
        arithmetic than IEEE 754 defines. Without, a CPU takes what it has: see matmul_precision.

    prompts, default_prompt_name, similarity_fn_name, truncate_dim and max_seq_length can be set later, with
    the same checks. Other arguments of sentence-transformers are accepted where they change no vector.

    Raises CheckpointError if the model's files are missing, damaged or of a model this package does not
    compute.
    """

    SUPPORTED_SIMILARITY_FN_NAMES = SIMILARITIES
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
        reproducible: bool = False,
        **torch_only: Any,
    ) -> None:
        meant = accept(torch_only, Embedder, "Embedder", ("token", "cache_folder", "max_seq_length"))
        token = meant.get("token", token)
        cache_folder = meant.get("cache_folder", cache_folder)
        max_seq_length = meant.get("max_seq_length") if max_seq_length is None else max_seq_length
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
        self.tokenizer, self._modules = open_embedder(folder, self.checkpoint, modules, escape_special_tokens)
        modules = self._modules
        self._own_max_seq_length = max_seq_length_of(
            modules.transformer, self.checkpoint.transformer_folder, self.config
        )
        self.prompts = {"query": "", "document": ""} | modules.prompts | dict(prompts or {})
        self.default_prompt_name = default_prompt_name or modules.default_prompt_name
        self.similarity_fn_name = similarity_fn_name
        self.truncate_dim = modules.truncate_dim if truncate_dim is None else truncate_dim
        self.max_seq_length = max_seq_length
        self.backend = make_backend(self.checkpoint, backend, matmul_precision, num_threads, reproducible)

    def __repr__(self) -> str:
        folder, backend = str(self.checkpoint.folder), self.backend.name
        return f"Embedder({folder!r}, dimension={self.dimension}, backend={backend!r})"

    @property
    def dimension(self) -> int:
        """Channels of the vectors that `encode` returns."""
        return self.truncate_dim or self.config.hidden_size

    @property
    def truncate_dim(self) -> int | None:
        """Leading channels that `encode` keeps; None keeps all. Setting it raises ValueError outside 32 ..
        hidden_size."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, dim: int | None) -> None:
        self._truncate_dim = self._check_dim(dim)

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens. Setting it raises ValueError outside 1 .. max_position_embeddings; None is
        the model's own."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        limit = max(self.config.max_position_embeddings, self._own_max_seq_length)
        if length is None:
            length = self._own_max_seq_length
        if not is_int(length) or not 1 <= length <= limit:
            raise ValueError(
                f"max_seq_length = {length!r} must be between 1 and {limit} (max_position_embeddings)"
            )
        self._max_seq_length = int(length)

    @property
    def similarity_fn_name(self) -> str:
        """How `similarity` compares. Setting it raises ValueError for a name that is not in
        SUPPORTED_SIMILARITY_FN_NAMES; None is the model's own."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: str | None) -> None:
        name = getattr(name, "value", name)  # of sentence-transformers' SimilarityFunction
        self._similarity_fn_name = check_similarity(name or self._modules.similarity_fn_name)

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        instruction: str | None = None,
        calibration_embeddings: ArrayLike | None = None,
        ranges: ArrayLike | None = None,
        **torch_only: Any,
    ) -> Any:
        """Texts -> float32 unit vectors [len(inputs), dimension]; one str -> one vector [dimension].

        Args:
            inputs: a str, or any iterable of them: a list, a generator, an array, a column of a table.
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
            were cut.
            truncate_dim: for this call, in place of the model's.
            convert_to_numpy, convert_to_tensor, device, pool, chunk_size: where sentence-transformers has
            them; only values that change nothing are accepted.

        A text's vector has the same bits in any call and any batch. What texts begin with and identical texts
        are computed once. Beside texts and vectors the memory holds the token ids that are computed, 4 bytes
        each. Raises TypeError or ValueError for a text that is no valid str, an unknown prompt_name, a
        batch_size below 1, a truncate_dim outside 32 .. hidden_size, and for arguments that only make sense
        with PyTorch, with what to do instead."""
        torch_only |= {"convert_to_numpy": convert_to_numpy, "convert_to_tensor": convert_to_tensor}
        torch_only |= {"device": device, "pool": pool, "chunk_size": chunk_size}
        meant = accept(torch_only, self.encode, "encode", () if inputs is not None else ("inputs",))
        check_batch_size(batch_size)
        if output_value not in OUTPUT_VALUES:
            raise ValueError(f"output_value {output_value!r} is not one of {', '.join(OUTPUT_VALUES)}")
        if precision not in (None, *PRECISIONS):
            raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        dim = self._check_dim(truncate_dim) or self.dimension
        before = self._prompt_text(prompt_name, prompt, instruction)
        texts, single = as_texts(meant.get("inputs", inputs))
        distinct = Distinct(self._ids(texts, before))
        with progress_bar(len(distinct), show_progress_bar, "texts") as bar:
            if output_value == "token_embeddings":
                tokens: list[Vectors] = []
                for n in range(len(distinct)):
                    ids = distinct.ids(n)
                    tokens += self.backend.token_states([ids])
                    check_states(tokens[-1], [ids], self.checkpoint, self.backend)
                    bar.update()
                return tokens[0] if single else [tokens[row] for row in distinct.rows]
            prefix = self._kept_prefix(before)
            vectors = np.empty((len(texts), dim), np.float32)
            for part in distinct.parts():
                some = [distinct.ids(n) for n in part]
                states = self.backend.forward(some, prefix, batch_size, bar.update)
                check_states(states, some, self.checkpoint, self.backend)
                rows = distinct.rows_of(part)
                cut = self._cut(states, dim, normalize_embeddings)
                vectors[rows] = cut[distinct.rows[rows] - part.start]
        if precision not in (None, "float32"):
            vectors = quantize_embeddings(vectors, precision, ranges, calibration_embeddings)
        return vectors[0] if single else vectors

    def _cut(self, states: Vectors, dim: int, normalize: bool | None) -> Vectors:
        """Pooled states [n, hidden_size] -> vectors [n, dim]."""
        normalizes = self._modules.normalizes
        normalize = normalizes if normalize is None else normalize
        vectors = reference.normalize(states) if normalizes or normalize else states
        if dim < vectors.shape[1]:
            vectors = reference.normalize(states, dim) if normalize else vectors[:, :dim]
        return vectors

    def encode_stream(
        self, inputs: Iterable[str], chunk_size: int = 4096, **arguments: Any
    ) -> Iterator[NDArray[Any]]:
        """`encode` for more texts than fit into memory: an array of vectors for every `chunk_size` texts, as
        they are read. Takes encode's arguments."""
        if isinstance(inputs, str):
            raise TypeError("encode_stream takes an iterable of texts, found one str")
        if not is_int(chunk_size) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive integer, found {chunk_size!r}")
        texts = iterate_texts(inputs)
        while chunk := list(islice(texts, chunk_size)):
            yield self.encode(chunk, **arguments)

    def encode_query(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *arguments: Any,
        **named: Any,
    ) -> Any:
        """`encode` with the prompt named "query" where the call names none and the model has one. Takes its
        arguments, in its order."""
        prompt_name = self._first_prompt(prompt_name, ("query",))
        return self.encode(inputs, prompt_name, prompt, *arguments, **named)

    def encode_document(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *arguments: Any,
        **named: Any,
    ) -> Any:
        """`encode` with the first of the prompts "document", "passage", "corpus" that the model has. Takes
        its arguments, in its order."""
        prompt_name = self._first_prompt(prompt_name, ("document", "passage", "corpus"))
        return self.encode(inputs, prompt_name, prompt, *arguments, **named)

    def tokenize(
        self,
        texts: Any,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
    ) -> list[list[int]]:
        """Texts -> lists of token ids exactly as `encode` uses them: prompt in front, cut, `<|endoftext|>`
        appended."""
        before = self._prompt_text(prompt_name, prompt, instruction)
        return list(self._ids(as_texts(texts, "texts")[0], before))

    def get_embedding_dimension(self) -> int:
        """`dimension`, by sentence-transformers' name."""
        return self.dimension

    get_sentence_embedding_dimension = get_embedding_dimension

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """`with model.truncate_embeddings(256):` sets `truncate_dim` for a while."""
        before = self.truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    @classmethod
    def load(cls, input_path: str | Path) -> Embedder:
        """Embedder(input_path), by sentence-transformers' name."""
        return cls(input_path)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Vectors:
        """Every vector of `embeddings1` [A, dim] with every one of `embeddings2` [B, dim] -> [A, B], by
        `similarity_fn_name`.

        Larger is more alike: the euclidean and manhattan distances are negative.
        """
        return similarity(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Vectors:
        """Vector i of `embeddings1` with vector i of `embeddings2` -> [len(embeddings1)]."""
        return similarity_pairwise(embeddings1, embeddings2, self.similarity_fn_name)

    def _ids(self, texts: Sequence[str], prompt: str) -> Iterator[list[int]]:
        """Token ids of the texts, a batch at a time; and one warning at the end."""
        cut = Cut("texts", "max_seq_length", self.max_seq_length)
        for batch in batches(texts):
            yield from self.tokenizer.encode(batch, self.max_seq_length, prompt, cut)
        cut.warn()

    def _prompt_text(self, name: str | None, prompt: str | None, instruction: str | None) -> str:
        if prompt is not None and instruction is not None:
            raise ValueError("prompt and instruction are two ways to say what stands before a text: give one")
        for what, value in (("prompt", prompt), ("instruction", instruction)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{what} is {type(value).__name__}, expected str")
        if instruction is not None:
            return INSTRUCTION.format(instruction)
        if prompt is not None:
            return prompt
        return self._prompt(self.default_prompt_name if name is None else name)

    def _kept_prefix(self, prompt: str) -> list[int]:
        """The tokens of one of the model's own prompts that stand in front of every text with it. Its last
        token may join the text's first: ":" and "What"."""
        if not prompt or prompt not in self.prompts.values():
            return []
        uncounted = Cut("texts", "max_seq_length", self.max_seq_length)
        return self.tokenizer.encode([prompt], self.max_seq_length, cut=uncounted)[0][
            : -1 - len(self.tokenizer.after)
        ]

    def _first_prompt(self, asked: str | None, names: Sequence[str]) -> str | None:
        if asked is not None:
            return asked
        return next((name for name in names if name in self.prompts), None)

    def _saved_settings(self) -> dict[str, dict[str, Any]]:
        settings: dict[str, dict[str, Any]] = {
            "config_sentence_transformers.json": {
                "prompts": self.prompts,
                "default_prompt_name": self.default_prompt_name,
                "similarity_fn_name": self.similarity_fn_name,
            }
        }
        if self.truncate_dim is not None:
            settings["config_sentence_transformers.json"]["truncate_dim"] = self.truncate_dim
        if self.max_seq_length != self._own_max_seq_length:
            settings["sentence_bert_config.json"] = {"max_seq_length": self.max_seq_length}
        return settings

    def _check_dim(self, dim: int | None) -> int | None:
        smallest = min(32, self.config.hidden_size)
        if dim is None:
            return None
        if not is_int(dim) or not smallest <= dim <= self.config.hidden_size:
            raise ValueError(
                f"truncate_dim = {dim!r} must be between {smallest} and {self.config.hidden_size}"
            )
        return int(dim)
