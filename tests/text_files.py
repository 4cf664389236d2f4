"""Files of texts that tests embed and search."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = [
    "The capital of China is Beijing.",
    "",
    "中国\u2028首都",
    'He said "hi", twice',
    "  spaces\t",
    "a" * 300,
]
ONES = [1.0] * 96
IDS = ["a", "b,1", "中", "17", "", "x y"]
OUTPUTS = [".npy", ".jsonl", ".parquet", ".safetensors"]


def write_input(path: Path, texts, ids=None) -> Path:
    columns = {"text": texts} if ids is None else {"id": ids, "text": texts}
    records = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if path.suffix == ".txt":
        path.write_bytes("".join(text + "\n" for text in texts).encode())
    elif path.suffix == ".jsonl":
        path.write_bytes("".join(json.dumps(record) + "\n" for record in records).encode())
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(records)
    else:
        path.write_bytes(parquet([*columns], [*columns.values()]))
    return path


def parquet(names, columns) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table([pa.array(column) for column in columns], names=names), file)
    return file.getvalue()
