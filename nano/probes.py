"""All probes on several nano worlds: what tells unlearned models from retrained ones, and is it chance?

    python nano/probes.py --save_dir runs/probed --methods GA,manifold --worlds 1,2,3,4,5

Each world has people, pictures, first weights and seeds of its own, and the demo's models by the demo's
settings (nano/settings.py): vanilla, the methods, retrained. The control is the *twin*, retrained with
another seed: it never knew the pictures, so whatever a probe finds in it is what the probe finds in nothing.
All ten probes (docs/probes.md) of each method and of the twin, beside the retrained model; in points,
what a model has more than the retrained one:

    quantise, picture, paraphrase, prompt, relearn    recovered - recovered by the retrained model
    depth                                             net depth - 1, what a copy of the retrained model has
    membership, memorisation, facts, rings            the model's number - the retrained model's

Numbers are means over worlds with 95 % intervals of Student's t; a world is one observation. A star: the
method differs from the twin, paired by world, with its whole interval. Steps run in warm processes, one per
core; a run that was stopped goes on. Written to --save_dir: probes.csv (each world's numbers and verdicts),
table.csv, verdicts.csv, both as text in table.md, and the models.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval.results.depth import NOTHING_LACKS
from eval.results.probes import probe_folder, read_probe
from nano import begun
from nano.settings import DEMOS, Demo
from nano.steps import results, steps
from nano.warm import Crew, Step, step
from utils import cli
from utils.run import folders, machine

if TYPE_CHECKING:
    import pandas as pd

PROBES = (
    "quantise", "picture", "paraphrase", "prompt", "relearn", "depth", "membership", "memorisation", "facts",
    "rings",
)  # fmt: skip
METHODS = dict.fromkeys(name for demo in DEMOS.values() for name in demo.methods)
SAME = ("benchmark",)  # flags of all worlds in one folder
TWIN = "twin"
PLACE = ["probe", "condition", "asked"]  # of a number


def parse_args(argv: list[str] | None = None):
    p = cli.parser(__doc__)
    p.add_argument("--save_dir", required=True, type=cli.path, help="folder for worlds, models and numbers")
    p.add_argument(
        "--benchmark", type=cli.choice(*DEMOS), default="mllmu", help="whose layout; default mllmu"
    )
    p.add_argument(
        "--methods", type=cli.several(cli.choice(*METHODS)), default=["GA", "manifold"],
        help="of nano/settings.py; default GA,manifold",
    )  # fmt: skip
    p.add_argument(
        "--worlds", type=cli.numbers(most=50), default=[1, 2, 3, 4, 5], help="seeds; default 1,2,3,4,5"
    )
    p.add_argument("--probes", type=cli.choices(*PROBES), default=list(PROBES), help="default: all")
    p.add_argument(
        "--workers", type=cli.number(int, 1, 64), default=machine.cores(), help="default: one per core"
    )
    args = cli.parse(p, argv)
    args.worlds = list(dict.fromkeys(args.worlds))
    known = DEMOS[args.benchmark].methods
    for name in [name for name in args.methods if name not in known]:
        args.problems.add(f"--methods: {name} is none of {', '.join(known)}")
    if len(args.worlds) < 2:
        args.problems.add("--worlds: an interval needs at least two")
    if args.save_dir:
        folders.check_writable(args.save_dir, "--save_dir", args.problems)
    begun.check(args, *SAME)
    args.problems.stop()
    args.save_dir = args.save_dir.resolve()
    return args


# ---------------------------------------------------------------- the steps
def world_of(args, number: int) -> Demo:
    """The demo in a world of its own."""
    demo, folder = DEMOS[args.benchmark], args.save_dir / f"world_{number}"
    return replace(
        demo, folder=folder, made=folder / "data", make=("--seed", str(number)), seed=str(number),
        methods={name: demo.methods[name] for name in args.methods},
    )  # fmt: skip


def twin(demo: Demo, one: Step) -> Step:
    """What is done to the retrained model, done to another of another seed."""
    own, other = str(demo.folder / "retrained"), str(demo.folder / TWIN)
    argv = [other if word == own else word for word in one.argv]
    if "--seed" in argv:
        argv[argv.index("--seed") + 1] = str(1000 + int(demo.seed))
    moved = lambda path: Path(str(path).replace(own, other))
    name = one.name.replace("retrained", TWIN)
    return replace(
        one, name=name, argv=tuple(argv), makes=moved(one.makes), needs=tuple(map(moved, one.needs))
    )


def probing(demo: Demo, models: Sequence[str], probes: Sequence[str]) -> Iterator[Step]:
    """Each probe of each model. A probe's first model has the retrained one probed as well, which the others
    wait for."""
    asked = [results(demo, name) for name in ("vanilla", "retrained")]
    for probe in probes:
        before: list[Path] = []
        for name in models:
            made = probe_folder(demo.folder / name, probe) / "results.json"
            argv = (f"eval/probes/{probe}.py", demo.folder / name, "--reference", demo.folder / "retrained")
            argv += ("--vanilla", demo.folder / "vanilla")
            needs = [*asked, results(demo, name), *before]
            yield step(f"{probe} of {name}", argv, made, needs, seconds=15)
            before = before or [made]


def all_steps(args) -> list[Step]:
    found = []
    for number in args.worlds:
        demo = world_of(args, number)
        own = steps(demo)
        twins = [twin(demo, one) for one in own if str(demo.folder / "retrained") in one.argv]
        models = [*args.methods, TWIN]
        of_world = [*own, *twins, *probing(demo, models, args.probes)]
        found += [replace(one, name=f"world {number} {one.name}") for one in of_world]
    return found


# ---------------------------------------------------------------- numbers
def numbers(model: Path, probes: Sequence[str]) -> list[dict]:
    """In points: what a model has more than the retrained one, by probe, condition and kind of question; and
    the verdict of this world alone."""
    found = []
    for probe in probes:
        for f in read_probe(probe_folder(model, probe) / "results.json")["findings"]:
            values, scale = f.values, 1 if f.number == "accuracy" else 100
            if probe == "depth":  # of what the retrained model lacks, if that is anything
                lacks_nothing = not values["net"] or f.verdict.endswith(NOTHING_LACKS)
                value, scale = None if lacks_nothing else values["net"]["value"] - 1, 100
            elif probe == "rings":
                value = values["model"]["value"] - values["reference"]["value"]
            else:
                value = f.beyond.value
            about = {"probe": probe, "condition": f.condition, "asked": f.asked}
            number = math.nan if value is None else scale * value
            found.append(about | {"value": number, "verdict": f.verdict.rpartition(": ")[2]})
    return found


def estimate(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t over worlds; NaN for the interval of one value. Where all are the
    same there is no spread to go by, and the interval has no width."""
    from scipy.stats import t

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    reach = t.ppf(0.975, len(values) - 1) * math.sqrt(variance / len(values))
    return mean, mean - reach, mean + reach


