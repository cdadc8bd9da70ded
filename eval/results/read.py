"""Result folders side by side: read them, pair each with its vanilla, tabulate, plot the trade-off.

What eval/table.py prints and eval/report.py shows is decided here once: which numbers, which differences,
which warnings.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.metrics import FACTUALITY, headline
from eval.results import intervals

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from utils.cli import Problems

SPLITS = ("forget", "test", "retain", "real", "real_faces", "real_world")  # order of the blocks and columns
SPLIT_TITLES = {"real": "real celebrities", "test": "test (forget people, other pictures)"}
EVALUATION = re.compile(r"forget\d+")  # folder of a finished evaluation
FEW_PEOPLE = 10  # with fewer an interval is clearly too narrow: docs/reproducing.md
INK = "#20242a"  # of the plot; the report swaps it for the text colour of the page


@dataclass(frozen=True)
class Metric:
    """One column of the table; `field` is its number in results.json, shown with `digits` decimals."""

    key: str
    title: str
    task: str
    modality: str
    field: str
    digits: int

    @property
    def counted(self) -> bool:
        """Whether the number is a percentage of questions (else a mean score)."""
        return self.field == "accuracy"

    @property
    def total(self) -> str:
        """The field of results.json that says over how many questions the number is."""
        return "judged" if self.field == FACTUALITY else "total"

    @property
    def name(self) -> str:
        """The title without its unit or measure."""
        return self.title.removesuffix(" %").removesuffix(" R-L")


METRICS = (
    Metric("vqa", "VQA %", "classification", "image", "accuracy", 1),
    Metric("qa", "QA %", "classification", "text", "accuracy", 1),
    Metric("generation_image", "Gen. image R-L", "generation", "image", "rougeL", 3),
    Metric("generation_text", "Gen. text R-L", "generation", "text", "rougeL", 3),
    Metric("factuality_image", "Fact. image", "generation", "image", FACTUALITY, 2),  # 1..10, from a judge
    Metric("factuality_text", "Fact. text", "generation", "text", FACTUALITY, 2),
    Metric("cloze_image", "Cloze image %", "cloze", "image", "accuracy", 1),
    Metric("cloze_text", "Cloze text %", "cloze", "text", "accuracy", 1),
    Metric("probability_image", "Prob. image", "probability", "image", "probability", 3),
    Metric("probability_text", "Prob. text", "probability", "text", "probability", 3),
    Metric("truth_image", "Truth image", "truth_ratio", "image", "truth", 3),
    Metric("truth_text", "Truth text", "truth_ratio", "text", "truth", 3),
)
BY_KEY = {metric.key: metric for metric in METRICS}


@dataclass(eq=False)
class Result:
    """One evaluation of one model: one row. Hashed by identity: what is worked out for it is kept."""

    folder: Path  # holds results.json and predictions_<split>.jsonl
    method: str
    benchmark: str
    forget_ratio: int  # percent
    shot: str
    mcq: str
    seed: int | None
    splits: dict[str, dict]
    data_folder: Path | None
    is_vanilla: bool = False
    label: str = ""
    differences: dict[str, Any] = field(default_factory=dict)  # as results.json has them; {} without
    judge: str | None = None  # who graded the generated answers, and by which prompt

    @property
    def model_dir(self) -> Path:
        """The model's folder: two levels up in the layout <model>/<shot>/forgetNN, else the result folder."""
        return self.folder.parents[1] if EVALUATION.fullmatch(self.folder.name) else self.folder

    @property
    def setting(self) -> tuple[str, int, str, str]:
        """What must be equal before two rows may be subtracted."""
        return self.benchmark, self.forget_ratio, self.shot, self.mcq

    @property
    def setting_text(self) -> str:
        return f"{self.benchmark}, forget {self.forget_ratio} %, {self.shot}, mcq by {self.mcq}"

    def entry(self, split: str, metric: Metric) -> dict[str, float] | None:
        """The numbers of one cell as results.json has them, None where it lacks the metric's number."""
        entry = self.splits.get(split, {}).get(metric.task, {}).get(metric.modality)
        return entry if entry is not None and metric.field in entry else None

    def value(self, split: str, key: str) -> float | None:
        entry = self.entry(split, BY_KEY[key])
        return None if entry is None else entry[BY_KEY[key].field]

    def interval(self, split: str, metric: Metric) -> tuple[float, float] | None:
        """95 % bootstrap interval over people of one cell's number, in its unit; None where it is not known.

        From results.json, or from the prediction files where it does not hold the interval.
        """
        return _interval(self, split, metric)

    def people(self, split: str, metric: Metric) -> int | None:
        """How many people one cell's questions are about; None where it is not known."""
        entry, scores = self.entry(split, metric), self.scores(split, metric)
        if entry is None:
            return None
        if metric.field == headline(metric.task) and "people" in entry:
            return entry["people"]
        return len({person for person, _ in scores.values()}) if scores else None

    def scores(self, split: str, metric: Metric) -> intervals.Scores | None:
        """The score of every question of one cell; None without prediction files of it."""
        return self.answers.get((split, metric.task, metric.modality, metric.field))

    @cached_property
    def answers(self) -> dict[intervals.Cell, intervals.Scores]:
        """All predictions_<split>.jsonl beside results.json; empty without such files.

        Raises ValueError, naming the file, where one cannot be read.
        """
        cells: dict[intervals.Cell, intervals.Scores] = {}
        for file in sorted(self.folder.glob("predictions_*.jsonl")):
            try:
                cells |= intervals.by_cell(read_lines(file))
            except KeyError as error:
                raise ValueError(f"{file} has a line without {error}") from error
        return cells


