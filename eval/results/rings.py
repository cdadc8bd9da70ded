"""Rings of damage: the questions of an evaluation, sorted by how near they are to what was forgotten.

Sample splits say who is asked about; rings say how far that is from the pictures to forget. They are read off
the predictions and, where it is there, off the benchmark's nano.json, which knows the look-alikes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from eval.results.predictions import Prediction
from eval.results.probes import Estimate
from eval.results.verdicts import DAMAGE, KEPT, LEVEL, MARGIN, NOT_YET, TOO_FAR, UNCLEAR
from eval.tasks import split_of

Answers = Mapping[str, Prediction]  # by the question's id


@dataclass(frozen=True)
class Rings:
    """forget: the people to forget; their_values: what is true of them; given: the people to retain whose
    pictures the method was shown; look_alikes: {person: whom they look like}."""

    forget: Collection[str]
    their_values: Collection[str]
    given: Collection[str]
    look_alikes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, predictions: Iterable[Prediction], given: Collection[str], look_alikes) -> Rings:
        asked = [p for p in predictions if split_of(p.split).forgets]
        return cls({p.person for p in asked}, {truth_of(p) for p in asked}, given, look_alikes)

    def ring(self, p: Prediction) -> str | None:
        """The ring of a question; None for what the splits ask twice."""
        picture, split = p.modality == "image", split_of(p.split)
        if split.forgets and picture:
            return "forgotten pictures" if p.split == "forget" else "their other pictures"
        if split.forgets:
            return "same people in text" if p.split == "forget" else None
        if p.split == "retain":
            return self._retained(p) if picture else "others in text"
        if p.split == "world":
            if not picture:
                return "text without people"
            if p.person in self.forget:
                return "what their pictures show"
            drawn = p.person.startswith("drawn_")
            return "pictures without people" if drawn else "what other pictures show"
        return "people outside" if picture else "people outside in text"

    def _retained(self, p: Prediction) -> str:
        if p.person in self.given:
            return "others, shown"
        if self.look_alikes.get(p.person) in self.forget:
            return "look-alikes, not shown"
        return "same answers, not shown" if truth_of(p) in self.their_values else "others, not shown"


RINGS = (  # from near to far
    "forgotten pictures", "their other pictures", "same people in text", "what their pictures show",
    "look-alikes, not shown", "same answers, not shown", "others, shown", "others, not shown",
    "others in text", "what other pictures show", "people outside", "people outside in text",
    "pictures without people", "text without people",
)  # fmt: skip


def truth_of(p: Prediction) -> str:
    """The right answer in words."""
    return p.options[p.truth] if p.task == "classification" and p.options else p.truth


# ---------------------------------------------------------------- what is left in each
FORGOTTEN = RINGS[:2]  # that should be as in the retrained model; all others as in the vanilla model


@dataclass(frozen=True)
class Kept:
    """One ring in one number: accuracy of multiple choice and cloze, in percent, or (CLEAR's text) the true
    answer's probability. beyond: how much more than it should be, the retrained model's number in a FORGOTTEN
    ring, else the vanilla model's; paired by person."""

    ring: str
    number: str
    n: int
    people: int
    vanilla: Estimate
    model: Estimate
    reference: Estimate
    beyond: Estimate

    @property
    def word(self) -> str:
        """As in eval/results/verdicts.py: of what should be forgotten, and of everything else."""
        if self.beyond.interval is None:
            return UNCLEAR
        (low, high), margin = self.beyond.interval, MARGIN * (1 if self.number == "accuracy" else 0.01)
        if self.ring in FORGOTTEN:
            level = LEVEL if max(-low, high) <= margin else UNCLEAR
            return NOT_YET if low > 0 else TOO_FAR if high < 0 else level
        return DAMAGE if high < 0 else KEPT if low >= -margin else UNCLEAR


def kept(rings: Rings, vanilla: Answers, model: Answers, reference: Answers) -> list[Kept]:
    """One per ring and number, from near to far. The others have answered all that the model has."""
    sums: dict[tuple[str, str], dict[str, list]] = {}
    for key, p in model.items():
        number = "accuracy" if p.correct is not None else "probability"
        ring = rings.ring(p)
        if ring is None or (number == "probability" and p.task != "probability"):
            continue
        row = sums.setdefault((ring, number), {}).setdefault(p.person, [0.0, 0.0, 0.0, 0])
        for k, answers in enumerate((vanilla, model, reference)):
            row[k] += answers[key].score(number)
        row[3] += 1
    found = []
    for (ring, number), people in sorted(sums.items(), key=lambda item: RINGS.index(item[0][0])):
        base = 2 if ring in FORGOTTEN else 0
        sums_of = [{person: (row[k], row[3]) for person, row in people.items()} for k in range(3)]
        sums_of.append({person: (row[1] - row[base], row[3]) for person, row in people.items()})
        n = sum(row[3] for row in people.values())
        found.append(Kept(ring, number, n, len(people), *(Estimate.of(of, number) for of in sums_of)))
    return found
