"""qwen3np search: find the best texts in a file that embed wrote."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..files import indexes, saved
from ..search import positive, search_blocks
from ..table import table, terminal_columns
from . import options
from .inputs import texts
from .streams import say

EXAMPLES = (
    'qwen3np search articles.parquet "Why do things fall?" --top-k 5',
    f'qwen3np search articles.parquet "Why do things fall?" --reranker {options.RERANKER}',
)
Hits = list[list[dict[str, Any]]]  # corpus_id and score, per query
WIDER = 4  # times as many rows are found as are to be left by a reranker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.model_options(parser, None, otherwise="the one that made FILE")
    parser.add_argument(
        "corpus",
        type=Path,
        metavar="FILE",
        help="what embed --output wrote, in any format, or export to .usearch or .faiss",
    )
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="queries; -: one per line from stdin")
    options.literal(parser)
    parser.add_argument("-k", "--top-k", type=int, default=10, help="texts per query (default: %(default)s)")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", help="what is put before each query (default: the model's query prompt)")
    prompt.add_argument("--instruction", help='put "Instruct: INSTRUCTION\\nQuery:" before each query')
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per query instead of tables"
    )
    parser.add_argument(
        "--texts", type=Path, metavar="FILE", help="the file that was embedded, if FILE holds no texts"
    )
    parser.add_argument(
        "--rescore",
        type=Path,
        metavar="FILE",
        help="score the nearest 4 times TOP_K rows of a quantised FILE again, by its vectors in float32",
    )
    parser.add_argument(
        "--reranker",
        metavar="MODEL",
        help=f"rank the nearest {WIDER} times TOP_K texts by a reranker (Hub id or folder); scores are its",
    )
    options.column_options(parser)


def run(args: argparse.Namespace) -> None:
    """Search; the corpus says which model to use where `args.model` is None."""
    asked = texts(args.queries, args.literal)
    positive("top_k", args.top_k)
    corpus = indexes.open_corpus(args.corpus)
    if args.rescore is not None and isinstance(corpus, indexes.Index):
        raise ValueError(f"{args.corpus}: --rescore is for what embed wrote, and this is an index of export")
    made_by = corpus.info.get("model")
    if args.model is None:
        args.model = made_by or options.EMBEDDER
        if made_by is None:
            say(f"{args.corpus} does not say which model made it: assuming {args.model}, else give --model")
    elif made_by not in (None, options.model_name(args.model)):
        say(f"{args.corpus} says it was made by {made_by}, not by {args.model}")
    model = options.load_embedder(args)
    width = model.config.hidden_size
    if not min(32, width) <= corpus.dim <= width:
        raise ValueError(
            f"{args.corpus}: holds vectors of {corpus.dim} dimensions, and {args.model} gives {width} or, "
            "truncated, at least 32: name the model that made them with --model"
        )
    queries = model.encode_query(
        asked, prompt=args.prompt, instruction=args.instruction, truncate_dim=corpus.dim
    )
    top_k = args.top_k if args.reranker is None else WIDER * args.top_k
    hits = _nearest(queries, corpus, args, top_k, model.similarity_fn_name)
    rows = {hit["corpus_id"] for found in hits for hit in found}
    found = _with_texts(args, corpus, rows)
    if args.reranker is not None:
        hits = _reranked(args, asked, hits, found)
    for query, best in zip(asked, hits, strict=True):
        results = []
        for hit in best:
            one = found[hit["corpus_id"]]
            result = {"row": hit["corpus_id"], "id": one.id, **one.where}
            results.append(result | {"score": hit["score"], "text": one.text})
        if args.json:
            print(json.dumps({"query": query, "results": results}, ensure_ascii=False))
        else:
            print(_results_table(query, results), end="\n\n")


def _nearest(
    queries: Any, corpus: saved.Saved, args: argparse.Namespace, top_k: int, score_function: str
) -> Hits:
    if isinstance(corpus, indexes.Index):
        return corpus.search(queries, top_k)
    exact = None if args.rescore is None else saved.open_saved(args.rescore)
    if exact is not None and (exact.precision, exact.dim) != ("float32", corpus.dim):
        raise ValueError(f"{args.rescore}: expected float32 vectors of {corpus.dim} dimensions")
    if exact is not None and exact.vectors.shape[0] != corpus.vectors.shape[0]:
        raise ValueError(f"{args.rescore}: holds {len(exact.vectors)} vectors, {args.corpus} {corpus.count}")
    return search_blocks(
        queries,
        corpus.blocks,
        top_k,
        score_function,
        (corpus.precision, corpus.ranges),
        lambda rows: corpus.vectors[rows],
        None if exact is None else lambda rows: exact.vectors[rows],
        what=f"{corpus.path}: corpus row",
    )


def _reranked(
    args: argparse.Namespace, queries: list[str], hits: Hits, found: dict[int, saved.Found]
) -> Hits:
    """Return the best of the hits by a reranker's scores; ValueError where they have no texts."""
    if any(one.text is None for one in found.values()):
        raise ValueError(f"{args.corpus}: there are no texts for --reranker {args.reranker} to read")
    from ..reranker import Reranker

    arguments = options.model_arguments(args) | {"revision": None}  # --revision is the embedding model's
    reranker = Reranker(args.reranker, **arguments)
    chosen = []
    for query, near in zip(queries, hits, strict=True):
        texts = [found[hit["corpus_id"]].text for hit in near]
        ranked = reranker.rank(query, texts, args.top_k, instruction=args.instruction)
        chosen.append([near[one["corpus_id"]] | {"score": one["score"]} for one in ranked])
    return chosen


def _with_texts(args: argparse.Namespace, corpus: saved.Saved, rows: set[int]) -> dict[int, saved.Found]:
    """Return what is said of the rows; an output without texts has them from --texts, or from its input."""
    found = corpus.find(rows)
    count = corpus.count
    if args.texts is not None:
        if "inputs" not in corpus.info and corpus.made_of(args.texts) is False:
            say(f"{args.texts} is not the file that was embedded, byte for byte: its texts may be others")
        return saved.texts_of(args.texts, args.column, args.id_column, args.delimiter, found, count)
    if any(one.text is not None for one in found.values()):
        return found
    source = corpus.info.get("input")
    if source is None:
        why = "--texts names the file that was embedded"
        if "inputs" in corpus.info:  # parts of files, or of several: see Source.info
            why = "--texts names one of the same rows that does: `embed` to a .parquet or .jsonl makes it"
        say(f"{args.corpus} holds no texts; {why}")
    else:
        columns = (corpus.info.get("column"), corpus.info.get("id_column"), corpus.info.get("delimiter"))
        try:
            if corpus.made_of(Path(source)) is False:
                raise ValueError(f"{source}: has changed since it was embedded")
            return saved.texts_of(Path(source), *columns, found, count)
        except (ValueError, OSError) as error:
            say(f"no texts: {error}; --texts names the file")
    return found


def _results_table(query: str, results: list[dict[str, Any]]) -> str:
    places = [name for name in saved.WHERE if any(name in r for r in results)]
    rows = [
        [f"{r['score']:.4f}", str(r["id"]), *(str(r.get(name, "")) for name in places), r["text"] or ""]
        for r in results
    ]
    return table(["score", "id", *places, query], rows, terminal_columns(110))
