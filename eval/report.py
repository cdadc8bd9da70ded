r"""One HTML page from any number of result folders: table, plots, costs, and every answer of every method.

    python eval/report.py runs/nano/vanilla runs/nano/GA runs/nano/manifold --save_path runs/nano/report.html
    python eval/report.py runs/nano/vanilla runs/nano/GA --shot zero_shot --save_path report.html \
        --data_dir runs/nano/data/MLLMU-Bench

The page is one file that opens from disk and loads nothing. It has the people to forget before and after, the
table and plot of eval/table.py, bars per split, lines over forget ratios where a method has several, where
the weights of a saliency mask lie, what training and evaluation cost, and all questions with portrait, truth
and each method's answer side by side, to be filtered by split, task, modality, and by what changed against
vanilla. The address of the page follows the filters, so a view can be linked.

Portraits come from the benchmark's tables and are stored once each, as small pictures; where they cannot be
read the page says so and goes without. A mask's coverage.json lies beside the mask that run.json of the model
names; a relative path is looked up from the folders above the model, then from here.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.metrics import FACTUALITY, HEADLINES
from eval.results import figures
from eval.results.intervals import question_key
from eval.results.read import (
    BY_KEY,
    SPLIT_TITLES,
    Result,
    blocks,
    nano,
    read_answers,
    read_lines,
    remarks,
    split_order,
    splits_of,
    title,
    tradeoff_plot,
    vanilla_of,
)
from eval.table import NANO, add_result_args, given_results
from utils import cli
from utils.data import columns_of, is_saved_dataset, is_table, parquet_files

if TYPE_CHECKING:
    import argparse

    import pyarrow as pa
    from markupsafe import Markup
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).resolve().parent / "results" / "report.html.jinja"
THUMBNAIL = 192  # pixels; shown at up to 96, so sharp on a phone too
# a person's card opens with the first question of the first of these tasks that exists
TASK_ORDER = ("classification", "generation", "cloze", "probability", "truth_ratio")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = cli.parser(__doc__)
    add_result_args(p)
    p.add_argument("--save_path", required=True, help="write the page here, e.g. runs/nano/report.html")
    p.add_argument(
        "--data_dir", help="benchmark folder with the portraits; default: the one that results.json names"
    )
    p.add_argument(
        "--people",
        type=cli.number(int, 0),
        default=12,
        help="how many people to forget are shown before and after; default 12",
    )
    return cli.parse(p, argv)


# ---------------------------------------------------------------- questions and answers
class Picture(NamedTuple):
    """Where a portrait lies: a table of the benchmark, a row, by ID or else by number, and which of the row's
    pictures."""

    table: str
    ID: str | None = None
    view: int = 0
    row: int | None = None


@dataclass
class Answer:
    """One method's answer. `correct` is None where there is no right and wrong; then `score` in 0..1 is the
    task's number, and `reply` is None where the model was not asked to reply. `factuality`: a judge's 1..10,
    None where nothing was judged."""

    reply: str | None
    choice: str | None
    correct: bool | None
    score: float | None
    factuality: int | None


@dataclass
class Case:
    """One question with the answers of all results, None where a result has none."""

    id: str
    person: str
    split: str
    task: str
    modality: str
    question: str
    options: dict[str, str] | None
    truth: str
    picture: Picture | None
    answers: list[Answer | None] = field(default_factory=list)


def load_cases(results: Sequence[Result], problems: cli.Problems) -> list[Case]:
    """The predictions of all results, joined by question; by split, then by id with its numbers as numbers.

    Answers stand side by side only if question, options, truth and picture are the same: with another seed
    the test picture or the order of options may differ, and then there are two cases. None are read where
    there are problems.
    """
    files = [sorted(result.folder.glob("predictions_*.jsonl")) for result in results]
    for result, own in zip(results, files):
        if not own:
            problems.add(f"results: {result.folder}: no predictions_<split>.jsonl next to results.json")
    read_answers(results, problems)
    if problems.lines:
        return []
    cases: dict[str, Case] = {}
    for place, own in enumerate(files):
        for file in own:
            for line in read_lines(file):
                _add(cases, line, place, len(results))
    return sorted(cases.values(), key=lambda case: (split_order(case.split), _natural(case.id)))


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorting key that puts 9 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _add(cases: dict[str, Case], line: dict, place: int, count: int) -> None:
    picture = line["picture"] and Picture(**line["picture"])
    case = cases.setdefault(
        question_key(line),
        Case(
            line["id"],
            line["person"],
            line["split"],
            line["task"],
            line["modality"],
            line["question"],
            line["options"],
            line["truth"],
            picture,
            [None] * count,
        ),
    )
    scores = line.get("scores")
    case.answers[place] = Answer(
        line["reply"],
        line["choice"],
        line.get("correct"),
        scores[HEADLINES[line["task"]][0]] if scores else None,
        scores.get(FACTUALITY) if scores else None,
    )


def people(cases: Sequence[Case], limit: int) -> list[dict]:
    """The first `limit` people to forget by ID, each with the first question about the picture and in words.

    Firsts, so nothing is picked for its answers. Returns dicts of person, picture, and the places in `cases`.
    """
    asked = defaultdict(lambda: defaultdict(list))
    for place, case in enumerate(cases):
        if case.split == "forget":
            asked[case.person][case.modality].append(place)
    out = []
    for person in sorted(asked)[:limit]:
        firsts = [
            min(asked[person][modality], key=lambda place: TASK_ORDER.index(cases[place].task))
            for modality in ("image", "text")
            if asked[person][modality]
        ]
        pictures = [cases[place].picture for place in firsts if cases[place].picture]
        out.append({"person": person, "picture": pictures[0] if pictures else None, "cases": firsts})
    return out


# ---------------------------------------------------------------- portraits
def pictures_of(cases: Sequence[Case]) -> list[Picture]:
    """Each picture that the questions are about, once."""
    return list(dict.fromkeys(case.picture for case in cases if case.picture))


def portraits(folder: Path | None, wanted: Collection[Picture]) -> dict[Picture, str]:
    """Small WebP data URIs of the wanted portraits that can be read from the tables `folder`/<table>.

    Rows are read in small batches and only the wanted ones are decoded, so memory stays at a few pictures.
    """
    by_table = defaultdict(list)
    for picture in wanted:
        by_table[picture.table].append(picture)
    found = {}
    for table, pictures in by_table.items():
        rows = defaultdict(list)
        for picture in pictures:
            rows[picture.row if picture.ID is None else picture.ID].append(picture)
        by_number, start = pictures[0].ID is None, 0
        for batch in _batches(folder / table) if folder else []:
            names = batch.schema.names
            if not by_number and "ID" not in names:
                break
            keys = range(start, start + len(batch)) if by_number else batch.column("ID").to_pylist()
            start += len(batch)
            cells = batch.column("image" if "image" in names else "images")
            for i, key in enumerate(keys):
                if key in rows:
                    found.update(_thumbnails(cells[i].as_py(), rows[key]))
    return found


def _batches(table: Path) -> Iterator[pa.RecordBatch | pa.Table]:
    """The columns ID, image and images of a table in its order, few rows at a time; none without pictures."""
    import pyarrow.parquet as pq

    if not is_table(table):
        return
    columns = [name for name in columns_of(table) if name in ("ID", "image", "images")]
    if not {"image", "images"} & set(columns):
        return
    if is_saved_dataset(table):
        from datasets import load_from_disk

        yield from load_from_disk(str(table)).select_columns(columns).with_format("arrow").iter(16)
        return
    for file in parquet_files(table):
        yield from pq.ParquetFile(file).iter_batches(batch_size=16, columns=columns)


def _thumbnails(cell: dict | list[dict] | None, pictures: Sequence[Picture]) -> dict[Picture, str]:
    views = cell if isinstance(cell, list) else [cell]
    out = {}
    for picture in pictures:
        if picture.view < len(views) and views[picture.view] and views[picture.view]["bytes"]:
            uri = _thumbnail(views[picture.view]["bytes"])
            if uri:
                out[picture] = uri
    return out


def _thumbnail(data: bytes) -> str | None:
    """A picture file as a small WebP data URI; None if it is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))  # JPEG only: decodes at a fraction of the size
            small = image.convert("RGB")
    except (UnidentifiedImageError, OSError):  # OSError: cut off in the middle
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=72)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# ---------------------------------------------------------------- what training and evaluation cost
def read_json(path: Path, problems: cli.Problems) -> dict[str, Any]:
    """The content of a JSON file; {} where there is none, and a problem where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        problems.add(f"results: {path} is not valid JSON ({error}); write it again, or take it away")
        return {}


@dataclass
class Run:
    """What is known of one result beyond its numbers: run.json of its model, and results.json itself."""

    result: Result
    training: dict[str, Any]  # {} where the model has no run.json, as a model from a hub
    evaluation: dict[str, Any]

    @property
    def mask_path(self) -> str | None:
        """The mask that the model was trained with, as the training was given it."""
        return self.training.get("arguments", {}).get("grad_mask_path")


def load_runs(results: Sequence[Result], problems: cli.Problems) -> list[Run]:
    """One Run per result. run.json lies above the evaluation, or, where that was written elsewhere, in the
    folder that results.json names as the model."""
    runs = []
    for result in results:
        evaluation = read_json(result.folder / "results.json", problems)
        folders = [result.model_dir]
        if "model" in evaluation:
            folders += _places(evaluation["model"], result.model_dir)
        found = next((folder for folder in folders if (folder / "run.json").is_file()), result.model_dir)
        runs.append(Run(result, read_json(found / "run.json", problems), evaluation))
    return runs


def training_cost(run: dict[str, Any]) -> dict[str, str]:
    """Time, memory and device of a run.json as text; memory is that of its first process."""
    if "seconds" not in run:
        return {}
    gpu, host = run.get("peak_gpu_memory_bytes"), size_text(run["peak_memory_bytes"])
    return {
        "time": time_text(run["seconds"]),
        "memory": f"{size_text(gpu)} GPU" if gpu else host,
        "host": f"{host} host" if gpu else "",
        "device": device_text([run.get("device", "")] * run.get("processes", 1)),
    }


def evaluation_cost(workers: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The costs of an evaluation's workers as one: they run side by side, so the longest time counts, and
    memory adds up. Starting up and loading the model are in the time."""
    if not workers:
        return {}
    questions, seconds = sum(w["questions"] for w in workers), max(w["seconds"] for w in workers)
    gpus = [w["peak_gpu_memory_bytes"] for w in workers if w.get("peak_gpu_memory_bytes")]
    memory, unit = (gpus, " GPU") if gpus else ([w["peak_memory_bytes"] for w in workers], "")
    return {
        "questions": f"{questions:,}",
        "time": time_text(seconds),
        "rate": f"{questions / seconds:.1f}" if seconds else "",
        "memory": size_text(sum(memory)) + unit,
        "each": f"at most {size_text(max(memory))} each" if len(workers) > 1 else "",
        "device": device_text([w["device"] for w in workers]),
    }


