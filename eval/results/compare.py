"""Results beside each other: each with its vanilla row, as numbers and as the text of tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from eval.results.intervals import Difference, paired
from eval.results.read import Result
from eval.tasks import FACTUALITY, METRICS, SPLITS, TASKS, Metric, arrow, lower_is_better, split_of

if TYPE_CHECKING:
    import pandas as pd


def vanilla_row(result: Result, results: Iterable[Result]) -> Result | None:
    """The vanilla row that was evaluated in the same setting as `result`."""
    return next((other for other in results if other.is_vanilla and other.setting == result.setting), None)


def reference_row(result: Result, results: Iterable[Result]) -> Result | None:
    """The retrained row of the setting of `result`; of several one that kept the text, as visual forgetting
    should."""
    found = [other for other in results if other.is_reference and other.setting == result.setting]
    return min(found, key=lambda other: other.never_knew("text"), default=None)


@cache
def difference(result: Result, vanilla: Result, split: str, metric: Metric) -> Difference | None:
    """How far one cell of `result` is from vanilla's, or another row's, paired over people, on the questions
    of both.

    From the two results' prediction files; without them from results.json, if its differences are to this
    vanilla. None where neither has it, where no question is shared, and with one person.
    """
    own, base = result.scores(split, metric), vanilla.scores(split, metric)
    if own is not None and base is not None:
        found = paired(own, base, metric.number)
    else:
        found = _stored_difference(result, vanilla, split, metric)
    return found if found and found.interval else None


def _stored_difference(result: Result, vanilla: Result, split: str, metric: Metric) -> Difference | None:
    stored = result.content.get("differences")
    if not stored or metric.number != TASKS[metric.task].headline:
        return None
    if Path(stored["vanilla"]).resolve() != vanilla.folder:
        return None
    found = stored["splits"].get(split, {}).get(metric.task, {}).get(metric.modality)
    return found and Difference(**found)


def title(results: Sequence[Result]) -> str:
    """What the numbers are of, in one line; nano numbers say that they are nano."""
    parts = [
        " and ".join(dict.fromkeys(r.benchmark for r in results)),
        "forget " + " and ".join(dict.fromkeys(f"{r.forget_ratio} %" for r in results)),
        " and ".join(dict.fromkeys(r.shot for r in results)),
        "multiple choice by " + " and ".join(dict.fromkeys(r.mcq for r in results)),
    ]
    return " · ".join(parts)


MEASURES = ("accuracy", *dict.fromkeys(name for task in TASKS.values() for name in task.means), FACTUALITY)
QUANTITIES = (
    "value", "low", "high", "correct", "unreadable", "total", "difference", "difference_low",
    "difference_high",
)  # fmt: skip


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """Rows: labels. Columns (split, metric, quantity), quantity one of QUANTITIES.

    `value` is a percentage, or a mean score in 0..1 such as ROUGE-L; `difference` = value - vanilla's, in the
    same unit, and missing for vanilla rows and for rows without a vanilla of their setting; `low` and `high`
    are the ends of their 95 % intervals. Splits and metrics that no row has are left out, and so are
    all-empty columns, and those of unreadable replies where there are none. Counts are nullable integers.
    """
    import pandas as pd

    columns: dict[tuple[str, str, str], pd.Series] = {}
    labels = pd.Index([result.label for result in results], name="method")
    for split in splits_of(results):
        for metric in METRICS.values():
            cells = [cell_numbers(result, results, split, metric) for result in results]
            for quantity in QUANTITIES:
                kind = "Int64" if quantity in ("correct", "unreadable", "total") else "float64"
                column = pd.Series([cell.get(quantity) for cell in cells], index=labels, dtype=kind)
                if column.any() if quantity == "unreadable" else column.notna().any():
                    columns[split, metric.key, quantity] = column
    table = pd.DataFrame(columns, index=labels)
    table.columns = pd.MultiIndex.from_tuples(columns, names=("split", "metric", "quantity"))
    return table


def long_frame(results: Sequence[Result]) -> pd.DataFrame:
    """One row per model, split, task, modality and measure: the setting, then `value`, `n` (over how many
    questions), `people`, and `low` and `high`, the ends of its 95 % interval, where these are known.

    A measure is a mean of results.json: accuracy in percent, rouge1, bleu, ... in 0..1, factuality in 1..10.
    """
    import pandas as pd

    columns = {(m.task, m.modality, m.number): m for m in METRICS.values()}
    rows = []
    for result in results:
        about = {"method": result.label, "model": str(result.model_dir), "vanilla": result.is_vanilla}
        about |= {"retrained": result.is_reference, "benchmark": result.benchmark}
        about |= {name: getattr(result, name) for name in ("forget_ratio", "shot", "mcq", "seed")}
        for split, task, modality, entry in result.entries():
            for measure in (name for name in MEASURES if name in entry):
                metric = columns.get((task, modality, measure))
                low, high = (metric and result.interval(split, metric)) or (None, None)
                rows.append(
                    about
                    | {"split": split, "task": task, "modality": modality, "measure": measure}
                    | {"value": entry[measure], "n": entry["judged" if measure == FACTUALITY else "total"]}
                    | {"people": entry.get("people"), "low": low, "high": high}
                )
    return pd.DataFrame(rows)


def splits_of(results: Iterable[Result]) -> list[str]:
    """Every split that some result has, in the order of the blocks."""
    return sorted({split for result in results for split in result.splits}, key=split_order)


def split_order(split: str) -> tuple[int, str]:
    """Sorting key of splits: as in SPLITS, then any other by name."""
    return ([*SPLITS, split].index(split), split)


def cell_numbers(result: Result, results: Sequence[Result], split: str, metric: Metric) -> dict[str, float]:
    """The QUANTITIES of one cell that are known.

    The interval of the difference is left out where it would be of other questions than the two numbers.
    """
    entry = result.entry(split, metric)
    if entry is None:
        return {}
    cell = {"value": entry[metric.number], "total": entry[metric.total]}
    if bounds := result.interval(split, metric):
        cell["low"], cell["high"] = bounds
    if metric.counted:
        cell |= {name: entry[name] for name in ("correct", "unreadable") if name in entry}
    vanilla = None if result.is_vanilla else vanilla_row(result, results)
    base = vanilla.entry(split, metric) if vanilla else None
    if base is None:
        return cell
    cell["difference"] = round(entry[metric.number] - base[metric.number], 4)
    found = difference(result, vanilla, split, metric)
    if found and found.questions == entry[metric.total] == base[metric.total]:
        cell["difference_low"], cell["difference_high"] = found.interval
    return cell


def doubt(cell: dict[str, float], metric: Metric) -> str | None:
    """What speaks against the interval that a cell shows, the difference's or else the value's own.

    "unclear": it holds 0 though a difference is shown; "flat": it has no width, since all people score alike.
    """
    name = "difference_" if "difference" in cell else ""
    low, high = cell.get(f"{name}low"), cell.get(f"{name}high")
    if low is None or (name and is_zero(cell["difference"], metric)):
        return None
    if name and low <= 0 <= high:
        return "unclear"
    return "flat" if low == high else None


# ---------------------------------------------------------------- the table as text
@dataclass(frozen=True)
class Cell:
    """One cell as text: `31.2`, `39/125, 7 unreadable`, `[23.2, 40.0]`, `-20.0`, `[-28.0, -12.0]`.

    `verdict`: whether the difference is in the wanted direction, "" also where less is known of what is to be
    forgotten than by the retrained model; `unclear`: whether its interval holds 0.
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
    """The table of one split: `cells[row][column]`, columns as `headers`, rows as the results."""

    title: str
    headers: list[str]
    cells: list[list[Cell]]


