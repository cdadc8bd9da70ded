"""What is asked of a model, and which questions are answered together.

Batches depend on the questions and two limits alone, not on how many workers there are, nor on what was
answered before a stop: the same command puts every question into the same batch, and so gives the same
numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from utils.data import Picture

if TYPE_CHECKING:
    from utils.collate import PromptLengths

TAIL = 8  # the last eighth of the questions is dealt in smaller batches, so that workers finish together


@dataclass(frozen=True)
class MemoryCost:
    """Memory that one request takes: `rows` sequences of `tokens` tokens, behind a prefix of `shared` tokens
    that all requests about the same `pictures` have in common."""

    pictures: tuple
    shared: int
    tokens: int
    rows: int = 1


@dataclass
class Request:
    """A rendered prompt with its pictures in order, and what decides its score.

    letter: the reply's first letter or digit. hit: whether these words occur in the reply, ignoring case.
    options: texts whose log-likelihood as the answer is wanted instead of a reply, divided by their length in
    bytes or in tokens (`per`). With none of them the reply runs to the end of its turn.
    """

    prompt: str
    pictures: list[Picture] = field(default_factory=list)
    letter: bool = False
    hit: str | None = None
    options: list[str] | None = None
    per: Literal["byte", "token"] = "byte"

    @property
    def kind(self) -> tuple[bool, bool]:
        """Requests of one kind go through the model together."""
        return self.letter, self.options is not None

    def loaded(self) -> list:
        from utils.reading.prepared import Undecoded

        return [Undecoded(picture) for picture in self.pictures]

    def memory_cost(self, lengths: PromptLengths, new: int) -> MemoryCost:
        """Its sequences and tokens, with replies of at most `new` tokens."""
        rows = 1 if self.options is None else len(self.options)
        new = 0 if self.letter or self.options else new  # nearly all are decided by the prompt's forward
        shared = sum(lengths.picture(picture) for picture in self.pictures)
        longest = max(self.options or [""], key=len)
        return MemoryCost(tuple(self.pictures), shared, lengths.text(self.prompt + longest) + new, rows)

    def mean(self, option: str, log_prob: float, tokens: int) -> float:
        """An option's log-probability by its length."""
        return log_prob / (tokens if self.per == "token" else len(option.encode()))


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


def share(costs: Sequence[MemoryCost], batches: Sequence[Sequence[int]], parts: int) -> list[int]:
    """Which part, from 1 on, answers each batch: the largest first, each to the part with the least to do."""
    work = [sum(costs[i].rows * costs[i].tokens for i in batch) for batch in batches]
    for batch, group in enumerate(batches):
        work[batch] += sum({costs[i].pictures: costs[i].shared for i in group}.values())
    given, out = [0] * parts, [0] * len(batches)
    for batch in sorted(range(len(batches)), key=lambda batch: -work[batch]):
        part = given.index(min(given))
        given[part] += work[batch]
        out[batch] = part + 1
    return out


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
