"""Can it be told from the model that it was trained on these people? Membership scores of right and wrong
answers.

    python eval/probes/membership.py runs/nano/GA --reference runs/nano/retrained --vanilla runs/nano/vanilla

Members are the multiple-choice questions about the people to forget with their right answers. Non-members are
the same questions with the wrong options, which nobody was trained on: was the fact learnt? And, where the
benchmark has other pictures of the same people (MLLMU-Bench's Test_Set), the questions about these with their
right answers: was this picture learnt? Both are of the same people and of the same kind. Scores are loss,
zlib, Min-K, Min-K++ (eval/metrics.py) and, against the retrained model, the difference of the two losses;
each model's AUC, with intervals over people, and privleak. 0.5 is guessing, but what an unlearned model
should come to is the retrained model's AUC.

CLEAR has options for names and, with --tasks truth_ratio, for captions; none for its text questions.
Written: <model>/probes/membership/results.json, and tokens.jsonl with what was measured, also for the
retrained model. A probe that was stopped goes on.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.metrics import membership_scores
from eval.probes import probe
from eval.probes.measured import measured_tokens, option_samples, right_letters
from eval.results.membership import Leak, Scores, leak
from eval.results.probes import Finding
from eval.tasks import split_of
from utils import cli
from utils.data import Question, Sample

DIGITS = 4  # scores that differ by less are a tie: batches of other shapes round log p otherwise


def parse_args(argv: list[str] | None = None):
    p = probe.parser(__doc__)
    p.set_defaults(tasks=["classification"], batch_size=64, batch_tokens=16384)
    return cli.parse(p, argv)


Found = dict[str, dict[str, float]]  # by the id of a question with one of its options: score by name


def other_pictures(study: probe.Study) -> list[Question]:
    """Multiple choice about pictures of the people to forget that no model was trained on."""
    splits = [s for s in study.bench.own_splits() if split_of(s).forgets and s != "forget"]
    asked = [q for split in splits for q in study.bench.questions(split, study.args.seed)]
    wanted = lambda q: q.task == "classification" and q.modality == "image" and q.options
    return [q for q in asked if wanted(q) and q.person in study.forget_people]


def answers_of(study: probe.Study, questions: list[Question], right: bool) -> dict[str, list[Sample]]:
    """{person: the questions with their right, or with their wrong options as answers}"""
    people: dict[str, list[Sample]] = defaultdict(list)
    for q in questions:
        letters = right_letters(q)
        people[q.person] += [s for k, s in option_samples(study, q).items() if (k in letters) == right]
    return people


def scores_of(study: probe.Study, subject: probe.Subject, samples: list[Sample]) -> Found:
    """All scores but the one against the retrained model."""
    tokens = measured_tokens(study, subject, "membership", samples)
    return {
        s.id: membership_scores(*(tokens[s.id][key] for key in ("log_prob", "mean", "deviation")), s.answer)
        for s in samples
    }


@dataclass(frozen=True)
class Sides:
    """Members and non-members, by person. against: what the latter are, "" for wrong options."""

    modality: str
    against: str
    questions: list[Question]
    members: dict[str, list[Sample]]
    others: dict[str, list[Sample]]

    def scores(self, found: Found, name: str) -> Scores:
        of = lambda samples: [round(found[s.id][name], DIGITS) for s in samples]
        both = self.members.keys() & self.others.keys()
        return {person: (of(self.members[person]), of(self.others[person])) for person in sorted(both)}


def sides(study: probe.Study) -> list[Sides]:
    asked = [q for q in study.questions if q.split == "forget" and q.options]
    found = []
    for modality in dict.fromkeys(q.modality for q in asked):
        questions = [q for q in asked if q.modality == modality]
        members, wrong = (answers_of(study, questions, right) for right in (True, False))
        found.append(Sides(modality, "", questions, members, wrong))
        if modality == "image" and (unseen := other_pictures(study)):
            others = answers_of(study, unseen, True)
            found.append(Sides(modality, "other pictures", questions, members, others))
    return found


def finding(name: str, of: Sides, found: Leak) -> Finding:
    people = len({q.person for q in of.questions})
    return Finding(
        ", ".join(filter(None, (name, of.against))), found.verdict, "classification", of.modality, "auc",
        len(of.questions), people, beyond=found.beyond, values=asdict(found),
    )  # fmt: skip


def main(args) -> None:
    study = probe.Study(args)
    pairs = sides(study)
    given = [of for pair in pairs for side in (pair.members, pair.others) for of in side.values()]
    samples = {s.id: s for of in given for s in of}
    own, reference = (
        scores_of(study, subject, list(samples.values())) for subject in (study.model, study.reference)
    )
    for found in (own, reference):
        loss = {key: reference[key]["loss"] for key in found}
        for key, scores in found.items():
            scores["reference"] = scores["loss"] - loss[key]
    found = [
        finding(name, of, leak(of.scores(own, name), of.scores(reference, name)))
        for of in pairs
        for name in next(iter(own.values()))
    ]
    probe.finish(study, "membership", found)


if __name__ == "__main__":
    main(parse_args())