def blocks(results: Sequence[Result]) -> list[Block]:
    """One table per split, as text: counts, differences, intervals; an arrow shows the wanted direction."""
    out = []
    for split in splits_of(results):
        metrics = [m for m in METRICS.values() if any(r.entry(split, m) for r in results)]
        headers = [f"{m.title} {arrow(split, m)}{_beside(results, split, m)}" for m in metrics]
        cells = [
            [
                _text(cell_numbers(r, results, split, m), split, m, _retrained([r], results, split, m))
                for m in metrics
            ]
            for r in results
        ]
        if metrics:
            out.append(Block(split_of(split).title, headers, cells))
    return out


def _retrained(rows: Sequence[Result], results: Sequence[Result], split: str, metric: Metric) -> float | None:
    """The number of the first retrained row that one of the rows is compared with."""
    row = next((ref for r in rows if (ref := reference_row(r, results))), None)
    return row and row.value(split, metric.key)


def _beside(results: Sequence[Result], split: str, metric: Metric) -> str:
    """ROUGE of a whole sentence never stands alone: what the retrained model has, who knows the words of the
    sentence and nothing else."""
    value = _retrained(results, results, split, metric) if metric.number == "rougeL" else None
    return "" if value is None else f" (retrained {value:.{metric.digits}f})"


def _text(cell: dict[str, float], split: str, metric: Metric, retrained: float | None) -> Cell:
    if not cell:
        return Cell()
    value = f"{cell['value']:.{metric.digits}f}"
    count = f"{cell['correct']}/{cell['total']}" if metric.counted else f"n={cell['total']}"
    count += f", {cell['unreadable']} unreadable" if cell.get("unreadable") else ""
    own = _bounds(cell, "", metric)
    if "difference" not in cell:
        return Cell(value, count, own)
    between = _bounds(cell, "difference_", metric)
    if is_zero(cell["difference"], metric):
        return Cell(value, count, own, f"±{0:.{metric.digits}f}", between)
    better = (cell["difference"] < 0) == lower_is_better(split, metric)
    too_far = lower_is_better(split, metric) and retrained is not None and cell["value"] < retrained
    verdict = "" if too_far else "better" if better else "worse"
    unclear = doubt(cell, metric) == "unclear"
    return Cell(value, count, own, f"{cell['difference']:+.{metric.digits}f}", between, verdict, unclear)


def is_zero(difference: float, metric: Metric) -> bool:
    """Whether a difference is shown as 0."""
    return float(f"{difference:.{metric.digits}f}") == 0


def _bounds(cell: dict[str, float], name: str, metric: Metric) -> str:
    if f"{name}low" not in cell:
        return ""
    return "[{:z.{d}f}, {:z.{d}f}]".format(cell[f"{name}low"], cell[f"{name}high"], d=metric.digits)
