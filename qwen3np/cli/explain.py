"""qwen3np explain: a text's way to its vector, as one page of pictures beside the code that computes them."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from ..files.atomic import write_file
from . import options
from .inputs import texts
from .streams import say

SUFFIXES = (".html", ".htm")
EXAMPLES = (
    'qwen3np explain "The capital of China is Beijing." --output page.html',
    'qwen3np explain "What is gravity?" --query --with "It is a force." --output page.html',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a page that shows how a text becomes its vector: tokens, the residual stream, attention, the\n"
        "layers; and, of two texts, their similarity. Each picture stands beside the code that computes it."
    )
    options.model_options(parser, options.EMBEDDER)
    parser.add_argument("text", metavar="TEXT", help="the text; -: from stdin")
    options.literal(parser)
    options.prompt_options(parser, "TEXT")
    parser.add_argument("--with", dest="other", metavar="TEXT", help="compare it with this document")
    parser.add_argument(
        "--layers",
        type=_layers,
        metavar="LIST",
        help="layers whose attention is shown, as 0,5-8,27 (default: all, or as many as have room)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="PAGE", help="the page to write: PAGE.html"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace PAGE")


def run(args: argparse.Namespace) -> None:
    check_free(args.output, args.overwrite)
    found = texts([args.text, *([] if args.other is None else [args.other])], args.literal)
    if len(found) != 1 + (args.other is not None):
        raise ValueError(f"stdin holds {len(found)} texts, one per line: a page is about one")
    from ..embedder import DOCUMENT_PROMPTS
    from ..explain import explain, page

    model = options.load_embedder(args)
    documents = next((name for name in DOCUMENT_PROMPTS if name in model.prompts), None)
    explanation = explain(
        model,
        *found,
        prompt=options.prompt_of(model, args),
        other_prompt=model.prompt_text(documents),
        layers=args.layers,
    )
    html = page(explanation).encode()
    check_free(args.output, args.overwrite)  # computing took its time
    write_file(args.output, html)
    lengths = " and ".join(f"{len(reading.ids)}" for reading in explanation.texts)
    say(f"{args.output}: {lengths} tokens, {len(html) / 1e6:.2f} MB")


def check_free(output: Path, overwrite: bool) -> None:
    """Raise what writing the page would, before anything is computed."""
    if not str(output).isprintable():
        raise ValueError(f"--output {str(output)!r}: the name holds a character that cannot be printed")
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--output {output}: the name must end in {' or '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise ValueError(f"--output {output}: is a folder")
    if os.path.lexists(output) and not overwrite:
        raise FileExistsError(f"{output}: exists; --overwrite replaces it")
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"--output {output}: the folder {output.parent} cannot be written to")


def _layers(argument: str) -> list[int]:
    """Parse the option --layers."""
    layers: list[int] = []
    for part in argument.split(","):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip(), re.ASCII)
        some = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
        if not some:
            raise argparse.ArgumentTypeError(f"{part!r} is neither a layer, as 5, nor a range, as 5-8")
        layers += some
    return layers
