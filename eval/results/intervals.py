"""How far a number would move if other people had been asked: 95 % bootstrap intervals over people.

The questions about one person are answered alike more often than chance has it, so not questions but people
are drawn, with replacement and each with all of their questions (cluster bootstrap: Field and Welsh,
"Bootstrapping clustered data", JRSS B 69(3), 2007). A number is the ratio sum(scores) / sum(questions) of
the people drawn, and its interval holds the middle of RESAMPLES such numbers: of many people the middle 95 %,
of few ones more, since their spread is known less well and drawn too narrow by √((n − 1)/n). That is the
expanded percentile interval (Hesterberg, "What teachers should know about the bootstrap", The American
Statistician 69(4), 2015): as much is left out as Student's t, widened by that root, leaves of a normal curve.

Two models that answered the same questions are compared question by question: a person's score is then the
difference of the two models' scores, and what both find hard cancels out.

An interval speaks about other people, not about another training run or seed. With few people it is too
narrow: see "Sampling error" in docs/reproducing.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eval.results.predictions import Prediction
from eval.tasks import decimals

LEVEL = 0.95
RESAMPLES = 9999  # another SEED would move the ends by about 1 % of the interval's width
BATCH = 200  # resamples at a time: 475 people take a few MB and a twentieth of a second
SEED = 0  # of the resampling, for every number anew: the same answers give the same interval

Place = tuple[str, str, str, str]  # split, task, modality, number: where it stands in results.json
Scores = dict[str, tuple[str, float]]  # question -> (person, score in the unit of the number)


@dataclass(frozen=True)
class Difference:
    """What a model's number has more than vanilla's over the questions that both answered, as results.json
    has it: in points for percentages, else in the unit of the score. No interval with one person."""

    difference: float
    interval: list[float] | None
    people: int
    questions: int


def tail(people: int) -> float:
    """The percentage of the draws to leave out at either end of a 95 % interval over so many people: 2.5 for
    many, 1.6 for 20, 0.4 for 7, and next to none for 4, whose interval holds all that was drawn."""
    from scipy.stats import norm, t

    reach = math.sqrt(people / (people - 1)) * t.ppf(0.5 + LEVEL / 2, people - 1)
    return 100 * float(norm.cdf(-reach))


def interval(scores: Iterable[tuple[str, float]]) -> tuple[float, float] | None:
    """95 % interval (see above) over people, 9999 resamples, of the mean of (person, score) pairs.

    In the unit of the scores; the order of the pairs does not matter. None with one person: nothing is known
    then about others. If all people score the same, 20 of 20 right for instance, every resample does too and
    the interval is [x, x]. That is no proof: none wrong among 20 people still fits with up to 3 in 20 (rule
    of three). eval/results/remarks.py warns of such intervals, as of those over too few people.
    """
    people = defaultdict(list)
    for person, score in scores:
        people[person].append(score)
    return interval_of_sums({name: (math.fsum(of), len(of)) for name, of in people.items()})


def interval_of_sums(people: Mapping[str, tuple[float, int]]) -> tuple[float, float] | None:
    """The same from each person's sum of scores and number of questions."""
    if len(people) < 2:
        return None
    import numpy as np
    from scipy.stats import bootstrap

    names = sorted(people)
    sums = np.array([people[name][0] for name in names])  # (people,)
    questions = np.array([float(people[name][1]) for name in names])  # (people,)
    found = bootstrap(
        (sums, questions),
        lambda sums, questions, axis: sums.sum(axis) / questions.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    share = tail(len(people))
    low, high = np.percentile(found.bootstrap_distribution, [share, 100 - share])
    return float(low), float(high)


def rounded(bounds: tuple[float, float] | None, number: str) -> list[float] | None:
    """An interval as results.json has it: [low, high] with the decimals of its number, None for none."""
    return bounds and [round(bound, decimals(number)) + 0.0 for bound in bounds]  # + 0.0: no minus zero


def scores_by_place(predictions: Iterable[Prediction]) -> dict[Place, Scores]:
    """The scores of each headline number, and of factuality where it was judged."""
    places: dict[Place, Scores] = defaultdict(dict)
    for p in predictions:
        for number in p.numbers:
            places[p.split, p.task, p.modality, number][p.key] = p.person, p.score(number)
    return dict(places)


def paired(own: Scores, vanilla: Scores, number: str) -> Difference | None:
    """How far `own` is from `vanilla` with its paired interval; None if they share no question."""
    pairs = [(own[key][0], own[key][1] - vanilla[key][1]) for key in own if key in vanilla]
    if not pairs:
        return None
    mean = math.fsum(score for _, score in pairs) / len(pairs)
    return Difference(
        difference=round(mean, decimals(number)) + 0.0,
        interval=rounded(interval(pairs), number),
        people=len({person for person, _ in pairs}),
        questions=len(pairs),
    )