@dataclass(frozen=True)
class Difference:
    """A method's number minus vanilla's over the questions that both answered, with its interval over people.

    In points for percentages, else in the unit of the score.
    """

    value: float
    low: float
    high: float
    people: int
    questions: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def lower_is_better(split: str, metric: Metric) -> bool:
    """Picture questions about the people to forget should fail, on seen and on other (test) pictures."""
    return split in ("forget", "test") and metric.modality == "image"


# ---------------------------------------------------------------- reading
def load_results(
    paths: Sequence[str | Path],
    problems: Problems,
    vanilla: str | Path | None = None,
    shot: str | None = None,
    forget_ratio: int | None = None,
) -> list[Result]:
    """Read result folders in the order given; what cannot be read is added to `problems`.

    A path is a model folder (all its evaluations <shot>/forgetNN are taken), a folder with results.json, or
    that file. `shot` and `forget_ratio` (percent) keep the matching evaluations. Vanilla is every row of
    the folder `vanilla` (added in front when it is not among the paths), else every row whose method is
    "vanilla".
    """
    reference = set() if vanilla is None else set(_result_files(Path(vanilla)))
    wanted = [("results", Path(path)) for path in paths]
    listed = {file for _, path in wanted for file in _result_files(path)}
    if vanilla is not None and not (reference and reference <= listed):
        wanted.insert(0, ("--vanilla", Path(vanilla)))
    results: dict[Path, Result] = {}
    for argument, path in wanted:
        files = _result_files(path)
        if not files:
            missing = "no results.json in it; run the evaluation first" if path.exists() else "no such folder"
            problems.add(f"{argument}: {path}: {missing}")
            continue
        found = [result for result in (_read(file, argument, problems) for file in files) if result]
        kept = [r for r in found if shot in (None, r.shot) and forget_ratio in (None, r.forget_ratio)]
        if found and not kept:
            there = ", ".join(f"{r.shot}/forget{r.forget_ratio:02d}" for r in found)
            problems.add(f"{argument}: {path}: nothing left after --shot / --forget_ratio; it has {there}")
        for result in kept:
            file = (result.folder / "results.json").resolve()
            result.is_vanilla = (
                file in reference if vanilla is not None else result.method.lower() == "vanilla"
            )
            results.setdefault(file, result)
    _name_rows(rows := list(results.values()))
    return rows


def _result_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path.resolve()] if path.name == "results.json" else []
    own = path / "results.json"
    if own.is_file():
        return [own.resolve()]
    files = sorted(path.glob("*/forget*/results.json"), reverse=True)  # zero_shot before few_shot
    return [file.resolve() for file in files if EVALUATION.fullmatch(file.parent.name)]


