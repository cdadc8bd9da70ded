"""What is left, ring by ring: from the forgotten pictures to text without people.

    python eval/probes/rings.py runs/nano/GA --reference runs/nano/retrained --vanilla runs/nano/vanilla

Every question of the evaluation belongs to a ring around what was to be forgotten (eval/results/rings.py):
other pictures of the same people, the same people in text, look-alikes, people with the same answers, and
so on. The forgotten pictures should be answered as by the retrained model, everything else as by the vanilla
one. Nothing is asked anew: it is counted from the predictions of the three evaluations, on all splits. Which
people the method was shown follows from the --retain_fraction in the model's run.json; who looks like whom is
known of the nano benchmark alone. Written: <model>/probes/rings/results.json.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.probes import probe
from eval.results.probes import Finding, write_probe
from eval.results.rings import Kept, Rings, kept
from utils import checkpoint, cli
from utils.benchmark import NANO, given_people
from utils.run import folders


def parse_args(argv: list[str] | None = None):
    return cli.parse(probe.parser(__doc__), argv)


def rings_of(args, model: probe.Subject) -> Rings:
    """The rings around what this model was to forget."""
    retain = {p.person for p in model.answers.values() if p.split == "retain"}
    data = args.data_split_dir or model.evaluation.get("data", {}).get("folder", "")
    try:
        run, nano = model.folder / "run.json", Path(data) / NANO
        given = checkpoint.read_json(run)["arguments"].get("retain_fraction", 100) if run.is_file() else 100
        alike = checkpoint.read_json(nano).get("look_alikes", {}) if data and nano.is_file() else {}
        return Rings.of(model.answers.values(), given_people(retain, float(given)), alike)
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        args.problems.add(f"model: {run} or {nano} is none of ours ({why!r})")
        args.problems.stop()


def finding(of: Kept) -> Finding:
    model, vanilla, retrained = (e.text(of.number) for e in (of.model, of.vanilla, of.reference))
    verdict = f"{model}; vanilla {vanilla}, retrained {retrained}: {of.word}"
    return Finding(of.ring, verdict, number=of.number, n=of.n, people=of.people, values=asdict(of))


def show(found: list[Kept]) -> str:
    """A row per ring for the screen."""
    from tabulate import tabulate

    rows = [
        [
            of.ring,
            of.n,
            *(e.text(of.number) for e in (of.vanilla, of.model, of.reference, of.beyond)),
            of.word,
        ]
        for of in found
    ]
    head = ["ring", "n", "vanilla", "model", "retrained", "more than wanted", ""]
    return tabulate(rows, head, "github", disable_numparse=True)


def main(args) -> None:
    model, reference, vanilla = probe.evaluated(args)
    probe.same_answers(args, model, reference, vanilla)
    folders.check_writable(model.folder / "probes", "model", args.problems)
    args.problems.stop()
    rings = rings_of(args, model)
    found = kept(rings, vanilla.answers, model.answers, reference.answers)
    settings = {name: model.evaluation[name] for name in ("benchmark", "forget_ratio", "seed", "mcq")}
    against = {"reference": str(reference.folder), "vanilla": str(vanilla.folder)}
    rows, words = [asdict(of) for of in found], [finding(of) for of in found]
    path = write_probe(model.folder, "rings", settings, rows, words, against=against)
    print(show(found))
    print(f"saved {path}")


if __name__ == "__main__":
    main(parse_args())
