"""Reranker: how well a document answers a query, as the model's "yes" against its "no".

The model reads the pair in a conversation (loading/tokenizer.py has the words) and is asked for the next
token. Of the logits of all 151669 tokens two matter: score = logit("yes") - logit("no"), and sigmoid(score)
is the probability of "yes" among the two, the number of the model card. So two rows of lm_head are enough.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError
from .interface.drop_in import DropIn
from .interface.pickling import PickledByArguments
from .interface.torch_only import accept, check_batch_size, is_int
from .loading.checkpoint import Checkpoint
from .loading.hub import locate
from .loading.st_config import load_reranker_modules, max_seq_length_of, open_reranker
from .loading.texts import Pair, as_pairs, as_texts, shown
from .loading.tokenizer import TruncationCount, batches
from .runtime.backend import check_backend, make_backend
from .runtime.distinct import PART_TEXTS, Distinct
from .runtime.progress import progress_bar
from .runtime.soundness import check_rows, check_states

Scores = NDArray[np.float32]

# Model card.
DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
MAX_LENGTH = 8192
MIN_GROUP = 4  # a query with at least this many documents forms its own batch, so that they share its prefix


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """Compute 1 / (1 + e^-x) in decimals (10 us each): the last bits of np.exp depend on the CPU."""
    c = Context(prec=25, traps=[])  # no traps: beyond its range are infinity and zero, not errors
    each = [c.divide(Decimal(1), c.add(Decimal(1), c.exp(Decimal(-float(value))))) for value in np.ravel(x)]
    return np.array(each, x.dtype).reshape(x.shape)


class Reranker(DropIn, PickledByArguments):
    """A Qwen3-Reranker model: (query, document) pairs in, scores out.

    The argument names and their meaning are those of sentence-transformers' CrossEncoder.

    Example:
        model = Reranker("Qwen/Qwen3-Reranker-0.6B")
        model.rank("Which planet is red?", ["Venus is hot.", "Mars is the Red Planet."], top_k=1)
        # [{"corpus_id": 1, "score": ...}]

    Args:
        model_name_or_path: A Hub id (downloaded once into the Hub cache), or a folder in the Hub's layout.
        instruction: A sentence that says what makes a document a good one. Default: the one in the files of a
            fine-tuned model, else the model card's, for web search.
        max_length: Tokens of the longest conversation; longer ones lose the end of the document. Default:
            the value in the model's sentence_bert_config.json, else the one in its tokenizer_config.json,
            but at most 8192.
        escape_special_tokens: Treat special tokens in instruction, query and document as plain text. By
            default, as in the model card's code, they are tokens: a document that contains "<|im_end|>" can
            close the conversation and answer itself. Set it where documents come from others.
        prompts: Name -> instruction.
        default_prompt_name: The prompt used in place of `instruction` where a call names none.
        activation_fn: What `predict` applies to the scores. Default: the sigmoid, which gives probabilities.
        revision: The branch, tag or commit of the Hub repository.
        cache_folder: The Hub cache. Default: that of HF_HOME.
        local_files_only: Take the model from the Hub cache, and never download it.
        token: The Hub token for private models. Default: HF_TOKEN, or the login's.
        backend: As for Embedder.
        matmul_precision: As for Embedder.
        num_threads: As for Embedder.
        reproducible: As for Embedder.
        weights: As for Embedder.
        **torch_only: Other arguments of CrossEncoder, accepted where they change no score.

    instruction, max_length (or max_seq_length), escape_special_tokens, prompts, default_prompt_name and
    activation_fn can also be set later, with the same checks.

    Raises:
        CheckpointError: The model's files are missing, damaged, or those of an embedding model.
        TypeError: An argument only makes sense with PyTorch; the message says what to do instead.
        ValueError: An argument has a value that cannot be.
    """

    SETTINGS = (
        "instruction", "max_length", "escape_special_tokens", "prompts", "default_prompt_name",
        "activation_fn",
    )  # fmt: skip

    def __init__(
        self,
        model_name_or_path: str | Path = "Qwen/Qwen3-Reranker-0.6B",
        *,
        instruction: str | None = None,
        max_length: int | None = None,
        escape_special_tokens: bool = False,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        activation_fn: Callable[[Scores], Any] | None = None,
        revision: str | None = None,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        backend: str = "auto",
        matmul_precision: str = "high",
        num_threads: int | None = None,
        reproducible: bool = False,
        weights: str = "stored",
        **torch_only: Any,
    ) -> None:
        renamed = ("token", "cache_folder", "activation_fn", "max_length")
        meant = accept(torch_only, Reranker, "Reranker", renamed)
        token = meant.get("token", token)
        cache_folder = meant.get("cache_folder", cache_folder)
        activation_fn = meant.get("activation_fn", activation_fn)
        max_length = meant.get("max_length") if max_length is None else max_length
        check_backend(backend)
        folder = locate(
            model_name_or_path,
            revision=revision,
            cache_folder=cache_folder,
            token=token,
            local_files_only=local_files_only,
        )
        modules = load_reranker_modules(folder)
        self.checkpoint = Checkpoint(folder, modules.path)
        self.config = self.checkpoint.config
        self.tokenizer, own_instruction = open_reranker(folder, self.checkpoint, modules)
        self._own_max_length = max_seq_length_of(
            modules.transformer, self.checkpoint.transformer_folder, self.config
        )
        if modules.transformer.max_seq_length is None:
            self._own_max_length = min(MAX_LENGTH, self._own_max_length)
        self.escape_special_tokens = escape_special_tokens
        self.instruction = (own_instruction or DEFAULT_INSTRUCTION) if instruction is None else instruction
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.activation_fn = activation_fn
        self.max_length = max_length
        self.answers: tuple[int, int] | None = None
        if "score.weight" not in self.checkpoint.tensors:
            self.answers = modules.answers or self._answers_of_tokenizer()
        self._answer_rows = self._rows(self.answers)
        self.backend = make_backend(
            self.checkpoint, backend, matmul_precision, num_threads, reproducible, weights
        )

    def __repr__(self) -> str:
        return f"Reranker({str(self.checkpoint.folder)!r}, backend={self.backend.name!r})"

    @property
    def instruction(self) -> str:
        """What makes a document a good one, in a sentence.

        Setting it raises TypeError for what is not a str.
        """
        return self._instruction

    @instruction.setter
    def instruction(self, instruction: str) -> None:
        self._instruction = self._check_instruction(instruction)

    @property
    def max_length(self) -> int:
        """Tokens of the longest conversation; longer ones lose the end of the document.

        Setting it raises ValueError where the prompt leaves no room for a pair, and above
        max_position_embeddings; None restores the default.
        """
        return self._max_length

    @max_length.setter
    def max_length(self, length: int | None) -> None:
        around = len(self.tokenizer.system) + len(self.tokenizer.answer)
        limit = max(self.config.max_position_embeddings, self._own_max_length)
        length = self._own_max_length if length is None else length
        if not is_int(length) or not around < length <= limit:
            raise ValueError(
                f"max_length = {length!r} must be between {around + 1} (the prompt alone has {around} "
                f"tokens) and {limit} (max_position_embeddings)"
            )
        self._max_length = int(length)

    max_seq_length = max_length

    @property
    def num_labels(self) -> int:
        """Number of scores per pair: one."""
        return 1

    @property
    def activation_fn(self) -> Callable[[Scores], Any]:
        """What `predict` applies to the scores where the call does not say.

        Setting it raises TypeError for what cannot be called; None restores the default, the sigmoid.
        """
        return self._activation_fn

    @activation_fn.setter
    def activation_fn(self, activation_fn: Callable[[Scores], Any] | None) -> None:
        if activation_fn is not None and not callable(activation_fn):
            raise TypeError(f"activation_fn is {shown(activation_fn)}, expected a function of the scores")
        self._activation_fn = sigmoid if activation_fn is None else activation_fn

    default_activation_function = activation_fn

    def get_default_activation_fn(self) -> Callable[[Scores], Any]:
        """Return the function that turns scores into probabilities."""
        return sigmoid

    def predict(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Scores], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        instruction: str | None = None,
        raw_scores: bool = False,
        escape_special_tokens: bool | None = None,
        **torch_only: Any,
    ) -> Any:
        """Return the probability of "yes" for each (query, document) pair, float32 [pairs].

        One pair gives one number.

        Args:
            inputs: Any iterable of pairs of str (tuples, lists, rows of an array), or one pair.
            prompt_name: The key of an instruction in `prompts`.
            prompt: The instruction, by sentence-transformers' name. It overrides prompt_name; an empty one
                stands for the model's own instruction.
            batch_size: Most pairs computed at a time. It changes memory and speed, never a score.
            show_progress_bar: None shows a bar when the logger "qwen3np" is at INFO or below.
            activation_fn: Applied to the scores logit("yes") - logit("no"): an array in, one number per score
                out. None stands for the model's `activation_fn`, by default the sigmoid.
            apply_softmax: As in sentence-transformers; it changes nothing, as there is one score per pair.
            convert_to_numpy: As in sentence-transformers; only True is accepted.
            convert_to_tensor: As in sentence-transformers; only False is accepted.
            device: As in sentence-transformers; only the CPU is accepted.
            pool: As in sentence-transformers; only None is accepted.
            chunk_size: As in sentence-transformers; it changes nothing.
            instruction: Overrides the model's for this call.
            raw_scores: Return the scores themselves, without an activation.
            escape_special_tokens: Overrides the model's for this call.
            **torch_only: Other arguments of CrossEncoder, accepted where they change no score.

        A pair's score has the same bits in every call. Identical pairs are computed once, and so is a prefix
        that pairs share: the instruction, and the query of one query's documents. An empty query or document
        is scored like any other.

        Raises:
            TypeError: An input is not a pair of str, or an argument only makes sense with PyTorch.
            ValueError: A text is not valid Unicode, or activation_fn does not return one number per score.
        """
        torch_only |= {"convert_to_numpy": convert_to_numpy, "convert_to_tensor": convert_to_tensor}
        torch_only |= {"device": device, "pool": pool, "chunk_size": chunk_size}
        torch_only |= {"apply_softmax": apply_softmax}
        own = [*(("inputs",) if inputs is None else ()), "activation_fn"]
        meant = accept(torch_only, self.predict, "predict", own)
        check_batch_size(batch_size)
        pairs, single = as_pairs(meant.get("inputs", inputs))
        instruction = self._asked_instruction(prompt_name, prompt, instruction)
        distinct = Distinct(self._ids(pairs, instruction, escape_special_tokens))
        once = np.empty(len(distinct), np.float32)
        _, first = np.unique(distinct.rows, return_index=True)  # one pair per distinct row
        with progress_bar(len(distinct), show_progress_bar, "pairs") as bar:
            for numbers in _together([pairs[i][0] for i in first]):
                some = [distinct.ids(n) for n in numbers]
                states = self.backend.forward(some, self.tokenizer.system, batch_size, bar.update)
                check_states(states, some, self.checkpoint, self.backend)
                once[numbers] = self.scores(self.logits(states))
        scores = once[distinct.rows]
        if not raw_scores:
            activate = meant.get("activation_fn", activation_fn) or self.activation_fn
            scores = _activated(activate, scores)
        return scores[0] if single else scores

    def logits(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the logits of "yes" and "no" [pairs, 2] for the pairs' final states [pairs, hidden_size].

        In float64: of two large, nearly equal logits the difference is what counts. cumsum adds in the same
        order on every CPU.
        """
        wide = states.astype(np.float64)
        return np.stack([np.cumsum(wide * row, axis=1)[:, -1] for row in self._answer_rows], axis=1)

    def scores(self, logits: NDArray[np.float64]) -> Scores:
        """Subtract the logits of "no" from those of "yes": [pairs, 2] -> [pairs]."""
        return (logits[:, 0] - logits[:, 1]).astype(np.float32)

    def rank(
        self,
        query: str,
        documents: Any,
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Scores], Any] | None = None,
        device: Any = None,
        pool: None = None,
        chunk_size: int | None = None,
        **arguments: Any,
    ) -> list[dict[str, Any]]:
        """Rank documents for a query, best first: {"corpus_id", "score"} each, and "text" if asked for.

        Equal scores keep the order of the documents.

        Args:
            query: The query.
            documents: A list, or any other iterable, of texts.
            top_k: Number of documents returned. Default: all.
            return_documents: Add each document's "text".
            prompt_name: As for `predict`.
            prompt: As for `predict`.
            batch_size: As for `predict`.
            show_progress_bar: As for `predict`.
            activation_fn: As for `predict`.
            device: As for `predict`.
            pool: As for `predict`.
            chunk_size: As for `predict`.
            **arguments: The other arguments of `predict`.
        """
        if top_k is not None and (not is_int(top_k) or top_k < 1):
            raise ValueError(f"top_k must be a positive integer, found {top_k!r}")
        if not isinstance(query, str):
            raise TypeError(f"query is {type(query).__name__}, expected str")
        texts, single = as_texts(documents, "documents")
        if single:
            raise TypeError(f"documents must be a list of texts, found {shown(documents)}")
        scores = self.predict(
            [(query, text) for text in texts], prompt_name, prompt, batch_size, show_progress_bar,
            activation_fn, device=device, pool=pool, chunk_size=chunk_size, **arguments,
        )  # fmt: skip
        order = np.argsort(-scores.astype(np.float64), kind="stable")[:top_k]
        ranked: list[dict[str, Any]] = [{"corpus_id": int(i), "score": float(scores[i])} for i in order]
        if return_documents:
            for entry in ranked:
                entry["text"] = texts[entry["corpus_id"]]
        return ranked

    def tokenize(
        self,
        pairs: Any,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        instruction: str | None = None,
        escape_special_tokens: bool | None = None,
    ) -> list[list[int]]:
        """Return the token ids of each (query, document) pair exactly as `predict` computes with them.

        Args:
            pairs: As `inputs` of `predict`.
            prompt_name: As for `predict`.
            prompt: As for `predict`.
            instruction: As for `predict`.
            escape_special_tokens: As for `predict`.
        """
        instruction = self._asked_instruction(prompt_name, prompt, instruction)
        return list(self._ids(as_pairs(pairs)[0], instruction, escape_special_tokens))

    def _ids(self, pairs: Sequence[Pair], instruction: str, escape: bool | None) -> Iterator[list[int]]:
        """Yield the token ids of each pair, tokenised a batch at a time; one warning at the end."""
        escape = self.escape_special_tokens if escape is None else escape
        counter = TruncationCount("pairs", "max_length", self.max_length)
        first = 0
        for batch in batches(query + document for query, document in pairs):
            some = pairs[first : first + len(batch)]
            first += len(batch)
            yield from self.tokenizer.encode(some, instruction, self.max_length, escape, counter)
        counter.warn()

    def _asked_instruction(self, name: str | None, prompt: str | None, instruction: str | None) -> str:
        if instruction is not None:
            if prompt is not None or name is not None:
                raise ValueError("instruction and prompt are two names of one thing: give one")
            return self._check_instruction(instruction)
        if prompt is None:
            prompt = self._prompt(self.default_prompt_name if name is None else name)
        return self._check_instruction(prompt) or self.instruction

    def _saved_settings(self) -> dict[str, dict[str, Any]]:
        """Return file -> key -> value, for what differs from the folder that was loaded."""
        if not self.prompts:
            return {}
        prompts = {"prompts": self.prompts, "default_prompt_name": self.default_prompt_name}
        return {"config_sentence_transformers.json": prompts}

    def _rows(self, answers: tuple[int, int] | None) -> NDArray[np.float64]:
        """Return the rows "yes" and "no" of lm_head, [2, hidden_size].

        A classifier has one row; the other is zeros.
        """
        weights = self.checkpoint.weights(np.float64)
        if answers is None:
            row = weights.rows("score.weight")[:]
            check_rows(row, "score.weight", self.checkpoint.folder)
            return np.concatenate([row, np.zeros_like(row)])
        name = self.checkpoint.head
        if name is None:
            raise CheckpointError(
                f"{self.checkpoint.folder}: has no lm_head.weight, and config.json's tie_word_embeddings is "
                "false (or not there, which means the same): the last shard is missing, or this is not a "
                "reranker"
            )
        if max(answers) >= self.config.vocab_size:
            raise CheckpointError(
                f"{self.checkpoint.folder}: the answers' token ids are {answers[0]} and {answers[1]}, but "
                f"vocab_size is {self.config.vocab_size}; the files are of two models"
            )
        rows = weights.rows(name)[list(answers)]
        check_rows(rows, f"{name}, rows {answers[0]} and {answers[1]}", self.checkpoint.folder)
        return rows

    def _answers_of_tokenizer(self) -> tuple[int, int]:
        """Look up the ids of the tokens "yes" and "no"."""
        yes, no = self.tokenizer.token_id("yes"), self.tokenizer.token_id("no")
        if yes is None or no is None:
            raise CheckpointError(
                f"{self.checkpoint.folder}: there is no 1_LogitScore/config.json that names the answers' "
                'tokens, and tokenizer.json has no "yes" and "no"'
            )
        return yes, no

    @staticmethod
    def _check_instruction(instruction: str) -> str:
        if not isinstance(instruction, str):
            raise TypeError(f"instruction is {type(instruction).__name__}, expected str")
        return instruction


