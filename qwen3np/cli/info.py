"""qwen3np info: this machine and, with MODEL, the model."""

from __future__ import annotations

import argparse
import contextlib
import platform
import subprocess
import sys
from pathlib import Path

from .. import __version__
from ..embedder import Embedder
from ..reranker import Reranker
from ..runtime.cgroups import read
from . import options
from .streams import escaped

EXAMPLES = ("qwen3np info Qwen/Qwen3-Embedding-0.6B",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.model_options(parser, None)
    options.model_argument(parser)


def run(args: argparse.Namespace) -> None:
    rows = machine()
    if args.model is not None:
        name = str(args.model)
        rows |= model_rows(name, options.load_either(args))
    for key, value in rows.items():
        print(f"{key:13} {escaped(value)}")


def machine() -> dict[str, str]:
    import numba
    import numpy
    from llvmlite import binding

    from ..kernels import cache_files, isa
    from ..runtime.cores import thread_count, usable_cores

    names = ("avx2", "fma", "avx512f", "avx512bf16", "amx-bf16", "amx-int8", "neon", "bf16")
    kept = [f"{files} in {folder}, {size / 1e6:.1f} MB" for folder, files, size in cache_files.stored()]
    folder = next(iter(cache_files.folders()), "no folder")
    return {
        "qwen3np": f"{__version__}, NumPy {numpy.__version__}, Numba {numba.__version__}, "
        f"Python {platform.python_version()}",
        "CPU": f"{cpu_name()} (LLVM: {binding.get_host_cpu_name()})",
        "CPU features": " ".join(n for n in names if isa.has_feature(n)) or "none of " + " ".join(names),
        "cores": f"{usable_cores()} for this process, {thread_count()} threads by default",
        "kernels": f"{isa.choose('high')}; compiled: {'; '.join(kept) or f'none yet, for {folder}'}",
    }


def cpu_name() -> str:
    """Return the CPU's name as the operating system has it."""
    name = ""
    if sys.platform == "linux":
        pairs = (line.partition(":") for line in read(Path("/proc/cpuinfo")).splitlines())
        name = next((value for key, _, value in pairs if key.strip() in ("model name", "Model")), "")
    elif sys.platform == "darwin":
        sysctl = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError):
            name = subprocess.run(sysctl, capture_output=True, text=True).stdout
    return name.strip() or platform.processor() or platform.machine()


def model_rows(name: str, model: Embedder | Reranker) -> dict[str, str]:
    from ..runtime.memory import available_bytes, packed_bytes

    c, checkpoint = model.config, model.checkpoint
    choices = ("int8",) if checkpoint.is_int8 else options.WEIGHTS
    needs = [f"{weights} weights {packed_bytes(checkpoint, weights) / 1e9:.2f} GB" for weights in choices]
    has = [] if (available := available_bytes()) is None else [f"{available / 1e9:.2f} GB available"]
    dtype = checkpoint.tensors["embed_tokens.weight"].dtype
    return {
        "model": name,
        "folder": str(checkpoint.folder),
        "kind": "reranker (qwen3np.Reranker, qwen3np rerank)"
        if isinstance(model, Reranker)
        else "embedding model (qwen3np.Embedder, qwen3np embed)",
        "files": ", ".join(f"{p.name} ({p.stat().st_size / 1e9:.2f} GB)" for p in checkpoint.files),
        "parameters": f"{checkpoint.num_parameters:,} in {len(checkpoint.tensors)} tensors, {dtype}",
        "layers": str(c.num_hidden_layers),
        "hidden_size": f"{c.hidden_size}, intermediate_size {c.intermediate_size}",
        "attention": f"{c.num_attention_heads} query heads, {c.num_key_value_heads} key/value heads, "
        f"head_dim {c.head_dim}",
        "vocabulary": f"{c.vocab_size} rows",
        "rope_theta": f"{c.rope_theta:g}, rms_norm_eps {c.rms_norm_eps:g}",
        **(_reranker_rows(model) if isinstance(model, Reranker) else _embedder_rows(model)),
        "memory": "; ".join([*needs, *has]),
        "backend": repr(model.backend),
    }


def _embedder_rows(model: Embedder) -> dict[str, str]:
    return {
        "dimension": f"{model.dimension}, max_seq_length {model.max_seq_length}",
        "prompts": ", ".join(model.prompts),
    }


def _reranker_rows(model: Reranker) -> dict[str, str]:
    answers = "one score, score.weight"
    if model.answers is not None:
        answers = ", ".join(f"{model.tokenizer.decode([i])!r} ({i})" for i in model.answers)
    around = len(model.tokenizer.system) + len(model.tokenizer.answer)
    return {
        "prompt": f"{around} tokens around query and document, max_length {model.max_length}",
        "answers": answers,
        "instruction": model.instruction,
    }
