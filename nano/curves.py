"""Methods at equal forgetting: along its learning rates a method forgets more and keeps less, and two methods
are compared where they have forgotten as much as the retrained model.

A path is a method's runs in the order of their learning rates, with the vanilla model before the first. Read
at equal forgetting, what is kept is interpolated linearly between the last run that has forgotten less and
the first that has forgotten as much. Intervals: 95 % percentile bootstrap over people and seeds, both drawn
with replacement, each person with all questions, and the same draws for all methods, so that differences are
paired. Drawing both counts the chance of a single answer more than once, so it errs to the wide side (the
pigeonhole bootstrap: Owen, Annals of Applied Statistics 1(2), 2007); of a ring of four people it still knows
four people only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.results.intervals import RESAMPLES


@dataclass(frozen=True)
class Draws:
    """people: (R, P) how often each person is drawn; seeds: (R, S). The first row draws everything once."""

    people: np.ndarray
    seeds: np.ndarray

    @classmethod
    def of(cls, strata: Sequence[int], seeds: int, rng: np.random.Generator) -> Draws:
        """strata: of each person, from 0 on; people are drawn within their stratum."""
        strata = np.asarray(strata)
        people = np.ones((RESAMPLES + 1, len(strata)))
        for stratum in np.unique(strata):
            of = np.flatnonzero(strata == stratum)
            people[1:, of] = rng.multinomial(len(of), np.full(len(of), 1 / len(of)), RESAMPLES)
        drawn = np.ones((RESAMPLES + 1, seeds))
        drawn[1:] = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
        return cls(people, drawn)

    @classmethod
    def of_each_seed(cls, people: int, seeds: int) -> Draws:
        """One draw per seed: everybody, and this seed alone."""
        return cls(np.ones((seeds, people)), np.eye(seeds))

    def mean(self, right: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """(R,) percent right in each draw. right: (S, P) of each person's questions, by seed; asked: (P,)."""
        of_seeds = self.people @ right.T  # (R, S)
        total = (self.people @ asked) * self.seeds.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return 100 * (of_seeds * self.seeds).sum(1) / total


def at_equal_forgetting(forgotten: np.ndarray, kept: np.ndarray, level: np.ndarray) -> np.ndarray:
    """(R,) what is kept where the path first comes down to `level`; NaN where it never does.

    forgotten, kept: (K, R) percent right on what is to be forgotten and on a ring, of the vanilla model and
    of the runs in the order of their learning rates; level: (R,).
    """
    found = np.full(level.shape, np.nan)
    for k in range(len(forgotten)):
        here = np.isnan(found) & (forgotten[k] <= level)
        if k == 0:
            found[here] = kept[0][here]
            continue
        drop = forgotten[k - 1] - forgotten[k]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.clip((forgotten[k - 1] - level) / drop, 0, 1)
        found[here] = (kept[k - 1] + share * (kept[k] - kept[k - 1]))[here]
    return found


def area(forgotten: np.ndarray, kept: np.ndarray, level: np.ndarray, steps: int = 20) -> np.ndarray:
    """(R,) mean of what is kept over all degrees of forgetting from the vanilla model's to `level`."""
    shares = np.linspace(0, 1, steps + 1)
    levels = [forgotten[0] + share * (level - forgotten[0]) for share in shares]
    return np.mean([at_equal_forgetting(forgotten, kept, one) for one in levels], axis=0)


def interval(draws: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high) of (R,) draws, the first of which is the value itself; NaN where fewer than nine in
    ten draws have one."""
    value, rest = float(draws[0]), draws[1:][~np.isnan(draws[1:])]
    if np.isnan(value) or len(rest) < 0.9 * (len(draws) - 1):
        return value, float("nan"), float("nan")
    low, high = np.percentile(rest, [2.5, 97.5])
    return value, float(low), float(high)
