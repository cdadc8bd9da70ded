r"""One HTML page from any number of result folders: table, trade-off, and every answer of every method.

    python eval/report.py runs/nano/vanilla runs/nano/GA runs/nano/manifold --save_path runs/nano/report.html
    python eval/report.py runs/nano/vanilla runs/nano/GA --shot zero_shot --save_path report.html \
        --data_dir runs/nano/data/MLLMU-Bench

The page is one file that opens from disk and loads nothing. It has the people to forget before and after, the
table and plot of eval/table.py, and all questions with portrait, truth and each method's answer side by side,
to be filtered by split, task, modality, and by what changed against vanilla. Portraits come from the
benchmark's tables and are stored once each, as small pictures; where they cannot be read the page
says so and goes without.
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
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.metrics import HEADLINES
from eval.results import (
    BY_KEY,
    INK,
    Result,
    blocks,
    nano,
    remarks,
    split_order,
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

TEMPLATE = Path(__file__).with_name("report.html.jinja")
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
    task's number, and `reply` is None where the model was not asked to reply."""

    reply: str | None
    choice: str | None
    correct: bool | None
    score: float | None


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
    the test picture or the order of options may differ, and then there are two cases.
    """
    cases: dict[str, Case] = {}
    for place, result in enumerate(results):
        files = sorted(result.folder.glob("predictions_*.jsonl"))
        if not files:
            problems.add(f"results: {result.folder}: no predictions_<split>.jsonl next to results.json")
        for file in files:
            for line in _lines(file, problems):
                _add(cases, line, place, len(results))
    return sorted(cases.values(), key=lambda case: (split_order(case.split), _natural(case.id)))


def _lines(file: Path, problems: cli.Problems) -> Iterator[dict]:
    with file.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, start=1):
            try:
                yield json.loads(text)
            except json.JSONDecodeError as error:
                problems.add(f"results: {file}, line {number}: not valid JSON ({error}); evaluate again")
                return


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorting key that puts 9 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _add(cases: dict[str, Case], line: dict, place: int, count: int) -> None:
    picture = line["picture"] and Picture(**line["picture"])
    same = [line["id"], line["question"], line["options"], line["truth"], picture]
    case = cases.setdefault(
        json.dumps(same, sort_keys=True),
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
    score = line["scores"][HEADLINES[line["task"]][0]] if "scores" in line else None
    case.answers[place] = Answer(line["reply"], line["choice"], line.get("correct"), score)


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


# ---------------------------------------------------------------- the page
def page_data(
    results: Sequence[Result], cases: Sequence[Case], found: dict[Picture, str], limit: int
) -> dict:
    """What the page's script reads: each picture once, cases and answers as short lists that refer by place.

    A case is [id, person, split, task, modality, question, options, truth, picture, answers], an answer
    [reply, choice, correct, score] or null; the script takes them apart in this order.
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


def plot_svg(results: Sequence[Result]) -> str:
    """The trade-off as inline SVG in the text colour of the page, for light and dark; "" without one."""
    import matplotlib

    figure = tradeoff_plot(results)
    if figure is None:
        return ""
    buffer = io.StringIO()
    # text stays text, and ids come from a fixed salt: the same results give the same page
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tradeoff"}):
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def render(results: Sequence[Result], cases: Sequence[Case], found: dict[Picture, str], limit: int) -> str:
    """The whole page. All of it passes through escaping: the template's, or matplotlib's for the SVG."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    wanted = pictures_of(cases)
    forget = [result.entry("forget", BY_KEY["vqa"]) for result in results]
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
        blocks=blocks(results),
        plot=Markup(plot_svg(results)),
        cases=len(cases),
        forget_questions=max((entry["total"] for entry in forget if entry), default=0),
        forget_people=len({case.person for case in cases if case.split == "forget"}),
        people_shown=limit,
        pictures_wanted=len(wanted),
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
    args.problems.stop()

    folder = args.data_dir or next((result.data_folder for result in results if result.data_folder), None)
    wanted = pictures_of(cases)
    found = portraits(folder and Path(folder), wanted)
    if len(found) < len(wanted):
        print(f"{len(wanted) - len(found)} of {len(wanted)} pictures not found in {folder} (see --data_dir)")
    page = render(results, cases, found, args.people)
    path = Path(args.save_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    print(f"Wrote {path}: {len(cases)} questions, {len(found)} pictures, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(parse_args())
