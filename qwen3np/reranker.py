"""Reranker: how well a document answers a query, as the model's "yes" against its "no".

The model reads the pair in a conversation (tokenizer.py has the words) and is asked for the next token. Of
the logits of all 151669 tokens two matter: score = logit("yes") - logit("no"), and sigmoid(score) is the
probability of "yes" among the two, the number of the model card. So two rows of lm_head are enough."""

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
from .loading.tokenizer import Cut, batches
from .runtime.backend import check_backend, make_backend
from .runtime.distinct import PART_TEXTS, Distinct
from .runtime.progress import progress_bar
from .runtime.soundness import check_rows, check_states

Scores = NDArray[np.float32]

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"  # model card
MAX_LENGTH = 8192  # model card
ENOUGH = 4  # documents of one query that are computed apart from other queries', to share its tokens


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """1 / (1 + e^-x), in decimals (10 us each): the last bits of np.exp depend on the CPU."""
    c = Context(prec=25, traps=[])  # beyond its range are infinity and zero, not errors
    each = [c.divide(Decimal(1), c.add(Decimal(1), c.exp(Decimal(-float(value))))) for value in np.ravel(x)]
    return np.array(each, x.dtype).reshape(x.shape)


class Reranker(DropIn, PickledByArguments):
    """A Qwen3-Reranker model. The argument names and their meaning are those of sentence-transformers'
    CrossEncoder.

    Args:
        model_name_or_path: a Hub id (downloaded once into the Hub cache) or a folder in the Hub's layout.
        instruction: what makes a document a good one, in a sentence; default: the one that a fine-tuned
        model's files give, else the model card's, for web search.
        max_length: longest conversation in tokens; what is beyond is cut from the end of the document.
        Default: that of the model's sentence_bert_config.json or tokenizer_config.json, but not more than
        8192 of the latter.
        escape_special_tokens: special tokens in instruction, query and document are text. By default, as in
        the model card's code, they are tokens: a document that contains "<|im_end|>" can close the
        conversation and answer itself. Set it where documents come from others.
        prompts: name -> instruction. default_prompt_name: the one used in place of `instruction` where a call
        names none.
        activation_fn: what `predict` makes of scores; default: the probability.
        revision, cache_folder, local_files_only, token: as in huggingface_hub.
        backend, matmul_precision, num_threads, reproducible: as for Embedder.

    instruction, max_length (or max_seq_length), prompts, default_prompt_name and activation_fn can be set
    later, with the same checks. Other arguments of sentence-transformers are accepted where they change no
    score.

    Raises CheckpointError if the model's files are missing, damaged, or those of an embedding model.
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
        self.instruction = (own_instruction or INSTRUCTION) if instruction is None else instruction
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.activation_fn = activation_fn
        self.max_length = max_length
        self.answers: tuple[int, int] | None = None
        if "score.weight" not in self.checkpoint.tensors:
            self.answers = modules.answers or self._answers_of_tokenizer()
        self._answer_rows = self._rows(self.answers)
        self.backend = make_backend(self.checkpoint, backend, matmul_precision, num_threads, reproducible)

    def __repr__(self) -> str:
        return f"Reranker({str(self.checkpoint.folder)!r}, backend={self.backend.name!r})"

    @property
    def instruction(self) -> str:
        """What makes a document a good one. Setting it raises TypeError for what is no str."""
        return self._instruction

    @instruction.setter
    def instruction(self, instruction: str) -> None:
        self._instruction = self._check_instruction(instruction)

    @property
    def max_length(self) -> int:
        """Longest conversation in tokens. Setting it raises ValueError where there is no room beside the
        prompt, and above max_position_embeddings; None is the default."""
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
        """Scores of a pair: one."""
        return 1

    @property
    def activation_fn(self) -> Callable[[Scores], Any]:
        """What `predict` makes of scores where the call does not say. Setting it raises TypeError for what
        cannot be called; None is the default, the probability."""
        return self._activation_fn

    @activation_fn.setter
    def activation_fn(self, activation_fn: Callable[[Scores], Any] | None) -> None:
        if activation_fn is not None and not callable(activation_fn):
            raise TypeError(f"activation_fn is {shown(activation_fn)}, expected a function of the scores")
        self._activation_fn = sigmoid if activation_fn is None else activation_fn

    default_activation_function = activation_fn

    def get_default_activation_fn(self) -> Callable[[Scores], Any]:
        """What makes probabilities of scores."""
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
        """(query, document) pairs -> probabilities of "yes", float32 [pairs]; one pair -> one number.

        Args:
            inputs: any iterable of pairs of str (tuples, lists, rows of an array), or one pair.
            instruction, escape_special_tokens: for this call, in place of the model's.
            prompt_name: the key of an instruction in `prompts`.
            prompt: the same as instruction, by sentence-transformers' name; it wins over prompt_name, and an
            empty one is none.
            batch_size: pairs computed at a time, at the most; it changes memory and speed, never a score.
            show_progress_bar: None shows it when the logger "qwen3np" is at INFO or below.
            activation_fn: what is made of the scores logit("yes") - logit("no"), an array in and a number a
            score out; None is the model's `activation_fn`, by default the probability.
            raw_scores: leave the scores as they are.
            apply_softmax, convert_to_numpy, convert_to_tensor, device, pool, chunk_size: where
            sentence-transformers has them; only values that change nothing are accepted.

        A pair's score has the same bits in any call. Identical pairs are computed once, and so is what pairs
        begin with: the instruction, and the query of one query's documents. An empty query or document is
        scored as it is. Raises TypeError or ValueError for what is no pair of valid str, and for an
        activation_fn that does not give a number a score."""
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
        _, first = np.unique(distinct.rows, return_index=True)  # a pair of each number
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
        """Final states of the prompts' last tokens [pairs, hidden_size] -> logits of "yes" and "no"
        [pairs, 2], in float64: of two large, nearly equal ones the difference is what counts. cumsum adds
        in order, on every CPU."""
        wide = states.astype(np.float64)
        return np.stack([np.cumsum(wide * row, axis=1)[:, -1] for row in self._answer_rows], axis=1)

    def scores(self, logits: NDArray[np.float64]) -> Scores:
        """Logits of "yes" and "no" [pairs, 2] -> "yes" - "no" [pairs]."""
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
        """The documents for a query, best first: {"corpus_id", "score"} each, and "text" if asked for.

        Equal scores come in the order of the documents. The other arguments are those of `predict`.
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
        """(query, document) pairs -> lists of token ids exactly as `predict` uses them."""
        instruction = self._asked_instruction(prompt_name, prompt, instruction)
        return list(self._ids(as_pairs(pairs)[0], instruction, escape_special_tokens))

    def _ids(self, pairs: Sequence[Pair], instruction: str, escape: bool | None) -> Iterator[list[int]]:
        """Token ids of the pairs, a batch at a time; and one warning at the end."""
        escape = self.escape_special_tokens if escape is None else escape
        cut = Cut("pairs", "max_length", self.max_length)
        first = 0
        for batch in batches(query + document for query, document in pairs):
            some = pairs[first : first + len(batch)]
            first += len(batch)
            yield from self.tokenizer.encode(some, instruction, self.max_length, escape, cut)
        cut.warn()

    def _asked_instruction(self, name: str | None, prompt: str | None, instruction: str | None) -> str:
        if instruction is not None:
            if prompt is not None or name is not None:
                raise ValueError("instruction and prompt are two names of one thing: give one")
            return self._check_instruction(instruction)
        if prompt is None:
            prompt = self._prompt(self.default_prompt_name if name is None else name)
        return self._check_instruction(prompt) or self.instruction

    def _saved_settings(self) -> dict[str, dict[str, Any]]:
        if not self.prompts:
            return {}
        prompts = {"prompts": self.prompts, "default_prompt_name": self.default_prompt_name}
        return {"config_sentence_transformers.json": prompts}

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
    return [
        rows[first : first + PART_TEXTS]
        for rows in (*groups, others)
        for first in range(0, len(rows), PART_TEXTS)
    ]


def _activated(activation_fn: Callable[[Any], Any], scores: Scores) -> NDArray[Any]:
    """A module of PyTorch's gets a tensor: torch.nn.Sigmoid() is what scripts pass."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(activation_fn, torch.nn.Module):
        activated: Any = activation_fn(torch.from_numpy(scores)).detach().numpy()
    else:
        activated = activation_fn(scores)
    if np.shape(activated) != scores.shape:
        raise ValueError(
            f"activation_fn must give a number a score, [{len(scores)}], found {shown(activated)}"
        )
    return np.asarray(activated)