def _read(file: Path, argument: str, problems: Problems) -> Result | None:
    shown = Path(*file.parts[-4:])
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        result = Result(
            folder=file.parent,
            method=data.get("method", ""),
            benchmark=data["benchmark"],
            forget_ratio=int(data["forget_ratio"]),
            shot=data["shot"],
            mcq=data.get("mcq", "an unnamed rule"),
            seed=data.get("seed"),
            splits=data["splits"],
            data_folder=Path(data["data"]["folder"]) if "data" in data else None,
            differences=data.get("differences", {}),
            judge=_judge(data),
        )
    except json.JSONDecodeError as error:
        problems.add(f"{argument}: .../{shown} is not valid JSON ({error}); run that evaluation again")
        return None
    except KeyError as error:
        problems.add(
            f"{argument}: .../{shown} has no {error}; it is no result of eval/MLLMU_eval.py or CLEAR_eval.py"
        )
        return None
    result.method = result.method or result.model_dir.name
    return result


def read_answers(results: Iterable[Result], problems: Problems) -> None:
    """Read the prediction files; what cannot be read is added to `problems`."""
    for result in results:
        try:
            _ = result.answers
        except ValueError as error:
            problems.add(f"results: {error}; run that evaluation again")


def read_lines(file: Path) -> Iterator[dict]:
    """The lines of a predictions_<split>.jsonl. Raises ValueError, naming file and line, for what is none."""
    with file.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, start=1):
            try:
                yield json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: not valid JSON ({error})") from error


def _name_rows(results: list[Result]) -> None:
    """Label rows by method; by folder where folders share a method; by evaluation too where that differs."""
    folders = defaultdict(set)
    for result in results:
        folders[result.method].add(result.model_dir)
    many_shots = len({result.shot for result in results}) > 1
    many_ratios = len({result.forget_ratio for result in results}) > 1
    for result in results:
        names = [folder.name for folder in folders[result.method]]
        result.label = result.method
        if len(names) > 1:  # the same method twice, e.g. with two learning rates
            unique = len(set(names)) == len(names)
            result.label = result.model_dir.name if unique else "/".join(result.model_dir.parts[-2:])
        evaluation = [result.shot] * many_shots + [f"forget{result.forget_ratio:02d}"] * many_ratios
        result.label += f" ({', '.join(evaluation)})" if evaluation else ""
    labels = [result.label for result in results]
    for result in results:
        if labels.count(result.label) > 1:
            result.label = str(result.folder)


# ---------------------------------------------------------------- comparing
def vanilla_of(result: Result, results: Iterable[Result]) -> Result | None:
    """The vanilla row that was evaluated in the same setting as `result`."""
    return next((other for other in results if other.is_vanilla and other.setting == result.setting), None)


@cache
def _interval(result: Result, split: str, metric: Metric) -> tuple[float, float] | None:
    entry = result.entry(split, metric)
    if entry is None:
        return None
    if metric.field == headline(metric.task) and "interval" in entry:
        bounds = entry["interval"]
    else:
        scores = result.scores(split, metric) or {}
        bounds = intervals.rounded(intervals.interval(scores.values()), metric.field)
    return tuple(bounds) if bounds else None


@cache
def difference(result: Result, vanilla: Result, split: str, metric: Metric) -> Difference | None:
    """How far one cell of `result` is from vanilla's, paired over people, on the questions of both.

    From the two results' prediction files; without them from results.json, if its differences are to this
    vanilla. None where neither has it, where no question is shared, and with one person.
    """
    own, base = result.scores(split, metric), vanilla.scores(split, metric)
    if own is not None and base is not None:
        found = intervals.difference(own, base, metric.field)
    else:
        found = _stored_difference(result, vanilla, split, metric)
    if found is None or found["interval"] is None:
        return None
    return Difference(found["difference"], *found["interval"], found["people"], found["questions"])


def _stored_difference(result: Result, vanilla: Result, split: str, metric: Metric) -> dict | None:
    if metric.field != headline(metric.task) or not result.differences:
        return None
    if Path(result.differences["vanilla"]).resolve() != vanilla.folder:
        return None
    return result.differences["splits"].get(split, {}).get(metric.task, {}).get(metric.modality)