def _together(queries: Sequence[str]) -> list[list[int]]:
    """Group the pairs, by their numbers, so that those of a group share a prefix.

    A query with MIN_GROUP documents or more is a group, whose pairs begin with the same tokens; all other
    pairs are one group. Groups are split into parts of PART_TEXTS.
    """
    of_query: dict[str, list[int]] = {}
    for i, query in enumerate(queries):
        of_query.setdefault(query, []).append(i)
    groups = [rows for rows in of_query.values() if len(rows) >= MIN_GROUP]
    others = sorted(i for rows in of_query.values() if len(rows) < MIN_GROUP for i in rows)
    return [
        rows[first : first + PART_TEXTS]
        for rows in (*groups, others)
        for first in range(0, len(rows), PART_TEXTS)
    ]


def _activated(activation_fn: Callable[[Any], Any], scores: Scores) -> NDArray[Any]:
    """Apply the activation function to the scores.

    A PyTorch module gets a tensor: torch.nn.Sigmoid() is what scripts pass.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(activation_fn, torch.nn.Module):
        activated: Any = activation_fn(torch.from_numpy(scores)).detach().numpy()
    else:
        activated = activation_fn(scores)
    if np.shape(activated) != scores.shape:
        raise ValueError(
            f"activation_fn must give one number per score, [{len(scores)}], found {shown(activated)}"
        )
    return np.asarray(activated)
