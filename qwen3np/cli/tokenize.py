"""qwen3np tokenize: what the model reads of a text, as JSON lines. No weights are loaded."""

from __future__ import annotations

import argparse
import json

from . import options
from .inputs import stdin_lines, texts

EXAMPLES = (
    'qwen3np tokenize "What is the capital of China?"',
    "cat texts.txt | qwen3np tokenize - --count",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.model_options(parser, options.EMBEDDER)
    parser.add_argument(
        "texts", nargs="*", default=[], metavar="TEXT", help="texts; -: one per line of stdin"
    )
    options.prompt_options(parser)
    parser.add_argument("--count", action="store_true", help="print the numbers of tokens alone")
    options.literal(parser)


def run(args: argparse.Namespace) -> None:
    """Print, per text, its number of tokens, their ids and what each stands for, as the model reads them."""
    found = texts(args.texts, args.literal) or stdin_lines()
    model = options.load_embedder(args)
    prompt = options.prompt_of(model, args)
    tokenizer = model.tokenizer
    for text, ids in zip(found, tokenizer.encode(found, model.max_seq_length, prompt), strict=True):
        line = {"text": text, "tokens": len(ids)}
        if not args.count:
            line |= {"ids": ids, "pieces": [tokenizer.decode([i]) for i in ids]}
        print(len(ids) if args.count else json.dumps(line, ensure_ascii=False))
