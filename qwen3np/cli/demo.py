"""qwen3np demo: the model card's example; without the published weights, by the package's small model."""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import reference
from ..embedder import Embedder
from ..errors import CheckpointError
from ..loading.checkpoint import SINGLE_FILE
from ..loading.hub import locate
from ..runtime.backend import Backend, NumpyBackend
from ..runtime.numba_backend import FLOATING, NumbaBackend
from ..search import semantic_search
from ..table import table, terminal_columns
from ..verify.published import CARD_DOCUMENTS, CARD_MODEL, CARD_QUERIES, CARD_SCORES
from .pages import pieces

Print = Callable[[str], object]
EXAMPLES = ("qwen3np demo",)
SMALL = "qwen3np-tiny"
QUESTIONS = (
    "how do I resume an interrupted run?",
    "what happens when the disk is full?",
    "rank documents with a reranker",
)
SHOWN = 2  # answers to a question


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments: there are none."""


def run(args: argparse.Namespace) -> None:
    show(print)


def show(out: Print) -> None:
    """Print the example.

    The model is downloaded (1.2 GB, once) if it is not in the Hub cache and the Hub answers.
    """
    folder, why = _published_model(out)
    if folder is not None:
        _show_published(folder, out)
        return
    _show_small(why, out)


def _published_model(out: Print) -> tuple[Path | None, str]:
    """Return the folder of the published model, or None and why not after at most three seconds."""
    try:
        folder = locate(CARD_MODEL, local_files_only=True)
        if (folder / SINGLE_FILE).is_file():  # else an interrupted download left the folder
            return folder, ""
    except CheckpointError:
        pass
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(CARD_MODEL, timeout=3)
    except Exception as error:  # whatever the HTTP client raises: the Hub cannot be reached
        return None, type(error).__name__
    out(f"Downloading {CARD_MODEL} (1.2 GB, once) ... HF_HUB_OFFLINE=1 runs this demo without it.")
    return locate(CARD_MODEL), ""


def _show_published(folder: Path, out: Print) -> None:
    model = Embedder(folder)
    start = time.perf_counter()
    scores = model.similarity(model.encode_query(CARD_QUERIES), model.encode_document(CARD_DOCUMENTS))
    seconds = time.perf_counter() - start
    rows = [
        [query, document[:32], f"{expected:.6f}", f"{got:.6f}", f"{abs(got - expected):.1e}"]
        for query, card_row, row in zip(CARD_QUERIES, CARD_SCORES, scores, strict=True)
        for document, expected, got in zip(CARD_DOCUMENTS, card_row, row, strict=True)
    ]
    out(f"{CARD_MODEL}, backend {model.backend!r}, 4 texts in {seconds:.2f} s\n")
    out(table(["query", "document", "model card", "here", "difference"], rows, terminal_columns()))


def _show_small(why: str, out: Print) -> None:
    model = Embedder(SMALL)
    c, size = model.config, model.checkpoint.num_parameters
    out(f"{CARD_MODEL} is not in the Hub cache and the Hub cannot be reached ({why}).")
    out(f"So this is {SMALL}, of {size / 1e6:.1f} million parameters, trained for this package: it knows")
    out("everyday English; the real one a hundred languages and far more of the world.\n")
    out(
        f"model     {c.num_hidden_layers} layers, hidden_size {c.hidden_size}, "
        f"{c.num_attention_heads} query heads on {c.num_key_value_heads} key/value heads of {c.head_dim}, "
        f"{size:,} parameters"
    )
    text = CARD_QUERIES[1]
    [ids] = model.tokenize(text, prompt="Query:")
    out(f"text      {'Query:' + text!r}")
    out("tokens    " + " | ".join(model.tokenizer.decode([i]).strip(" ").replace("\n", "\\n") for i in ids))
    out("ids       " + " ".join(map(str, ids)))
    model.encode_query("a")  # kernels and weights are loaded

    start = time.perf_counter()
    queries, documents = model.encode_query(CARD_QUERIES), model.encode_document(CARD_DOCUMENTS)
    milliseconds = 1e3 * (time.perf_counter() - start)
    out(f"vectors   {queries.shape} and {documents.shape} {queries.dtype}, in {milliseconds:.1f} ms\n")
    scores = model.similarity(queries, documents)
    header = ["similarity", *(f"{d[:20]}..." for d in CARD_DOCUMENTS)]
    rows = [[q, *(f"{s:.4f}" for s in row)] for q, row in zip(CARD_QUERIES, scores, strict=True)]
    out(table(header, rows, terminal_columns()))
    _search_pages(model, out)
    _compare_backends(model, out)
    out(f'\nNext: qwen3np embed --model {CARD_MODEL} "your text"   on a machine with a network')
    out(f'      qwen3np embed --model {SMALL} "your text"   on this one')


def _search_pages(model: Embedder, out: Print) -> None:
    """Search this package's own documentation."""
    found = [*pieces()]
    texts = [each.text for each in found]
    start = time.perf_counter()
    vectors = model.encode_document(texts)
    milliseconds = 1e3 * (time.perf_counter() - start)
    tokens = sum(map(len, model.tokenize(texts)))
    out(f"\nthis package's documentation: {len(found)} pieces, {tokens:,} tokens, {milliseconds:.0f} ms")
    hits = semantic_search(model.encode_query(QUESTIONS), vectors, SHOWN)
    for question, best in zip(QUESTIONS, hits, strict=True):
        out(f"\n  {question}")
        for hit in best:
            page, heading, text = found[hit["corpus_id"]]
            answer = f"{hit['score']:.2f}  {text} [{heading}, docs/{page}]"
            out(textwrap.fill(answer, 100, initial_indent="  ", subsequent_indent=" " * 8))


def _compare_backends(model: Embedder, out: Print) -> None:
    """Compare each path's vectors of the four texts with those of the reference in float64."""
    out("\nlargest difference of a unit vector's values from the reference in float64:")
    c = model.config
    ids4 = model.tokenize(CARD_QUERIES, prompt_name="query") + model.tokenize(CARD_DOCUMENTS)
    w = model.checkpoint.weights(np.float64)
    settings = (c.rms_norm_eps, c.rope_theta, c.head_dim)
    exact = reference.forward(ids4, w.embed_tokens, w.layers, w.norm, *settings)
    truth = reference.normalize(np.stack([reference.pool(x_TD) for x_TD in exact]))
    backends: list[Backend] = [
        *(NumbaBackend(model.checkpoint, precision) for precision in FLOATING),
        NumpyBackend(model.checkpoint),
    ]
    for backend in backends:
        difference = np.abs(reference.normalize(backend.forward(ids4)) - truth).max()
        out(f"  {difference:.1e}  {backend!r}")
