"""Embedder: texts in, unit vectors out, under the argument names of sentence-transformers."""

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
from .loading.tokenizer import TruncationCount, batches
from .quantization import VECTOR_PRECISIONS, quantize_embeddings
from .runtime.backend import check_backend, make_backend
from .runtime.distinct import Distinct
from .runtime.progress import progress_bar
from .runtime.soundness import check_states
from .similarity import SIMILARITIES, check_similarity, similarity, similarity_pairwise

logger = logging.getLogger("qwen3np")

Vectors = NDArray[np.float32]

OUTPUT_VALUES = ("sentence_embedding", "token_embeddings")
INSTRUCTION_TEMPLATE = "Instruct: {}\nQuery:"  # model card; nothing between the colon and the text
DOCUMENT_PROMPTS = "document", "passage", "corpus"  # of these the first that a model has


class Embedder(DropIn, PickledByArguments):
    """A Qwen3-Embedding model: texts in, unit vectors out.

    Example:
        model = Embedder("Qwen/Qwen3-Embedding-0.6B")
        queries = model.encode_query(["What is the capital of China?"])
        documents = model.encode_document(["The capital of China is Beijing."])
        model.similarity(queries, documents)  # [[0.7645568]]

    Args:
        model_name_or_path: A Hub id (downloaded once into the Hub cache), or a folder in the Hub's layout.
        revision: The branch, tag or commit of the Hub repository.
        cache_folder: The Hub cache. Default: that of HF_HOME.
        local_files_only: Take the model from the Hub cache, and never download it.
        token: The Hub token for private models. Default: HF_TOKEN, or the login's.
        prompts: Name -> text put before every text of that kind. They are added to those of
            config_sentence_transformers.json and override them. "query" and "document" always exist, empty
            where nobody sets them.
        default_prompt_name: The prompt used where a call names none.
        similarity_fn_name: How `similarity` compares vectors: "cosine", "dot", "euclidean" or "manhattan".
            Default: the model's own.
        truncate_dim: Keep this many leading dimensions (32 to hidden_size) and normalise them again
            (Matryoshka embeddings). Default: all, unless the model's files say otherwise.
        max_seq_length: Tokens of the longest text, the appended one included; longer ones are truncated.
            Default: the model's own. Upper bound: its number of positions.
        escape_special_tokens: Treat "<|endoftext|>" and its like in a text or prompt as plain text.
        backend: "auto", the fastest this machine can run; "numba", the kernels; or "numpy", the reference.
        matmul_precision: "high" is float32 within 5e-6 of float64. "medium" rounds activations to bfloat16
            where the CPU multiplies those faster. "highest" is float32 always. "low" rounds weights to int8
            and activations to 8 or 16 bits, the fastest without AMX.
        num_threads: Threads of the kernels. Default: one per core that this process may use.
        reproducible: Compute the same bits on every CPU: float32 sums in one fixed order, and only arithmetic
            that IEEE 754 defines. Otherwise a CPU uses its fastest instructions (see matmul_precision).
        weights: "stored", as the files have them; "lossless", in 78 % of bfloat16's memory with the same bits
            in every vector; or "int8", in 52 %, each row of 128 weights rounded to 8 bits.
        **torch_only: Other arguments of sentence-transformers, accepted where they change no vector.

    prompts, default_prompt_name, similarity_fn_name, truncate_dim and max_seq_length can also be set later,
    with the same checks.

    Raises:
        CheckpointError: The model's files are missing, damaged, or of a model this package does not compute.
        TypeError: An argument only makes sense with PyTorch; the message says what to do instead.
        ValueError: An argument has a value that cannot be.
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
        weights: str = "stored",
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
        self.backend = make_backend(
            self.checkpoint, backend, matmul_precision, num_threads, reproducible, weights
        )

    def __repr__(self) -> str:
        folder, backend = str(self.checkpoint.folder), self.backend.name
        return f"Embedder({folder!r}, dimension={self.dimension}, backend={backend!r})"

    @property
    def dimension(self) -> int:
        """Number of dimensions of the vectors that `encode` returns."""
        return self.truncate_dim or self.config.hidden_size

    @property
    def truncate_dim(self) -> int | None:
        """Number of leading dimensions that `encode` keeps; None keeps all.

        Setting it raises ValueError outside 32 .. hidden_size.
        """
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, dim: int | None) -> None:
        self._truncate_dim = self._check_dim(dim)

    @property
    def max_seq_length(self) -> int:
        """Tokens of the longest text; longer ones are truncated.

        Setting it raises ValueError outside 1 .. max_position_embeddings; None restores the model's own.
        """
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
        """How `similarity` compares vectors.

        Setting it raises ValueError for a name not in SUPPORTED_SIMILARITY_FN_NAMES; None restores
        the model's own.
        """
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: str | None) -> None:
        name = getattr(name, "value", name)  # a member of sentence-transformers' SimilarityFunction
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
        """Encode texts into float32 unit vectors [len(inputs), dimension]; one str into one [dimension].

        Args:
            inputs: A str, or any iterable of them: a list, a generator, an array, a column of a table.
            prompt_name: The key of a prompt in `prompts`.
            prompt: The prompt itself; it overrides prompt_name.
            batch_size: Most texts computed at a time. Default: as many as have 2048 tokens together. It
                changes memory and speed, never a vector.
            show_progress_bar: None shows a bar when the logger "qwen3np" is at INFO or below.
            output_value: "sentence_embedding", or "token_embeddings" for the states of all tokens after the
                final norm: one array [tokens, hidden_size] per text, neither truncated nor normalised.
            precision: "float32", or "int8", "uint8", "binary" or "ubinary": see `quantize_embeddings`.
            convert_to_numpy: As in sentence-transformers; only True is accepted.
            convert_to_tensor: As in sentence-transformers; only False is accepted.
            device: As in sentence-transformers; only the CPU is accepted.
            normalize_embeddings: True normalises; False leaves truncated vectors unnormalised. Default: unit
                vectors, truncated or not, unless the model's modules.json lists no Normalize module; then
                vectors are as they were pooled.
            truncate_dim: Overrides the model's for this call.
            pool: As in sentence-transformers; only None is accepted.
            chunk_size: As in sentence-transformers; it changes nothing.
            instruction: A task in words; it makes the prompt "Instruct: {instruction}\\nQuery:".
            calibration_embeddings: Vectors to take the ranges of int8 and uint8 from.
            ranges: The ranges [2, dim] of int8 and uint8 themselves.
            **torch_only: Other arguments of sentence-transformers, accepted where they change no vector.

        A text's vector has the same bits in every call and every batch. A prefix that texts share is computed
        once, and so are identical texts. Beside texts and vectors, memory holds the token ids of the distinct
        texts, 4 bytes each.

        Raises:
            TypeError: An input is not a str, or an argument only makes sense with PyTorch.
            ValueError: A text is not valid Unicode, prompt_name is unknown, batch_size is below 1, or
                truncate_dim is outside 32 .. hidden_size.
        """
        torch_only |= {"convert_to_numpy": convert_to_numpy, "convert_to_tensor": convert_to_tensor}
        torch_only |= {"device": device, "pool": pool, "chunk_size": chunk_size}
        meant = accept(torch_only, self.encode, "encode", () if inputs is not None else ("inputs",))
        check_batch_size(batch_size)
        if output_value not in OUTPUT_VALUES:
            raise ValueError(f"output_value {output_value!r} is not one of {', '.join(OUTPUT_VALUES)}")
        if precision not in (None, *VECTOR_PRECISIONS):
            raise ValueError(f"precision {precision!r} is not one of {', '.join(VECTOR_PRECISIONS)}")
        dim = self._check_dim(truncate_dim) or self.dimension
        before = self.prompt_text(prompt_name, prompt, instruction)
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
                some_vectors = self._truncate(states, dim, normalize_embeddings)
                vectors[rows] = some_vectors[distinct.rows[rows] - part.start]
        if precision not in (None, "float32"):
            vectors = quantize_embeddings(vectors, precision, ranges, calibration_embeddings)
        return vectors[0] if single else vectors

    def _truncate(self, states: Vectors, dim: int, normalize: bool | None) -> Vectors:
        """Truncate and normalise: pooled states [n, hidden_size] -> vectors [n, dim]."""
        normalizes = self._modules.normalizes
        normalize = normalizes if normalize is None else normalize
        vectors = reference.normalize(states) if normalizes or normalize else states
        if dim < vectors.shape[1]:
            vectors = reference.normalize(states, dim) if normalize else vectors[:, :dim]
        return vectors

    def encode_stream(
        self, inputs: Iterable[str], chunk_size: int = 4096, **arguments: Any
    ) -> Iterator[NDArray[Any]]:
        """Encode more texts than fit into memory: one array of vectors per `chunk_size` texts.

        Args:
            inputs: An iterable of texts, read as the vectors are asked for.
            chunk_size: Number of texts per array; the last may have fewer.
            **arguments: Those of `encode`.
        """
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
        """Encode queries: `encode` with the prompt named "query", unless the call gives one.

        Args:
            inputs: As for `encode`.
            prompt_name: As for `encode`.
            prompt: As for `encode`.
            *arguments: The further arguments of `encode`, in its order.
            **named: The same by name.
        """
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
        """Encode documents: `encode` with the model's document prompt, unless the call gives one.

        That is the first of the prompts named "document", "passage" and "corpus" that the model has.

        Args:
            inputs: As for `encode`.
            prompt_name: As for `encode`.
            prompt: As for `encode`.
            *arguments: The further arguments of `encode`, in its order.
            **named: The same by name.
        """
        prompt_name = self._first_prompt(prompt_name, DOCUMENT_PROMPTS)
        return self.encode(inputs, prompt_name, prompt, *arguments, **named)

    def tokenize(
        self,
        texts: Any,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
    ) -> list[list[int]]:
        """Return the token ids of each text exactly as `encode` computes with them.

        That is with the prompt in front, truncated, and with `<|endoftext|>` appended.

        Args:
            texts: As `inputs` of `encode`.
            prompt_name: As for `encode`.
            prompt: As for `encode`.
            instruction: As for `encode`.
        """
        before = self.prompt_text(prompt_name, prompt, instruction)
        return list(self._ids(as_texts(texts, "texts")[0], before))

    def get_embedding_dimension(self) -> int:
        """Return `dimension`, by sentence-transformers' name."""
        return self.dimension

    get_sentence_embedding_dimension = get_embedding_dimension

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Set `truncate_dim` for a while: `with model.truncate_embeddings(256):`."""
        before = self.truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    @classmethod
    def load(cls, input_path: str | Path) -> Embedder:
        """Return Embedder(input_path), by sentence-transformers' name."""
        return cls(input_path)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Vectors:
        """Compare every vector of embeddings1 [A, dim] with every one of embeddings2 [B, dim] -> [A, B].

        `similarity_fn_name` says how. Larger is more alike: euclidean and manhattan distances are negated.
        """
        return similarity(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Vectors:
        """Compare vector i of embeddings1 with vector i of embeddings2 -> [len(embeddings1)]."""
        return similarity_pairwise(embeddings1, embeddings2, self.similarity_fn_name)

    def prompt_text(
        self, prompt_name: str | None = None, prompt: str | None = None, instruction: str | None = None
    ) -> str:
        """Return what `encode` with these arguments puts before each text.

        Args:
            prompt_name: The key of a prompt in `prompts`. Default: default_prompt_name.
            prompt: The prompt itself; it overrides prompt_name.
            instruction: A task in words, for the model card's template. Not together with prompt.
        """
        if prompt is not None and instruction is not None:
            raise ValueError("prompt and instruction are two ways to say what stands before a text: give one")
        for what, value in (("prompt", prompt), ("instruction", instruction)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{what} is {type(value).__name__}, expected str")
        if instruction is not None:
            return INSTRUCTION_TEMPLATE.format(instruction)
        if prompt is not None:
            return prompt
        return self._prompt(self.default_prompt_name if prompt_name is None else prompt_name)

    def _ids(self, texts: Sequence[str], prompt: str) -> Iterator[list[int]]:
        """Yield the token ids of each text, tokenised a batch at a time; one warning at the end."""
        counter = TruncationCount("texts", "max_seq_length", self.max_seq_length)
        for batch in batches(texts):
            yield from self.tokenizer.encode(batch, self.max_seq_length, prompt, counter)
        counter.warn()

    def _kept_prefix(self, prompt: str) -> list[int]:
        """Return the tokens that every text with one of the model's own prompts begins with.

        The prompt's last token is left out: it may join the text's first, as ":" and "What" do.
        """
        if not prompt or prompt not in self.prompts.values():
            return []
        uncounted = TruncationCount("texts", "max_seq_length", self.max_seq_length)
        return self.tokenizer.encode([prompt], self.max_seq_length, counter=uncounted)[0][
            : -1 - len(self.tokenizer.after)
        ]

    def _first_prompt(self, asked: str | None, names: Sequence[str]) -> str | None:
        if asked is not None:
            return asked
        return next((name for name in names if name in self.prompts), None)

    def _saved_settings(self) -> dict[str, dict[str, Any]]:
        """Return file -> key -> value, for what differs from the folder that was loaded."""
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