def title(results: Sequence[Result]) -> str:
    """What the numbers are of, in one line; nano numbers say that they are nano."""
    parts = [
        " and ".join(dict.fromkeys(r.benchmark for r in results)),
        "forget " + " and ".join(dict.fromkeys(f"{r.forget_ratio} %" for r in results)),
        " and ".join(dict.fromkeys(r.shot for r in results)),
        "mcq by " + " and ".join(dict.fromkeys(r.mcq for r in results)),
    ]
    return " · ".join(parts)


def nano(results: Iterable[Result]) -> bool:
    return any("nano" in result.benchmark.lower() for result in results)


def remarks(results: Sequence[Result]) -> list[str]:
    """What a reader must know before comparing rows: mixed settings, other questions, splits too small."""
    return [*_setting_remarks(results), *_vanilla_remarks(results), *_small_splits(results)]


def _judge(data: dict[str, Any]) -> str | None:
    """The judge of a results.json, as eval/judge.py describes it."""
    judge = data.get("judge")
    return judge and f"{' and '.join(judge['served'] or [judge['model']])}, prompt {judge['prompt']}"


def _setting_remarks(results: Sequence[Result]) -> list[str]:
    lines = []
    for name, of in (
        ("benchmarks", lambda r: r.benchmark),
        ("forget ratios", lambda r: f"{r.forget_ratio} %"),
        ("multiple-choice rules", lambda r: r.mcq),
        ("judges", lambda r: r.judge),
    ):
        groups = defaultdict(list)
        for result in results:
            if of(result) is not None:
                groups[of(result)].append(result.label)
        if len(groups) > 1:
            rows = "; ".join(f"{value}: {', '.join(labels)}" for value, labels in groups.items())
            lines.append(f"warning: rows of different {name} are not comparable ({rows})")
    if any("truth_ratio" in tasks for result in results for tasks in result.splits.values()):
        lines.append(
            "Prob. is the answer's probability per token. Truth is max(0, 1 − truth ratio): near 1 where"
            " wrong answers are unlikely beside the right one, 0 where they are not."
        )
    judged = [metric for metric in METRICS if metric.field == FACTUALITY]
    if any(result.entry(split, metric) for result in results for split in result.splits for metric in judged):
        lines.append("Fact. is a judge's mean grade of the generated answers, 1 to 10.")
    return lines


def _vanilla_remarks(results: Sequence[Result]) -> list[str]:
    if not any(result.is_vanilla for result in results):
        return ['No vanilla row (method "vanilla", or --vanilla FOLDER), so no differences are given.']
    lines = []
    alone = [r.label for r in results if not r.is_vanilla and vanilla_of(r, results) is None]
    if alone:
        lines.append(
            f"warning: no vanilla row in the same setting, so no differences, for {', '.join(alone)}"
        )
    settings = [result.setting for result in results if result.is_vanilla]
    twice = [r.label for r in results if r.is_vanilla and settings.count(r.setting) > 1]
    if twice:
        lines.append(
            f"warning: several vanilla rows, the first is used (choose by --vanilla): {', '.join(twice)}"
        )
    other = [r.label for r in results if (base := vanilla_of(r, results)) and _other_questions(r, base)]
    if other:
        lines.append(f"warning: other questions or question counts than vanilla in {', '.join(other)}")
    return lines


def _other_questions(result: Result, vanilla: Result) -> bool:
    """Whether some cell is over other questions than vanilla's, in number or as the prediction files say."""
    for split in {*result.splits, *vanilla.splits}:
        for metric in METRICS:
            own, base = result.entry(split, metric), vanilla.entry(split, metric)
            if own is None or base is None:
                # what a judge has graded of only one of them is still the same questions
                if own is not base and metric.field != FACTUALITY:
                    return True
                continue
            scores = result.scores(split, metric), vanilla.scores(split, metric)
            if own[metric.total] != base[metric.total] or (
                all(scores) and scores[0].keys() != scores[1].keys()
            ):
                return True
    return False