def device_text(devices: Sequence[str]) -> str:
    """`4 × cuda` of cuda:0 to cuda:3; one device is named without a number."""
    kinds = [device.partition(":")[0] for device in devices]
    counts = {kind: kinds.count(kind) for kind in kinds}
    return ", ".join(f"{count} × {kind}" if count > 1 else kind for kind, count in counts.items())


def time_text(seconds: float) -> str:
    """`42 s`, `12 min 5 s`, `3 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size_text(size: int) -> str:
    """Bytes as `812 MB` or `15.3 GB`, decimal."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


# ---------------------------------------------------------------- masks
@dataclass
class MaskUse:
    """A mask and the results whose model was trained with it. `folder` is None where neither coverage.json
    nor coverage.png was found beside the mask."""

    path: str
    folder: Path | None
    labels: list[str] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)  # run.json beside the mask
    coverage: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    remade: bool = False  # written again after a training that used it

    @property
    def name(self) -> str:
        return "/".join(Path(self.path).parts[-2:])

    @property
    def about(self) -> str:
        """How the mask was made, in a few words; "" where its folder does not say."""
        given = self.made.get("arguments", {})
        words = [f"{name} {given[name]}" for name in ("mask_kind", "fisher", "threshold") if name in given]
        return ", ".join(words).replace("mask_kind ", "kind ")

    @property
    def table(self) -> list[dict[str, Any]]:
        """Each part as a whole, then its groups that are no layer: what the heat map does not show."""
        rows = []
        for part, groups in self.coverage.items():
            rows.append({"part": True, "name": part, **groups["all"]})
            outside = figures.outside_layers(groups)
            rows += [{"part": False, "name": name, **entry} for name, entry in outside.items()]
        return rows

    @property
    def picture(self) -> str | None:
        """coverage.png, layer by module, as a data URI."""
        file = self.folder / "coverage.png" if self.folder else None
        if file is None or not file.is_file():
            return None
        return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def masks_of(runs: Sequence[Run], problems: cli.Problems) -> list[MaskUse]:
    """Each mask that a training used, once, with what lies beside it."""
    uses: dict[Path | str, MaskUse] = {}
    for run in runs:
        if not run.mask_path:
            continue
        folder = _mask_folder(Path(run.mask_path), run.result.model_dir)
        key = folder / Path(run.mask_path).name if folder else run.mask_path
        if key not in uses:
            uses[key] = use = MaskUse(run.mask_path, folder)
            if folder:
                use.made = read_json(folder / "run.json", problems)
                use.coverage = _covered(read_json(folder / "coverage.json", problems), run.mask_path)
        uses[key].labels.append(run.result.label)
        times = [about.get("started") for about in (run.training, uses[key].made)]
        uses[key].remade |= None not in times and times[0] < times[1]  # ISO 8601, UTC: in order as text
    return list(uses.values())


