"""Methods at equal forgetting on the nano benchmark: what each keeps once it has forgotten as much as a model
that was retrained without the pictures.

    bash demo.sh        # first: the nano benchmark, its vanilla and its retrained model
    python nano/study.py --save_dir runs/study --methods GA_Diff,manifold:both,manifold:both:log_odds \\
        --lrs 2e-5,3e-5,5e-5,8e-5 --seeds 0,1,2 --retain_fractions 25

A method is a script's name; with a mask, the part and how it is made follow: manifold:both:log_odds (ce, the
paper's, where nothing is said; log_odds; fisher; topk and random of the same sparsity). Behind these, -t4 is
the threshold 4, and -all preserves everybody to retain, also whom the method is not shown. manifold:both*6
trains for six epochs, GA_Diff@1e-5/2e-5 has learning rates of its own, GA_Diff+text trains on the text
questions that masks preserve as well (--retain_text), manifold:vision+inside takes retain steps inside the
mask, too (--mask_retain). Every run is the script's own, followed by the evaluation by likelihood, in warm
processes on all cores; a study that was stopped goes on, and runs that are there are not repeated. Choose
settings on some seeds and report others.

Written to --save_dir: runs.csv (right answers per run and ring), equal.csv (kept at equal forgetting, and its
difference to the first method, with intervals; nano/curves.py), study.png, and the runs' own folders.
"""

from __future__ import annotations

import io
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval.results.predictions import Prediction, read_predictions
from eval.results.rings import RINGS, Rings
from nano import begun, curves
from nano.settings import RATIO, evaluation
from nano.warm import Crew, Step, step
from utils import checkpoint, cli
from utils.benchmark import NANO, given_people
from utils.run import folders, machine

FORGOTTEN = "forgotten pictures"
KINDS = {  # of masks, with the flags that make them
    "ce": [],
    "log_odds": ["--saliency", "log_odds"],
    "fisher": ["--saliency", "fisher"],
    "topk": ["--mask_kind", "topk"],
    "random": ["--mask_kind", "random"],
}
SAME = ("nano", "model_id", "dtype")  # flags of all runs in one folder
MORE = {"text": "--retain_text", "inside": "--mask_retain"}


@dataclass(frozen=True)
class Method:
    """A script with its mask, and where it has some of its own, learning rates and epochs. more: of MORE."""

    script: str
    part: str = ""
    kind: str = ""
    lrs: tuple[str, ...] = ()
    epochs: str = ""
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        of = ":".join(filter(None, (self.script, self.part, self.kind * (self.kind != "ce"))))
        return "+".join([of, *self.more])


@dataclass(frozen=True)
class Run:
    method: Method
    lr: str
    epochs: str
    seed: str
    fraction: str

    @property
    def folder(self) -> str:
        name = self.method.name.replace(":", "_").replace("+", "_")
        return f"{name}_lr{self.lr}_epochs{self.epochs}_seed{self.seed}_retain{self.fraction}"


def method(text: str) -> Method | cli.Bad:
    """script[:part[:kind]][+text][@lr/lr...][*epochs]"""
    text, _, epochs = text.partition("*")
    text, _, lrs = text.partition("@")
    text, *more = text.split("+")
    if not set(more) <= set(MORE):
        return cli.Bad(f"'{text}+{more[0]}': what may follow a + is {', '.join(MORE)}")
    script, part, kind, *rest = [*text.split(":"), "", ""]
    kind = kind or "ce" * bool(part)
    if rest != ["", ""][: len(rest)] or not (ROOT / f"MLLMU_{script}.py").is_file():
        return cli.Bad(f"'{text}' is no method: MLLMU_{script}.py is no script")
    base, *words = kind.split("-")
    known = base in KINDS and all(re.fullmatch(r"all|t[\d.]+", word) for word in words)
    if part not in ("", "language", "vision", "both") or (part and not known):
        return cli.Bad(f"'{text}': masks are language, vision or both, made by {', '.join(KINDS)}[-all][-t4]")
    lrs, epochs_given = RATES(lrs.replace("/", ",")) if lrs else [], EPOCHS(epochs) if epochs else epochs
    if bad := [x for x in (lrs, epochs_given) if isinstance(x, cli.Bad)]:
        return bad[0]
    return Method(script, part, kind, tuple(lrs), epochs, tuple(more))


