"""pyarrow, which only Parquet files need (extra `parquet`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pyarrow_parquet(path: Path) -> Any:
    """The module pyarrow.parquet. Raises ImportError that says how to install it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: Parquet needs pyarrow: pip install 'qwen3np[parquet]'") from error
    return pyarrow.parquet
