"""Methods at equal forgetting on the nano benchmark: what each keeps once it has forgotten as much as a model
that was retrained without the pictures.

    bash demo.sh        # first: the nano benchmark, its vanilla and its retrained model
    python nano/study.py --save_dir runs/study --methods GA_Diff,manifold:both,manifold:both:log_odds \\
        --lrs 2e-5,3e-5,5e-5,8e-5 --seeds 0,1,2 --retain_fractions 25

A method is a script's name; with a mask, the part and how it is made follow: manifold:both:log_odds (ce, the
paper's, where nothing is said; log_odds; topk and random of the same sparsity). manifold:both*6 trains for
six epochs, GA_Diff@1e-5/2e-5 has learning rates of its own. Every run is the script's own, followed by the
evaluation by likelihood, in warm processes on all cores; a study that was stopped goes on, and runs that are
there are not repeated. Choose settings on some seeds and report others.

Written to --save_dir: runs.csv (right answers per run and ring), equal.csv (kept at equal forgetting, and its
difference to the first method, with intervals; nano/curves.py), study.png, and the runs' own folders.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval.results.predictions import Prediction, read_predictions
from eval.results.rings import RINGS, Rings
from nano import curves
from utils import checkpoint, cli
from utils.benchmark import NANO, given_people

FORGOTTEN = "forgotten pictures"
RATIO = "10"
KINDS = {
    "ce": [],
    "log_odds": ["--saliency", "log_odds"],
    "topk": ["--mask_kind", "topk"],
    "random": ["--mask_kind", "random"],
}


@dataclass(frozen=True)
class Method:
    """A script with its mask, and where it has some of its own, learning rates and epochs."""

    script: str
    part: str = ""
    kind: str = ""
    lrs: tuple[str, ...] = ()
    epochs: str = ""

    @property
    def name(self) -> str:
        return ":".join(filter(None, (self.script, self.part, self.kind * (self.kind != "ce"))))


@dataclass(frozen=True)
class Run:
    method: Method
    lr: str
    epochs: str
    seed: str
    fraction: str

    @property
    def folder(self) -> str:
        name = self.method.name.replace(":", "_")
        return f"{name}_lr{self.lr}_epochs{self.epochs}_seed{self.seed}_retain{self.fraction}"


def method(text: str) -> Method | cli.Bad:
    """script[:part[:kind]][@lr/lr...][*epochs]"""
    text, _, epochs = text.partition("*")
    text, _, lrs = text.partition("@")
    script, part, kind, *rest = [*text.split(":"), "", ""]
    kind = kind or "ce" * bool(part)
    if rest != ["", ""][: len(rest)] or not (ROOT / f"MLLMU_{script}.py").is_file():
        return cli.Bad(f"'{text}' is no method: MLLMU_{script}.py is no script")
    if part not in ("", "language", "vision", "both") or (part and kind not in KINDS):
        return cli.Bad(f"'{text}': masks are language, vision or both, made by {', '.join(KINDS)}")
    return Method(script, part, kind, tuple(lrs.split("/")) if lrs else (), epochs)


def methods(text: str) -> list[Method] | cli.Bad:
    found = [method(word) for word in text.split(",") if word]
    return next((m for m in found if isinstance(m, cli.Bad)), found)


def parse_args():
    p = cli.parser(__doc__)
    words = lambda text: [word for word in text.split(",") if word]
    p.add_argument("--save_dir", required=True, type=Path, help="folder for the runs, tables and the figure")
    p.add_argument(
        "--nano", type=Path, default=ROOT / "runs/nano", help="what demo.sh made; default runs/nano"
    )
    p.add_argument(
        "--methods",
        type=methods,
        default=methods("GA_Diff,manifold:both"),
        help="comma-separated; the others are compared with the first; default GA_Diff,manifold:both",
    )
    p.add_argument(
        "--lrs", type=words, default=["2e-5", "4e-5", "8e-5"], help="learning rates of all methods"
    )
    p.add_argument("--seeds", type=words, default=["0", "1", "2"], help="of data order; default 0,1,2")
    p.add_argument(
        "--retain_fractions", type=words, default=["25"], help="percent of the people to retain; default 25"
    )
    p.add_argument("--num_epochs", default="2", help="default 2")
    p.add_argument(
        "--workers", type=cli.number(int, 1, 64), default=os.cpu_count(), help="default: one per core"
    )
    args = cli.parse(p)
    for model in ("vanilla", "retrained"):
        if not (args.nano / model / "run.json").is_file():
            args.problems.add(f"--nano: {args.nano} holds no {model} model; run bash demo.sh first")
    args.problems.stop()
    return args


# ---------------------------------------------------------------- runs
def command(script: str, *argv: str | Path) -> None:
    """What `python script argv...` does, in this process, which has torch loaded already."""
    path = ROOT / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    before, sys.argv = sys.argv, [str(path), *map(str, argv)]
    try:
        spec.loader.exec_module(module)
        module.main(module.parse_args())
    finally:
        sys.argv = before


def evaluate(model: Path, nano: Path) -> None:
    if not (model / "zero_shot" / f"forget{RATIO}" / "results.json").is_file():
        command(
            "eval/MLLMU_eval.py", "--evaluated_model", model, "--original_model", nano / "data/untrained",
            "--data_split_dir", nano / "data/MLLMU-Bench", "--forget_ratio", RATIO, "--mcq", "likelihood",
            "--tasks", "classification,cloze", "--batch_size", "64",
        )  # fmt: skip


def shared_flags(nano: Path) -> list[str | Path]:
    return [
        "--model_id", nano / "data/untrained", "--vanilla_dir", nano / "vanilla",
        "--data_split_dir", nano / "data/MLLMMU-Bench", "--forget_ratio", RATIO, "--batch_size", "4",
    ]  # fmt: skip


def mask_folder(save_dir: Path, kind: str, fraction: str) -> Path:
    return save_dir / f"mask_{kind}_retain{fraction}"


def make_mask(save_dir: Path, nano: Path, kind: str, fraction: str) -> None:
    folder = mask_folder(save_dir, kind, fraction)
    if not folder.is_dir():
        flags = [*shared_flags(nano), "--retain_fraction", fraction, "--save_dir", folder]
        command("data_process/MLLMU_gen_mask.py", *flags, *KINDS[kind])


def train(save_dir: Path, nano: Path, run: Run) -> None:
    """Train, evaluate, and let go of the weights."""
    folder, of = save_dir / run.folder, run.method
    if (folder / "zero_shot" / f"forget{RATIO}" / "results.json").is_file():
        return
    mask = [mask_folder(save_dir, of.kind, run.fraction) / f"mllmu_{of.part}_mask.pt"] if of.part else []
    if not (folder / "run.json").is_file():
        takes = [] if of.script in ("GA", "NPO") else ["--retain_fraction", run.fraction]
        command(
            f"MLLMU_{of.script}.py", *shared_flags(nano), "--save_dir", folder, "--lora", "False",
            "--lr", run.lr, "--seed", run.seed, "--num_epochs", run.epochs, *takes,
            *(("--grad_mask_path", *mask) if mask else ()),
        )  # fmt: skip
    evaluate(folder, nano)
    (folder / "model.safetensors").unlink()


def quietly(log: Path, work, *args) -> str | None:
    """Do the work, its output in a file; the last line of that where it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            work(*args)
        except SystemExit as end:
            if end.code not in (0, None):
                return f"{log}: {end.code}"
    return None


