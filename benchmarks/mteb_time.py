"""How long mteb's benchmarks take: the characters of their texts, which mteb publishes, and measured speed.

python benchmarks/mteb_time.py      needs the extra `mteb`, and the published tokenizer in QWEN3NP_ASSETS;
                                    writes results/mteb.json (readme.py puts the tables in docs/mteb.md)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import report

RESULTS = report.RESULTS / "mteb.json"
BENCHMARKS = "MTEB(eng, v2)", "MTEB(cmn, v1)", "MTEB(Multilingual, v2)"
# Main scores of the 0.6B that mteb's results have: tasks to begin with.
PUBLISHED = {"STS12": 0.8300, "STSBenchmark": 0.9113, "NFCorpus": 0.3671, "SciFact": 0.6972}
WORKLOAD = "256 mixed"


def characters(statistics: Any) -> float:
    """Of the distinct texts in statistics that mteb publishes."""
    if not isinstance(statistics, dict):
        return 0
    if "total_text_length" in statistics:
        return statistics["average_text_length"] * statistics["unique_texts"]
    return sum(characters(value) for key, value in statistics.items() if key != "hf_subset_descriptive_stats")


def of_task(task: Any) -> float:
    """Characters that a model reads: of the evaluated splits and languages, and of clustering its share."""
    found: float = 0
    for split in task.eval_splits:
        statistics = (task.metadata.descriptive_stats or {}).get(split, {})
        subsets = statistics.get("hf_subset_descriptive_stats")
        parts = [subsets[name] for name in task.hf_subsets if name in subsets] if subsets else [statistics]
        sides = sum(map(characters, parts))
        if getattr(task, "parallel_subsets", False):  # of the pairs of languages, each language is read once
            sides *= len({side for name in task.hf_subsets for side in name.split("-")}) / (2 * len(parts))
        found += sides
    return found * (getattr(task, "max_fraction_of_documents_to_embed", None) or 1)


def measure() -> dict[str, Any]:
    import mteb
    from tokenizers import Tokenizer

    path = Path(os.environ["QWEN3NP_ASSETS"]) / "tokenizers" / "qwen3_embedding_0.6b.tokenizer.json"
    prose = [task.metadata.description for task in mteb.get_tasks()]
    tokens = sum(len(encoding) for encoding in Tokenizer.from_file(str(path)).encode_batch(prose))
    benchmarks: dict[str, dict[str, list[float]]] = {}
    for name in BENCHMARKS:
        types = benchmarks[name] = {}
        for task in mteb.get_benchmark(name).tasks:
            tasks, read, unknown = types.get(task.metadata.type, (0, 0, 0))
            found = of_task(task)
            types[task.metadata.type] = [tasks + 1, round(read + found), unknown + (not found)]
    return {
        "mteb": mteb.__version__,
        "characters per token": sum(map(len, prose)) / tokens,
        "benchmarks": benchmarks,
        "tasks": {name: round(of_task(mteb.get_task(name))) for name in PUBLISHED},
    }


def speeds() -> Iterator[tuple[str, float]]:
    """Tokens per second of the 0.6B, as benchmarks/run.py measured them."""
    results = report.load()
    for contender in (report.HIGH, report.MEDIUM):
        [row] = report.select(results["rows"], workload=WORKLOAD, contender=contender)
        yield contender, row["tokens"] / row["median"]


def duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600)):
        if seconds > 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def parts() -> dict[str, str]:
    """The generated parts of docs/mteb.md."""
    results = json.loads(RESULTS.read_text())
    per_token = results["characters per token"]
    columns = list(speeds())

    def line(name: str, tasks: str, read: float, least: str = "") -> list[str]:
        tokens = read / per_token
        times = [least + duration(tokens / speed) for _, speed in columns]
        return [name, tasks, f"{read / 1e6:,.1f}", f"{tokens / 1e6:,.2f}", *times]

    header = ["", "tasks", "million characters", "million tokens", *(name for name, _ in columns)]
    english, *others = results["benchmarks"]
    lines = [line(t, str(n), c) for t, (n, c, _) in results["benchmarks"][english].items()]
    for name in (english, *others):
        rows = results["benchmarks"][name].values()
        least = "" if name == english else "> "
        lines.append(line(f"**{name}**", str(sum(r[0] for r in rows)), sum(r[1] for r in rows), least))
    unknown = sum(row[2] for rows in results["benchmarks"].values() for row in rows.values())
    about = report.load()["about"]
    measured = " and ".join(f"{speed:.0f} tokens/s of {name}" for name, speed in columns)
    basis = (
        f"An estimate, not a run: distinct characters of the evaluated texts as mteb {results['mteb']} "
        f"publishes them ({unknown} tasks without are left out), {per_token:.2f} characters a token (mteb's "
        'own English descriptions of its tasks; other scripts have fewer, hence the ">"), and the 0.6B\'s '
        f"{measured} ({WORKLOAD}) with {about['threads']} threads of a {about['cpu']} CPU. Prompts and "
        "sampled training texts of classification are not counted."
    )
    first = [
        [name, f"{score:.4f}", *line(name, "", results["tasks"][name])[3:]]
        for name, score in PUBLISHED.items()
    ]
    begin = ["", "published", "million tokens", *(name for name, _ in columns)]
    return {
        "mteb": report.markdown(header, lines) + "\n\n" + basis,
        "mteb first": report.markdown(begin, first),
    }


if __name__ == "__main__":
    RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
    for part in parts().values():
        print(part, end="\n\n")
