"""Can it be told from the model that it was trained on these people? Membership scores of right and wrong
answers.

    python eval/probes/membership.py runs/nano/GA --reference runs/nano/retrained --vanilla runs/nano/vanilla

Members are the multiple-choice questions about the people to forget with their right answers; non-members the
same questions with the wrong options, which nobody was trained on: the same people, pictures and words of
questions, and answers of the same kind. Scores are loss, zlib, Min-K, Min-K++ (eval/metrics.py) and, against
the retrained model, the difference of the two losses; each model's AUC, with intervals over people, and
privleak. 0.5 is guessing, but what an unlearned model should come to is the retrained model's AUC.

CLEAR has options for names and, with --tasks truth_ratio, for captions; none for its text questions.
Written: <model>/probes/membership/results.json, and tokens.jsonl with what was measured, also for the
retrained model. A probe that was stopped goes on.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.metrics import membership_scores
from eval.probes import probe
from eval.probes.measured import measured_tokens, option_samples, right_letters
from eval.results.membership import Leak, Scores, leak
from eval.results.probes import Finding
from utils import cli
from utils.data import Question

DIGITS = 4  # scores that differ by less are a tie: batches of other shapes round log p otherwise


def parse_args(argv: list[str] | None = None):
    p = probe.parser(__doc__)
    p.set_defaults(tasks=["classification"], batch_size=64, batch_tokens=16384)
    return cli.parse(p, argv)


Found = dict[str, dict[str, float]]  # by the id of a question with one of its options: score by name


def scores_of(study: probe.Study, subject: probe.Subject, questions: list[Question]) -> Found:
    """All scores but the one against the retrained model."""
    samples = [sample for q in questions for sample in option_samples(study, q).values()]
    tokens = measured_tokens(study, subject, "membership", samples)
    return {
        s.id: membership_scores(*(tokens[s.id][key] for key in ("log_prob", "mean", "deviation")), s.answer)
        for s in samples
    }


def by_person(questions: list[Question], found: Found, name: str) -> Scores:
    """A score of each person's right and wrong answers."""
    people: dict[str, tuple[list[float], list[float]]] = {}
    for q in questions:
        for letter in q.options:
            of = people.setdefault(q.person, ([], []))[letter not in right_letters(q)]
            of.append(round(found[f"{q.id}/{letter}"][name], DIGITS))
    return people


def finding(name: str, modality: str, of: Leak, questions: list[Question]) -> Finding:
    people = len({q.person for q in questions})
    return Finding(
        name, of.verdict, "classification", modality, "auc", len(questions), people, beyond=of.beyond,
        values=asdict(of),
    )  # fmt: skip


def main(args) -> None:
    study = probe.Study(args)
    asked = [q for q in study.questions if q.split == "forget" and q.options]
    own, reference = (scores_of(study, subject, asked) for subject in (study.model, study.reference))
    for found in (own, reference):
        loss = {key: reference[key]["loss"] for key in found}
        for key, scores in found.items():
            scores["reference"] = scores["loss"] - loss[key]
    found = []
    for modality in dict.fromkeys(q.modality for q in asked):
        questions = [q for q in asked if q.modality == modality]
        for name in next(iter(own.values())):
            of = leak(*(by_person(questions, scores, name) for scores in (own, reference)))
            found.append(finding(name, modality, of, questions))
    probe.finish(study, "membership", found)


if __name__ == "__main__":
    main(parse_args())
