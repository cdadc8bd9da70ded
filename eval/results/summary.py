"""The parts of results.json that are worked out from predictions: means with their intervals, and how far
they are from vanilla's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from eval.results.intervals import interval, paired, rounded, scores_by_place
from eval.results.predictions import Prediction
from eval.tasks import FACTUALITY, TASKS, decimals


def summarise(predictions: Iterable[Prediction]) -> dict[str, dict]:
    """Predictions of any number of splits -> {split: {task: {modality: counts or mean scores}}}.

    Tasks of right and wrong give {"correct", "total", "accuracy"}, accuracy in percent with 2 decimals. The
    others give the means of their scores with 4 decimals, and "total". All have "people", how many were asked
    about, and "interval": [low, high] of the task's headline over people (eval/results/intervals.py), None
    with one person. Generation has "factuality", the judge's mean grade with 2 decimals, and "judged", the
    number of answers graded, if there are any. Splits, tasks and modalities come in the order in which they
    first occur; a combination without predictions is absent. The order of the predictions inside one does
    not matter.
    """
    groups: dict[tuple[str, str, str], list[Prediction]] = {}
    for p in predictions:
        groups.setdefault((p.split, p.task, p.modality), []).append(p)
    out: dict[str, dict] = {}
    for (split, task, modality), found in groups.items():
        out.setdefault(split, {}).setdefault(task, {})[modality] = _entry(task, found)
    return out


def _entry(task: str, found: list[Prediction]) -> dict[str, Any]:
    headline, means = TASKS[task].headline, TASKS[task].means
    bounds = interval((p.person, p.score(headline)) for p in found)
    people = {"people": len({p.person for p in found}), "interval": rounded(bounds, headline)}
    if not means:
        correct = sum(p.correct for p in found)
        accuracy = round(100 * correct / len(found), 2)
        return {"correct": correct, "total": len(found), "accuracy": accuracy, **people}
    grades = [p.score(FACTUALITY) for p in found if FACTUALITY in p.scores]
    return {
        **{name: _mean([p.scores[name] for p in found], name) for name in means},
        "total": len(found),
        **people,
        **({FACTUALITY: _mean(grades, FACTUALITY), "judged": len(grades)} if grades else {}),
    }


def _mean(scores: list[float], number: str) -> float:
    # fsum: the same mean whatever the order in which several processes wrote the predictions
    return round(math.fsum(scores) / len(scores), decimals(number))


def paired_differences(own: Iterable[Prediction], vanilla: Iterable[Prediction]) -> dict[str, dict]:
    """{split: {task: {modality: a Difference of the headline numbers, as a dict}}}; combinations without a
    common question are absent."""
    ours, theirs = scores_by_place(own), scores_by_place(vanilla)
    out: dict[str, dict] = {}
    for place, scores in ours.items():
        split, task, modality, number = place
        found = place in theirs and paired(scores, theirs[place], number)
        if found and number == TASKS[task].headline:
            out.setdefault(split, {}).setdefault(task, {})[modality] = asdict(found)
    return out
