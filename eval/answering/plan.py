"""Which questions are answered together: batches that depend on the questions and two limits alone.

Not on how many workers there are, nor on what was answered before a stop: the same command gives every
question the same company, and so the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TAIL = 8  # the last eighth of the questions is dealt in smaller batches, so that workers finish together


@dataclass(frozen=True)
class MemoryCost:
    """Memory that one request takes: `rows` sequences of `tokens` tokens, behind a prefix of `shared` tokens
    that all requests about the same `pictures` have in common."""

    pictures: tuple
    shared: int
    tokens: int
    rows: int = 1


def plan_batches(costs: Sequence[MemoryCost], batch_size: int, batch_tokens: int) -> list[list[int]]:
    """Indices of requests in batches of at most `batch_size` rows and `batch_tokens` tokens, at least one
    request each.

    Requests about the same pictures stand together, and all of a batch have equally many pictures. The
    longest come first, so that memory runs out at once or not at all.
    """
    groups: dict[tuple, list[int]] = {}
    for i, cost in enumerate(costs):
        groups.setdefault(cost.pictures or (i,), []).append(i)
    pictures = lambda group: len(costs[group[0]].pictures)
    length = lambda group: costs[group[0]].shared + max(costs[i].tokens for i in group)
    ordered = sorted(groups.values(), key=lambda group: (-pictures(group), -length(group)))
    left = sum(cost.rows for cost in costs)
    tail, batches, used = left // TAIL, [], _Budget(0, 0)
    for group in ordered:
        size = sum(costs[i].rows for i in group)
        share = 4 if left <= tail else 1
        limit = _Budget(max(1, batch_size // share), batch_tokens // share)
        for n, i in enumerate(group):
            breaks = not batches or pictures(group) != len(costs[batches[-1][0]].pictures)
            whole = n == 0 and used.rows + size > limit.rows  # a group that fits a batch is not torn
            if breaks or (whole and size <= limit.rows) or not used.fits(costs[i], n == 0, limit):
                batches.append([])
                used = _Budget(0, 0)
            used.add(costs[i], first=n == 0 or not batches[-1])
            batches[-1].append(i)
            left -= costs[i].rows
    return batches


@dataclass
class _Budget:
    """Rows and tokens of a batch: those used, or the most it may have."""

    rows: int
    tokens: int

    def fits(self, cost: MemoryCost, first: bool, limit: _Budget) -> bool:
        tokens = self.tokens + cost.rows * cost.tokens + (cost.shared if first else 0)
        return self.rows + cost.rows <= limit.rows and tokens <= limit.tokens

    def add(self, cost: MemoryCost, first: bool) -> None:
        self.rows += cost.rows
        self.tokens += cost.rows * cost.tokens + (cost.shared if first else 0)
