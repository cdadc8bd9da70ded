"""What is gone per fact: from the picture only, from the text only, from both, from neither.

    python eval/probes/facts.py runs/nano/GA --reference runs/nano/retrained --vanilla runs/nano/vanilla

Of the facts about people to forget that are asked with a picture and in text, and that the vanilla model
knows both ways, a 2x2 table beside the retrained model's, with intervals over people. Nothing is asked anew:
it is counted from the predictions of the three evaluations. eval/results/facts.py says what one fact is, and
what it is on CLEAR. Written: <model>/probes/facts/results.json.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.probes import probe
from eval.results.facts import CELLS, PICTURE, Gone, forgotten_splits, gone
from eval.results.probes import Finding, write_probe
from eval.tasks import split_of
from utils import cli
from utils.run import folders


def parse_args(argv: list[str] | None = None):
    return cli.parse(probe.parser(__doc__), argv)


def finding(of: Gone) -> Finding:
    return Finding(
        split_of(of.split).title, of.verdict, modality="both", number="accuracy", n=of.facts,
        people=of.people, recovered=of.cells[PICTURE], reference=of.reference[PICTURE], 
        beyond=of.beyond[PICTURE],
    )  # fmt: skip


def show(of: Gone) -> str:
    """The table of one split for the screen."""
    from tabulate import tabulate

    rows = [
        [name, *(e[name].text("accuracy") for e in (of.cells, of.reference, of.beyond))] for name in CELLS
    ]
    head = f"{split_of(of.split).title}: {of.facts} of {of.asked} facts asked both ways were known both ways"
    return f"\n{head}\n" + tabulate(rows, ["gone from, %", "model", "retrained", "more"], "github")


def main(args) -> None:
    model, reference, vanilla = probe.evaluated(args)
    probe.same_answers(args, model, reference, vanilla)
    folders.check_writable(model.folder / "probes", "model", args.problems)
    splits = forgotten_splits(model.answers)
    found = [of for s in splits if (of := gone(s, vanilla.answers, model.answers, reference.answers))]
    args.problems.stop()
    if not found:
        print(
            f"note: no fact is asked both ways on {', '.join(splits) or 'the splits that were evaluated'}, or"
            " the vanilla model knows none both ways: there is nothing to count"
        )
    settings = {name: model.evaluation[name] for name in ("benchmark", "forget_ratio", "seed", "mcq")}
    against = {"reference": str(reference.folder), "vanilla": str(vanilla.folder)}
    rows = [asdict(of) for of in found]
    path = write_probe(model.folder, "facts", settings, rows, [finding(of) for of in found], against=against)
    for of in found:
        print(show(of))
        print(of.verdict)
    print(f"saved {path}")


if __name__ == "__main__":
    main(parse_args())
