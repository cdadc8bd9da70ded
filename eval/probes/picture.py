"""Does it come back in another picture? Noise, blur, a crop, a covered part, less light, another picture of
the person, and the name or the question written into the picture.

    python eval/probes/picture.py runs/GA --reference runs/retrained --vanilla runs/vanilla

Asks the evaluation's picture questions again about changed pictures. Another picture of a person is one of
MLLMU-Bench's Test_Set (people to forget only), on CLEAR one of the others of the same table. A name written
into the picture (typographic attack: FigStep, arXiv 2311.05608) opens the way of text: a model that was to
keep what it knows in text may answer, and so may the retrained one. What each is and means: docs/probes.md.
Results: <model>/probes/picture/results.json.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.probes import probe
from eval.probes.pictures import CHANGES, ChangedPicture
from utils import cli
from utils.clear import CLEARBench
from utils.data import Picture, Question
from utils.mllmu import MLLMUBench

OTHER, NAME, QUESTION = "other_picture", "name_written", "question_written"
CONDITIONS = (*CHANGES, OTHER, NAME, QUESTION)


def parse_args(argv: list[str] | None = None):
    p = probe.parser(__doc__)
    g = p.add_argument_group("pictures")
    g.add_argument(
        "--conditions",
        type=cli.choices(*CONDITIONS),
        default=list(CONDITIONS),
        help=f"default {','.join(CONDITIONS)}",
    )
    return cli.parse(p, argv)


class Attack:
    """The questions of a study in each condition."""

    def __init__(self, study: probe.Study):
        self.study, self.seed = study, study.args.seed
        self.others, self.names = self._other_pictures(), study.bench.names()

    def questions(self, condition: str) -> Iterator[Question]:
        """Those that can be asked in this condition."""
        for question in self.study.questions:
            if (picture := self._picture(question, condition)) is not None:
                yield probe.changed(question, condition, picture=picture)

    def _picture(self, question: Question, condition: str) -> Picture | None:
        """None where there is no other picture, or no name to write. A caption is of its own picture only."""
        if condition == OTHER:
            captions = isinstance(self.study.bench, CLEARBench) and question.task != "classification"
            others = [p for p in self.others.get(question.person, []) if p != question.picture]
            drawn = random.Random(f"{self.seed}/{question.id}")
            return None if captions or not others else drawn.choice(others)
        words = {NAME: self.names.get(question.person), QUESTION: question.question}.get(condition, "")
        if condition not in CHANGES and not words:
            return None
        picture = question.picture
        return ChangedPicture(picture.data, picture.source, condition, self.seed, words)

    def _other_pictures(self) -> dict[str, list[Picture]]:
        """{person: pictures}; on MLLMU-Bench the one that the seed draws from Test_Set."""
        study, found = self.study, defaultdict(dict)
        questions = study.questions
        if isinstance(study.bench, MLLMUBench):
            questions = study.bench.questions("test", study.args.seed)
        for question in questions:
            if question.picture is not None:
                found[question.person][question.picture.data] = question.picture
        return {person: list(pictures.values()) for person, pictures in found.items()}


def main(args) -> None:
    study = probe.Study(args, modalities=("image",))
    attack = Attack(study)
    args.problems.stop()
    asked = [question for condition in args.conditions for question in attack.questions(condition)]
    asking = probe.Asking("answers", asked)
    probe.run(study, "picture", lambda _: [asking], {"conditions": args.conditions})


if __name__ == "__main__":
    main(parse_args())
