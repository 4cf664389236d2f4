"""The teacher's vectors of all texts, computed once and kept as float16 beside the texts."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

SIZE = 384
LENGTH = 96  # tokens; a paragraph of documents.MOST characters has fewer
SHARD, BATCH = 2048, 64  # texts


class Teacher:
    """MiniLM: the mean of the last states, as all-MiniLM-L6-v2's 1_Pooling says."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return unit vectors, one a text."""
        vectors = np.empty((len(texts), SIZE), np.float32)
        ids = self._tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
        order = np.argsort([len(i) for i in ids], kind="stable")
        with torch.inference_mode():
            for at in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
                batch = self._tokenizer.pad({"input_ids": [ids[i] for i in at]}, return_tensors="pt")
                mask = batch["attention_mask"][:, :, None]
                states = self._model(**batch).last_hidden_state
                mean = (states * mask).sum(1) / mask.sum(1)
                vectors[at] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    def pieces(self) -> tuple[dict[str, int], NDArray[np.float32]]:
        """Return the ids of the teacher's word pieces, and their embeddings."""
        return self._tokenizer.get_vocab(), self._model.get_input_embeddings().weight.detach().numpy()

    def tokenize(self, text: str) -> list[str]:
        """Return a text's word pieces."""
        return self._tokenizer.tokenize(text)


def vectors(folder: Path, texts: list[str], work: Path, processes: int) -> NDArray[np.float16]:
    """Return the teacher's vectors, computing those not yet in work/teacher; an interrupted run goes on."""
    (shards := work / "teacher").mkdir(exist_ok=True)
    parts = {
        shards / f"{start:07}.npy": texts[start : start + SHARD] for start in range(0, len(texts), SHARD)
    }
    missing = [(path, part) for path, part in parts.items() if not path.exists()]
    # Processes of one thread each, not threads: twice the texts a second on a machine that is shared.
    with ProcessPoolExecutor(processes, get_context("spawn"), _load, (folder,)) as pool:
        for done, _ in enumerate(pool.map(_write, missing), len(parts) - len(missing) + 1):
            print(f"teacher: {min(done * SHARD, len(texts)):,} of {len(texts):,} texts", flush=True)
    return np.concatenate([np.load(path) for path in parts])


_teacher: Teacher


def _load(folder: Path) -> None:
    global _teacher
    torch.set_num_threads(1)
    _teacher = Teacher(folder)


def _write(task: tuple[Path, list[str]]) -> None:
    path, texts = task
    partial = path.with_suffix(".part.npy")
    np.save(partial, _teacher.encode(texts).astype(np.float16))
    partial.rename(path)
