"""Per fact, not per score: what is gone from the picture, from the text, from both, from neither.

A fact is asked both ways where a question with a picture and one in text about the same person have the same
right answer: the same words, those aside that its own question says already ("The person lives in Riga",
"Ann Bo lives in Riga"). Asked are multiple choice, else cloze. Counted are the facts that the vanilla model
knows both ways; gone is what the model answers wrongly. To forget a picture and keep the text is "picture
only": its share is the headline number of visual forgetting, beside that of the retrained model, which
answers some picture questions by chance, too.

CLEAR asks no fact both ways. There a person counts as one fact: known from pictures if at least half of their
names are right, known in text if the answers' mean probability per token is at least KNOWN.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.results.predictions import Prediction
from eval.results.probes import UNKNOWN, Estimate
from eval.results.rings import Answers, truth_of
from eval.tasks import split_of

PICTURE, TEXT, BOTH, NEITHER = CELLS = ("picture only", "text only", "both", "neither")
KNOWN = 0.5  # of an answer's probability per token, where nothing is right or wrong
ASKED = ("classification", "cloze")
AS_RETRAINED = "as in the retrained model"
MORE = {TEXT: "gone from the text instead", BOTH: "the text is gone, too", NEITHER: "not gone"}


@dataclass(frozen=True)
class Fact:
    """One that is asked both ways: ids of the questions with a picture, and of those in text."""

    person: str
    pictures: tuple[str, ...]
    texts: tuple[str, ...]


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def said(p: Prediction) -> str:
    """What the right answer says beyond its question, the whole answer where that is nothing."""
    answer, asked = words_of(truth_of(p)), set(words_of(p.question))
    return " ".join([word for word in answer if word not in asked] or answer)


def facts_of(answers: Answers, split: str) -> list[Fact]:
    """The facts of a split that are asked both ways; which model's answers does not matter."""
    asked = [p for p in answers.values() if p.split == split]
    if any(p.task == "probability" for p in asked):
        return _people(asked)
    found: dict[tuple[str, str], dict[str, Prediction]] = defaultdict(dict)
    for task in ASKED:
        for p in asked:
            if p.task == task:
                found[p.person, said(p)].setdefault(p.modality, p)
    return [
        Fact(person, (of["image"].id,), (of["text"].id,))
        for (person, _), of in found.items()
        if of.keys() == {"image", "text"}
    ]


def _people(asked: Sequence[Prediction]) -> list[Fact]:
    ids: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for p in asked:
        if (p.task, p.modality) in (("classification", "image"), ("probability", "text")):
            ids[p.person][p.modality].append(p.id)
    return [Fact(person, tuple(of["image"]), tuple(of["text"])) for person, of in ids.items() if len(of) == 2]


def known(answers: Answers, ids: Iterable[str]) -> bool:
    """Whether a model answers at least half of them rightly, or thinks the answers likely enough."""
    found = [answers[key] for key in ids]
    scores = [float(p.correct) if p.correct is not None else p.scores["probability"] for p in found]
    return sum(scores) / len(scores) >= KNOWN


def cell(fact: Fact, answers: Answers) -> str:
    """Where a fact that vanilla knew is gone from."""
    picture, text = known(answers, fact.pictures), known(answers, fact.texts)
    return {(False, True): PICTURE, (True, False): TEXT, (False, False): BOTH, (True, True): NEITHER}[
        picture, text
    ]


@dataclass(frozen=True)
class Gone:
    """The 2×2 table of one split. asked: facts asked both ways; facts: those that vanilla knew. cells,
    reference: {cell: percent of facts}, of the model and the retrained one; beyond: their difference."""

    split: str
    asked: int
    facts: int
    people: int
    cells: dict[str, Estimate]
    reference: dict[str, Estimate]
    beyond: dict[str, Estimate]

    @property
    def verdict(self) -> str:
        """As in the retrained model, if the interval of the difference in "picture only" holds 0; else what
        there is most of, instead."""
        own, theirs, beyond = (of[PICTURE] for of in (self.cells, self.reference, self.beyond))
        head = f"gone from the picture only: {own.text('accuracy')} % of {self.facts} facts"
        text = f"{head}; the retrained model {theirs.text('accuracy')} %"
        if beyond.interval is None:
            return f"{text}: {UNKNOWN}"
        low, high = beyond.interval
        if low <= 0 <= high:
            return f"{text}: {AS_RETRAINED}"
        if low > 0:
            return f"{text}: more than in the retrained model"
        return f"{text}: {MORE[max(MORE, key=lambda name: self.beyond[name].value)]}"


def gone(split: str, vanilla: Answers, model: Answers, reference: Answers) -> Gone | None:
    """None where vanilla knew no fact both ways. The others have answered all that the model has."""
    asked = facts_of(model, split)
    facts = [fact for fact in asked if cell(fact, vanilla) == NEITHER]
    if not facts:
        return None
    shares: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in ("own", "theirs", "beyond")}
    for name in CELLS:
        sums = {key: defaultdict(lambda: [0.0, 0]) for key in shares}
        for fact in facts:
            own, theirs = (100.0 * (cell(fact, answers) == name) for answers in (model, reference))
            for key, value in zip(sums, (own, theirs, own - theirs), strict=True):
                sums[key][fact.person][0] += value
                sums[key][fact.person][1] += 1
        for key, of in sums.items():
            shares[key][name] = Estimate.of({p: tuple(s) for p, s in of.items()}, "accuracy")
    people = len({fact.person for fact in facts})
    return Gone(split, len(asked), len(facts), people, shares["own"], shares["theirs"], shares["beyond"])


def forgotten_splits(answers: Answers) -> list[str]:
    """The splits about the people to forget, in the order of the evaluation."""
    return [s for s in dict.fromkeys(p.split for p in answers.values()) if split_of(s).forgets]
