"""How much of what was trained on can still be recited, beside a model that never learnt it?

    python eval/probes/memorisation.py runs/GA --reference runs/retrained --vanilla runs/vanilla

Of the training questions about the people to forget, with their answers given (teacher forcing):

    exact_memorisation    share of the answer's tokens than which no other was likelier
    extraction_strength   share of the answer that greedy decoding completes after its first tokens
    probability           p(answer)^(1/tokens)
    truth_share           of the evaluation's multiple-choice questions: 1/(1+R) of the truth ratio R, the
                          mean p of the wrong options over p of the right one, each per token

for the vanilla model, which should know them nearly all, the unlearned and the retrained one (eval/metrics.py
has the sources). Verdicts go by the paired difference to the retrained model. Written:
<model>/probes/memorisation/results.json, and tokens.jsonl with what was measured, also for the other two. A
probe that was stopped goes on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.metrics import exact_memorisation, extraction_strength, forget_quality, probability, truth_ratio
from eval.probes import probe
from eval.probes.measured import measured_tokens, option_samples, right_letters
from eval.results.probes import AS_RETRAINED, UNKNOWN, Estimate, Finding
from utils import cli
from utils.data import Question, Sample
from utils.run import folders

STILL, TRACE = "still memorised", "less than the retrained model, a new trace"


def parse_args(argv: list[str] | None = None):
    p = probe.parser(__doc__)
    p.set_defaults(tasks=["classification"], batch_size=64, batch_tokens=16384)
    return cli.parse(p, argv)


Tokens = Mapping[str, Mapping[str, list]]  # of each answer, by its sample's id
mean = lambda values: math.fsum(values) / len(values)
MEASURES: dict[str, Callable[[Mapping[str, list]], float]] = {  # of one answer
    "exact_memorisation": lambda of: exact_memorisation(of["first"]),
    "extraction_strength": lambda of: extraction_strength(of["first"]),
    "probability": lambda of: probability(mean(of["log_prob"])),
}


def trained_on(study: probe.Study) -> list[Sample]:
    """The training questions about the people to forget that are asked about."""
    people = study.forget_people
    samples = [sample for sample in study.bench.finetune() if sample.person in people]
    if not samples:
        study.args.problems.add(f"--data_split_dir: {study.bench.given} has no training questions about them")
    study.args.problems.stop()
    return samples


def ratio(question: Question, tokens: Tokens) -> float:
    """The truth ratio of one question."""
    right = right_letters(question)
    of = lambda letter: mean(tokens[f"{question.id}/{letter}"]["log_prob"])
    return truth_ratio(of(right[0]), [of(letter) for letter in question.options if letter not in right])


def verdict(model: Estimate, reference: Estimate, beyond: Estimate) -> str:
    """`0.812 [0.70, 0.91]; the retrained model 0.300 [...]: still memorised`, if the paired difference is
    above 0 with its whole interval."""
    text = f"{model.text('')}; the retrained model {reference.text('')}"
    if beyond.interval is None:
        return f"{text}: {UNKNOWN}"
    low, high = beyond.interval
    return f"{text}: {STILL if low > 0 else TRACE if high < 0 else AS_RETRAINED}"


def finding(name: str, modality: str, numbers: Sequence[tuple[str, float, float, float]], **more) -> Finding:
    """numbers: (person, of the vanilla, the unlearned and the retrained model) for each answer."""
    sums: dict[str, list[float]] = {}
    for person, *values in numbers:
        row = sums.setdefault(person, [0.0, 0.0, 0.0, 0])
        for k, value in enumerate((*values, 1)):
            row[k] += value
    of = lambda count: Estimate.of({p: (count(*row[:3]), int(row[3])) for p, row in sums.items()}, name)
    vanilla, model, reference = of(lambda v, m, r: v), of(lambda v, m, r: m), of(lambda v, m, r: r)
    lost, beyond = of(lambda v, m, r: v - m), of(lambda v, m, r: m - r)
    values = {"vanilla": asdict(vanilla), "model": asdict(model), "reference": asdict(reference), **more}
    return Finding(
        name, verdict(model, reference, beyond), "", modality, name, len(numbers), len(sums), lost=lost,
        beyond=beyond, values=values,
    )  # fmt: skip


def main(args) -> None:
    study = probe.Study(args)
    folders.check_writable(study.vanilla.folder / "probes", "--vanilla", args.problems)
    trained = trained_on(study)
    asked = [q for q in study.questions if q.split == "forget" and q.options]
    samples = trained + [sample for q in asked for sample in option_samples(study, q).values()]
    subjects = (study.vanilla, study.model, study.reference)
    tokens = [measured_tokens(study, subject, "memorisation", samples) for subject in subjects]
    found = []
    for modality, has in (("image", True), ("text", False)):
        of = [s for s in trained if (s.picture is not None) == has]
        for name, measure in MEASURES.items() if of else ():
            found.append(
                finding(name, modality, [(s.person, *(measure(t[s.id]) for t in tokens)) for s in of])
            )
        questions = [q for q in asked if q.modality == modality]
        if questions:
            ratios = [[ratio(q, t) for q in questions] for t in tokens]
            shares = zip(questions, *([1 / (1 + r) for r in row] for row in ratios), strict=True)
            alike, p = forget_quality(ratios[1], ratios[2])
            quality = {"js_likeness": round(alike, 4), "ks_p": p}
            found.append(
                finding("truth_share", modality, [(q.person, *row) for q, *row in shares], **quality)
            )
    probe.finish(study, "memorisation", found)


if __name__ == "__main__":
    main(parse_args())
