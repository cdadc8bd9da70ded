"""Which metric tells a model that knew the people to forget from one that never did, and what moves it?

    python nano/trust.py --save_dir runs/trust

Trains, on a small nano benchmark of its own, models of everybody and models of everybody but the people to
forget, each seed with its own learning rate, so that they differ in how well they learnt. Each metric of each
model is then taken as its evaluation and its probes have it (docs/probes.md), and

    auc        how often, over all pairs of models, the one that knew has the value of one that knew;
               0.5: the metric says nothing, 1: it never errs; interval: over seeds drawn again,
               of four or more
    apart      the gap between models that knew and models that never did, in standard deviations of a kind
    4 bits     how far the metric moves when weights are rounded to 4 bits, in percent of the gap between
               models that knew and models that never did, mean over models
    relearnt   the same after a few steps of training on people to retain

in pictures and in text. The meta-evaluation of Open-MMUnlearning (arXiv 2610.10358) and of UDS (2605.24614),
with seeds and intervals. One process, one core; a run that was stopped goes on. Written: models.csv with
every number, trust.csv with the table.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval.results.probes import probe_folder, read_probe
from nano import begun
from nano.warm import command
from utils import checkpoint, cli
from utils.run import folders

if TYPE_CHECKING:
    import pandas as pd

RATIO = 15
KINDS = {"knew": "MLLMU_finetune.py", "never": "MLLMU_reference.py"}
LRS = ("1e-3", "6e-4", "8e-4", "1.2e-3", "7e-4", "9e-4", "5e-4")  # of the seeds, again from the front
GOLD = "gold"  # a pair of models more: the vanilla and the retrained one that probes compare with
LOWER = ("ks_p", "depth", "net depth")  # metrics that are lower where a model knows
SAME = ("people", "num_epochs", "relearn_steps")  # flags of all models in one folder
CONDITIONS = ("plain", "4 bits", "relearnt")


@dataclass(frozen=True)
class Model:
    kind: str
    seed: str
    condition: str = "plain"

    @property
    def name(self) -> str:
        changed = [self.condition.replace(" ", "")] * (self.condition != "plain")
        return "_".join([self.kind, self.seed, *changed])


def parse_args(argv: list[str] | None = None):
    p = cli.parser(__doc__)
    whole = lambda low, high: cli.number(int, low, high)
    p.add_argument("--save_dir", required=True, type=cli.path, help="folder for models and numbers")
    p.add_argument("--people", type=whole(10, 400), default=20, help="fictional people; default 20")
    p.add_argument("--seeds", type=whole(2, 20), default=5, help="models of either kind; default 5")
    p.add_argument(
        "--moved", type=whole(0, 20), default=3, help="of these, how many are rounded and relearnt; default 3"
    )
    p.add_argument("--num_epochs", type=whole(1, 100), default=6, help="epochs of all models; default 6")
    p.add_argument(
        "--relearn_steps", type=whole(1, 1000), default=10, help="steps of relearning at lr 2e-4; default 10"
    )
    args = cli.parse(p, argv)
    if args.save_dir:
        folders.check_writable(args.save_dir, "--save_dir", args.problems)
    begun.check(args, *SAME)
    args.problems.stop()
    return args


# ---------------------------------------------------------------- models
def train(args, folder: Path, script: str, seed: str, lr: str) -> None:
    data = args.save_dir / "data"
    command(
        script, "--model_id", data / "untrained", "--data_split_dir", data / "MLLMU-Bench", "--save_dir",
        folder, "--forget_ratio", RATIO, "--lora", "False", "--batch_size", 32, "--lr", lr, "--seed", seed,
        "--num_epochs", args.num_epochs, "--warmup_ratio", 0.05,
    )  # fmt: skip


def make(args, model: Model) -> Path:
    """The model's folder; trained, rounded or trained on where it is not there yet."""
    folder = args.save_dir / model.name
    if (folder / "run.json").is_file():
        return folder
    plain = args.save_dir / Model(model.kind, model.seed).name
    if model.condition == "plain":
        number = 0 if model.seed == GOLD else 1 + int(model.seed)
        train(args, folder, KINDS[model.kind], str(number), LRS[number % len(LRS)])
    elif model.condition == "relearnt":
        table = args.save_dir / "data/MLLMMU-Bench" / f"retain_{100 - RATIO}"
        command(
            "MLLMU_finetune.py", "--model_id", plain, "--data_split_dir", table, "--save_dir", folder,
            "--lora", "False", "--batch_size", 32, "--lr", "2e-4", "--max_steps", args.relearn_steps,
        )  # fmt: skip
    else:
        rounded(plain, folder)
    return folder


def rounded(plain: Path, folder: Path) -> None:
    from eval.probes.rounding import RoundToNearest
    from utils.models import load_model, load_processor

    with folders.fresh(folder) as new:
        RoundToNearest(4, 0)(load_model(str(plain))).save_pretrained(new)
        load_processor(str(plain)).save_pretrained(new)
        shutil.copy(plain / "run.json", new)