RATES, EPOCHS = cli.several(cli.number(float, 0, 1, above=True)), cli.number(int, 1, 1000)
METHODS = cli.several(method)


def parse_args(argv: list[str] | None = None):
    p = cli.parser(__doc__)
    p.add_argument(
        "--save_dir", required=True, type=cli.path, help="folder for the runs, tables and the figure"
    )
    p.add_argument(
        "--nano", type=cli.path, default=ROOT / "runs/nano", help="what demo.sh made; default runs/nano"
    )
    p.add_argument(
        "--model_id", type=cli.path, help="what the vanilla model was before; default NANO/data/untrained"
    )
    p.add_argument(
        "--dtype", type=cli.choice("auto", "fp32", "mixed"), default="auto",
        help="of training and masks; default auto",
    )  # fmt: skip
    p.add_argument(
        "--methods",
        type=METHODS,
        default=["GA_Diff", "manifold:both"],
        help="comma-separated; the others are compared with the first; default GA_Diff,manifold:both",
    )
    p.add_argument(
        "--lrs", type=RATES, default=["2e-5", "4e-5", "8e-5"], help="learning rates of all methods"
    )
    seeds = cli.several(cli.number(int, 0, 2**32 - 1))
    p.add_argument("--seeds", type=seeds, default=["0", "1", "2"], help="of data order; default 0,1,2")
    p.add_argument(
        "--retain_fractions", type=cli.several(cli.number(float, 0, 100, above=True)), default=["25"],
        help="percent of the people to retain; default 25",
    )  # fmt: skip
    p.add_argument("--num_epochs", type=EPOCHS, default=2, help="default 2")
    p.add_argument(
        "--workers", type=cli.number(int, 1, 64), default=machine.cores(), help="default: one per core"
    )
    args = cli.parse(p, argv)
    args.methods = [method(text) for text in args.methods]
    if args.save_dir:
        folders.check_writable(args.save_dir, "--save_dir", args.problems)
    for model in ("vanilla", "retrained"):
        if not (args.nano / model / "run.json").is_file():
            args.problems.add(f"--nano: {args.nano} holds no {model} model; run bash demo.sh first")
    args.nano = args.nano.resolve()
    args.model_id = (args.model_id or args.nano / "data/untrained").resolve()
    begun.check(args, *SAME)
    args.problems.stop()
    return args


