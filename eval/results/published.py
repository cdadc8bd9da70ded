"""Numbers that papers and users have published, and ours beside them. Used by eval/table.py --published.

The numbers are in eval/results/published_numbers/*.csv, one per line with its source. Only what is written
there is shown; nothing is filled in. A published number stands beside ours when benchmark, method, split and
metric are the same and its forget ratio is ours or is not stated. `metric` is a key of eval/results/read.py;
other names (`classification` where the modality is not stated, judged scores, aggregates) are kept as data
and never set beside ours.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.results.compare import split_order
from eval.results.read import Result
from eval.tasks import METRICS

FOLDER = Path(__file__).resolve().parent / "published_numbers"
METHODS = {"manifold": "MMUnlearner", "finetune": "Vanilla"}  # names of our scripts that papers do not use
PER_PERSON = {"classification": 5, "generation": 2, "cloze": 2}  # MLLMU-Bench, in each modality
CLEAR_FORGET = {1: 35, 5: 188, 10: 378}  # rows of forgetNN_perturbed
CLEAR_OTHERS = {"retain": 395, "real_faces": 151, "real_world": 367}
NANO = "Nano results are never set beside published numbers: other people, other pictures, another model."


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


@dataclass(frozen=True)
class Pair:
    """One of our numbers and a published one, in the unit of the metric: points of percent, or 0..1."""

    ours: float
    correct: int | None  # None for scores
    total: int
    published: Published

    @property
    def difference(self) -> float:
        return self.ours - self.published.value

    @property
    def error(self) -> float | None:
        """Standard error of our percentage; None for scores, whose spread results.json does not hold."""
        return None if self.correct is None else standard_error(self.correct, self.total)

    @property
    def within_error(self) -> bool:
        return self.error is not None and abs(self.difference) < self.error


def standard_error(correct: float, total: int) -> float:
    """Standard error of a proportion, in points: 100·√(p(1−p)/n), p = correct/total."""
    p = correct / total
    return 100 * math.sqrt(p * (1 - p) / total)


def load(folder: Path = FOLDER) -> list[Published]:
    """All published numbers, in the order of the files."""
    numbers = []
    for file in sorted(folder.glob("*.csv")):
        with open(file, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                numbers.append(
                    Published(
                        **{
                            **row,
                            "forget_ratio": int(row["forget_ratio"]) if row["forget_ratio"] else None,
                            "value": float(row["value"]),
                            "second_hand": row["second_hand"] == "yes",
                        }
                    )
                )
    return numbers


def method_of(result: Result) -> str:
    """Our method under the name that the published numbers have."""
    return METHODS.get(result.method.lower(), result.method)


def beside(result: Result, numbers: Sequence[Published]) -> list[Pair]:
    """The published numbers that one evaluation may be compared with, by split and metric."""
    order = {metric.key: place for place, metric in enumerate(METRICS.values())}
    pairs = []
    for number in numbers:
        if (
            number.metric not in order
            or number.benchmark != result.benchmark
            or number.method.lower() != method_of(result).lower()
            or number.forget_ratio not in (None, result.forget_ratio)
        ):
            continue
        metric = METRICS[number.metric]
        entry = result.entry(number.split, metric)
        if entry is not None and not (metric.task == "classification" and result.mcq == "likelihood"):
            pairs.append(Pair(entry[metric.number], entry.get("correct"), entry["total"], number))
    return sorted(pairs, key=lambda p: (split_order(p.published.split), order[p.published.metric]))


def published_total(result: Result, split: str, metric: str) -> int | None:
    """How many questions the published benchmark has there; None where that is not known."""
    task, ratio = METRICS[metric].task, result.forget_ratio
    if result.benchmark == "MLLMU-Bench":
        people = {"forget": 5 * ratio, "test": 5 * ratio, "retain": 500 - 5 * ratio, "real": 153}.get(split)
        return None if people is None else people * PER_PERSON[task]
    if result.benchmark == "CLEAR" and task == "classification":
        return {"forget": CLEAR_FORGET.get(ratio), **CLEAR_OTHERS}.get(split)
    return None


# ---------------------------------------------------------------- as text
def markdown(results: Sequence[Result], numbers: Sequence[Published] | None = None) -> str:
    """One table per evaluation that has something to stand beside, warnings, and the list of sources."""
    numbers = load() if numbers is None else numbers
    parts, sources = ["**Published numbers beside ours**"], {}
    if any("nano" in result.benchmark.lower() for result in results):
        parts.append(NANO)
    for result in results:
        if "nano" in result.benchmark.lower():
            continue
        pairs = beside(result, numbers)
        if result.mcq == "likelihood":
            parts.append(
                f"{result.label}: multiple choice by likelihood is another task than the published one."
            )
        if not pairs:
            parts.append(f"{result.label}: no published number is known for this setting.")
            continue
        parts += [
            f"{result.label} ({result.setting_text})",
            _table(pairs, sources),
            *_other_totals(result, pairs),
            *_warnings(pairs, sources),
        ]
    if sources:
        parts += [_source_line(number, place) for number, place in sources.items()]
        parts.append(
            "Models, seeds, few-shot examples and test pictures differ between these sources;"
            " docs/reproducing.md says by how much re-runs of the same weights differ."
        )
    return "\n\n".join(parts) + "\n"


def _table(pairs: list[Pair], sources: dict[tuple, int]) -> str:
    from tabulate import tabulate

    rows = []
    for pair in pairs:
        number, metric = pair.published, METRICS[pair.published.metric]
        place = sources.setdefault(_source(number), len(sources) + 1)
        count = f"{pair.correct}/{pair.total}" if pair.correct is not None else f"n={pair.total}"
        rows.append(
            (
                number.split,
                metric.title,
                f"{pair.ours:.{metric.digits}f} ({count})",
                f"{number.value:.{metric.digits}f}",
                f"{pair.difference:+.{metric.digits}f}" + (" ≈" if pair.within_error else ""),
                number.model or "not stated",
                f"{number.forget_ratio} %" if number.forget_ratio else "not stated",
                f"[{place}]",
            )
        )
    headers = ("split", "metric", "ours", "published", "difference", "their model", "ratio", "source")
    return tabulate(rows, headers, "github", disable_numparse=True)


def _other_totals(result: Result, pairs: list[Pair]) -> list[str]:
    """A warning where we asked another number of questions than the published benchmark has. Few-shot leaves
    out one person's."""
    odd = {}
    for p in pairs:
        metric = METRICS[p.published.metric]
        wanted = published_total(result, p.published.split, metric.key)
        shown = PER_PERSON.get(metric.task, 0) if result.shot == "few_shot" else 0
        if wanted is not None and p.total not in (wanted, wanted - shown):
            odd[f"{p.published.split} {metric.title.removesuffix(' %')} n={p.total}, published: {wanted}"] = (
                None
            )
    if not odd:
        return []
    return ["warning: not the published number of questions (an extract?): " + "; ".join(odd)]


def _warnings(pairs: list[Pair], sources: dict[tuple, int]) -> list[str]:
    """One line for the differences that are smaller than the sampling error of our own questions, one for
    scores."""
    lines = []
    small = []
    for p in pairs:
        if p.within_error:
            title = METRICS[p.published.metric].title.removesuffix(" %")
            place = sources[_source(p.published)]
            small.append(
                f"{p.published.split} {title} against {p.published.value:.1f} [{place}]:"
                f" {abs(p.difference):.1f} < {p.error:.1f} (n={p.total})"
            )
    if small:
        lines.append(
            "warning: ≈ the difference is smaller than the standard error of our own questions (points): "
            + "; ".join(small)
        )
    if any(p.error is None for p in pairs):
        lines.append("Scores (ROUGE-L) get no standard error here; the table has their intervals.")
    return lines


def _source(number: Published) -> tuple[str, str, bool, str]:
    return number.source, number.url, number.second_hand, number.note


def _source_line(source: tuple[str, str, bool, str], place: int) -> str:
    name, url, second_hand, note = source
    parts = [name, "second-hand" if second_hand else "", note, url]
    return f"[{place}] " + "; ".join(part for part in parts if part)
