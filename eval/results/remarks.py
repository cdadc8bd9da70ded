"""What a reader must know before comparing rows: mixed settings, other questions, splits too small, and
numbers that mean something else than they say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from eval.results.compare import cell_numbers, doubt, reference_row, splits_of, vanilla_row
from eval.results.read import Result, other_ratio
from eval.results.summary import is_below_chance, is_unreadable
from eval.tasks import FACTUALITY, METRICS, Metric

NANO_REMARK = (
    "Nano numbers come from a toy model and drawn people; they say nothing about the published benchmarks."
)
FEW_PEOPLE = 6  # with fewer an interval is too narrow: docs/reproducing.md


def remarks(results: Sequence[Result]) -> list[str]:
    """One line each; those that begin with "warning" warn."""
    return [
        *_setting_remarks(results),
        *_vanilla_remarks(results),
        *_score_remarks(results),
        *_small_splits(results),
    ]


def warnings(results: Sequence[Result]) -> list[str]:
    """Those that no verdict may be read without; few people are told where verdicts are."""
    told = [*_setting_remarks(results), *_vanilla_remarks(results), *_score_remarks(results)]
    return [line for line in told if line.startswith("warning")]


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
    judged = [metric for metric in METRICS.values() if metric.number == FACTUALITY]
    if any(result.entry(split, metric) for result in results for split in result.splits for metric in judged):
        lines.append("Fact. is a judge's mean grade of the generated answers, 1 to 10.")
    return lines


def _vanilla_remarks(results: Sequence[Result]) -> list[str]:
    if not any(result.is_vanilla for result in results):
        return ['No vanilla row (method "vanilla", or --vanilla FOLDER), so no differences are given.']
    lines = []
    alone = [r.label for r in results if not r.is_vanilla and vanilla_row(r, results) is None]
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
    other = [r.label for r in results if (base := vanilla_row(r, results)) and _other_questions(r, base)]
    if other:
        lines.append(f"warning: other questions or question counts than vanilla in {', '.join(other)}")
    ways = [(r, r.asked_otherwise(base)) for r in results if (base := vanilla_row(r, results))]
    rows = [f"{r.label} ({'; '.join(way)})" for r, way in ways if way]
    if rows:
        lines.append(f"warning: asked otherwise than vanilla, so differences mislead: {', '.join(rows)}")
    settings = [result.setting for result in results if result.is_reference]
    twice = [r for r in results if r.is_reference and settings.count(r.setting) > 1]
    if twice:
        used = dict.fromkeys(reference_row(r, results).label for r in twice)
        lines.append(
            f"warning: several retrained rows ({', '.join(r.label for r in twice)}); compared is with"
            f" {', '.join(used)} (choose by --reference)"
        )
    return lines


def _other_questions(result: Result, vanilla: Result) -> bool:
    """Whether some cell is over other questions than vanilla's, in number or as the prediction files say."""
    for split in {*result.splits, *vanilla.splits}:
        for metric in METRICS.values():
            own, base = result.entry(split, metric), vanilla.entry(split, metric)
            if own is None or base is None:
                # what a judge has graded of only one of them is still the same questions
                if own is not base and metric.number != FACTUALITY:
                    return True
                continue
            scores = result.scores(split, metric), vanilla.scores(split, metric)
            if own[metric.total] != base[metric.total] or (
                all(scores) and scores[0].keys() != scores[1].keys()
            ):
                return True
    return False


def _entries(results: Sequence[Result]) -> Iterator[tuple[str, Metric, Result, dict[str, Any]]]:
    """Every entry of results.json behind a cell."""
    for split in splits_of(results):
        for metric in METRICS.values():
            for result in results:
                if entry := result.entry(split, metric):
                    yield split, metric, result, entry


def _score_remarks(results: Sequence[Result]) -> list[str]:
    """Replies that cannot be read, choices worse than by guessing, and what ROUGE does not measure."""
    unreadable, below, unscorable = {}, {}, {}  # column -> rows
    for split, metric, result, entry in _entries(results):
        column, row = f"{split} {metric.name}", result.label
        if metric.counted and is_unreadable(entry):
            rows = unreadable.setdefault(column, [])
            rows.append(f"{row} {entry['unreadable']}/{entry['total']}")
        if metric.counted and is_below_chance(entry):
            below.setdefault(f"{column} {entry['chance']:.1f}", []).append(f"{row} {entry['accuracy']:.1f}")
        if metric.number == "rougeL" and "unscorable" in entry:
            unscorable.setdefault(column, []).append(f"{row} {entry['unscorable']}/{entry['total']}")
    lines = []
    for told, found in (
        ("replies that name no option count as wrong (--mcq likelihood needs none)", unreadable),
        ("worse than guessing, as no model is that merely does not know; chance and rows", below),
        ("truths without a Latin letter or digit, for which ROUGE is 0 whatever the reply", unscorable),
    ):
        if found:
            columns = (f"{column} ({', '.join(rows)})" for column, rows in found.items())
            lines.append(f"warning: {told}: {', '.join(columns)}")
    other = [(r, ratio) for r in results if (ratio := other_ratio(r.trained, r.forget_ratio)) is not None]
    if other:
        rows = (f"{r.label} (trained at {ratio} %, evaluated at {r.forget_ratio} %)" for r, ratio in other)
        lines.append(f"warning: other people forgotten than asked about: {', '.join(rows)}")
    return lines + _rouge_remark(results)


def _rouge_remark(results: Sequence[Result]) -> list[str]:
    """What ROUGE-L of a model that never knew the people to forget is: a sentence's template scores, too."""
    cells = [
        (metric, result, entry["rougeL"])
        for split, metric, result, entry in _entries(results)
        if split == "forget" and metric.number == "rougeL"
    ]
    if not cells:
        return []
    known = [f"{m.modality} {value:.3f} ({r.label})" for m, r, value in cells if r.never_knew(m.modality)]
    has = f"has {', '.join(known)} on forget" if known else "is above 0"
    return [f"Gen. is ROUGE-L of whole sentences: a model that never knew them {has}."]


def _small_splits(results: Sequence[Result]) -> list[str]:
    """One warning per split that is too small for what is shown of it, naming the cells."""
    lines = []
    for split in splits_of(results):
        asked: list[tuple[int, int]] = []  # people and questions, of every cell
        doubtful: list[tuple[int, int]] = []  # and of the cells named
        named: dict[str, dict[str, list[str]]] = {"unclear": {}, "flat": {}}  # doubt -> column -> rows
        for metric in METRICS.values():
            for result in results:
                cell, people = cell_numbers(result, results, split, metric), result.people(split, metric)
                if people is None:
                    continue
                asked.append((people, cell["total"]))
                if why := doubt(cell, metric):
                    doubtful.append(asked[-1])
                    named[why].setdefault(metric.name, []).append(result.label)
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


def _columns(found: dict[str, list[str]], results: Sequence[Result]) -> str:
    methods = [result.label for result in results if not result.is_vanilla]
    shown = lambda rows: "all methods" if rows == methods and len(rows) > 2 else ", ".join(rows)
    return ", ".join(f"{column} ({shown(rows)})" for column, rows in found.items())


def _span(counts: Sequence[int], one: str, many: str) -> str:
    low, high = min(counts), max(counts)
    return f"{low} to {high} {many}" if low < high else f"{low} {one if low == 1 else many}"