# ---------------------------------------------------------------- runs
@dataclass(frozen=True)
class Places:
    """Where things lie, and the commands that make them."""

    save_dir: Path
    nano: Path
    model_id: Path
    dtype: str = "auto"

    @property
    def vanilla(self) -> Path:
        return self.nano / "vanilla/run.json"

    def shared(self) -> list[str | Path]:
        return [
            "--model_id", self.model_id, "--vanilla_dir", self.nano / "vanilla", "--batch_size", "4",
            "--data_split_dir", self.nano / "data/MLLMMU-Bench", "--forget_ratio", RATIO,
            "--dtype", self.dtype,
        ]  # fmt: skip

    def mask(self, kind: str, fraction: str) -> Step:
        base, *words = kind.split("-")
        folder = self.save_dir / f"mask_{kind}_retain{fraction}"
        shown = "100" if "all" in words else fraction
        flags = [*self.shared(), "--retain_fraction", shown, "--save_dir", folder, *KINDS[base]]
        for word in words:
            flags += ["--threshold", word[1:]] if word != "all" else []
        return step(
            folder.name, ["data_process/MLLMU_gen_mask.py", *flags], folder / "run.json", [self.vanilla]
        )

    def train(self, run: Run) -> Step:
        folder, of, needs = self.save_dir / run.folder, run.method, [self.vanilla]
        argv = [f"MLLMU_{of.script}.py", *self.shared(), "--save_dir", folder, "--lora", "False"]
        argv += ["--lr", run.lr, "--seed", run.seed, "--num_epochs", run.epochs]
        if of.script not in ("GA", "NPO"):
            argv += ["--retain_fraction", run.fraction]
        for word in of.more:
            argv += [MORE[word], "True"]
        if of.part:
            needs.append(self.mask(of.kind, run.fraction).makes)
            argv += ["--grad_mask_path", needs[-1].parent / f"mllmu_{of.part}_mask.pt"]
        return step(run.folder, argv, folder / "run.json", needs, seconds=20)

    def evaluate(self, model: Path) -> Step:
        argv = [
            "eval/MLLMU_eval.py", "--evaluated_model", model, "--original_model", self.model_id,
            "--data_split_dir", self.nano / "data/MLLMU-Bench", "--forget_ratio", RATIO,
            "--mcq", "likelihood", "--tasks", "classification,cloze",
            "--batch_size", "64", "--output_dir", self.answers(model),
        ]  # fmt: skip
        made = evaluation(self.answers(model)) / "results.json"
        return step(f"{model.name}_evaluation", argv, made, [model / "run.json"], seconds=6)

    def answers(self, model: Path) -> Path:
        return self.save_dir / "answers" / model.name


def drop_weights(model: Path) -> None:
    """What fills a disk, once the model's answers are there."""
    (model / "model.safetensors").unlink(missing_ok=True)


def steps_of(places: Places, runs: Sequence[Run]) -> list[Step]:
    """Every run followed by its evaluation, the given models' first."""
    masks = {(r.method.kind, r.fraction) for r in runs if r.method.part}
    found = [places.evaluate(places.nano / name) for name in ("vanilla", "retrained")]
    found += [places.mask(*one) for one in sorted(masks)]
    for run in runs:
        asked = places.evaluate(places.save_dir / run.folder)
        found += [places.train(run), replace(asked, then=partial(drop_weights, places.save_dir / run.folder))]
    return found


# ---------------------------------------------------------------- results
def read(answers: Path) -> list[Prediction]:
    files = folders.found(evaluation(answers), "predictions_*.jsonl")
    return [p for file in files for p in read_predictions(file)]


Counts = dict[str, dict[str, list[int]]]  # {ring: {person: [right, asked]}}


def count(predictions: Iterable[Prediction], rings: Rings) -> Counts:
    found: Counts = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for p in predictions:
        if ring := rings.ring(p):
            entry = found[ring][p.person]
            entry[0] += p.correct
            entry[1] += 1
    return found


