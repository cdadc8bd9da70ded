"""The paper's claim on a laptop, from nothing, in minutes.

    bash demo.sh [mllmu|clear]

Makes a nano benchmark of invented people, trains a tiny LLaVA on them (the vanilla model), forgets a tenth of
them with every method but SimNPO, retrains without their pictures (the gold standard), and evaluates all.
Shown are the table, the trade-off plot and a page with portraits and answers before and after. All lies under
runs/nano/ (clear: runs/nano_clear/), the commands that did it in its commands.sh; a second run skips what is
done. The commands run in warm processes, one per core (nano/warm.py). docs/nano.md: where the learning rates
come from.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano.settings import DEMOS, Demo
from nano.steps import FIRST, results, steps
from nano.warm import ROOT, Crew, Step, command
from utils import cli
from utils.run import folders, machine

FIRST_TABLE = ("vanilla", *FIRST, "retrained")


def parse_args(argv: list[str] | None = None):
    p = cli.parser(__doc__)
    p.add_argument(
        "benchmark", nargs="?", type=cli.choice(*DEMOS), default="mllmu",
        help="whose layout the nano benchmark has, mllmu or clear; default mllmu",
    )  # fmt: skip
    p.add_argument(
        "--workers", type=cli.number(int, 1, 64), default=machine.cores(), help="default: one per core"
    )
    args = cli.parse(p, argv)
    args.problems.stop()
    return args


# ---------------------------------------------------------------- the run
def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Screen:
    """A line for each step as it ends, and the table as soon as its first rows are there."""

    def __init__(self, demo: Demo):
        self.demo, self.began, self.shown = demo, time.monotonic(), False

    def ended(self, one: Step, seconds: float) -> None:
        print(f"{clock(time.monotonic() - self.began):>5}  {one.name} ({clock(seconds)})", flush=True)
        if not self.shown and all(results(self.demo, name).is_file() for name in FIRST_TABLE):
            self.shown = True
            table(self.demo, FIRST_TABLE)


def table(demo: Demo, models: Sequence[str], *flags: str) -> None:
    print(flush=True)
    places = [str(demo.folder / name) for name in models]
    command("eval/table.py", *places, "--brief", *flags)


def main(args) -> None:
    demo = DEMOS[args.benchmark]
    os.chdir(ROOT)
    todo = steps(demo)
    demo.folder.mkdir(parents=True, exist_ok=True)
    commands = demo.folder / "commands.sh"
    commands.write_text("".join(f"{one.text}\n" for one in todo))
    models = f"{len(demo.models)} models on invented people, on {args.workers} processes"
    print(f"nano {args.benchmark}: {models}; commands: {commands}")
    screen = Screen(demo)
    with (
        folders.exclusive(demo.folder / ".lock", f"a demo writes {demo.folder}"),
        Crew(args.workers, demo.folder / "logs") as crew,
    ):
        crew.run(todo, screen.ended)
    written = {f"--{kind}": demo.folder / f"table.{end}" for kind, end in FILES.items()}
    table(demo, demo.models, *(str(part) for pair in written.items() for part in pair), "--plot",
          str(demo.folder / "tradeoff.png"))  # fmt: skip
    if args.benchmark == "clear":
        places = [str(demo.folder / name) for name in demo.models]
        command("eval/forget_quality.py", *places, "--reference", str(demo.folder / "retrained"))
    report = demo.folder / "report.html"
    command("eval/report.py", *(str(demo.folder / n) for n in demo.models), "--save_path", str(report))
    train, evaluate = (_next(demo, name) for name in ("MMUnlearner", "questions to MMUnlearner"))
    print(NEXT.format(report=report, folder=demo.folder, train=train, evaluate=evaluate))


FILES = {"csv": "csv", "latex": "tex", "markdown": "md"}
NEXT = """
Open {report} in a browser: what was forgotten, what it cost, and every portrait with each model's answers.
Try the mask of the language part alone, and compare:

  source .venv/bin/activate
  {train}
  {evaluate}
  python eval/table.py {folder} --brief
"""


def _next(demo: Demo, name: str) -> str:
    """The command of a step, for the mask of the language part."""
    argv = next(one.argv for one in steps(demo) if one.name == name)
    ours, new = str(demo.folder / "manifold"), str(demo.folder / "language_mask")
    return _folded([new if word == ours else word.replace("_both_", "_language_") for word in argv])


def _folded(words: Sequence[str]) -> str:
    """A command over lines of at most 100 characters, each flag beside its value."""
    chunks = shlex.join(words).replace(" --", "\n--").splitlines()
    lines = ["python"]
    for chunk in chunks:
        if len(lines[-1]) + len(chunk) > 96:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {chunk}"
    return "\n".join(lines)


if __name__ == "__main__":
    main(parse_args())
