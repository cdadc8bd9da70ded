"""Result folders side by side: read them, pair each with its vanilla, tabulate, plot the trade-off.

What eval/table.py prints and eval/report.py shows is decided here once: which numbers, which differences,
which warnings.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from utils.cli import Problems

SPLITS = ("forget", "test", "retain", "real", "real_faces", "real_world")  # order of the blocks and columns
SPLIT_TITLES = {"real": "real celebrities", "test": "test (forget people, other pictures)"}
EVALUATION = re.compile(r"forget\d+")  # folder of a finished evaluation
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
        """Whether the number is a percentage of questions (else a mean score in 0..1)."""
        return self.field == "accuracy"


METRICS = (
    Metric("vqa", "VQA %", "classification", "image", "accuracy", 1),
    Metric("qa", "QA %", "classification", "text", "accuracy", 1),
    Metric("generation_image", "Gen. image R-L", "generation", "image", "rougeL", 3),
    Metric("generation_text", "Gen. text R-L", "generation", "text", "rougeL", 3),
    Metric("cloze_image", "Cloze image %", "cloze", "image", "accuracy", 1),
    Metric("cloze_text", "Cloze text %", "cloze", "text", "accuracy", 1),
    Metric("probability_image", "Prob. image", "probability", "image", "probability", 3),
    Metric("probability_text", "Prob. text", "probability", "text", "probability", 3),
    Metric("truth_image", "Truth image", "truth_ratio", "image", "truth", 3),
    Metric("truth_text", "Truth text", "truth_ratio", "text", "truth", 3),
)
BY_KEY = {metric.key: metric for metric in METRICS}


@dataclass
class Result:
    """One evaluation of one model: one row."""

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
        """The numbers of one cell as results.json has them, None where it has none."""
        return self.splits.get(split, {}).get(metric.task, {}).get(metric.modality)

    def value(self, split: str, key: str) -> float | None:
        entry = self.entry(split, BY_KEY[key])
        return None if entry is None else entry[BY_KEY[key].field]


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
    """What a reader must know before comparing rows: mixed settings, no vanilla, other question counts."""
    lines = []
    for name, of in (
        ("benchmarks", lambda r: r.benchmark),
        ("forget ratios", lambda r: f"{r.forget_ratio} %"),
        ("multiple-choice rules", lambda r: r.mcq),
    ):
        groups = defaultdict(list)
        for result in results:
            groups[of(result)].append(result.label)
        if len(groups) > 1:
            rows = "; ".join(f"{value}: {', '.join(labels)}" for value, labels in groups.items())
            lines.append(f"warning: rows of different {name} are not comparable ({rows})")
    if any("truth_ratio" in tasks for result in results for tasks in result.splits.values()):
        lines.append(
            "Prob. is the answer's probability per token. Truth is max(0, 1 − truth ratio): near 1 where"
            " wrong answers are unlikely beside the right one, 0 where they are not."
        )
    if not any(result.is_vanilla for result in results):
        lines.append('No vanilla row (method "vanilla", or --vanilla FOLDER), so no differences are given.')
        return lines
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
    other = [r.label for r in results if (base := vanilla_of(r, results)) and _totals(r) != _totals(base)]
    if other:
        lines.append(f"warning: other questions or question counts than vanilla in {', '.join(other)}")
    return lines


def _totals(result: Result) -> dict[tuple[str, str], int]:
    cells = {(split, m.key): result.entry(split, m) for split in result.splits for m in METRICS}
    return {key: int(entry["total"]) for key, entry in cells.items() if entry}


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """Rows: labels. Columns (split, metric, quantity) with quantity one of value, correct, total, difference.

    `value` is a percentage, or a mean score in 0..1 such as ROUGE-L; `difference` = value - vanilla's, in the
    same unit, and missing for vanilla rows and for rows without a vanilla of their setting. Splits and
    metrics that no row has are left out, and so are all-empty columns. Counts are nullable integers.
    """
    import pandas as pd

    splits = sorted({split for r in results for split in r.splits}, key=split_order)
    columns: dict[tuple[str, str, str], pd.Series] = {}
    labels = pd.Index([result.label for result in results], name="method")
    for split in splits:
        for metric in METRICS:
            cells = [_cell(result, results, split, metric) for result in results]
            for quantity in ("value", "correct", "total", "difference"):
                kind = "Int64" if quantity in ("correct", "total") else "float64"
                column = pd.Series([cell.get(quantity) for cell in cells], index=labels, dtype=kind)
                if column.notna().any():
                    columns[split, metric.key, quantity] = column
    table = pd.DataFrame(columns, index=labels)
    table.columns = pd.MultiIndex.from_tuples(columns, names=("split", "metric", "quantity"))
    return table


def split_order(split: str) -> tuple[int, str]:
    """Sorting key of splits: as in SPLITS, then any other by name."""
    return (SPLITS.index(split), "") if split in SPLITS else (len(SPLITS), split)


def _cell(result: Result, results: Sequence[Result], split: str, metric: Metric) -> dict[str, float]:
    entry = result.entry(split, metric)
    if entry is None:
        return {}
    cell = {"value": entry[metric.field], "total": entry["total"]}
    if metric.counted:
        cell["correct"] = entry["correct"]
    vanilla = None if result.is_vanilla else vanilla_of(result, results)
    base = vanilla.value(split, metric.key) if vanilla else None
    if base is not None:
        cell["difference"] = round(entry[metric.field] - base, 4)
    return cell


# ---------------------------------------------------------------- the table as text
@dataclass(frozen=True)
class Cell:
    """One cell as text: `31.2`, `39/125`, `-20.0`, and whether the difference is in the wanted direction."""

    value: str = "–"
    count: str = ""
    difference: str = ""
    verdict: str = ""  # better, worse or ""

    def __str__(self) -> str:
        return " ".join(
            part for part in (self.value, self.count and f"({self.count})", self.difference) if part
        )


@dataclass(frozen=True)
class Block:
    """The table of one split: `cells[row][column]`, columns as `metrics`, rows as the results."""

    split: str
    title: str
    metrics: list[Metric]
    headers: list[str]
    cells: list[list[Cell]]


def blocks(results: Sequence[Result]) -> list[Block]:
    """One table per split, as text, with counts and differences; an arrow shows the wanted direction."""
    out = []
    for split in sorted({split for r in results for split in r.splits}, key=split_order):
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
    if "difference" not in cell:
        return Cell(value, count)
    difference = f"{cell['difference']:+.{metric.digits}f}"
    if float(difference) == 0:
        return Cell(value, count, f"±{0:.{metric.digits}f}")
    better = (cell["difference"] < 0) == lower_is_better(split, metric)
    return Cell(value, count, difference, "better" if better else "worse")


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
