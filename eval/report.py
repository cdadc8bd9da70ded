r"""One HTML page from any number of result folders: what was forgotten, what it cost, and every answer.

    python eval/report.py runs/nano --save_path runs/nano/report.html
    python eval/report.py runs/nano/vanilla runs/nano/GA --shot zero_shot --save_path report.html \
        --data_dir runs/nano/data/MLLMU-Bench

The page is one file that opens from disk and loads nothing. Its first screen says in words whether a method
has forgotten and what that cost, beside the retrained model (docs/evaluation.md), with the trade-off of
forget and retain VQA; below are all models as rows to sort, and one telling case. Folded are the people to
forget before and after, the tables of eval/table.py, lines over forget ratios where a method has several,
where the weights of a saliency mask lie, what training and evaluation cost, and all questions with portrait,
truth and each method's answer side by side, to be filtered by split, task, modality, and by what changed
against vanilla. The address of the page follows the filters, so a view can be linked. Printed are the first
screen, the rows, the case, and what is unfolded.

Portraits come from the benchmark's tables and are stored once each, as small pictures; where they cannot be
read the page says so and goes without. A mask's coverage.json lies beside the mask that run.json of the model
names; a relative path is looked up from the folders above the model, then from here.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_process.coverage import layer_map, layer_words, top_share
from eval.results import figures
from eval.results.cards import about, cards, rows
from eval.results.compare import blocks, reference_row, split_order, splits_of, title, vanilla_row
from eval.results.depth_map import depth_rows, depth_svg
from eval.results.facts import MORE
from eval.results.portraits import Portrait, portraits
from eval.results.predictions import Prediction
from eval.results.probed import Probed, probed
from eval.results.probes import HIDDEN
from eval.results.read import Result, add_result_args, given_results, read_answers
from eval.results.remarks import NANO_REMARK, remarks
from eval.results.rings import truth_of
from eval.results.runs import MaskUse, Run, cost_rows, load_runs, masks_of
from eval.results.verdicts import DAMAGE, aims, gate_lines, gate_summary
from eval.tasks import FACTUALITY, TASKS, split_of
from utils import checkpoint, cli
from utils.run import folders

if TYPE_CHECKING:
    import argparse

    from markupsafe import Markup
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).resolve().parent / "results" / "report.html.jinja"


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
@dataclass
class Case:
    """One question, as any of its predictions has it, with the predictions of all results: None where a
    result has none."""

    asked: Prediction
    answers: list[Prediction | None]

    @property
    def portrait(self) -> Portrait | None:
        return self.asked.picture and Portrait(**self.asked.picture)


def load_cases(results: Sequence[Result], problems: cli.Problems) -> list[Case]:
    """The predictions of all results, joined by question; by split, then by id with its numbers as numbers.

    Answers stand side by side only if question, options, truth and picture are the same: with another seed
    the test picture or the order of options may differ, and then there are two cases. None are read where
    there are problems.
    """
    read_answers(results, problems)
    for result in results:
        if not folders.found(result.folder, "predictions_*.jsonl"):
            problems.add(f"results: {result.folder}: no predictions_<split>.jsonl next to results.json")
    if problems.lines:
        return []
    cases: dict[str, Case] = {}
    for place, result in enumerate(results):
        for prediction in result.predictions():
            case = cases.setdefault(prediction.key, Case(prediction, [None] * len(results)))
            case.answers[place] = prediction
    return sorted(cases.values(), key=lambda case: (split_order(case.asked.split), natural(case.asked.id)))


def natural(text: str) -> list[tuple[int, str]]:
    """Sorting key that puts 9 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def people(cases: Sequence[Case], limit: int) -> list[dict]:
    """The first `limit` people to forget by ID, each with the first question about the picture and in words.

    Firsts, so nothing is picked for its answers. Returns dicts of person, picture, and the places in `cases`.
    """
    order, firsts = list(TASKS), defaultdict(dict)
    asked = [(place, case.asked) for place, case in enumerate(cases) if case.asked.split == "forget"]
    for place, q in sorted(asked, key=lambda each: (each[1].modality, order.index(each[1].task))):
        firsts[q.person].setdefault(q.modality, place)
    out = []
    for person in sorted(firsts)[:limit]:
        chosen = list(firsts[person].values())
        shown = (cases[place].portrait for place in chosen)
        out.append({"person": person, "picture": next(filter(None, shown), None), "cases": chosen})
    return out


