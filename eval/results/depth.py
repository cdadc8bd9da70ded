"""The Unlearning Depth Score: how much of what the retrained model lacks, layer by layer, a model lacks too.

    δ1 = drop of log p(answer), nats per token, when the retrained model's hidden states are put into the
         vanilla model behind a layer, δ2 = the same with the unlearned model's (eval/answering/patching.py)
    depth of a question = Σ δ1 · clip(δ2/δ1, 0, 1) / Σ δ1    over layers and places with δ1 > THRESHOLD

and the mean over questions: 1 where a model lacks all that the retrained one lacks, 0 where it lacks nothing.
A method that breaks the output alone has δ2 in the last layers only, so its depth is near 0. A question
without such a layer is left out: the retrained model lacks nothing there. arXiv 2605.24614, for text; the
vision tower, the projector and the place of the picture's tokens are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from eval.results import intervals
from eval.results.probes import HIDDEN, NOTHING_LOST, UNKNOWN, Estimate
from utils.data import Question

THRESHOLD = 0.05  # nats per token, as published
DIGITS = 4
DEEP, BETWEEN, NOTHING_LACKS = "gone from most layers", "in between", "the retrained model lacks nothing"

Measured = dict[str, dict[str, Any]]  # by question, as PatchWorker.measure gives it
Cell = tuple[str, str]  # place, stage
Deltas = dict[Cell, float]


def holding(reference: Deltas) -> dict[Cell, float]:
    """δ1 where it says that the vanilla model knows here what the retrained one does not."""
    return {cell: delta for cell, delta in reference.items() if delta > THRESHOLD}


def erased(reference: float, own: float) -> float:
    """δ1 · LER = clip(δ2, 0, δ1)."""
    return min(max(own, 0.0), reference)


def question_depth(reference: Deltas, own: Deltas) -> float | None:
    """The depth of one question; None where the retrained model lacks nothing."""
    held = holding(reference)
    if not held:
        return None
    return math.fsum(erased(d, own[cell]) for cell, d in held.items()) / math.fsum(held.values())


def flat(drops: dict[str, dict[str, float]], places: Iterable[str] | None = None) -> Deltas:
    """The cells of a question's drops, of some places or of all."""
    return {
        (place, stage): delta
        for place, stages in drops.items()
        if places is None or place in places
        for stage, delta in stages.items()
    }


def mean(pairs: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """The mean of (person, number) pairs with its 95 % interval over people."""
    bounds = intervals.interval(pairs)
    return {
        "mean": round(math.fsum(number for _, number in pairs) / len(pairs), DIGITS) + 0.0,
        "interval": bounds and [round(bound, DIGITS) + 0.0 for bound in bounds],
    }


def summarise(
    questions: Sequence[Question],
    stages: Sequence[Any],
    reference: Measured,
    own: Measured,
) -> dict[str, Any]:
    """{modality: {"depth", "interval", "people", "questions", "known_to_both", "places": {place: {"depth",
    "interval", "stages": {stage: {"reference", "model", "erased", "holds"}}}}}}.

    stages: eval.answering.patching.Stage. known_to_both: questions left out of the depth, since the retrained
    model lacks nothing. reference, model: mean δ1 and δ2 over all questions with their intervals over people;
    erased: Σ δ1·LER / Σ δ1 of the layer, None where no question has δ1 > THRESHOLD; holds: the share of
    questions that do.
    """
    found = {}
    for modality in dict.fromkeys(q.modality for q in questions):
        asked = [q for q in questions if q.modality == modality]
        places = dict.fromkeys(place for q in asked for place in reference[q.id]["drops"])
        found[modality] = {
            **_depth(asked, reference, own, None),
            "people": len({q.person for q in asked}),
            "questions": len(asked),
            "known_to_both": sum(not holding(flat(reference[q.id]["drops"])) for q in asked),
            "places": {
                place: {
                    **_depth(asked, reference, own, {place}),
                    "stages": {
                        stage.name: _stage(asked, reference, own, (place, stage.name))
                        for stage in stages
                        if stage.name in reference[asked[0].id]["drops"][place]
                    },
                }
                for place in places
            },
        }
    return found


def _depth(asked, reference, own, places: set[str] | None) -> dict[str, Any]:
    depths = [
        (q.person, question_depth(flat(reference[q.id]["drops"], places), flat(own[q.id]["drops"], places)))
        for q in asked
    ]
    depths = [(person, depth) for person, depth in depths if depth is not None]
    number = mean(depths) if depths else {"mean": None, "interval": None}
    return {"depth": number["mean"], "interval": number["interval"]}


def _stage(asked, reference, own, cell: Cell) -> dict[str, Any]:
    place, stage = cell
    delta = lambda of, q: of[q.id]["drops"][place][stage]
    pairs = [(q.person, delta(reference, q), delta(own, q)) for q in asked]
    held = [(d1, d2) for _, d1, d2 in pairs if d1 > THRESHOLD]
    lost = math.fsum(erased(d1, d2) for d1, d2 in held)
    return {
        "reference": mean([(person, d1) for person, d1, _ in pairs]),
        "model": mean([(person, d2) for person, _, d2 in pairs]),
        "erased": round(lost / math.fsum(d1 for d1, _ in held), DIGITS) if held else None,
        "holds": round(len(held) / len(pairs), DIGITS),
    }


def verdict(depth: float | None, interval: Sequence[float] | None, lost: Estimate) -> str:
    """`depth 0.12 [0.05, 0.21]: hidden, not forgotten`: the model lost answers, and its depth is below one
    half with its whole interval; above one half it is gone from most layers. lost: what it no longer answers
    of what the vanilla model did."""
    if depth is None:
        return NOTHING_LACKS
    text = f"depth {depth:.2f}"
    if interval is None:
        return f"{text}: {UNKNOWN}"
    low, high = interval
    if not lost.above_zero:
        found = NOTHING_LOST
    elif high < 0.5:
        found = HIDDEN
    else:
        found = DEEP if low > 0.5 else BETWEEN
    return f"{text} [{low:.2f}, {high:.2f}]: {found}"
