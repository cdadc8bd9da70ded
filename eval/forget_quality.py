"""Forget quality on CLEAR: how like each model is, on the forget people, to one that never learnt them.

    python eval/forget_quality.py runs/vanilla runs/GA runs/manifold --reference runs/reference

Compares the truth ratios of the forget captions that eval/CLEAR_eval.py wrote for each model with those of
the retain-only model of CLEAR_reference.py, evaluated at the same ratio. Per model: 1 − Jensen-Shannon
distance (forget quality in CLEAR's paper, arXiv 2410.18057) and the p-value of the two-sample
Kolmogorov-Smirnov test (TOFU's, arXiv 2401.06121, and that of CLEAR's released code); 1 is alike.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.metrics import forget_quality
from eval.results.predictions import read_predictions
from eval.results.read import Result, load_results, other_ratio
from utils import checkpoint, cli, flags
from utils.run import folders


def parse_args(argv: list[str] | None = None):
    p = cli.parser(__doc__)
    p.add_argument("results", nargs="*", default=[], help="model folders, or folders with results.json")
    p.add_argument("--reference", required=True, help="folder of the model trained without the forget people")
    flags.add_filter_args(p, shot=False)
    p.add_argument("--csv", help="write the numbers here; default: not written")
    return cli.parse(p, argv)


def truth_ratios(result: Result, problems: cli.Problems) -> dict[str, float]:
    """Truth ratios of the forget split by Prediction.key; a problem, and none, where there are none."""
    file = result.folder / "predictions_forget.jsonl"
    try:
        answers = list(read_predictions(file)) if file.is_file() else []
    except ValueError as error:
        problems.add(f"{error}; run that evaluation again")
        return {}
    found = {a.key: a.scores["truth_ratio"] for a in answers if a.task == "truth_ratio"}
    if not found:
        problems.add(
            f"{result.folder}: no truth ratios of the forget split; evaluate with eval/CLEAR_eval.py"
            " (--splits and --tasks must hold forget and truth_ratio)"
        )
    return found


def main(args) -> None:
    import pandas as pd

    if not args.results:
        args.problems.add("results: name at least one result folder, e.g. runs/clear/GA")
    given = [args.reference] if args.reference else []
    results, references = (
        load_results(paths, args.problems, forget_ratio=args.forget_ratio) for paths in (args.results, given)
    )
    twice = [r for r in references if sum(o.setting == r.setting for o in references) > 1]
    if twice:
        names = ", ".join(r.label for r in twice)
        args.problems.add(f"--reference: {args.reference} holds several evaluations ({names}); name one")
    for r in references:
        if not r.never_knew("image") or other_ratio(r.trained, r.forget_ratio) is not None:
            made = r.trained.get("script") or "it is not said by what"
            print(
                f"note: --reference: {r.label} was not retrained without the people to forget at"
                f" {r.forget_ratio} % ({made}); all numbers here mean nothing unless it never knew them"
            )
    references = {(r.benchmark, r.forget_ratio): r for r in references}
    rows = {}
    for result in results:
        reference = references.get((result.benchmark, result.forget_ratio))
        if reference is None and args.reference:
            args.problems.add(f"--reference: {args.reference} has no evaluation of {result.setting_text}")
        if reference is None:
            continue
        own, theirs = truth_ratios(result, args.problems), truth_ratios(reference, args.problems)
        if own.keys() != theirs.keys():
            args.problems.add(f"{result.folder} and {reference.folder}: not the same questions")
        elif own:
            quality, p = forget_quality(list(own.values()), list(theirs.values()))
            rows[result.label] = (result.forget_ratio, round(quality, 4), p, len(own))
    folders.check_file(args.csv, "--csv", args.problems, ".csv")
    args.problems.stop()
    table = pd.DataFrame.from_dict(
        rows, orient="index", columns=["forget %", "1 - JS distance", "KS p-value", "questions"]
    )
    shown = table.astype(object).rename_axis("method")  # object: counts stay whole numbers
    print(shown.to_markdown(floatfmt=("", "d", ".3f", ".3g", "d")))
    if args.csv:
        checkpoint.write_whole(Path(args.csv), table.rename_axis("method").to_csv().encode())


if __name__ == "__main__":
    main(parse_args())