def pictures_of(cases: Sequence[Case]) -> list[Portrait]:
    """Each picture that the questions are about, once."""
    return list(dict.fromkeys(case.portrait for case in cases if case.portrait))


def telling(cases: Sequence[Case], results: Sequence[Result]) -> dict[str, int] | None:
    """The places of one question that tells methods apart, and of the same fact asked in words where it was.

    Multiple choice about a picture to forget, right by vanilla, wrong by the retrained model, and not alike
    by the methods; this suite's is wrong if any is so. None where there is no such question.
    """
    vanilla = next((i for i, r in enumerate(results) if r.is_vanilla and reference_row(r, results)), None)
    if vanilla is None:
        return None
    retrained = results.index(reference_row(results[vanilla], results))
    methods = [i for i, r in enumerate(results) if not (r.is_vanilla or r.is_reference)]
    own = [i for i in methods if results[i].is_own]
    facts = {_fact(case.asked): place for place, case in enumerate(cases) if case.asked.modality == "text"}
    best, chosen = -1, None
    for place, case in enumerate(cases):
        right = [answer and answer.correct for answer in case.answers]
        asked = case.asked
        if not (split_of(asked.split).forgets and asked.modality == "image" and asked.options):
            continue
        if not right[vanilla] or right[retrained] is not False or len({right[i] for i in methods}) < 2:
            continue
        words = facts.get(_fact(asked))
        kept = words is not None and all(
            cases[words].answers[i] and cases[words].answers[i].correct for i in own
        )
        score = 2 * any(right[i] is False for i in own) + kept
        if score > best:
            best, chosen = score, {"picture": place} | ({} if words is None else {"text": words})
    return chosen


def _fact(asked: Prediction) -> tuple[str, str, str]:
    """What a question asks for: a right answer about a person, in one task."""
    return asked.person, asked.task, truth_of(asked)


# ---------------------------------------------------------------- the page
def page_data(
    results: Sequence[Result], cases: Sequence[Case], found: dict[Portrait, str], limit: int
) -> dict:
    """What the page's script reads: each picture once, cases and answers as short lists that refer by place.

    A case is [id, person, split, task, modality, question, options, truth, picture, answers], an answer
    [reply, choice, correct, score, factuality] or null; the script takes them apart in this order.
    """
    place = {picture: i for i, picture in enumerate(found)}
    names = ("id", "person", "split", "task", "modality", "question", "options", "truth")
    rows = []
    for case in cases:
        answers = [answer and answer_row(answer) for answer in case.answers]
        about = [getattr(case.asked, name) for name in names]
        rows.append([*about, place.get(case.portrait), answers])
    compared = [r if r.is_vanilla else vanilla_row(r, results) for r in results]
    retrained = [reference_row(r, results) for r in results]
    return {
        "methods": [result.label for result in results],
        "scores": {name: task.short for name, task in TASKS.items() if task.means},
        # place of the row to compare with; a vanilla row points to itself
        "vanilla": [row and results.index(row) for row in compared],
        "retrained": [row and results.index(row) for row in retrained],
        "forgets": [split for split in splits_of(results) if split_of(split).forgets],
        "pictures": list(found.values()),
        "cases": rows,
        "people": [{**person, "picture": place.get(person["picture"])} for person in people(cases, limit)],
        "telling": telling(cases, results),
    }


def answer_row(answer: Prediction) -> list:
    """`correct` is None where there is no right and wrong; then the score is the task's headline."""
    scores = answer.scores or {}
    score = scores.get(TASKS[answer.task].headline)
    return [answer.reply, answer.choice, answer.correct, score, scores.get(FACTUALITY)]


def plots(results: Sequence[Result], masks: Sequence[MaskUse]) -> dict[str, Any]:
    """The figures of the page as inline SVG: "tradeoff" for wide screens and "tradeoff_small" for phones, and
    "ratios", "" where there is none; "masks": one per mask, in one scale; what they show in words is in
    "..._text"."""
    titles = figures.tradeoff_titles(results)
    top = max((top_share(use.coverage) for use in masks), default=0)
    wide = figures.tradeoff_plot(results, width=5.6, height=4.1, size=9)
    small = figures.tradeoff_plot(results, width=3.7, height=2.55, size=8)
    return {
        "tradeoff": _svg(wide, "tradeoff", titles),
        "tradeoff_small": _svg(small, "tradeoff-small", titles),
        "tradeoff_text": "; ".join(titles.values()),
        "ratios": _svg(figures.ratio_plot(results), "ratios"),
        "ratios_text": figures.ratio_words(results),
        "masks": [
            _svg(layer_map(use.coverage, top), f"mask-{place}", layer_words(use.coverage))
            for place, use in enumerate(masks)
        ],
        "masks_text": ["; ".join(layer_words(use.coverage).values()) for use in masks],
    }


