"""Which texts of a call are computed together, and by how many threads.

A step is a range of texts that pass the layers together, a team the threads that compute it. Where there is
one step, all threads are its team, and share its work. They wait for each other at eight barriers a layer and
block, and where a matrix has fewer rows than many threads ask for, some have nothing to do; so where there
are steps for all, small teams are better, each with a step of its own on the same weights. A text's vector
has the same bits either way. docs/performance.md has the numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ..kernels.kv_layout import AT_ONCE
from .packed_weights import pad

STEP_TOKENS = 2048  # of a step of all threads
TEAM_TOKENS = 1024  # of one of several: a shorter end, on which not all teams work, and less memory
# Their work arrays are memory, 23 MB each with the 0.6B and 1024 tokens, 70 with the 8B; and Python, one
# thread at a time, prepares their steps. A text of more than STEP_TOKENS is a step of all threads: so all
# teams together hold no more than one text of 32,768 tokens would.
MOST_TEAMS = 16
BUSY = 0.92  # of the teams' time, at the least; the last steps leave the rest idle

Range = tuple[int, int]


def plan(
    lengths: Sequence[int], known: int, most: int | None, num_threads: int, sharing: int, block: int
) -> list[tuple[int, list[Range]]]:
    """The steps of a call: (threads of a team, ranges of texts that teams of so many threads compute, each
    the next); then the same with other teams.

    Args:
        lengths: tokens of each text.
        known: the first tokens of each, which are not computed again; but its keys take places, and four of
        those count as a token.
        most: texts at a time.
        num_threads: of all teams together.
        sharing: cores that share a cache, see cores.cores_sharing_cache.
        block: tokens that the weights are read for: steps of fewer would read them more often.

    The smallest teams that keep all threads busy to the end. Smallest: T threads in teams of k lose what k
    threads lose at a barrier, not what T lose. Busy: steps are handed out in order, and the last must end at
    about the same time.
    """
    costs = [max(length - known, pad(length, AT_ONCE) // 4) for length in lengths]
    tokens = sum(cost for cost in costs if cost <= STEP_TOKENS)
    most = most or num_threads * len(lengths)
    for size in team_sizes(num_threads, sharing)[:-1]:
        teams = num_threads // size
        rounds = max(1, -(-tokens // (teams * TEAM_TOKENS)))
        for limit in (tokens / (teams * r) for r in range(rounds, rounds + 3)):
            if limit < block or teams > most:
                break
            ranges = steps(costs, limit, most // teams)
            alone = [r for r in ranges if costs[r[0]] > STEP_TOKENS]
            shared = [r for r in ranges if costs[r[0]] <= STEP_TOKENS]
            if busy([sum(costs[first:last]) for first, last in shared], teams) >= BUSY:
                return [(num_threads, alone), (size, shared)]
    return [(num_threads, steps(costs, STEP_TOKENS, most))]


def team_sizes(num_threads: int, sharing: int) -> list[int]:
    """The numbers of threads that teams may have, smallest first. They leave no thread over, and divide the
    cores that share a cache, or are a multiple of those: the system keeps threads that wake each other close
    together, and a team's barriers within that cache."""
    least = -(-num_threads // MOST_TEAMS)
    fitting = [n for n in range(least, num_threads) if sharing % n == 0 or n % sharing == 0]
    return [n for n in fitting if num_threads % n == 0] + [num_threads]


def busy(costs: Sequence[int], teams: int) -> float:
    """The part of their time that teams work, if each takes the next step when it is free."""
    ends = [0] * teams
    for cost in costs:
        heapq.heapreplace(ends, ends[0] + cost)
    return sum(costs) / max(1, teams * max(ends))


def steps(costs: Sequence[int], limit: float, most: int) -> list[Range]:
    """Ranges of texts, in order: of `most` at the most, and of `limit` tokens or up to half a text more, but
    never more than STEP_TOKENS, unless it is one text."""
    ranges, first, tokens = [], 0, 0
    for i, cost in enumerate(costs):
        if i > first and (tokens + cost > min(STEP_TOKENS, limit + cost / 2) or i - first == most):
            ranges.append((first, i))
            first, tokens = i, 0
        tokens += cost
    return [*ranges, (first, len(costs))] if costs else []
