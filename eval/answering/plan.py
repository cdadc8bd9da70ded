"""Which questions are answered together: batches that depend on the questions and two limits alone.

Not on how many workers there are, nor on what was answered before a stop: the same command gives every
question the same company, and so the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TAIL = 8  # the last eighth of the questions is dealt in smaller batches, so that workers finish together


@dataclass(frozen=True)
class Load:
    """What one request puts into memory: `rows` sequences of `tokens` tokens behind `pictures`, which take
    `shared` tokens, once for all requests that show the same ones."""

    pictures: tuple
    shared: int
    tokens: int
    rows: int = 1


def plan(loads: Sequence[Load], batch_size: int, batch_tokens: int) -> list[list[int]]:
    """Indices of requests in batches of at most `batch_size` rows and `batch_tokens` tokens, at least one
    request each.

    Requests about the same pictures stand together, and all of a batch have equally many pictures. The
    longest come first, so that memory runs out at once or not at all.
    """
    groups: dict[tuple, list[int]] = {}
    for i, load in enumerate(loads):
        groups.setdefault(load.pictures or (i,), []).append(i)
    pictures = lambda group: len(loads[group[0]].pictures)
    length = lambda group: loads[group[0]].shared + max(loads[i].tokens for i in group)
    ordered = sorted(groups.values(), key=lambda group: (-pictures(group), -length(group)))
    left = sum(load.rows for load in loads)
    tail, batches, room = left // TAIL, [], _Room(0, 0)
    for group in ordered:
        size = sum(loads[i].rows for i in group)
        share = 4 if left <= tail else 1
        limit = _Room(max(1, batch_size // share), batch_tokens // share)
        for place, i in enumerate(group):
            breaks = not batches or pictures(group) != len(loads[batches[-1][0]].pictures)
            whole = place == 0 and room.rows + size > limit.rows  # a group that fits a batch is not torn
            if breaks or (whole and size <= limit.rows) or not room.takes(loads[i], place == 0, limit):
                batches.append([])
                room = _Room(0, 0)
            room.add(loads[i], first=place == 0 or not batches[-1])
            batches[-1].append(i)
            left -= loads[i].rows
    return batches


@dataclass
class _Room:
    """Rows and tokens of a batch."""

    rows: int
    tokens: int

    def takes(self, load: Load, first: bool, limit: _Room) -> bool:
        tokens = self.tokens + load.rows * load.tokens + (load.shared if first else 0)
        return self.rows + load.rows <= limit.rows and tokens <= limit.tokens

    def add(self, load: Load, first: bool) -> None:
        self.rows += load.rows
        self.tokens += load.rows * load.tokens + (load.shared if first else 0)