def depth(probes: Sequence[Probed], masks: Sequence[MaskUse]) -> dict[str, Any]:
    """The map of the depth probe: "svg" and "rows", what it shows as a table; empty without results. Only
    models of the layers of the first are in it, and only one mask is."""
    from markupsafe import Markup

    found = {of.label: of.depth for of in probes if of.depth}
    layers = next((content["stages"] for content in found.values()), None)
    alike = {label: content for label, content in found.items() if content["stages"] == layers}
    drawn = depth_svg(alike, masks[0].coverage if masks else {}, "depth") if alike else None
    return {"svg": Markup(drawn), "rows": depth_rows(alike)} if drawn else {}


def _svg(figure: Figure | None, name: str, titles: Mapping[str, str] | None = None) -> Markup:
    from markupsafe import Markup

    return Markup(figures.svg(figure, name, titles) if figure else "")


def render(
    runs: Sequence[Run],
    cases: Sequence[Case],
    found: dict[Portrait, str],
    masks: Sequence[MaskUse],
    probes: Sequence[Probed],
    limit: int,
) -> str:
    """The whole page. All of it passes through escaping: the template's, or matplotlib's for the SVG."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    results = [run.result for run in runs]
    tables, told = blocks(results), [*gate_lines(results), *remarks(results), *_lost(found, cases)]
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
        about=about(runs),
        gate=gate_summary(results),
        cards=cards(runs, masks, probes),
        probes=probes,
        unwanted=(HIDDEN, DAMAGE, *MORE.values()),
        depth=depth(probes, masks),
        aims=aims(results),
        rows=rows(results),
        warnings=[line.removeprefix("warning: ") for line in told if line.startswith("warning")],
        remarks=[line for line in told if not line.startswith("warning")],
        nano_remark=NANO_REMARK if any(result.is_nano for result in results) else "",
        results=results,
        blocks=tables,
        intervals=any(cell.interval for block in tables for row in block.cells for cell in row),
        judges=list(dict.fromkeys(str(r.content["judge"]["model"]) for r in results if r.judge)),
        plots=plots(results, masks),
        masks=masks,
        costs=cost_rows(runs, masks),
        cases=len(cases),
        forget_people=len({case.asked.person for case in cases if case.asked.split == "forget"}),
        people_shown=limit,
        splits={split: split_of(split).title for split in dict.fromkeys(case.asked.split for case in cases)},
        tasks=list(dict.fromkeys(case.asked.task for case in cases)),
        modalities=list(dict.fromkeys(case.asked.modality for case in cases)),
        data=page_data(results, cases, found, limit),
    )


def _lost(found: dict[Portrait, str], cases: Sequence[Case]) -> list[str]:
    wanted = len(pictures_of(cases))
    return [
        f"warning: {wanted - len(found)} of {wanted} pictures were not found in the benchmark folder; run the"
        " report with --data_dir to show them"
    ] * (len(found) < wanted)


def main(args: argparse.Namespace) -> None:
    results = given_results(args)
    if args.data_dir and not Path(args.data_dir).is_dir():
        args.problems.add(f"--data_dir: {args.data_dir}: no such folder; default: as results.json says")
    folders.check_file(args.save_path, "--save_path", args.problems, ".html", ".htm")
    cases = load_cases(results, args.problems)
    runs = load_runs(results, args.problems)
    masks, probes = masks_of(runs, args.problems), probed(runs, args.problems)
    args.problems.stop()

    folder = args.data_dir or next(
        (r.content["data"]["folder"] for r in results if "data" in r.content), None
    )
    wanted = pictures_of(cases)
    found = portraits(folder and Path(folder), wanted)
    if len(found) < len(wanted):
        print(f"{len(wanted) - len(found)} of {len(wanted)} pictures not found in {folder} (see --data_dir)")
    for use in masks:
        if use.folder is None:
            print(f"{', '.join(use.labels)}: no coverage.json beside the mask {use.path}")
    page = render(runs, cases, found, masks, probes, args.people)
    path = Path(args.save_path)
    checkpoint.write_whole(path, page.encode())
    print(f"Wrote {path}: {len(cases)} questions, {len(found)} pictures, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(parse_args())