def _mask_folder(mask: Path, model_dir: Path) -> Path | None:
    """The folder of the mask, if its coverage is there."""
    for place in _places(mask, model_dir):
        if any((place.parent / name).is_file() for name in ("coverage.json", "coverage.png")):
            return place.parent.resolve()
    return None


def _places(path: Path | str, model_dir: Path) -> Iterator[Path]:
    """Where a path may lie that was relative to the folder in which something ran: under the folders above
    the model, which may have been copied here as a whole, nearest first, then under this folder."""
    return (base / path for base in (*model_dir.absolute().parents, Path.cwd()))


def _covered(coverage: dict[str, Any], mask: str) -> dict[str, Any]:
    """The parts of coverage.json that the mask names, by its file name; all where that does not say."""
    part = re.search(r"_(language|vision)_mask\.pt$", mask)
    return {part[1]: coverage[part[1]]} if part and part[1] in coverage else coverage


def cost_rows(runs: Sequence[Run], masks: Sequence[MaskUse]) -> list[dict[str, Any]]:
    """One row of the cost table per result: its name, and the costs of training, mask and evaluation, {}
    where they are not known."""
    made = {label: use.made for use in masks for label in use.labels}
    return [
        {
            "label": run.result.label,
            "vanilla": run.result.is_vanilla,
            "training": training_cost(run.training),
            "mask": training_cost(made.get(run.result.label, {})),
            "evaluation": evaluation_cost(run.evaluation.get("cost", [])),
        }
        for run in runs
    ]