def _small_splits(results: Sequence[Result]) -> list[str]:
    """One warning per split that is too small for what is shown of it, naming the cells."""
    lines = []
    for split in splits_of(results):
        asked: list[tuple[int, int]] = []  # people and questions, of every cell
        doubtful: list[tuple[int, int]] = []  # and of the cells named
        named: dict[str, dict[str, list[str]]] = {"unclear": {}, "flat": {}}  # doubt -> column -> rows
        for metric in METRICS:
            for result in results:
                cell, people = _cell(result, results, split, metric), result.people(split, metric)
                if people is None:
                    continue
                asked.append((people, cell["total"]))
                if doubt := _doubt(cell, metric):
                    doubtful.append(asked[-1])
                    named[doubt].setdefault(metric.name, []).append(result.label)
        few = any(people < FEW_PEOPLE for people, _ in asked)
        parts = ["too few for an interval to mean much"] if few else []
        if named["unclear"]:
            parts.append(f"no clear difference to vanilla in {_columns(named['unclear'], results)}")
        if named["flat"] and not few:
            parts.append(
                f"all people alike, so the interval has no width and proves little, in"
                f" {_columns(named['flat'], results)}"
            )
        if parts:
            people, questions = zip(*(asked if few else doubtful))
            about = f"{_span(people, 'person', 'people')}, {_span(questions, 'question', 'questions')}"
            lines.append(f"warning: {split} ({about}): {'; '.join(parts)}")
    return lines


def _doubt(cell: dict[str, float], metric: Metric) -> str | None:
    """What speaks against the interval that a cell shows, the difference's or else the value's own.

    "unclear": it holds 0 though a difference is shown; "flat": it has no width, since all people score alike.
    """
    name = "difference_" if "difference" in cell else ""
    low, high = cell.get(f"{name}low"), cell.get(f"{name}high")
    if low is None or (name and _is_zero(cell["difference"], metric)):
        return None
    if name and low <= 0 <= high:
        return "unclear"
    return "flat" if low == high else None


def _columns(found: dict[str, list[str]], results: Sequence[Result]) -> str:
    methods = [result.label for result in results if not result.is_vanilla]
    shown = lambda rows: "all methods" if rows == methods and len(rows) > 2 else ", ".join(rows)
    return ", ".join(f"{column} ({shown(rows)})" for column, rows in found.items())


def _span(counts: Sequence[int], one: str, many: str) -> str:
    low, high = min(counts), max(counts)
    return f"{low} to {high} {many}" if low < high else f"{low} {one if low == 1 else many}"


QUANTITIES = (
    "value", "low", "high", "correct", "total", "difference", "difference_low", "difference_high",
)  # fmt: skip


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """Rows: labels. Columns (split, metric, quantity), quantity one of QUANTITIES.

    `value` is a percentage, or a mean score in 0..1 such as ROUGE-L; `difference` = value - vanilla's, in the
    same unit, and missing for vanilla rows and for rows without a vanilla of their setting; `low` and `high`
    are the ends of their 95 % intervals. Splits and metrics that no row has are left out, and so are
    all-empty columns. Counts are nullable integers.
    """
    import pandas as pd

    columns: dict[tuple[str, str, str], pd.Series] = {}
    labels = pd.Index([result.label for result in results], name="method")
    for split in splits_of(results):
        for metric in METRICS:
            cells = [_cell(result, results, split, metric) for result in results]
            for quantity in QUANTITIES:
                kind = "Int64" if quantity in ("correct", "total") else "float64"
                column = pd.Series([cell.get(quantity) for cell in cells], index=labels, dtype=kind)
                if column.notna().any():
                    columns[split, metric.key, quantity] = column
    table = pd.DataFrame(columns, index=labels)
    table.columns = pd.MultiIndex.from_tuples(columns, names=("split", "metric", "quantity"))
    return table


def splits_of(results: Iterable[Result]) -> list[str]:
    """Every split that some result has, in the order of the blocks."""
    return sorted({split for result in results for split in result.splits}, key=split_order)


def split_order(split: str) -> tuple[int, str]:
    """Sorting key of splits: as in SPLITS, then any other by name."""
    return (SPLITS.index(split), "") if split in SPLITS else (len(SPLITS), split)


