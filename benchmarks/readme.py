"""Fills the generated parts of README.md, docs/ and kernels/README.md, and draws docs/architecture.svg.

A part stands between `<!-- NAME -->` and `<!-- end -->`.

python benchmarks/readme.py             writes them
python benchmarks/readme.py --check     fails if one is stale (the output of demo and verify depends on the
                                        machine and is not compared)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import agreement
import architecture
import compact
import ladder
import large
import many_cores
import micro
import mteb_time
import ray_actors
import report
import search
import server_pages
from machine import describe
from parts import ROOT, fill

from qwen3np.synth.checkpoints import synthesize

READING_ORDER = {
    "qwen3np/reference.py": "the whole model in NumPy: start here",
    "qwen3np/engine.py": "the same functions in the same order, on the kernels",
    "kernels/panels.py": "sixteen tokens side by side; how operands are stored",
    "kernels/simd.py": "sixteen float32 in registers, as a Numba type",
    "kernels/micro_kernel.py": "the matrix product in registers: a plain loop over a register block",
    "kernels/matmul.py": "whole matrix products, their threads and epilogues",
    "kernels/compact.py": "weights in fewer bits, decoded as they are multiplied",
    "kernels/amx.py": "the same product on AMX's tiles",
    "kernels/kv_layout.py": "where keys and values lie",
    "kernels/attention.py": "attention without an S x S matrix",
    "kernels/norm_rope.py": "RMSNorm and RoPE",
    "kernels/team.py": "barriers between the threads of a team",
    "kernels/isa.py": "what the CPU can do, and which path that chooses",
    "kernels/jit.py": "Numba, set up: compiled once per machine, never stale",
    "qwen3np/loading/hub.py": "a Hub id, or a folder",
    "qwen3np/loading/config.py": "config.json: keys that would change the computation are refused",
    "qwen3np/loading/checkpoint.py": "safetensors to named, memory-mapped arrays",
    "qwen3np/loading/folder.py": "every file of a model's folder, and what becomes of it",
    "qwen3np/loading/st_config.py": "sentence-transformers' files: modules.json and what it names",
    "qwen3np/loading/tokenizer.py": "text to token ids, and the token that is pooled",
    "qwen3np/loading/pieces.py": "where a long text can be split without changing an id",
    "qwen3np/runtime/numba_backend.py": "token ids, through the engine, to states",
    "qwen3np/runtime/packed_weights.py": "the checkpoint as the kernels read it",
    "qwen3np/runtime/micro_batches.py": "which texts pass together, by how many threads",
    "qwen3np/runtime/packed_batch.py": "texts without padding: the index arithmetic",
    "qwen3np/runtime/workspace.py": "the arrays that calls write, and later calls use again",
    "qwen3np/runtime/prefix_cache.py": "what texts share is computed once",
    "qwen3np/runtime/rope.py": "the table of RoPE, with the same bits on every CPU",
    "qwen3np/runtime/threads.py": "the threads that run a kernel side by side, behind a queue of jobs",
    "qwen3np/embedder.py": "what users call",
    "qwen3np/reranker.py": "the same for rerankers",
    "qwen3np/search.py": "exact search, in arrays and files of any size",
    "qwen3np/nearest.py": "its best rows so far, whatever the blocks it reads",
    "qwen3np/quantization.py": "vectors of one byte or one bit per dimension",
    "qwen3np/files/run.py": "a whole file to a file of vectors, interrupted or not",
    "qwen3np/server/scheduler.py": "the queue of the HTTP server, and the steps in which it is computed",
    "qwen3np/server/served.py": "a served model: what is refused, texts to ids, states to vectors or scores",
    "qwen3np/server/guard.py": "what every request passes: its key, size, number and time",
    "qwen3np/verify/report.py": "a verification: all comparisons in one report",
    "qwen3np/verify/compare.py": "comparison stage by stage",
    "qwen3np/verify/transformers.py": "the stages of transformers: the only file that imports torch",
    "qwen3np/verify/embedding.py": "what is compared of an embedder: tokens, vectors, published scores",
    "qwen3np/verify/reranking.py": "what is compared of a reranker: prompt, scores, published scores",
    "qwen3np/verify/published.py": "what the published weights give",
    "qwen3np/explain/numbers.py": "what the pictures of a text's way to its vector show",
    "qwen3np/explain/pictures.py": "the pictures, as SVG",
    "qwen3np/explain/page.py": "the page of them, each beside its code",
    "qwen3np/synth/checkpoints.py": "generated checkpoints, true in all but the values",
    "qwen3np/synth/outliers.py": "what makes real weights hard to quantise",
}
# Of the README's table; docs/speed.md has all.
SHORT = "1x16", "8x128", "4x512", "256 mixed", "rerank 1x100"


def reading_order() -> str:
    lines = ["| file | lines | |", "|---|---|---|"]
    for name, what in READING_ORDER.items():
        lines.append(f"| [{name}](../{name}) | {len((ROOT / name).read_text().splitlines())} | {what} |")
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


def short_speed() -> str:
    """The README's table: of some workloads, the contenders that ran them."""
    results = report.load()
    workloads = {name: results["workloads"][name] for name in SHORT}
    rows = [row for row in results["rows"] if row["workload"] in SHORT and "sharing" not in row["contender"]]
    return f"{report.speed(results | {'workloads': workloads, 'rows': rows})}\n\n{describe(results['about'])}"