# ---------------------------------------------------------------- the page
def page_data(
    results: Sequence[Result], cases: Sequence[Case], found: dict[Picture, str], limit: int
) -> dict:
    """What the page's script reads: each picture once, cases and answers as short lists that refer by place.

    A case is [id, person, split, task, modality, question, options, truth, picture, answers], an answer
    [reply, choice, correct, score, factuality] or null; the script takes them apart in this order.
    """
    place = {picture: i for i, picture in enumerate(found)}
    rows = []
    for case in cases:
        answers = [answer and list(asdict(answer).values()) for answer in case.answers]
        about = [case.id, case.person, case.split, case.task, case.modality, case.question]
        rows.append([*about, case.options, case.truth, place.get(case.picture), answers])
    chosen = people(cases, limit)
    return {
        "methods": [result.label for result in results],
        "scores": {task: name for task, (_, name) in HEADLINES.items()},
        # place of the row to compare with; a vanilla row points to itself
        "vanilla": [
            i if result.is_vanilla else _place(results, vanilla_of(result, results))
            for i, result in enumerate(results)
        ],
        "pictures": list(found.values()),
        "cases": rows,
        "people": [{**person, "picture": place.get(person["picture"])} for person in chosen],
    }


def _place(results: Sequence[Result], wanted: Result | None) -> int | None:
    return next((i for i, result in enumerate(results) if result is wanted), None)