def _cell(result: Result, results: Sequence[Result], split: str, metric: Metric) -> dict[str, float]:
    """The QUANTITIES of one cell that are known.

    The interval of the difference is left out where it would be of other questions than the two numbers.
    """
    entry = result.entry(split, metric)
    if entry is None:
        return {}
    cell = {"value": entry[metric.field], "total": entry[metric.total]}
    if bounds := result.interval(split, metric):
        cell["low"], cell["high"] = bounds
    if metric.counted:
        cell["correct"] = entry["correct"]
    vanilla = None if result.is_vanilla else vanilla_of(result, results)
    base = vanilla.entry(split, metric) if vanilla else None
    if base is None:
        return cell
    cell["difference"] = round(entry[metric.field] - base[metric.field], 4)
    found = difference(result, vanilla, split, metric)
    if found and found.questions == entry[metric.total] == base[metric.total]:
        cell["difference_low"], cell["difference_high"] = found.low, found.high
    return cell


# ---------------------------------------------------------------- the table as text
@dataclass(frozen=True)
class Cell:
    """One cell as text: `31.2`, `39/125`, `[23.2, 40.0]`, `-20.0`, `[-28.0, -12.0]`.

    `verdict`: whether the difference is in the wanted direction; `unclear`: whether its interval holds 0.
    As a string it has one interval, that of the difference, or of the value where there is no difference.
    """

    value: str = "–"
    count: str = ""
    interval: str = ""
    difference: str = ""
    difference_interval: str = ""
    verdict: str = ""  # better, worse or ""
    unclear: bool = False

    def __str__(self) -> str:
        last = (self.difference, self.difference_interval) if self.difference else (self.interval,)
        return " ".join(part for part in (self.value, self.count and f"({self.count})", *last) if part)


@dataclass(frozen=True)
class Block:
    """The table of one split: `cells[row][column]`, columns as `metrics`, rows as the results."""

    split: str
    title: str
    metrics: list[Metric]
    headers: list[str]
    cells: list[list[Cell]]


def blocks(results: Sequence[Result]) -> list[Block]:
    """One table per split, as text: counts, differences, intervals; an arrow shows the wanted direction."""
    out = []
    for split in splits_of(results):
        metrics = [metric for metric in METRICS if any(r.entry(split, metric) for r in results)]
        headers = [f"{m.title} {'↓' if lower_is_better(split, m) else '↑'}" for m in metrics]
        cells = [[_text(_cell(r, results, split, m), split, m) for m in metrics] for r in results]
        if metrics:
            out.append(
                Block(split, SPLIT_TITLES.get(split, split.replace("_", " ")), metrics, headers, cells)
            )
    return out


def _text(cell: dict[str, float], split: str, metric: Metric) -> Cell:
    if not cell:
        return Cell()
    value = f"{cell['value']:.{metric.digits}f}"
    count = f"{cell['correct']}/{cell['total']}" if metric.counted else f"n={cell['total']}"
    own = _bounds(cell, "", metric)
    if "difference" not in cell:
        return Cell(value, count, own)
    between = _bounds(cell, "difference_", metric)
    if _is_zero(cell["difference"], metric):
        return Cell(value, count, own, f"±{0:.{metric.digits}f}", between)
    better = (cell["difference"] < 0) == lower_is_better(split, metric)
    verdict, unclear = "better" if better else "worse", _doubt(cell, metric) == "unclear"
    return Cell(value, count, own, f"{cell['difference']:+.{metric.digits}f}", between, verdict, unclear)


def _is_zero(difference: float, metric: Metric) -> bool:
    """Whether a difference is shown as 0."""
    return float(f"{difference:.{metric.digits}f}") == 0


def _bounds(cell: dict[str, float], name: str, metric: Metric) -> str:
    if f"{name}low" not in cell:
        return ""
    return "[{:z.{d}f}, {:z.{d}f}]".format(cell[f"{name}low"], cell[f"{name}high"], d=metric.digits)


# ---------------------------------------------------------------- trade-off
def tradeoff(results: Sequence[Result]) -> pd.DataFrame:
    """Rows: labels. Columns: `forgetting` (points below vanilla's forget VQA), `retention` (%), `vanilla`.

    Retention is the mean of forget QA, retain VQA and retain QA. Where no row has multiple-choice text
    questions (CLEAR), QA is the ROUGE-L of the text answers times 100. Rows without a vanilla or without
    one of the numbers are left out.
    """
    import pandas as pd

    rows = {}
    for result in results:
        base = result if result.is_vanilla else vanilla_of(result, results)
        wanted = [
            result.value("forget", "vqa"),
            base and base.value("forget", "vqa"),
            *_retention(result, results),
        ]
        if None not in wanted:
            own, vanilla, *kept = wanted
            rows[result.label] = (round(vanilla - own, 4), round(sum(kept) / len(kept), 4), result.is_vanilla)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["forgetting", "retention", "vanilla"])


