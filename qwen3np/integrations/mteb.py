"""Qwen3-Embedding and Qwen3-Reranker for mteb: `mteb.evaluate(Encoder("Qwen/Qwen3-Embedding-0.6B"), tasks)`.

Instructions follow Qwen3's rule. Documents have none. Queries, and the texts of tasks without queries (STS,
classification, clustering, bitext mining), have "Instruct: {instruction}\\nQuery:" before them, where the
instruction is the task's own in mteb, or else that of its type. So does mteb's own entry of these models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..embedder import INSTRUCTION_TEMPLATE, Embedder
from ..files.identity import model_digest
from ..loading.hub import hub_id
from ..reranker import Reranker
from .models import EMBEDDER, RERANKER, extra, given

with extra("mteb"):
    from mteb import get_model_meta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType


class Encoder(AbsEncoder):
    """An embedding model that `mteb.evaluate` takes.

    Example:
        mteb.evaluate(Encoder("Qwen/Qwen3-Embedding-0.6B"), mteb.get_tasks(["STS12", "SciFact"]))

    Args:
        model: A Hub id, the path of a folder, or an Embedder.
        name: The model's name among results. Default: its Hub id, or the name of its folder.
        prompts_dict: Instructions by task, by type of task or by "query", in place of mteb's.
        instruction_template: What makes a prompt of an instruction. Models of the family differ: some want a
            space after "Query:".
        **options: The further arguments of Embedder, with the model's name or path.
    """

    def __init__(
        self,
        model: str | Path | Embedder = EMBEDDER,
        *,
        name: str | None = None,
        prompts_dict: Mapping[str, str] | None = None,
        instruction_template: str = INSTRUCTION_TEMPLATE.format("{instruction}"),
        **options: Any,
    ) -> None:
        self.model = given(Embedder, model, options)
        self._template = instruction_template
        self.prompts_dict = dict(prompts_dict or {})
        conditions = {
            "dimension": self.model.dimension,
            "max_length": self.model.max_seq_length,
            "template": instruction_template,
            "prompts": self.prompts_dict,
        }
        self.mteb_model_meta = _meta(self.model, name, conditions).model_copy(
            update={
                "loader": Encoder,
                "model_type": ["dense"],
                "embed_dim": self.model.dimension,
                "max_tokens": self.model.max_seq_length,
                "similarity_fn_name": ScoringFunction(self.model.similarity_fn_name),
            }
        )

    def instruction_template(self, instruction: str | Mapping[str, str], prompt_type: Any) -> str:
        """Return the prompt of an instruction, "" for none.

        Args:
            instruction: The instruction; some tasks have one by prompt_type, and name none for other texts.
            prompt_type: As mteb gives it; it changes nothing.
        """
        if isinstance(instruction, Mapping):
            instruction = next(iter(instruction.values()))
        return self._template.format(instruction=instruction) if instruction else ""

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **options: Any,
    ) -> NDArray[Any]:
        """Encode the texts of a task, all in one call.

        Args:
            inputs: Batches of texts, as mteb's loaders give them.
            task_metadata: The task, which says the instruction.
            hf_split: As mteb gives it; it changes nothing.
            hf_subset: As mteb gives it; it changes nothing.
            prompt_type: Whether the texts are queries, documents or, with None, neither.
            **options: Of mteb's encode_kwargs: show_progress_bar and precision are those of Embedder.encode;
                batch_size is left out, as it changes no vector and the model knows the fastest.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        options.pop("batch_size", None)
        if prompt_type == PromptType.document:
            return self.model.encode_document(texts, **options)
        return self.model.encode(
            texts, prompt=self.get_task_instruction(task_metadata, prompt_type), **options
        )


class CrossEncoder:
    """A reranker that `mteb.evaluate` takes.

    Every pair is scored with the model's instruction, by default the model card's. mteb's own entry of these
    models has another: `Reranker(..., instruction="Given the user query, retrieval the relevant passages")`
    repeats its scores. Where a task brings an instruction for each query, that one counts, as it does there.

    Args:
        model: A Hub id, the path of a folder, or a Reranker.
        name: The model's name among results. Default: its Hub id, or the name of its folder.
        **options: The further arguments of Reranker, with the model's name or path.
    """

    def __init__(
        self,
        model: str | Path | Reranker = RERANKER,
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self.model = given(Reranker, model, options)
        conditions = {"max_length": self.model.max_length, "instruction": self.model.instruction}
        self.mteb_model_meta = _meta(self.model, name, conditions).model_copy(
            update={
                "loader": CrossEncoder,
                "model_type": ["cross-encoder"],
                "max_tokens": self.model.max_length,
            }
        )

    def predict(
        self,
        inputs1: Any,
        inputs2: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **options: Any,
    ) -> NDArray[Any]:
        """Score pairs: query i of inputs1 with document i of inputs2.

        Args:
            inputs1: Batches of queries, as mteb's loaders give them.
            inputs2: Batches of documents.
            task_metadata: As mteb gives it; it changes nothing.
            hf_split: As mteb gives it; it changes nothing.
            hf_subset: As mteb gives it; it changes nothing.
            prompt_type: As mteb gives it; it changes nothing.
            **options: As for Encoder.encode.
        """
        options.pop("batch_size", None)
        queries, own = [], []
        for batch in inputs1:
            queries += batch["text"]
            own += batch.get("instruction", [self.model.instruction] * len(batch["text"]))
        documents = [text for batch in inputs2 for text in batch["text"]]
        pairs = list(zip(queries, documents, strict=True))
        scores = np.empty(len(pairs), np.float32)
        for instruction in set(own):
            rows = [row for row, said in enumerate(own) if said == instruction]
            scores[rows] = self.model.predict(
                [pairs[row] for row in rows], instruction=instruction, **options
            )
        return scores


def _meta(model: Embedder | Reranker, name: str | None, conditions: Mapping[str, Any]) -> ModelMeta:
    """Describe a model: what mteb knows of its name, and what is computed here.

    Results are stored by name, revision and experiment_kwargs: those of other software, settings or weights
    under the same name are never overwritten.
    """
    checkpoint, backend = model.checkpoint, model.backend
    folder = checkpoint.folder
    name = name or hub_id(folder) or folder.name
    try:
        known = get_model_meta(name)
    except KeyError:
        known = ModelMeta.create_empty({"name": name, "use_instructions": True})
    return known.model_copy(
        update={
            "revision": folder.name if hub_id(folder) else model_digest(checkpoint, backend.num_threads)[:40],
            "framework": ["NumPy", "safetensors"],
            "n_parameters": sum(tensor.data.size for tensor in checkpoint.tensors.values()),
            "n_embedding_parameters": model.config.vocab_size * model.config.hidden_size,
            "memory_usage_mb": None,
            "output_dtypes": None,  # float32
            "experiment_kwargs": {
                "qwen3np": __version__,
                "arithmetic": backend.arithmetic,
                "weights": backend.weights,
                **conditions,
            },
        }
    )
