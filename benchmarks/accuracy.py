"""Error against float64, of this package and of PyTorch, on the same checkpoint and token ids.

    python benchmarks/accuracy.py [FOLDER]      needs the extra `hf`; writes benchmarks/results/accuracy.json

FOLDER holds a generated checkpoint (`qwen3np synth FOLDER --like 0.6B`); without it one is made in a
temporary folder. The truth is transformers in float64. Half of the texts start with a massive activation
(5700 in one channel).
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from qwen3np import Embedder, reference
from qwen3np.runtime.numba_backend import PRECISIONS, NumbaBackend
from qwen3np.synth.checkpoints import massive_token_ids, synthesize
from qwen3np.verify.transformers import transformers_vectors

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
LENGTHS = (*[8] * 6, *[40] * 6, *[200] * 6, 2048)


def token_ids(model: Embedder) -> list[list[int]]:
    rng = np.random.default_rng(3)
    massive = massive_token_ids(model.config, seed=0)
    texts = []
    for i, length in enumerate(LENGTHS):
        ids = rng.integers(0, model.config.vocab_size - 64, length)
        if i % 2 == 0:
            ids[0], ids[length // 2] = massive[i], massive[i + 1]
        ids[-1] = model.tokenizer.end_of_text
        texts.append(ids.tolist())
    return texts


def main(folder: Path) -> None:
    model = Embedder(folder, backend="numpy")
    texts = token_ids(model)
    backends = [model.backend, *(NumbaBackend(model.checkpoint, precision) for precision in PRECISIONS)]
    vectors = {f"qwen3np {backend!r}": reference.normalize(backend.forward(texts)) for backend in backends}
    for name in ("float32", "bfloat16", "float16"):
        vectors[f"PyTorch {name}"] = transformers_vectors(folder, texts, name)
    truth = transformers_vectors(folder, texts, "float64")
    rows = []
    for name, v in vectors.items():
        v = v.astype(np.float64)
        rows.append(
            {
                "name": name,
                "max_abs": float(np.abs(v - truth).max()),
                "one_minus_cosine": float((1 - (v * truth).sum(axis=1) / np.linalg.norm(v, axis=1)).max()),
            }
        )
        print(f"{name:70} {rows[-1]['max_abs']:.1e}  {rows[-1]['one_minus_cosine']:.1e}")
    versions = {"numpy": np.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    about = {"machine": platform.machine(), "lengths": LENGTHS, "versions": versions}
    RESULTS.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(synthesize(Path(temporary) / "0.6B", "0.6B"))