def all_done(pool: ProcessPoolExecutor, jobs: list[tuple], title: str) -> None:
    from tqdm import tqdm

    done = [pool.submit(quietly, *job) for job in jobs]
    for future in tqdm(as_completed(done), total=len(done), desc=title, unit="run"):
        if why := future.result():
            pool.shutdown(cancel_futures=True)
            raise SystemExit(f"error: a run failed; {why}")


# ---------------------------------------------------------------- results
def read(model: Path) -> list[Prediction]:
    files = sorted((model / "zero_shot" / f"forget{RATIO}").glob("predictions_*.jsonl"))
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

    def __init__(self, args, fraction: str):
        self.args, self.fraction = args, fraction
        vanilla = read(args.nano / "vanilla")
        retain = {p.person for p in vanilla if p.split == "retain"}
        about = checkpoint.read_json(args.nano / "data/MLLMU-Bench" / NANO)
        given = given_people(retain, float(fraction))
        self.rings = Rings.of(vanilla, given, about.get("look_alikes", {}))
        self.vanilla = count(vanilla, self.rings)
        self.retrained = count(read(args.nano / "retrained"), self.rings)
        self.runs: dict[tuple[Method, str, str], Counts] = {}
        self.people = sorted({person for ring in self.vanilla.values() for person in ring})
        strata = [self._stratum(person, retain) for person in self.people]
        self.draws = curves.Draws.of(strata, len(args.seeds), np.random.default_rng(0))

    def _stratum(self, person: str, retain: set[str]) -> int:
        return 0 if person in self.rings.forget else 1 if person in retain else 2

    def mean(self, ring: str, of_seeds: list[Counts]):
        """(R,) percent right in a ring; of_seeds: one Counts, or one per seed."""
        of_seeds = of_seeds * len(self.args.seeds) if len(of_seeds) == 1 else of_seeds
        right = np.array([[c[ring][p][0] if p in c[ring] else 0 for p in self.people] for c in of_seeds])
        asked = np.array([self.vanilla[ring].get(p, [0, 0])[1] for p in self.people])
        return self.draws.mean(right, asked)

    def path(self, one: Method, ring: str):
        """(K, R): the vanilla model, then the method's runs in the order of their learning rates."""
        lrs = sorted({lr for m, lr, _ in self.runs if m == one}, key=float)
        runs = [self.mean(ring, [self.runs[one, lr, seed] for seed in self.args.seeds]) for lr in lrs]
        return np.array([self.mean(ring, [self.vanilla]), *runs])

    def rows(self) -> list[dict]:
        """A row per method and ring: kept at equal forgetting, the area, and both as differences to the
        first method."""
        level, found = self.mean(FORGOTTEN, [self.retrained]), []
        first: dict[str, tuple] = {}
        for one in self.args.methods:
            forgotten = self.path(one, FORGOTTEN)
            for ring in (r for r in RINGS if r in self.vanilla and r != FORGOTTEN):
                kept = self.path(one, ring)
                pair = (
                    curves.at_equal_forgetting(forgotten, kept, level),
                    curves.area(forgotten, kept, level),
                )
                base = first.setdefault(ring, pair)
                row = {"retain_fraction": self.fraction, "ring": ring, "method": one.name}
                row |= {"vanilla": self.mean(ring, [self.vanilla])[0]}
                row |= {"retrained": self.mean(ring, [self.retrained])[0]}
                for name, ours, theirs in zip(("kept", "area"), pair, base):
                    row |= dict(
                        zip((name, f"{name}_low", f"{name}_high"), curves.interval(ours), strict=True)
                    )
                    columns = (f"{name}_more", f"{name}_more_low", f"{name}_more_high")
                    row |= dict(zip(columns, curves.interval(ours - theirs), strict=True))
                found.append({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
        return found


def main(args) -> None:
    import pandas as pd

    os.environ["OMP_NUM_THREADS"] = "1"  # the same numbers on any number of cores
    runs = [
        Run(m, lr, m.epochs or args.num_epochs, seed, fraction)
        for fraction in args.retain_fractions
        for seed in args.seeds
        for m in args.methods
        for lr in m.lrs or args.lrs
    ]
    masks = sorted({(r.method.kind, r.fraction) for r in runs if r.method.part})
    save_dir, nano = args.save_dir.resolve(), args.nano.resolve()
    log = save_dir / "logs"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=spawn) as pool:
        first = [(log / f"{m}.txt", evaluate, nano / m, nano) for m in ("vanilla", "retrained")]
        first += [(log / f"mask_{k}_{f}.txt", make_mask, save_dir, nano, k, f) for k, f in masks]
        all_done(pool, first, "vanilla, retrained, masks")
        all_done(pool, [(log / f"{r.folder}.txt", train, save_dir, nano, r) for r in runs], "runs")
    table, counts = [], []
    for fraction in args.retain_fractions:
        study = Study(args, fraction)
        for run in (r for r in runs if r.fraction == fraction):
            found = count(read(save_dir / run.folder), study.rings)
            study.runs[run.method, run.lr, run.seed] = found
            for ring, people in found.items():
                right, asked = (sum(n[k] for n in people.values()) for k in (0, 1))
                about = {"method": run.method.name, "lr": run.lr, "epochs": run.epochs, "seed": run.seed}
                counts.append(
                    {"retain_fraction": fraction, **about, "ring": ring, "right": right, "of": asked}
                )
        table += study.rows()
    pd.DataFrame(counts).to_csv(save_dir / "runs.csv", index=False)
    frame = pd.DataFrame(table)
    frame.to_csv(save_dir / "equal.csv", index=False)
    show(frame)
    draw(pd.DataFrame(counts), frame, save_dir / "study.png")
    print(f"saved {save_dir}: runs.csv, equal.csv, study.png")


def show(frame) -> None:
    """The kept shares at equal forgetting, a row per ring and a column per method."""
    for fraction, part in frame.groupby("retain_fraction", sort=False):
        cells = {}
        for name, of in part.groupby("method", sort=False):
            text = lambda row: (
                "not reached"
                if row.kept != row.kept
                else f"{row.kept:.0f} [{row.kept_low:.0f}, {row.kept_high:.0f}]"
                + f" {row.kept_more:+.0f} [{row.kept_more_low:+.0f}, {row.kept_more_high:+.0f}]"
                * (row.kept_more != 0)
            )
            cells[name] = {row.ring: text(row) for row in of.itertuples()}
        import pandas as pd

        print(f"\nnano MLLMU-Bench, {fraction} % of the people to retain given: % right at equal forgetting")
        print(pd.DataFrame(cells).to_markdown())


def draw(counts, frame, path: Path) -> None:
    """Small multiples, one per ring: kept against forgotten along the learning rates."""
    from data_process.coverage import new_figure

    rings = [r for r in RINGS if r in set(frame.ring)]
    names = list(dict.fromkeys(frame.method))
    columns = 4
    figure = new_figure(3.2 * columns, 2.6 * -(-len(rings) // columns))
    share = counts.assign(percent=100 * counts.right / counts.of)
    keys = ["retain_fraction", "method", "lr"]
    means = share.groupby([*keys, "ring"]).percent.mean().unstack()
    for k, ring in enumerate(rings):
        axes = figure.add_subplot(-(-len(rings) // columns), columns, k + 1)
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
    figure.axes[0].legend(fontsize=6)
    figure.supxlabel("forgotten pictures, % right (vanilla at the left)", fontsize=8)
    figure.supylabel("% right", fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(parse_args())