class Study:
    """The counts of all models of one retain fraction, and the draws that all their intervals share."""

    def __init__(self, args, fraction: str, places: Places):
        self.args, self.fraction = args, fraction
        vanilla = read(places.answers(Path("vanilla")))
        retain = {p.person for p in vanilla if p.split == "retain"}
        about = checkpoint.read_json(args.nano / "data/MLLMU-Bench" / NANO)
        given = given_people(retain, float(fraction))
        self.rings = Rings.of(vanilla, given, about.get("look_alikes", {}))
        self.vanilla = count(vanilla, self.rings)
        self.retrained = count(read(places.answers(Path("retrained"))), self.rings)
        self.runs: dict[tuple[Method, str, str], Counts] = {}
        self.people = sorted({person for ring in self.vanilla.values() for person in ring})
        strata = [self._stratum(person, retain) for person in self.people]
        self.draws = curves.Draws.of(strata, len(args.seeds), np.random.default_rng(0))
        self.each_seed = curves.Draws.of_each_seed(len(strata), len(args.seeds))

    def _stratum(self, person: str, retain: set[str]) -> int:
        return 0 if person in self.rings.forget else 1 if person in retain else 2

    def mean(self, ring: str, of_seeds: list[Counts], draws: curves.Draws):
        """(R,) percent right in a ring; of_seeds: one Counts, or one per seed."""
        of_seeds = of_seeds * len(self.args.seeds) if len(of_seeds) == 1 else of_seeds
        right = np.array([[c[ring][p][0] if p in c[ring] else 0 for p in self.people] for c in of_seeds])
        asked = np.array([self.vanilla[ring].get(p, [0, 0])[1] for p in self.people])
        return draws.mean(right, asked)

    def path(self, one: Method, ring: str, draws: curves.Draws):
        """(K, R): the vanilla model, then the method's runs in the order of their learning rates."""
        lrs = sorted({lr for m, lr, _ in self.runs if m == one}, key=float)
        runs = [[self.runs[one, lr, seed] for seed in self.args.seeds] for lr in lrs]
        return np.array([self.mean(ring, of, draws) for of in ([self.vanilla], *runs)])

    def by_seed(self, one: Method, ring: str):
        """(S,) what each seed keeps at equal forgetting; NaN for one that does not come down to the level."""
        draws = self.each_seed
        level = self.mean(FORGOTTEN, [self.retrained], draws)
        paths = (self.path(one, name, draws) for name in (FORGOTTEN, ring))
        return curves.at_equal_forgetting(*paths, level)

    def rows(self) -> list[dict]:
        """A row per method and ring: kept at equal forgetting, the area, and both as differences to the
        first method; the former of each seed alone, too, "nan" where one of both does not reach the level."""
        level, found = self.mean(FORGOTTEN, [self.retrained], self.draws), []
        first: dict[str, tuple] = {}
        for one in self.args.methods:
            forgotten = self.path(one, FORGOTTEN, self.draws)
            for ring in (r for r in RINGS if r in self.vanilla and r != FORGOTTEN):
                kept = self.path(one, ring, self.draws)
                pair = (
                    curves.at_equal_forgetting(forgotten, kept, level),
                    curves.area(forgotten, kept, level),
                )
                base = first.setdefault(ring, pair)
                row = {"retain_fraction": self.fraction, "ring": ring, "method": one.name}
                row |= {"vanilla": self.mean(ring, [self.vanilla], self.draws)[0]}
                row |= {"retrained": self.mean(ring, [self.retrained], self.draws)[0]}
                for name, ours, theirs in zip(("kept", "area"), pair, base):
                    row |= dict(
                        zip((name, f"{name}_low", f"{name}_high"), curves.interval(ours), strict=True)
                    )
                    columns = (f"{name}_more", f"{name}_more_low", f"{name}_more_high")
                    row |= dict(zip(columns, curves.interval(ours - theirs), strict=True))
                each = self.by_seed(one, ring) - self.by_seed(self.args.methods[0], ring)
                row["kept_more_by_seed"] = " ".join(f"{value:.1f}" for value in each)
                found.append({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
        return found


def main(args) -> None:
    import pandas as pd

    runs = [
        Run(m, lr, m.epochs or str(args.num_epochs), seed, fraction)
        for fraction in args.retain_fractions
        for seed in args.seeds
        for m in args.methods
        for lr in m.lrs or args.lrs
    ]
    places = Places(args.save_dir.resolve(), args.nano, args.model_id, args.dtype)
    with folders.exclusive(places.save_dir / ".lock", f"a study writes {args.save_dir}"):
        begun.note(args, *SAME)
        with Crew(args.workers, places.save_dir / "logs") as crew:
            crew.run(steps_of(places, runs))
    table, counts = [], []
    for fraction in args.retain_fractions:
        study = Study(args, fraction, places)
        for run in (r for r in runs if r.fraction == fraction):
            found = count(read(places.answers(Path(run.folder))), study.rings)
            study.runs[run.method, run.lr, run.seed] = found
            for ring, people in found.items():
                right, asked = (sum(n[k] for n in people.values()) for k in (0, 1))
                about = {"method": run.method.name, "lr": run.lr, "epochs": run.epochs, "seed": run.seed}
                counts.append(
                    {"retain_fraction": fraction, **about, "ring": ring, "right": right, "of": asked}
                )
        table += study.rows()
    pd.DataFrame(counts).to_csv(args.save_dir / "runs.csv", index=False)
    frame = pd.DataFrame(table)
    frame.to_csv(args.save_dir / "equal.csv", index=False)
    show(frame)
    draw(pd.DataFrame(counts), frame, args.save_dir / "study.png")
    print(f"saved {args.save_dir}: runs.csv, equal.csv, study.png")


def show(frame) -> None:
    """The kept shares at equal forgetting, a row per ring and a column per method."""
    for fraction, part in frame.groupby("retain_fraction", sort=False):
        cells = {}
        for name, of in part.groupby("method", sort=False):
            cells[name] = {row.ring: _cell(row) for row in of.itertuples()}
        import pandas as pd

        print(f"\nnano MLLMU-Bench, {fraction} % of the people to retain given: % right at equal forgetting")
        print(pd.DataFrame(cells).to_markdown())


def _cell(row) -> str:
    """`82 [69, 90] -2 [-6, +0]`: what is kept, and the difference to the first method; without intervals
    where too few draws reach the level."""
    if math.isnan(row.kept):
        return "not reached"
    text = f"{row.kept:.0f}"
    if not math.isnan(row.kept_low):
        text += f" [{row.kept_low:.0f}, {row.kept_high:.0f}]"
    if math.isnan(row.kept_more) or not row.kept_more:
        return text
    text += f" {row.kept_more:+.0f}"
    if not math.isnan(row.kept_more_low):
        text += f" [{row.kept_more_low:+.0f}, {row.kept_more_high:+.0f}]"
    return text


def draw(counts, frame, path: Path) -> None:
    """Small multiples, one per ring: kept against forgotten along the learning rates."""
    from PIL import Image

    from data_process.coverage import new_figure

    rings = [r for r in RINGS if r in set(frame.ring)]
    names = list(dict.fromkeys(frame.method))
    columns = 4
    rows = -(-len(rings) // columns)
    figure = new_figure(3.2 * columns, 2.6 * rows)
    share = counts.assign(percent=100 * counts.right / counts.of)
    keys = ["retain_fraction", "method", "lr"]
    means = share.groupby([*keys, "ring"]).percent.mean().unstack()
    for k, ring in enumerate(rings):
        axes = figure.add_subplot(rows, columns, k + 1)
        for j, name in enumerate(names):
            for fraction in dict.fromkeys(frame.retain_fraction):
                path_of = means.loc[(fraction, name)].sort_index(key=lambda lrs: lrs.astype(float))
                axes.plot(
                    path_of[FORGOTTEN], path_of[ring], marker="osD^vPX*"[j % 8], color=f"C{j}", ms=4, lw=1,
                    label=name,
                )  # fmt: skip
        axes.set_title(ring, fontsize=8)
        axes.invert_xaxis()
        axes.tick_params(labelsize=7)
    if len(rings) < rows * columns:  # the names stand where no ring is
        empty = figure.add_subplot(rows, columns, rows * columns)
        empty.set_axis_off()
        empty.legend(
            *figure.axes[0].get_legend_handles_labels(), fontsize=7, loc="lower right", frameon=False
        )
    else:
        figure.axes[0].legend(fontsize=6)
    figure.supxlabel("forgotten pictures, % right (vanilla at the left)", fontsize=8)
    figure.supylabel("% right", fontsize=8)
    figure.savefig(drawn := io.BytesIO(), dpi=90)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main(parse_args())
