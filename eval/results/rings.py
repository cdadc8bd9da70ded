"""Rings of damage: the questions of an evaluation, sorted by how near they are to what was forgotten.

Sample splits say who is asked about; rings say how far that is from the pictures to forget. They are read off
the predictions and, where it is there, off the benchmark's nano.json, which knows the look-alikes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from eval.results.predictions import Prediction
from eval.tasks import split_of


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