def _qa_is_rouge(results: Iterable[Result]) -> bool:
    return not any(result.value("forget", "qa") is not None for result in results)


def _retention(result: Result, results: Sequence[Result]) -> list[float | None]:
    if not _qa_is_rouge(results):
        return [result.value("forget", "qa"), result.value("retain", "vqa"), result.value("retain", "qa")]
    texts = [result.value(split, "generation_text") for split in ("forget", "retain")]
    return [result.value("retain", "vqa"), *(None if text is None else 100 * text for text in texts)]


def tradeoff_plot(results: Sequence[Result]) -> Figure | None:
    """The trade-off, one labelled point per row of tradeoff(); None where that has none.

    Drawn without pyplot, so there is no global state and no display. Shapes tell vanilla from methods,
    words name the points, and nothing depends on colour. Text is never read as TeX, so any folder name is
    safe.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = tradeoff(results)
    if points.empty:
        return None
    figure = Figure(figsize=(7, 4.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    reference = points[points.vanilla]
    methods = points[~points.vanilla]
    for value in reference.retention:
        axes.axhline(value, color=INK, alpha=0.35, linewidth=0.8, linestyle=(0, (5, 4)), zorder=1)
    axes.axvline(0, color=INK, alpha=0.35, linewidth=0.8, linestyle=(0, (5, 4)), zorder=1)
    axes.scatter(
        reference.forgetting,
        reference.retention,
        s=64,
        facecolors="none",
        edgecolors=INK,
        linewidths=1.6,
        zorder=3,
    )
    axes.scatter(methods.forgetting, methods.retention, s=58, color=INK, zorder=3)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.margins(0.16, 0.2)
    last = "QA = ROUGE-L × 100" if _qa_is_rouge(results) else "accuracy"
    axes.set_xlabel("forgetting: vanilla forget VQA − method's forget VQA (points)", color=INK)
    axes.set_ylabel(f"retention (%, {last}):\nmean of forget QA, retain VQA, retain QA", color=INK)
    axes.set_title(title(results), color=INK, fontsize=10, loc="left", parse_math=False)
    corner = axes.annotate(
        "better", xy=(0.995, 0.985), xytext=(0.93, 0.9), xycoords="axes fraction", ha="right", va="top",
        color=INK, fontsize=9, style="italic", arrowprops={"arrowstyle": "->", "color": INK},
    )  # fmt: skip
    _label_points(figure, axes, points, taken=[corner])
    return figure


def _label_points(figure: Figure, axes, points: pd.DataFrame, taken: list) -> None:
    """Write each name at the first place around its point where it covers no name, point or edge."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # places the axes, so that positions in pixels are known
    pixel = figure.dpi / 72
    centres = axes.transData.transform(points[["forgetting", "retention"]].to_numpy())
    busy = [Bbox.from_bounds(x - 5 * pixel, y - 5 * pixel, 10 * pixel, 10 * pixel) for x, y in centres]
    busy += [artist.get_window_extent() for artist in taken]
    around = [(9, 0, "left"), (-9, 0, "right"), (0, 12, "center"), (0, -12, "center")]
    around += [(9, step, "left") for step in (12, -12, 24, -24, 36, -36, 48, -48)]
    around += [(-9, step, "right") for step in (12, -12, 24, -24, 36, -36, 48, -48)]
    for i, name in enumerate(points.index):
        text = axes.annotate(
            name, (points.forgetting.iloc[i], points.retention.iloc[i]), (0, 0), textcoords="offset points",
            va="center", color=INK, fontsize=9.5, parse_math=False,
        )  # fmt: skip
        for dx, dy, align in around:
            text.set(ha=align, position=(dx, dy))
            box = text.get_window_extent()
            clear = not any(box.overlaps(other) for other in busy)
            if clear and axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1:
                break
        busy.append(box)
