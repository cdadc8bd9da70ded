"""Numbers that papers and users have published, and ours beside them. Used by eval/table.py --published.

The numbers are in eval/results/published_numbers/*.csv, one per line with its source. Only what is written
there is shown; nothing is filled in. A published number stands beside ours when benchmark, method, split and
metric are the same and its forget ratio is ours or is not stated. `metric` is a key of METRICS; other names
(`classification` where the modality is not stated, judged scores, aggregates) are kept as data and never set
beside ours.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.results.compare import split_order
from eval.results.read import Result
from eval.tasks import BENCHMARKS, METRICS

FOLDER = Path(__file__).resolve().parent / "published_numbers"
METHODS = {"manifold": "mmunlearner", "finetune": "vanilla"}  # names of our scripts that papers do not use
NOT_NANO = "Nano results are never set beside published numbers: other people, other pictures, another model."
HEADERS = ("split", "metric", "ours", "published", "difference", "their model", "ratio", "source")


@dataclass(frozen=True)
class Published:
    """One number as it was published. `value` is in `unit`: % | 0..1 | s | score."""

    source: str
    url: str
    benchmark: str
    model: str  # "": not stated
    forget_ratio: int | None  # percent; None: not stated
    method: str
    split: str
    metric: str
    value: float
    unit: str
    second_hand: bool  # read in somebody's notes or index, not at the source
    note: str

    @property
    def about(self) -> str:
        """Where it comes from, in one line."""
        parts = (self.source, "second-hand" if self.second_hand else "", self.note, self.url)
        return "; ".join(part for part in parts if part)


def load(folder: Path = FOLDER) -> list[Published]:
    """All published numbers, in the order of the files."""
    numbers = []
    for file in sorted(folder.glob("*.csv")):
        with open(file, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                row["forget_ratio"] = int(row["forget_ratio"]) if row["forget_ratio"] else None
                row |= {"value": float(row["value"]), "second_hand": row["second_hand"] == "yes"}
                numbers.append(Published(**row))
    return numbers


def standard_error(correct: float, total: int) -> float:
    """Standard error of a proportion, in points: 100·√(p(1−p)/n), p = correct/total."""
    p = correct / total
    return 100 * math.sqrt(p * (1 - p) / total)


def beside(result: Result, numbers: Sequence[Published]) -> list[Published]:
    """The published numbers that one evaluation may be compared with, by split and metric."""
    method = METHODS.get(result.method.lower(), result.method.lower())
    found = []
    for number in numbers:
        about = (number.benchmark, number.method.lower())
        if about != (result.benchmark, method) or number.forget_ratio not in (None, result.forget_ratio):
            continue
        metric = METRICS.get(number.metric)
        if metric is None or result.entry(number.split, metric) is None:
            continue
        if not (metric.task == "classification" and result.mcq == "likelihood"):  # another task
            found.append(number)
    order = list(METRICS)
    return sorted(found, key=lambda number: (split_order(number.split), order.index(number.metric)))


def comparison(results: Sequence[Result], numbers: Sequence[Published] | None = None) -> str:
    """One table per evaluation that has something to stand beside, warnings, and the list of sources."""
    numbers = load() if numbers is None else numbers
    parts, sources = ["**Published numbers beside ours**"], {}
    if any(result.is_nano for result in results):
        parts.append(NOT_NANO)
    for result in (result for result in results if not result.is_nano):
        if result.mcq == "likelihood":
            parts.append(
                f"{result.label}: multiple choice by likelihood is another task than the published one."
            )
        if found := beside(result, numbers):
            parts += [f"{result.label} ({result.setting_text})", *_table(result, found, sources)]
        else:
            parts.append(f"{result.label}: no published number is known for this setting.")
    parts += [f"[{place}] {about}" for about, place in sources.items()]
    if sources:
        parts.append(
            "±: standard error of our own questions, in points; ≈: the difference is smaller. ROUGE-L has"
            " none here; the table has its intervals. Models, seeds, few-shot examples and test pictures"
            " differ between these sources; docs/reproducing.md says how much re-runs differ."
        )
    return "\n\n".join(parts) + "\n"


def _table(result: Result, found: list[Published], sources: dict[str, int]) -> list[str]:
    """The table, and a warning where we asked another number of questions than were published."""
    from tabulate import tabulate

    bench = next((bench for bench in BENCHMARKS if result.benchmark == bench.TITLE), None)
    rows, extracts = [], {}
    for number in found:
        metric = METRICS[number.metric]
        entry, digits = result.entry(number.split, metric), metric.digits
        ours, total = entry[metric.number], entry["total"]
        error = standard_error(entry["correct"], total) if metric.counted else 0.0
        count = f"{entry['correct']}/{total}) ±{error:.1f}" if metric.counted else f"n={total})"
        close = " ≈" if abs(ours - number.value) < error else ""
        rows.append(
            (
                number.split,
                metric.title,
                f"{ours:.{digits}f} ({count}",
                f"{number.value:.{digits}f}",
                f"{ours - number.value:+.{digits}f}{close}",
                number.model or "not stated",
                f"{number.forget_ratio} %" if number.forget_ratio else "not stated",
                f"[{sources.setdefault(number.about, len(sources) + 1)}]",
            )
        )
        totals = bench.published_totals(number.split, metric.task, result.forget_ratio, result.shot)
        if totals and total not in totals:
            name = metric.title.removesuffix(" %")
            extracts[f"{number.split} {name} n={total}, published: {totals[0]}"] = True
    table = [tabulate(rows, HEADERS, "github", disable_numparse=True)]
    if extracts:
        table.append("warning: not the published number of questions (an extract?): " + "; ".join(extracts))
    return table
