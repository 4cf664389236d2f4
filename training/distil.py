"""The training: the teacher's vectors, its order of a batch's documents, and each query's own document."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from pairs import Pair
from student import Student
from texts import Texts, batches, loss
from torch import Tensor

BATCH = 128  # pairs
RATE = 8e-4  # it rises for WARM_UP steps, and falls in the last DECAY of them
WARM_UP, DECAY = 100, 0.6
# Shares of the batches whose queries are read without the instruction, as documents are; and of those where
# queries and documents change places.
PLAIN, SWAPPED = 0.2, 0.25
EVERY = 20  # steps between the lines of the log, and between checkpoints


def rate(step: int, steps: int) -> float:
    """Return the learning rate's factor at a step."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))


def train(
    rank: int,
    processes: int,
    student: Student,
    pairs: list[Pair],
    texts: Texts,
    basis: Tensor,
    steps: int,
    seed: int,
    work: Path,
) -> None:
    """Train up to so many steps, from the last checkpoint if there is one; log to work/log.jsonl.

    Each process has its share of every batch, and a thread of its own: threads inside the operators wait for
    each other 500 times a step, which on a shared machine takes most of the time.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{work.absolute()}/meeting", rank=rank, world_size=processes
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    step = 0
    if (checkpoint := work / "checkpoint.pt").exists():
        state = torch.load(checkpoint)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    losses: list[float] = []
    began = time.perf_counter()
    for number, batch in zip(range(steps), batches(pairs, texts, seed, BATCH), strict=False):
        if number < step:
            continue
        queries, documents = (places[rank::processes] for places in batch)
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step, steps)
        kind = np.random.default_rng([seed, step]).random()
        plain = kind < PLAIN
        if kind > 1 - SWAPPED:
            queries, documents = documents, queries
        asked = student([texts.ids[i] for i in queries], not plain)
        answers = student([texts.ids[i] for i in documents], False)
        off = loss(asked, answers, texts.teacher(queries, documents), basis)
        optimizer.zero_grad()
        off.backward()
        _share(student, processes)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(off.item())
        if rank == 0 and (step % EVERY == 0 or step == steps):
            spent = round(time.perf_counter() - began)
            _log(work, {"step": step, "loss": round(sum(losses) / len(losses), 4), "seconds": spent})
            losses = []
            state = {"student": student.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, work / "checkpoint.part")
            (work / "checkpoint.part").rename(checkpoint)


def _share(student: Student, processes: int) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient) / processes)


def _log(work: Path, line: dict[str, float]) -> None:
    print(json.dumps(line), flush=True)
    with open(work / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
