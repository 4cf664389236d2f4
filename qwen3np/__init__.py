"""Qwen3-Embedding and Qwen3-Reranker on a CPU in NumPy and Numba: text to vectors without PyTorch.

    from qwen3np import Embedder
    vectors = Embedder("Qwen/Qwen3-Embedding-0.6B").encode(["The capital of China is Beijing."])

qwen3np/reference.py is the whole model, to be read in one sitting.
"""

import os
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError

if TYPE_CHECKING:
    from .embedder import Embedder
    from .quantization import quantization_ranges, quantize_embeddings
    from .reranker import Reranker
    from .search import semantic_search

if not os.path.isdir(os.path.join(__path__[0], "kernels")):
    # A source checkout keeps kernels/ beside the package: `python -m qwen3np` works there too.
    __path__.append(os.path.dirname(__path__[0]))

__version__ = "0.2.0"
__all__ = [
    "CheckpointError", "Embedder", "Reranker", "__version__", "quantization_ranges", "quantize_embeddings",
    "semantic_search",
]  # fmt: skip

# Name -> module, imported on first use: the tokenizer library alone takes longer than all else together.
_HOME = {
    "Embedder": "embedder",
    "Reranker": "reranker",
    "quantization_ranges": "quantization",
    "quantize_embeddings": "quantization",
    "semantic_search": "search",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
