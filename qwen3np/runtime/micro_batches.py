"""Which texts of a call are computed together, and by how many threads.

A micro-batch is a range of texts that pass the layers together, a team the threads that compute it. Where
there is one micro-batch, all threads are its team, and share its work. They wait for each other at eight
barriers per layer and block, and where a matrix has fewer rows than many threads ask for, some have nothing
to do; so where there are micro-batches for all, small teams are better, each with one of its own on the
same weights. A text's vector has the same bits either way. docs/performance.md has the numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ..kernels.kv_layout import KV_ALIGN
from .packed_weights import pad

MICRO_BATCH_TOKENS = 2048  # of a micro-batch of all threads
TEAM_TOKENS = 1024  # of a small team's: a shorter end, on which not all teams work, and less memory
# A team's work arrays are memory, 23 MB with the 0.6B and 1024 tokens, 70 with the 8B; and Python, one
# thread at a time, prepares their micro-batches. A text of more than MICRO_BATCH_TOKENS is a micro-batch of
# all threads: so all teams together hold no more than one text of 32,768 tokens would.
MOST_TEAMS = 16
BUSY = 0.92  # the least part of their time that teams must work; the last micro-batches leave the rest idle

Range = tuple[int, int]


def plan(
    lengths: Sequence[int], cached: int, most: int | None, num_threads: int, sharing: int, block: int
) -> list[tuple[int, list[Range]]]:
    """Plan the micro-batches of a call, for the smallest teams that keep all threads busy to the end.

    Smallest: T threads in teams of k lose what k threads lose at a barrier, not what T lose. Busy:
    micro-batches are handed out in order, and the last must end at about the same time.

    Args:
        lengths: tokens of each text.
        cached: the first tokens of each, which are not computed again; but their keys take slots, and four of
            those count as a token.
        most: the most texts to compute at a time.
        num_threads: of all teams together.
        sharing: cores that share a cache, see cores.cores_sharing_cache.
        block: tokens that the weights are read for: a smaller micro-batch would read them more often.

    Returns:
        Entries (threads of a team, micro-batches), to be done one after the other: each micro-batch, a range
        of texts, is for the next team that is free.
    """
    costs = [max(length - cached, pad(length, KV_ALIGN) // 4) for length in lengths]
    tokens = sum(cost for cost in costs if cost <= MICRO_BATCH_TOKENS)
    most = most or num_threads * len(lengths)
    for size in team_sizes(num_threads, sharing)[:-1]:
        teams = num_threads // size
        rounds = max(1, -(-tokens // (teams * TEAM_TOKENS)))
        for limit in (tokens / (teams * r) for r in range(rounds, rounds + 3)):
            if limit < block or teams > most:
                break
            ranges = micro_batches(costs, limit, most // teams)
            alone = [r for r in ranges if costs[r[0]] > MICRO_BATCH_TOKENS]
            shared = [r for r in ranges if costs[r[0]] <= MICRO_BATCH_TOKENS]
            if busy([sum(costs[first:last]) for first, last in shared], teams) >= BUSY:
                return [(num_threads, alone), (size, shared)]
    return [(num_threads, micro_batches(costs, MICRO_BATCH_TOKENS, most))]


def team_sizes(num_threads: int, sharing: int) -> list[int]:
    """The numbers of threads that a team may have, smallest first.

    They leave no thread over, and divide the cores that share a cache, or are a multiple of those: the system
    keeps threads that wake each other close together, and a team's barriers within that cache.
    """
    least = -(-num_threads // MOST_TEAMS)
    fitting = [n for n in range(least, num_threads) if sharing % n == 0 or n % sharing == 0]
    return [n for n in fitting if num_threads % n == 0] + [num_threads]


def busy(costs: Sequence[int], teams: int) -> float:
    """The part of their time that teams work, if each takes the next micro-batch when it is free."""
    ends = [0] * teams
    for cost in costs:
        heapq.heapreplace(ends, ends[0] + cost)
    return sum(costs) / max(1, teams * max(ends))


def micro_batches(costs: Sequence[int], limit: float, most: int) -> list[Range]:
    """Split texts, in order, into ranges of at most `most` texts, and of `limit` tokens or so.

    The last text of a range may reach beyond `limit` by half. No range has more than MICRO_BATCH_TOKENS,
    unless it is one text.
    """
    ranges, first, tokens = [], 0, 0
    for i, cost in enumerate(costs):
        if i > first and (tokens + cost > min(MICRO_BATCH_TOKENS, limit + cost / 2) or i - first == most):
            ranges.append((first, i))
            first, tokens = i, 0
        tokens += cost
    return [*ranges, (first, len(costs))] if costs else []