def speed() -> str:
    """Of benchmarks/run.py; rows where a peer wins are there too. What only some ask for is folded."""
    results = report.load()
    shown, folded = [], []
    for title, table in report.tables(results).items():
        if title in report.FOLDED:
            folded.append(f'<details markdown="1"><summary>{title}</summary>\n\n{table}\n\n</details>')
        else:
            shown.append(f"**{title}**\n\n{table}")
    kernels = json.loads(micro.RESULTS.read_text())
    table = report.markdown(micro.HEADER, micro.lines(kernels))
    text = f"{table}\n\n{describe(kernels['about'], micro.PACKAGES)}"
    folded.append(f'<details markdown="1"><summary>The kernels alone</summary>\n\n{text}\n\n</details>')
    growth = "![speed, time and memory against tokens](../benchmarks/results/growth.png)"
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


def ladder_table() -> str:
    results = json.loads(ladder.RESULTS.read_text())
    table = report.markdown(ladder.HEADER, ladder.lines(results))
    return f"{table}\n\n{describe(results['about'], ladder.PACKAGES)}"


def figures() -> dict[str, dict[str, str]]:
    """Document -> its parts, made of results alone."""
    return {
        "README.md": {"speed": short_speed()},
        "docs/architecture.md": {"reading order": reading_order()},
        "docs/accuracy.md": {
            "accuracy": accuracy(),
            "agreement": agreement.table(json.loads(agreement.RESULTS.read_text())),
        },
        "docs/speed.md": {"speed": speed(), "compact": compact.part(json.loads(compact.RESULTS.read_text()))},
        "docs/server.md": server_pages.parts(),
        "docs/mteb.md": mteb_time.parts(),
        "docs/files.md": {"search": search.table(json.loads(search.RESULTS.read_text()))},
        "docs/performance.md": many_cores.figures(json.loads(many_cores.RESULTS.read_text()))
        | large.figures(json.loads(large.RESULTS.read_text())),
        "docs/processes-and-machines.md": ray_actors.figures(),
        "kernels/README.md": {"ladder": ladder_table()},
    }


def of_this_machine() -> dict[str, dict[str, str]]:
    return {"docs/getting-started.md": {"demo": demo()}, "docs/verify.md": {"verify": verify()}}


def main() -> None:
    check = "--check" in sys.argv
    made = {architecture.PICTURE: architecture.draw()}
    for name, parts in (figures() if check else figures() | of_this_machine()).items():
        made[ROOT / name] = fill(name, (ROOT / name).read_text(), parts)
    stale = [path for path, text in made.items() if text != path.read_text()]
    if check and stale:
        raise SystemExit(f"stale: {', '.join(map(str, stale))}. Run python benchmarks/readme.py")
    for path in stale:
        path.write_text(made[path])


if __name__ == "__main__":
    main()
