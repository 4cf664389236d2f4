"""Build qwen3np-tiny from nothing; a stage whose result exists is skipped.

python training/train.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import distil
import evaluate
import numpy as np
import pairs
import sources
import static
import teacher
import tokenizers
import torch
import torch.multiprocessing
import vocabulary
from export import export
from student import CONFIG, Student
from texts import Texts, projection

SEED = 19
STEPS, STATIC_STEPS = 9000, 10_000


def prepare(work: Path) -> tuple[list[pairs.Pair], list[str]]:
    """Fetch the sources; return the pairs in an order that no source has, and each text once, in theirs."""
    sources.fetch(work / "sources")
    if not (path := work / "pairs.jsonl").exists():
        pairs.write(sources.pairs(work / "sources"), path)
    found = sorted(pairs.read(path), key=lambda pair: pairs.hashed(pair.origin))
    return found, list(dict.fromkeys(text for pair in found for text in (pair.query, pair.document)))


def learn(work: Path, static_steps: int, steps: int, processes: int) -> None:
    """Train the beginning, then the student, each in processes of their own that share the texts' tokens."""
    torch.set_num_threads(1)
    all_pairs, texts = prepare(work)
    tokenizer = tokenizers.Tokenizer.from_file(str(work / "tokenizer.json"))
    prepared = Texts(texts, np.load(work / "vectors.npy"), tokenizer)
    basis = projection(prepared.vectors.float(), CONFIG["hidden_size"])
    known = [pair for pair in all_pairs if not pair.held_out]
    end = tokenizer.token_to_id(vocabulary.END)
    silent = torch.tensor([end, *prepared.prompt])
    if not (beginning := work / "static.pt").exists():
        first = static.begin(torch.from_numpy(np.load(work / "meanings.npy")) @ basis, prepared, silent)
        arguments = (first, known, prepared, basis, silent, static_steps, SEED, beginning)
        torch.multiprocessing.start_processes(static.train, arguments, 1, start_method="fork")
    torch.manual_seed(SEED)
    student = Student(torch.load(beginning), prepared.prompt, end)
    (work / "meeting").unlink(missing_ok=True)
    arguments = (processes, student, known, prepared, basis, steps, SEED, work)
    torch.multiprocessing.start_processes(distil.train, arguments, processes, start_method="fork")


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="texts, vectors, states")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    work: Path = args.work
    all_pairs, texts = prepare(work)
    teachers = sources.teacher(work / "sources")
    if not (work / "vectors.npy").exists():
        np.save(work / "vectors.npy", teacher.vectors(teachers, texts, work, args.processes))
    if not (vocab := work / "tokenizer.json").exists():
        vocabulary.train(all_pairs, vocab)
    if not (meanings := work / "meanings.npy").exists():
        np.save(meanings, vocabulary.meanings(vocab, teacher.Teacher(teachers)))
    learn(work, STATIC_STEPS, args.steps, args.processes)
    export(torch.load(work / "checkpoint.pt")["student"], vocab, evaluate.MODEL)
    evaluate.report(work)


if __name__ == "__main__":
    main()
