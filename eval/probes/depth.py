"""Where did the knowledge sit, and how deep did a method reach? Hidden states, put from model to model.

    python eval/probes/depth.py runs/nano/GA --reference runs/nano/retrained --vanilla runs/nano/vanilla

For every layer of the vision tower, the projector and every layer of the decoder, the vanilla model is asked
with the hidden states that the retrained model has there: where log p of the right answer drops (δ1 > 0.05
nats per token), the vanilla model knows what the retrained one does not. The same with the unlearned model's
states (δ2). The depth of the unlearning is Σ δ1·clip(δ2/δ1, 0, 1) / Σ δ1, for questions about pictures and in
text apart: 1, as deep as in the retrained model; 0, nothing is gone, but perhaps the output alone is broken.
eval/results/depth.py has the definition, eval/answering/patching.py says which tokens are meant.

The same is done to questions about people to retain, whom all models know: what it costs there is the misfit
of two trainings, and is taken off for the net depth, by which the verdict goes.

Questions are those of the model's own evaluation; the right option's text is the answer. Written:
<model>/probes/depth/results.json, and what was measured of each question in drops.jsonl, for the retrained
model too, where other unlearned models find it. A probe that was stopped goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.probes import probe
from eval.probes.measured import measured, sample_of
from eval.results.depth import THRESHOLD, summarise, verdict
from eval.results.probes import Finding, probe_folder
from utils import cli, families
from utils.data import Question
from utils.reading import weightless


def parse_args(argv: list[str] | None = None):
    p = probe.parser(__doc__)
    p.set_defaults(batch_size=32, batch_tokens=8192)
    return cli.parse(p, argv)


def drops_of(study: probe.Study, subject: probe.Subject, questions: list[Question]) -> dict[str, dict]:
    """What this model's hidden states cost each question in the vanilla model."""
    from eval.answering.patching import PatchSetup

    args = study.args
    setup = PatchSetup(
        str(study.vanilla.folder), args.original_model, args.dtype, args.attn, args.max_new_tokens,
        source=str(subject.folder),
    )  # fmt: skip
    return measured(
        probe_folder(subject.folder, "depth") / "drops.jsonl", [sample_of(study, q) for q in questions],
        setup, study.settings(subject), args, f"{subject.name}: {len(questions)} questions by layer",
    )  # fmt: skip


def finding(study: probe.Study, modality: str, found: dict) -> Finding:
    """In words, beside what the model no longer answers."""
    asked = [q for q in study.questions if q.split == "forget" and q.modality == modality]
    task = asked[0].task
    answers = {("", q.id): probe.score(study.model.answers[q.id]) for q in asked if q.task == task}
    (row,) = probe.rows(study, study.model, answers)
    return Finding(
        "depth", verdict(found, row.lost), task, modality, row.number,
        found["questions"], found["people"], lost=row.lost,
        values={name: found[name] for name in ("depth", "interval", "gap", "net", "known_to_both")},
    )  # fmt: skip


def main(args) -> None:
    from eval.answering.patching import stages_of

    study = probe.Study(args)
    questions = study.questions
    reference, own = (drops_of(study, subject, questions) for subject in (study.reference, study.model))
    model = weightless.empty_model(str(study.vanilla.folder))
    stages = stages_of(model, families.family_of(model))
    modalities = summarise(questions, stages, reference, own)
    found = [finding(study, modality, of) for modality, of in modalities.items()]
    probe.finish(
        study, "depth", found, {"threshold": THRESHOLD},
        stages=[{"name": s.name, "part": s.part} for s in stages], modalities=modalities,
    )  # fmt: skip


if __name__ == "__main__":
    main(parse_args())