def table(found: pd.DataFrame) -> pd.DataFrame:
    """A row per number and model: mean and interval of what it has more than the retrained model, and of what
    it has more than the twin, over the worlds where both have it."""
    import pandas as pd

    rows = []
    for place, part in found.dropna(subset="value").groupby(PLACE, sort=False):
        by_world = part.pivot_table(index="world", columns="model", values="value")
        for model in dict.fromkeys(found.model):
            if model not in by_world:
                continue
            own = by_world[model].dropna()
            row = dict(zip(PLACE, place, strict=True)) | {"model": model, "worlds": len(own)}
            row |= dict(zip(("more", "low", "high"), estimate(list(own)), strict=True))
            if model != TWIN and TWIN in by_world:
                beside = (own - by_world[TWIN]).dropna()
                names = ("more_than_twin", "twin_low", "twin_high")
                row |= dict(zip(names, estimate(list(beside)), strict=True)) if len(beside) else {}
            rows.append(row)
    return pd.DataFrame(rows).round(2)


def shown(found: pd.DataFrame) -> str:
    """A line per number, a column per model."""
    cells: dict[tuple, dict[str, str]] = {}
    for row in found.to_dict("records"):
        apart = row.get("twin_low", 0) > 0 or row.get("twin_high", 0) < 0
        place = tuple(row[name] for name in PLACE)
        of = cells.setdefault(place, dict(zip(PLACE, place, strict=True)))
        text = "{more:z.1f} [{low:z.1f}, {high:z.1f}]" if row["worlds"] > 1 else "{more:z.1f}"
        of[row["model"]] = text.format(**row) + " *" * apart
    from tabulate import tabulate

    return tabulate([*cells.values()], "keys", "github", disable_numparse=True)


def remark(found: pd.DataFrame) -> str:
    """How many of the twin's numbers differ from 0, which chance alone does one time in twenty."""
    of = found[(found.model == TWIN) & (found.probe != "depth")]  # net depths stop at 1
    apart = of[(of.low > 0) | (of.high < 0)]
    text = f"{TWIN}: {len(apart)} of {len(of)} numbers differ from the retrained model's"
    return f"{text}; by chance about {len(of) / 20:.0f} would"


def verdicts(found: pd.DataFrame) -> pd.DataFrame:
    """How often each verdict was given in a single world, by probe and model. The twin's show how often it
    errs with so few people."""
    rows = found.groupby(["probe", "verdict", "model"], sort=False).size().unstack("model", fill_value=0)
    return rows[[name for name in dict.fromkeys(found.model) if name in rows]].reset_index()


def main(args) -> None:
    import pandas as pd

    os.chdir(ROOT)
    args.save_dir.mkdir(parents=True, exist_ok=True)
    with folders.exclusive(args.save_dir / ".lock", f"a run writes {args.save_dir}"):
        begun.note(args, *SAME)
        with Crew(args.workers, args.save_dir / "logs") as crew:
            crew.run(all_steps(args), lambda one, seconds: print(f"{one.name} ({seconds:.0f} s)", flush=True))
        rows = [
            {"world": number, "model": name, **of}
            for number in args.worlds
            for name in (*args.methods, TWIN)
            for of in numbers(args.save_dir / f"world_{number}" / name, args.probes)
        ]
        frame = pd.DataFrame(rows)
        frame.to_csv(args.save_dir / "probes.csv", index=False)
        found = table(frame)
        found.to_csv(args.save_dir / "table.csv", index=False)
        told = verdicts(frame)
        told.to_csv(args.save_dir / "verdicts.csv", index=False)
        text = f"{shown(found)}\n\n{remark(found)}\n\n{told.to_markdown(index=False)}\n"
        (args.save_dir / "table.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"saved {args.save_dir}: probes.csv, table.csv, verdicts.csv, table.md")


if __name__ == "__main__":
    main(parse_args())
