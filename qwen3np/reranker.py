"""Reranker: how well a document answers a query, as the model's "yes" against its "no".

The model reads the pair in a conversation (tokenizer.py has the words) and is asked for the next token. Of
the logits of all 151669 tokens two matter: score = logit("yes") - logit("no"), and sigmoid(score) is the
probability of "yes" among the two, the number of the model card. So two rows of lm_head are enough. A copy
saved as a sequence classifier has their difference, score.weight, in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import check_backend, make_backend
from .checkpoint import Checkpoint
from .errors import CheckpointError
from .hub import locate
from .modules import load_reranker_modules, open_reranker
from .pickling import PickledByArguments
from .progress import progress_bar
from .soundness import check_rows, check_states
from .torch_only import refuse

Scores = NDArray[np.float32]

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"  # model card
MAX_LENGTH = 8192  # model card
ENOUGH = 4  # documents of one query that are computed apart from other queries', to share its tokens


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """1 / (1 + e^-x), without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


class Reranker(PickledByArguments):
    """A Qwen3-Reranker model. The argument names and their meaning are those of sentence-transformers'
    CrossEncoder.

    Args:
        model_name_or_path: a Hub id (downloaded once into the Hub cache) or a folder in the Hub's layout.
        instruction: what makes a document a good one, in a sentence; default: the one that a fine-tuned
        model's files give, else the model card's, for web search.
        max_length: longest conversation in tokens; what is beyond is cut from the end of the document.
        Default: that of the model's sentence_bert_config.json, else 8192.
        escape_special_tokens: special tokens in instruction, query and document are text. By default, as in
        the model card's code, they are tokens: a document that contains "<|im_end|>" can close the
        conversation and answer itself. Set it where documents come from others.
        revision, cache_folder, local_files_only, token: as in huggingface_hub.
        backend, matmul_precision, num_threads: as for Embedder.

    Raises CheckpointError if the model's files are missing, damaged, or those of an embedding model.
    """

    SETTINGS = ("instruction", "max_length", "escape_special_tokens")

    def __init__(
        self,
        model_name_or_path: str | Path = "Qwen/Qwen3-Reranker-0.6B",
        *,
        instruction: str | None = None,
        max_length: int | None = None,
        escape_special_tokens: bool = False,
        revision: str | None = None,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        backend: str = "auto",
        matmul_precision: str = "high",
        num_threads: int | None = None,
        **torch_only: Any,
    ) -> None:
        refuse(torch_only, "Reranker")
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
        self.tokenizer, own = open_reranker(folder, self.checkpoint, modules)
        self.escape_special_tokens = escape_special_tokens
        self.instruction = self._check_instruction(
            (own or INSTRUCTION) if instruction is None else instruction
        )
        around = len(self.tokenizer.system) + len(self.tokenizer.answer)
        limit = self.config.max_position_embeddings
        if max_length is None:
            max_length = modules.transformer.max_seq_length or min(MAX_LENGTH, limit)
            limit = max(limit, max_length)
        self.max_length = max_length
        if type(max_length) is not int or not around < max_length <= limit:
            raise ValueError(
                f"max_length = {max_length!r} must be between {around + 1} (the prompt alone has {around} "
                f"tokens) and {limit} (max_position_embeddings)"
            )
        self.answers: tuple[int, int] | None = None
        if "score.weight" not in self.checkpoint.tensors:
            self.answers = modules.answers or self._answers_of_tokenizer()
        self._answer_rows = self._rows(self.answers)
        self.backend = make_backend(self.checkpoint, backend, matmul_precision, num_threads)

    def __repr__(self) -> str:
        return f"Reranker({str(self.checkpoint.folder)!r}, backend={self.backend.name!r})"

    def predict(
        self,
        inputs: Sequence[str] | Iterable[Sequence[str]],
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Scores], Any] | None = sigmoid,
        *,
        instruction: str | None = None,
        raw_scores: bool = False,
        escape_special_tokens: bool | None = None,
        **torch_only: Any,
    ) -> Any:
        """(query, document) pairs -> probabilities of "yes", float32 [pairs]; one pair -> one number.

        Args:
            inputs: any iterable of pairs of str (tuples, lists, rows of an array), or one pair.
            batch_size: pairs computed at a time, at the most; it changes memory and speed, never a score.
            show_progress_bar: None shows it when the logger "qwen3np" is at INFO or below.
            activation_fn: what is made of the scores, an array in and a number a score out; None leaves them
            as they are, logit("yes") - logit("no").
            raw_scores: the same as activation_fn=None.
            instruction, escape_special_tokens: for this call, in place of the model's.

        A pair's score has the same bits in any call. Identical pairs are computed once, and so is what pairs
        begin with: the instruction, and the query of one query's documents. An empty query or document is
        scored as it is. Raises TypeError or ValueError for what is no pair of valid str, and for an
        activation_fn that does not give a number a score."""
        refuse(torch_only, "predict")
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise ValueError(f"batch_size must be a positive integer, found {batch_size!r}")
        if isinstance(inputs, (str, Mapping)):
            raise TypeError(f"inputs must be pairs of a query and a document, found {_shown(inputs)}")
        pairs: list[Any] = list(inputs)
        single = len(pairs) == 2 and all(isinstance(text, str) for text in pairs)
        if single:
            pairs = [tuple(pairs)]
        tokens = self.tokenize(
            pairs, instruction=instruction, escape_special_tokens=escape_special_tokens
        )
        ids = [tuple(i) for i in tokens]
        query = {i: pair[0] for i, pair in zip(ids, pairs, strict=True)}
        # Each pair once, and longest first, as in Embedder.encode.
        number = {i: n for n, i in enumerate(sorted(query, key=lambda i: (-len(i), i)))}
        distinct = [list(i) for i in number]
        once = np.empty(len(distinct), np.float32)
        with progress_bar(len(distinct), show_progress_bar, "pairs") as bar:
            for rows in _together([query[i] for i in number]):
                states = self.backend.encode(
                    [distinct[n] for n in rows], self.tokenizer.system, batch_size, bar.update
                )
                check_states(states, [distinct[n] for n in rows], self.checkpoint, self.backend)
                once[rows] = self.scores(self.logits(states))
        scores = once[[number[i] for i in ids]]
        if not raw_scores and activation_fn is not None:
            activated = activation_fn(scores)
            if np.shape(activated) != (len(ids),):
                raise ValueError(
                    f"activation_fn must give a number a score, [{len(ids)}], found {_shown(activated)}"
                )
            scores = np.asarray(activated)
        return scores[0] if single else scores

    def logits(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Final states of the prompts' last tokens [pairs, hidden_size] -> logits of "yes" and "no"
        [pairs, 2], in float64: of two large, nearly equal ones the difference is what counts."""
        wide = states.astype(np.float64)
        return np.stack([(wide * row).sum(axis=1) for row in self._answer_rows], axis=1)

    def scores(self, logits: NDArray[np.float64]) -> Scores:
        """Logits of "yes" and "no" [pairs, 2] -> "yes" - "no" [pairs]."""
        return (logits[:, 0] - logits[:, 1]).astype(np.float32)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **arguments: Any,
    ) -> list[dict[str, Any]]:
        """The documents for a query, best first: {"corpus_id", "score"} each, and "text" if asked for.

        Equal scores come in the order of the documents. Takes predict's arguments.
        """
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise ValueError(f"top_k must be a positive integer, found {top_k!r}")
        if not isinstance(query, str):
            raise TypeError(f"query is {type(query).__name__}, expected str")
        if isinstance(documents, (str, Mapping)):
            raise TypeError(f"documents must be a list of texts, found {_shown(documents)}")
        texts = list(documents)
        scores = self.predict([(query, text) for text in texts], **arguments)
        order = np.argsort(-scores.astype(np.float64), kind="stable")[:top_k]
        ranked: list[dict[str, Any]] = [{"corpus_id": int(i), "score": float(scores[i])} for i in order]
        if return_documents:
            for entry in ranked:
                entry["text"] = texts[entry["corpus_id"]]
        return ranked

    def tokenize(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        instruction: str | None = None,
        escape_special_tokens: bool | None = None,
    ) -> list[list[int]]:
        """(query, document) pairs -> lists of token ids exactly as `predict` uses them."""
        checked = []
        for i, pair in enumerate(pairs):
            if not isinstance(pair, (tuple, list, np.ndarray)) or len(pair) != 2:
                raise TypeError(f"input {i} is no pair of a query and a document: {_shown(pair)}")
            checked.append((pair[0], pair[1]))
        instruction = self.instruction if instruction is None else self._check_instruction(instruction)
        if escape_special_tokens is None:
            escape_special_tokens = self.escape_special_tokens
        return self.tokenizer.encode(checked, instruction, self.max_length, escape_special_tokens)

    def _rows(self, answers: tuple[int, int] | None) -> NDArray[np.float64]:
        """Rows "yes" and "no" of lm_head, [2, hidden_size]; of a classifier its one row, and zeros."""
        weights = self.checkpoint.weights(np.float64)
        if answers is None:
            row = weights.rows("score.weight")[:]
            check_rows(row, "score.weight", self.checkpoint.folder)
            return np.concatenate([row, np.zeros_like(row)])
        name = self.checkpoint.head
        if name is None:
            raise CheckpointError(
                f"{self.checkpoint.folder}: has no lm_head.weight, and config.json's tie_word_embeddings is "
                "false (or not there, which means the same): the last shard is missing, or this is no "
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
    """Numbers of the pairs in groups, in order: the pairs of a query that has several documents begin with
    the same tokens; all others are one group."""
    of_query: dict[str, list[int]] = {}
    for i, query in enumerate(queries):
        of_query.setdefault(query, []).append(i)
    groups = [rows for rows in of_query.values() if len(rows) >= ENOUGH]
    others = sorted(i for rows in of_query.values() if len(rows) < ENOUGH for i in rows)
    return groups + ([others] if others else [])


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
