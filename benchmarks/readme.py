"""Fills the generated parts of README.md: text between `<!-- NAME -->` and `<!-- end -->`.

python benchmarks/readme.py             writes them
python benchmarks/readme.py --check     fails if one is stale (the output of demo and verify depends on the
machine and is not compared)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import micro
import report
from machine import describe

from qwen3np.synth.checkpoints import synthesize

ROOT = Path(__file__).parent.parent
READING_ORDER = {
    "qwen3np/reference.py": "the whole model in NumPy: start here",
    "qwen3np/engine.py": "the same functions in the same order, on the kernels",
    "kernels/matmul.py": "the matrix product: rows, panels, epilogues",
    "kernels/micro_kernel.py": "its inner loop, on a block of registers",
    "kernels/tiles.py": "the same product on AMX's tiles",
    "kernels/keys_values.py": "where keys and values lie",
    "kernels/attention.py": "attention without an S x S matrix",
    "kernels/norm.py": "RMSNorm and RoPE",
    "kernels/lanes.py": "sixteen float32 in registers, as a Numba type",
    "qwen3np/steps.py": "which texts are computed together, and by how many threads",
    "qwen3np/threads.py": "the threads that run a kernel side by side, behind a queue of jobs",
    "qwen3np/config.py": "config.json: keys that would change the computation are refused",
    "qwen3np/checkpoint.py": "safetensors to named, memory-mapped arrays",
    "qwen3np/folder.py": "every file of a model's folder, and what becomes of it",
    "qwen3np/tokenizer.py": "text to token ids, and the token that is pooled",
    "qwen3np/pieces.py": "where a long text can be cut without changing an id",
    "qwen3np/embedder.py": "what users call",
    "qwen3np/reranker.py": "the same for rerankers",
    "qwen3np/beginnings.py": "what texts share is computed once",
    "qwen3np/search.py": "similarity, exact search",
    "qwen3np/parity.py": "comparison stage by stage, with the reading copy or transformers",
    "qwen3np/verify.py": "a verification: all comparisons in one report",
    "qwen3np/checks.py": "what its comparisons have in common",
    "qwen3np/embedder_checks.py": "those of an embedding model: tokens, vectors, published scores",
    "qwen3np/reranker_checks.py": "those of a reranker: prompt, scores, published scores",
    "qwen3np/published.py": "what the published weights give",
    "qwen3np/synth.py": "generated checkpoints, true in all but the values",
}


def reading_order() -> str:
    lines = ["| file | lines | |", "|---|---|---|"]
    for name, what in READING_ORDER.items():
        lines.append(f"| [{name}]({name}) | {len((ROOT / name).read_text().splitlines())} | {what} |")
    return "\n".join(lines)


def accuracy() -> str:
    results = json.loads((ROOT / "benchmarks/results/accuracy.json").read_text())
    lines = ["| | max abs | 1 - cosine |", "|---|---|---|"]
    for row in results["rows"]:
        nan = row["max_abs"] != row["max_abs"]
        figures = "not a number | -" if nan else f"{row['max_abs']:.1e} | {row['one_minus_cosine']:.0e}"
        lines.append(f"| {row['name']} | {figures} |")
    lengths = ", ".join(map(str, sorted(set(results["about"]["lengths"]))))
    versions = ", ".join(f"{name} {version}" for name, version in results["about"]["versions"].items())
    return "\n".join(lines) + f"\n\nTexts of {lengths} tokens; {versions}."


def speed() -> str:
    """Of benchmarks/run.py; rows where a peer wins are there too. What only some ask for is folded."""
    results = report.load()
    shown, folded = [], []
    for title, table in report.tables(results).items():
        if title in report.FOLDED:
            folded.append(f"<details><summary>{title}</summary>\n\n{table}\n\n</details>")
        else:
            shown.append(f"**{title}**\n\n{table}")
    kernels = json.loads(micro.RESULTS.read_text())
    table = report.markdown(micro.HEADER, micro.lines(kernels))
    text = f"{table}\n\n{describe(kernels['about'], micro.PACKAGES)}"
    folded.append(f"<details><summary>The kernels alone</summary>\n\n{text}\n\n</details>")
    growth = "![speed, time and memory against tokens](benchmarks/results/growth.png)"
    return "\n\n".join([*shown, describe(results["about"]), growth, *folded])


def demo() -> str:
    run = subprocess.run(["qwen3np", "demo"], capture_output=True, text=True, check=True)
    return f"```\n{run.stdout.rstrip()}\n```"


def verify() -> str:
    """A report's beginning, and of each table the top rows and the bottom one, on a generated tiny model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = synthesize(Path(temporary) / "tiny", "tiny")
        command = ["qwen3np", "verify", folder.name]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=temporary)
    printed = run.stdout.replace(f"{folder.parent}/", "").rstrip()
    tables = [part.splitlines() for part in printed.split("\n\n")]
    short = [t if len(t) <= 9 else [*t[:7], "...", t[-1]] for t in tables]
    return "```\n$ qwen3np verify tiny\n" + "\n\n".join("\n".join(t) for t in short) + "\n```"


def fill(readme: str, name: str, text: str) -> str:
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
    if not pattern.search(readme):
        raise SystemExit(f"README.md has no part <!-- {name} -->")
    return pattern.sub(lambda match: match[1] + text + "\n" + match[2], readme)


def main() -> None:
    path = ROOT / "README.md"
    readme = path.read_text()
    filled = readme
    for name, part in (("reading order", reading_order), ("accuracy", accuracy), ("speed", speed)):
        filled = fill(filled, name, part())
    if "--check" in sys.argv:
        if filled != readme:
            raise SystemExit("README.md has stale figures: run python benchmarks/readme.py")
        return
    path.write_text(fill(fill(filled, "demo", demo()), "verify", verify()))


if __name__ == "__main__":
    main()