def plots(results: Sequence[Result], masks: Sequence[MaskUse]) -> dict[str, Any]:
    """The figures of the page as inline SVG: "tradeoff" and "ratios", "" where there is none; "bars": those
    of each split; "masks": one per mask."""
    trade_off, ratios = tradeoff_plot(results), figures.ratio_plot(results)
    bars = [(split, figures.bar_plot(results, split)) for split in splits_of(results)]
    maps = [figures.coverage_plot(use.coverage) for use in masks]
    return {
        "tradeoff": _svg(trade_off, "tradeoff"),
        "ratios": _svg(ratios, "ratios"),
        "bars": [
            {
                "title": SPLIT_TITLES.get(split, split.replace("_", " ")),
                "names": [figures.bar_name(split, key) for key in figures.bars(results, split)],
                "svg": _svg(figure, f"bars-{place}"),
            }
            for place, (split, figure) in enumerate(bars)
            if figure
        ],
        "masks": [_svg(figure, f"mask-{place}") for place, figure in enumerate(maps)],
    }


def _svg(figure: Figure | None, name: str) -> Markup:
    from markupsafe import Markup

    return Markup(figures.svg(figure, name) if figure else "")


def render(
    runs: Sequence[Run],
    cases: Sequence[Case],
    found: dict[Picture, str],
    masks: Sequence[MaskUse],
    limit: int,
) -> str:
    """The whole page. All of it passes through escaping: the template's, or matplotlib's for the SVG."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    results = [run.result for run in runs]
    forget = [result.entry("forget", BY_KEY["vqa"]) for result in results]
    tables = blocks(results)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return environment.get_template(TEMPLATE.name).render(
        title=title(results),
        remarks=remarks(results),
        nano_remark=NANO if nano(results) else "",
        results=results,
        blocks=tables,
        intervals=any(cell.interval for block in tables for row in block.cells for cell in row),
        judges=list(
            dict.fromkeys(run.evaluation["judge"]["model"] for run in runs if "judge" in run.evaluation)
        ),
        plots=plots(results, masks),
        masks=masks,
        costs=cost_rows(runs, masks),
        cases=len(cases),
        forget_questions=max((entry["total"] for entry in forget if entry), default=0),
        forget_people=len({case.person for case in cases if case.split == "forget"}),
        people_shown=limit,
        pictures_wanted=len(pictures_of(cases)),
        pictures_found=len(found),
        splits=list(dict.fromkeys(case.split for case in cases)),
        tasks=list(dict.fromkeys(case.task for case in cases)),
        modalities=list(dict.fromkeys(case.modality for case in cases)),
        data=page_data(results, cases, found, limit),
    )


def main(args: argparse.Namespace) -> None:
    results = given_results(args)
    if args.data_dir and not Path(args.data_dir).is_dir():
        args.problems.add(f"--data_dir: {args.data_dir}: no such folder; default: as results.json says")
    if args.save_path and Path(args.save_path).is_dir():
        args.problems.add(f"--save_path: {args.save_path} is a folder; give a file such as report.html")
    cases = load_cases(results, args.problems)
    runs = load_runs(results, args.problems)
    masks = masks_of(runs, args.problems)
    args.problems.stop()

    folder = args.data_dir or next((result.data_folder for result in results if result.data_folder), None)
    wanted = pictures_of(cases)
    found = portraits(folder and Path(folder), wanted)
    if len(found) < len(wanted):
        print(f"{len(wanted) - len(found)} of {len(wanted)} pictures not found in {folder} (see --data_dir)")
    for use in masks:
        if use.folder is None:
            print(f"{', '.join(use.labels)}: no coverage.json beside the mask {use.path}")
    page = render(runs, cases, found, masks, args.people)
    path = Path(args.save_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    print(f"Wrote {path}: {len(cases)} questions, {len(found)} pictures, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(parse_args())
