"""The compact table: a line per model, in the reader's words, and below it what the numbers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import fill

from eval.results.compare import reference_row, title
from eval.results.figures import shortened
from eval.results.probed import Probed
from eval.results.read import Result
from eval.results.remarks import FEW_PEOPLE, NANO_REMARK, warnings
from eval.results.runs import MaskUse, Run, training_time
from eval.results.verdicts import Aim, aims, findings, gate_summary, sentence, standing
from eval.tasks import METRICS

WIDTH = 100  # columns of a terminal that nothing may be wider than
GAP = 2  # spaces between columns


@dataclass(frozen=True)
class Column:
    """Two lines of header and the cells; neighbours with the same first line share it."""

    header: tuple[str, str]
    cells: list[str]
    left: bool = False


def brief(runs: Sequence[Run], masks: Sequence[MaskUse], probes: Sequence[Probed] = ()) -> str:
    """One compact table per setting: rows of different settings are not compared."""
    settings = dict.fromkeys(run.result.setting for run in runs)
    parts = [
        _of_setting([run for run in runs if run.result.setting == setting], masks, probes)
        for setting in settings
    ]
    return "\n\n".join(parts) + "\n"


def _of_setting(runs: Sequence[Run], masks: Sequence[MaskUse], probes: Sequence[Probed]) -> str:
    results = [run.result for run in runs]
    shown = aims(results)
    table = _table(runs, masks, shown)
    while max(map(len, table.splitlines())) > WIDTH and len(shown) > 1:
        shown = shown[:-1]  # from the right: people outside first
        table = _table(runs, masks, shown)
    chosen = spoken_for(results)
    attacked = {of.label: of.line for of in probes}
    told = [*gate_summary(results), *meaning(results, shown)]
    told += warnings(results)
    told += [f"{sentence(r, results)} {attacked.get(r.label, '')}" for r in chosen]
    top = fill(about(results), WIDTH)
    return "\n".join([top, "", table, "", *(fill(line, WIDTH) for line in told if line)])


def about(results: Sequence[Result]) -> str:
    """What the numbers are of, with the people to forget."""
    people = next(filter(None, (r.people("forget", METRICS["vqa"]) for r in results)), None)
    return title(results) + (f" · {people} people to forget" if people else "")


def spoken_for(results: Sequence[Result]) -> list[Result]:
    """Whom a verdict is given on: this suite's method, or every method where it is not among the rows."""
    methods = [r for r in results if not (r.is_vanilla or r.is_reference)]
    return [r for r in methods if r.is_own] or methods


def _table(runs: Sequence[Run], masks: Sequence[MaskUse], shown: Sequence[Aim]) -> str:
    results = [run.result for run in runs]
    columns = [Column(("", ""), [shortened(r.label) for r in results], left=True)]
    for aim in shown:
        cells = [aim.number(result.value(aim.split, aim.metric.key)) for result in results]
        columns.append(Column(aim.header, cells))
    if any(result.is_reference for result in results):
        columns.append(Column(("vs.", "retrained"), [_standing(r, results) for r in results], left=True))
    times = [training_time(run, masks) for run in runs]
    if any(times):
        columns.append(Column(("", "time"), [time or "–" for time in times], left=True))
    return "\n".join(_lines(columns))


def _standing(result: Result, results: Sequence[Result]) -> str:
    if result.is_vanilla or result.is_reference or reference_row(result, results) is None:
        return "–"
    return standing(findings(result, results)) or "–"


def _widths(columns: Sequence[Column]) -> list[int]:
    """Room for each column's cells, and for the first line of the header over those that share it."""
    widths = []
    for top, group in groupby(columns, key=lambda column: column.header[0]):
        own = [max(map(len, (column.header[1], *column.cells))) for column in group]
        own[0] += max(0, len(top) - sum(own) - GAP * (len(own) - 1))
        widths += own
    return widths


def _lines(columns: Sequence[Column]) -> list[str]:
    widths = _widths(columns)
    tops, place = "", 0
    for top, group in groupby(zip(columns, widths, strict=True), key=lambda pair: pair[0].header[0]):
        group = list(group)
        room = sum(width + GAP for _, width in group) - GAP
        alone = len(group) == 1 and not group[0][0].left  # over numbers, which end at the right
        tops = tops.ljust(place) + (top.rjust(room) if alone else top.ljust(room))
        place += room + GAP
    cells = zip(*([column.header[1], *column.cells] for column in columns), strict=True)
    align = lambda column, width, text: text.ljust(width) if column.left else text.rjust(width)
    return [
        line.rstrip() for line in (tops, *((" " * GAP).join(map(align, columns, widths, c)) for c in cells))
    ]


def meaning(results: Sequence[Result], shown: Sequence[Aim]) -> list[str]:
    """What the numbers are, what one question is worth, and how few people they are about."""
    lines = []
    asked = [(aim, r.entry(aim.split, aim.metric)) for aim in shown for r in results]
    choices = [(aim, entry) for aim, entry in asked if entry and aim.metric.counted]
    if choices:
        chance = next((entry["chance"] for _, entry in choices if entry.get("chance")), None)
        line = "% right"
        if chance:
            options = round(100 / chance)
            line += f" of {options} options (chance {chance:.0f})"
        forget = next((entry["total"] for aim, entry in choices if aim.forgets), None)
        if forget:
            line += f"; one forget question is {100 / forget:.3g} points"
        lines.append(f"{line}.")
    if any(entry and not aim.metric.counted for aim, entry in asked):
        lines.append(
            "Text is ROUGE-L of whole sentences, 0 to 1: compare it with the retrained model's, not with 0."
        )
    people = [r.people("forget", METRICS["vqa"]) for r in results]
    few = min(filter(None, people), default=FEW_PEOPLE)
    if few < FEW_PEOPLE:
        lines.append(f"Only {few} people to forget: such intervals [low, high] err more often than they say.")
    if any(r.is_nano for r in results):
        lines.append(NANO_REMARK)
    return lines
