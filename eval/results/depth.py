"""The Unlearning Depth Score: how much of what the retrained model lacks, layer by layer, a model lacks too.

    δ1 = drop of log p(answer), nats per token, when the retrained model's hidden states are put into the
         vanilla model behind a layer, δ2 = the same with the unlearned model's (eval/answering/patching.py)
    depth of a question = Σ δ1 · clip(δ2/δ1, 0, 1) / Σ δ1    over layers and places with δ1 > THRESHOLD

and the mean over questions of the people to forget: 1 where a model lacks all that the retrained one lacks,
0 where it lacks nothing. A method that breaks the output alone has δ2 in the last layers only, so its depth
is near 0. A question without such a layer is left out: the retrained model lacks nothing there. arXiv
2605.24614, for text; the vision tower, the projector and the place of the picture's tokens are ours.

States of a model that was trained anew do not quite fit into another one, whatever it knows. So the same is
done to questions about people to retain, whom all models know, and the net depth, ours, is of what is beyond:

    D1, D2 = mean δ1, δ2 of the people to forget − mean δ1, δ2 of those to retain, layer by layer
    gap = Σ D1; net depth = Σ D1 · clip(D2/D1, 0, 1) / Σ D1 over D1 > THRESHOLD

Where the interval of the gap holds 0 the retrained model lacks nothing, and no depth says anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
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


def net(
    forget: Sequence[Question], retain: Sequence[Question], reference: Measured, own: Measured
) -> dict[str, Estimate | None] | None:
    """{"gap": in nats per token, "depth": 0..1, or None without a layer}, with intervals over people of both
    groups, drawn apart; None where nobody is asked about in one of them."""
    import numpy as np

    if not forget or not retain:
        return None
    cells = list(flat(reference[forget[0].id]["drops"]))
    rng, means = np.random.default_rng(intervals.SEED), []
    for group in (forget, retain):
        people = sorted({q.person for q in group})
        draws = rng.multinomial(len(people), [1 / len(people)] * len(people), intervals.RESAMPLES)
        draws = np.vstack([np.ones_like(draws[:1]), draws])  # (R, P), the first: everybody once
        asked = np.array([sum(q.person == person for q in group) for person in people])
        for of in (reference, own):
            values = {q.id: np.array([flat(of[q.id]["drops"])[cell] for cell in cells]) for q in group}
            sums = np.array([sum(values[q.id] for q in group if q.person == person) for person in people])
            means.append((draws @ sums) / (draws @ asked)[:, None])  # (R, cells)
    d1, d2 = means[0] - means[2], means[1] - means[3]
    held = d1 * (d1 > THRESHOLD)
    with np.errstate(invalid="ignore"):
        depth = np.clip(d2, 0, held).sum(1) / held.sum(1)
    people = min(len({q.person for q in group}) for group in (forget, retain))
    found = None if np.isnan(depth[0]) else Estimate.of_draws(depth, people)
    return {"gap": Estimate.of_draws(d1.sum(1), people), "depth": found}


def summarise(
    questions: Sequence[Question],
    stages: Sequence[Any],
    reference: Measured,
    own: Measured,
) -> dict[str, Any]:
    """{modality: {"depth", "interval", "gap", "net", "people", "questions", "known_to_both", "places":
    {place: {"depth", "interval", "stages": {stage: {"reference", "model", "retain", "erased", "holds"}}}}}}.

    stages: eval.answering.patching.Stage. gap, net: as net() has them, as dicts, None where it has none.
    known_to_both: questions left out of the depth, since the retrained model lacks nothing. reference, model:
    mean δ1 and δ2 over all questions with their intervals over people; retain: the mean δ1 of people to
    retain; erased: Σ δ1·LER / Σ δ1 of the layer, None where no question has δ1 > THRESHOLD; holds: the share
    of questions that do.
    """
    found = {}
    for modality in dict.fromkeys(q.modality for q in questions):
        asked, others = (
            [q for q in questions if q.modality == modality and (q.split == "forget") is forgets]
            for forgets in (True, False)
        )
        if not asked:
            continue
        beyond = net(asked, others, reference, own)
        places = dict.fromkeys(place for q in asked for place in reference[q.id]["drops"])
        found[modality] = {
            **_depth(asked, reference, own, None),
            "gap": beyond and asdict(beyond["gap"]),
            "net": beyond and beyond["depth"] and asdict(beyond["depth"]),
            "people": len({q.person for q in asked}),
            "questions": len(asked),
            "known_to_both": sum(not holding(flat(reference[q.id]["drops"])) for q in asked),
            "places": {
                place: {
                    **_depth(asked, reference, own, {place}),
                    "stages": {
                        stage.name: _stage(asked, others, reference, own, (place, stage.name))
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


def _stage(asked, others, reference, own, cell: Cell) -> dict[str, Any]:
    place, stage = cell
    delta = lambda of, q: of[q.id]["drops"][place][stage]
    pairs = [(q.person, delta(reference, q), delta(own, q)) for q in asked]
    held = [(d1, d2) for _, d1, d2 in pairs if d1 > THRESHOLD]
    kept = [delta(reference, q) for q in others]
    lost = math.fsum(erased(d1, d2) for d1, d2 in held)
    return {
        "reference": mean([(person, d1) for person, d1, _ in pairs]),
        "model": mean([(person, d2) for person, _, d2 in pairs]),
        "retain": round(math.fsum(kept) / len(kept), DIGITS) + 0.0 if kept else None,
        "erased": round(lost / math.fsum(d1 for d1, _ in held), DIGITS) if held else None,
        "holds": round(len(held) / len(pairs), DIGITS),
    }


def verdict(found: dict[str, Any], lost: Estimate) -> str:
    """`depth 0.28 [0.23, 0.33], net 0.27 [0.20, 0.34]: hidden, not forgotten`: the model lost answers, and
    its net depth is below one half with its whole interval; above one half it is gone from most layers.

    found: of one modality, as summarise() has it; lost: what the model no longer answers of what the vanilla
    model did."""
    shown = lambda value, bounds: f"{value:.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]"
    if found["depth"] is None:
        return NOTHING_LACKS
    text = f"depth {found['depth']:.2f}"
    if not found["interval"] or not found["gap"] or not found["gap"]["interval"]:
        return f"{text}: {UNKNOWN}"
    text = f"depth {shown(found['depth'], found['interval'])}"
    if found["gap"]["interval"][0] <= 0 or not found["net"] or not found["net"]["interval"]:
        return f"{text}: {NOTHING_LACKS}"
    low, high = found["net"]["interval"]
    text = f"{text}, net {shown(found['net']['value'], (low, high))}"
    if not lost.above_zero:
        return f"{text}: {NOTHING_LOST}"
    return f"{text}: {HIDDEN if high < 0.5 else DEEP if low > 0.5 else BETWEEN}"
