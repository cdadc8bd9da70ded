"""What the probes of some models have found, as one table each.

    python eval/probes/show.py runs/GA runs/manifold

docs/probes.md says how to read it. The numbers and more: <model>/probes/<probe>/results.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.results.probes import probe_rows, table
from utils import cli


def parse_args(argv: list[str] | None = None):
    p = cli.parser(__doc__)
    p.add_argument("folders", nargs="*", default=[], help="folders of models that were probed")
    return cli.parse(p, argv)


def main(args) -> None:
    found = {}
    for model in args.folders:
        try:
            found[model] = probe_rows(model)
        except ValueError as why:
            args.problems.add(str(why))
            continue
        if not found[model]:
            args.problems.add(f"{model} was not probed; bash probe.sh {model} --reference ... does it")
    if not args.folders:
        args.problems.add("name at least one folder of a model that was probed")
    args.problems.stop()
    for model, findings in found.items():
        print(f"\n{model}\n\n{table(findings)}")


if __name__ == "__main__":
    main(parse_args())
