"""The parts of results.json that are worked out from predictions: means with their intervals, and how far
they are from vanilla's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from eval.metrics import rouge_reads
from eval.results.intervals import interval, paired, rounded, scores_by_place
from eval.results.predictions import Prediction
from eval.tasks import FACTUALITY, TASKS, decimals

UNREADABLE = 0.1  # the share of replies without a choice from which on it is said


def summarise(predictions: Iterable[Prediction]) -> dict[str, dict]:
    """Predictions of any number of splits -> {split: {task: {modality: counts or mean scores}}}.

    Tasks of right and wrong give {"correct", "total", "accuracy"}, accuracy in percent with 2 decimals. The
    others give the means of their scores with 4 decimals, and "total". All have "people", how many were asked
    about, and "interval": [low, high] of the task's headline over people (eval/results/intervals.py), None
    with one person. Multiple choice has "unreadable", the replies that name no option, and "chance", the
    accuracy of guessing. Generation has "unscorable", the truths in which ROUGE sees nothing, and
    "factuality", the judge's mean grade with 2 decimals, with "judged", the number of answers graded, if
    there are any. Splits, tasks and modalities come in the order in which they first occur; a combination
    without predictions is absent. The order of the predictions inside one does not matter.
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
        return {"correct": correct, "total": len(found), "accuracy": accuracy, **people, **_choices(found)}
    grades = [p.score(FACTUALITY) for p in found if FACTUALITY in p.scores]
    unscorable = sum(not rouge_reads(p.truth) for p in found) if headline == "rougeL" else 0
    return {
        **{name: _mean([p.scores[name] for p in found], name) for name in means},
        "total": len(found),
        **people,
        **({"unscorable": unscorable} if unscorable else {}),
        **({FACTUALITY: _mean(grades, FACTUALITY), "judged": len(grades)} if grades else {}),
    }


def _choices(found: list[Prediction]) -> dict[str, Any]:
    """Of multiple choice: how many replies name no option, and the accuracy of guessing, in percent."""
    if not all(p.options for p in found):
        return {}
    chance = math.fsum(100 / len(p.options) for p in found) / len(found)
    return {"unreadable": sum(p.choice is None for p in found), "chance": round(chance, decimals("accuracy"))}


def doubts(entry: dict[str, Any]) -> list[str]:
    """What speaks against one entry as a number about the model, for the screen; none where nothing does."""
    found, total = [], entry["total"]
    if is_unreadable(entry):
        found.append(f"{entry['unreadable']} of {total} replies name no option and count as wrong")
    if is_below_chance(entry):
        found.append(f"{entry['accuracy']:.1f} % is below chance ({entry['chance']:.1f} %)")
    if unscorable := entry.get("unscorable"):
        found.append(
            f"{unscorable} of {total} truths have no Latin letter or digit: ROUGE is 0 for any reply"
        )
    return found


def is_unreadable(entry: dict[str, Any]) -> bool:
    """Whether so many replies name no option that the number is about following the instruction."""
    return entry.get("unreadable", 0) > UNREADABLE * entry["total"]


def is_below_chance(entry: dict[str, Any]) -> bool:
    """Whether the model chooses worse than by guessing, as far as its interval tells."""
    bounds = entry.get("interval")
    return bool(bounds and "chance" in entry and bounds[1] < entry["chance"])


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
