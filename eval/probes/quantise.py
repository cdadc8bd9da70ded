"""Does it come back when the weights are rounded? Unlearning that moves weights little is undone by 4 bits.

    python eval/probes/quantise.py runs/GA --reference runs/retrained --vanilla runs/vanilla

Rounds the weights of all linear layers but the head to 8 and to 4 bits and asks the evaluation's questions
again (Zhang et al., arXiv 2410.16454). This is round-to-nearest of weights alone, in groups of --group_size,
on any device; GPTQ and AWQ are other roundings. What it means, and costs: docs/probes.md. Results:
<model>/probes/quantise/results.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from eval.probes import probe
from eval.probes.rounding import RoundToNearest
from utils import cli


def parse_args(argv: list[str] | None = None):
    p = probe.parser(__doc__)
    g = p.add_argument_group("rounding")
    g.add_argument("--bits", type=cli.choices("8", "4", "3", "2"), default=["8", "4"], help="default 8,4")
    g.add_argument(
        "--group_size",
        type=cli.number(int, 0),
        default=0,
        help="weights of an output that share a scale; default 0: all of them",
    )
    return cli.parse(p, argv)


def main(args) -> None:
    study = probe.Study(args)

    def asking(bits: str) -> probe.Asking:
        questions = [probe.changed(q, f"{bits} bits") for q in study.questions]
        return probe.Asking(f"{bits}bit", questions, change=RoundToNearest(int(bits), args.group_size))

    settings = {"bits": args.bits, "group_size": args.group_size}
    probe.run(study, "quantise", lambda _: [asking(bits) for bits in args.bits], settings)


if __name__ == "__main__":
    main(parse_args())
