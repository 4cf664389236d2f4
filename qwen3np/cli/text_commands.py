"""The commands `embed`, for texts, and `similarity`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..files import outputs
from ..runtime.progress import worth_showing
from ..table import cut, one_line, table, terminal_columns
from . import file_commands as commands
from .arguments import STDIN, stdin_lines, texts
from .streams import say

if TYPE_CHECKING:
    from ..embedder import Embedder


def embed(args: argparse.Namespace, load: Callable[[], Embedder]) -> None:
    """Texts, or a file of them."""
    if args.output is not None:
        outputs.check_name(args.output)
    if args.input == STDIN:
        args.texts, args.input = [*args.texts, STDIN], None
    source = commands.input_file(args)
    if source is not None:
        commands.embed(args, source, load)
        return
    for option in ("column", "id_column", "delimiter", "resume"):
        if getattr(args, option):
            raise ValueError(f"--{option.replace('_', '-')} is for an input file")
    from ..files.run import check_free, save

    if args.output is not None:
        check_free(args.output, args.overwrite)
    found = [*texts(args.texts, as_text="--text"), *args.text] or stdin_lines()
    model = load()
    prompt = commands.prompt_of(model, args)
    vectors = model.encode(
        found, prompt=prompt, truncate_dim=args.dim, show_progress_bar=worth_showing(found)
    )
    if args.output is None:
        for text, vector in zip(found, vectors, strict=True):
            print(outputs.json_line({"text": text}, vector))
        return
    info = {"model": commands.model_name(args.model), "dim": str(vectors.shape[1]), "prompt": prompt}
    save(args.output, found, vectors, info, args.overwrite)
    say(f"{args.output}: {vectors.shape[0]} x {vectors.shape[1]} {vectors.dtype}")


def similarity(args: argparse.Namespace, load: Callable[[], Embedder]) -> None:
    if STDIN in args.query and STDIN in args.document:
        raise ValueError("- is stdin, which can be read once")
    queries, documents = (texts(given, args.literal) for given in (args.query, args.document))
    model = load()
    scores = model.similarity(
        model.encode_query(queries, prompt=args.prompt, truncate_dim=args.dim),
        model.encode_document(documents, truncate_dim=args.dim),
    )
    columns = terminal_columns()
    names = [f"[{i}]" for i in range(1, len(documents) + 1)]
    rows = [[q, *(f"{s:.4f}" for s in row)] for q, row in zip(queries, scores, strict=True)]
    print(table(["query", *names], rows, columns), end="\n\n")
    for name, document in zip(names, documents, strict=True):
        print(cut(f"{name} {one_line(document, columns)}", columns))