# ---------------------------------------------------------------- metrics
def evaluate(args, folder: Path) -> None:
    """By likelihood, where the probes look for it, and by letter beside it."""
    likelihood = ("likelihood", folder, ["--splits", "forget,retain"])
    letter = ("letter", folder / "letter", ["--splits", "forget", "--tasks", "classification"])
    for mcq, place, flags in (likelihood, letter):
        if not (place / f"zero_shot/forget{RATIO}/results.json").is_file():
            command(
                "eval/MLLMU_eval.py", "--evaluated_model", folder, "--data_split_dir",
                args.save_dir / "data/MLLMU-Bench", "--forget_ratio", RATIO, "--mcq", mcq, "--output_dir",
                place, "--max_new_tokens", 16, *flags,
            )  # fmt: skip


def probe(args, folder: Path) -> None:
    for name in ("memorisation", "membership", "depth"):
        if not (folder / "probes" / name / "results.json").is_file():
            command(
                f"eval/probes/{name}.py", folder, "--reference", args.save_dir / Model("never", GOLD).name,
                "--vanilla", args.save_dir / Model("knew", GOLD).name, "--retain_people", 1,
            )  # fmt: skip


def numbers(folder: Path) -> list[tuple[str, str, float]]:
    """(modality, metric, value) of a model on the people to forget."""
    found = []
    for place, letter in ((folder, False), (folder / "letter", True)):
        split = checkpoint.read_json(place / f"zero_shot/forget{RATIO}/results.json")["splits"]["forget"]
        for modality in ("image", "text"):
            choice = split["classification"][modality]["accuracy"]
            found.append((modality, "choice by letter" if letter else "choice by likelihood", choice))
            if not letter:
                found.append((modality, "cloze", split["cloze"][modality]["accuracy"]))
                generation = split["generation"][modality]
                found += [(modality, name, generation[name]) for name in ("rougeL", "bleu")]
    for name in ("memorisation", "membership", "depth"):
        for f in read_probe(probe_folder(folder, name) / "results.json")["findings"]:
            of = f.values
            if name == "memorisation":
                found.append((f.modality, f.condition, of["model"]["value"]))
                found += [(f.modality, key, of[key]) for key in ("ks_p",) if key in of]
            elif name == "membership":
                found.append((f.modality, f"membership {f.condition}", of["auc"]["value"]))
            else:
                depths = {"depth": of["depth"], "net depth": (of["net"] or {}).get("value")}
                found += [(f.modality, key, value) for key, value in depths.items() if value is not None]
    return found


def collect(args) -> pd.DataFrame:
    """One row per model and metric, those that are lower where a model knows with their sign turned."""
    import pandas as pd

    for kind in KINDS:
        evaluate(args, make(args, Model(kind, GOLD)))
    models = [Model(kind, str(seed)) for seed in range(args.seeds) for kind in KINDS]
    models += [
        Model(kind, str(seed), condition)
        for seed in range(min(args.moved, args.seeds))
        for kind in KINDS
        for condition in CONDITIONS[1:]
    ]
    rows = []
    for model in models:
        folder = make(args, model)
        evaluate(args, folder)
        probe(args, folder)
        for modality, metric, value in numbers(folder):
            sign = -1 if metric in LOWER else 1
            rows.append({**vars(model), "modality": modality, "metric": metric, "value": sign * value})
        pd.DataFrame(rows).to_csv(args.save_dir / "models.csv", index=False)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- the table
def table(found: pd.DataFrame) -> pd.DataFrame:
    """One row per modality and metric, the best first; numbers with their own signs."""
    import pandas as pd

    from eval.results.membership import leak

    rows = []
    for (modality, metric), part in found.groupby(["modality", "metric"], sort=False):
        value = part.pivot_table(index=["kind", "seed"], columns="condition", values="value")
        plain = value["plain"].unstack("kind").dropna()
        models = {seed: ([row.knew], [row.never]) for seed, row in plain.iterrows()}
        told = leak(models, models).auc
        gap, spread = plain.knew.mean() - plain.never.mean(), plain[["knew", "never"]].var().mean() ** 0.5
        sign = -1 if metric in LOWER else 1
        row = {"modality": modality, "metric": metric, "auc": told.value}
        row |= dict(zip(("auc_low", "auc_high"), told.interval or (float("nan"), float("nan")), strict=True))
        row |= {"apart": gap / spread if spread else float("nan")}
        row |= {"knew": sign * plain.knew.mean(), "never": sign * plain.never.mean()}
        for condition in CONDITIONS[1:]:
            moved = (value[condition] - value["plain"]).abs().dropna() if condition in value else []
            row[condition] = 100 * moved.mean() / abs(gap) if len(moved) and gap else float("nan")
        rows.append(row)
    columns = {"4 bits": "4 bits, % of gap", "relearnt": "relearnt, % of gap"}
    order = {"by": ["modality", "auc", "apart"], "ascending": [True, False, False], "kind": "stable"}
    table = pd.DataFrame(rows).sort_values(**order)
    return table.rename(columns=columns).round(3)


def main(args) -> None:
    if not (args.save_dir / "data/run.json").is_file():
        flags = ("--people", args.people, "--real_people", 4, "--views", 2, "--image_size", 32)
        command("nano/make_nano.py", "--save_dir", args.save_dir / "data", *flags)
    with folders.exclusive(args.save_dir / ".lock", f"a run writes {args.save_dir}"):
        begun.note(args, *SAME)
        found = table(collect(args))
    found.to_csv(args.save_dir / "trust.csv", index=False)
    print(found.to_markdown(index=False))
    print(f"saved {args.save_dir}: models.csv, trust.csv")


if __name__ == "__main__":
    main(parse_args())
