"""The first screen of the report: what it is about, a verdict per method, a line per model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.results.compare import reference_row, title
from eval.results.probed import Probed
from eval.results.read import Result
from eval.results.runs import MaskUse, Run, training_time
from eval.results.verdicts import Finding, aims, findings, headline
from eval.tasks import METRICS


@dataclass(frozen=True)
class Card:
    """The verdict on one method, with the times of its training (with its mask, where it is `masked`) and of
    the retrained model's as text, "" where they are not known."""

    label: str
    headline: str
    findings: list[Finding]
    time: str
    retraining: str
    masked: bool
    probes: str  # what attacks bring back, in a sentence; "" where the model was not probed


def cards(runs: Sequence[Run], masks: Sequence[MaskUse], probes: Sequence[Probed]) -> list[Card]:
    """One per method, this suite's first."""
    results, said = [run.result for run in runs], {of.label: of.line for of in probes}
    time = {run.result: training_time(run, masks) for run in runs}
    found = []
    for result in sorted(results, key=lambda result: not result.is_own):
        if not (result.is_vanilla or result.is_reference):
            times = time[result], time.get(reference_row(result, results), "")
            told = headline(result, results), findings(result, results)
            masked = any(result.label in use.labels and use.made for use in masks)
            found.append(Card(result.label, *told, *times, masked, said.get(result.label, "")))
    return found


@dataclass(frozen=True)
class Row:
    """One model's line: a Finding for each aim, None where it has no number; words only of methods."""

    label: str
    kind: str  # vanilla, retrained, own or ""
    cells: list[tuple[Finding | None, str]]  # with the number's own interval


def rows(results: Sequence[Result]) -> list[Row]:
    out = []
    for result in results:
        known = {f.aim: f for f in findings(result, results)}
        kinds = {"vanilla": result.is_vanilla, "retrained": result.is_reference, "own": result.is_own}
        kind = next((name for name, applies in kinds.items() if applies), "")
        cells = [
            (known.get(aim), aim.bounds(result.interval(aim.split, aim.metric))) for aim in aims(results)
        ]
        out.append(Row(result.label, kind, cells))
    return out


def about(runs: Sequence[Run]) -> list[str]:
    """What the page is about: benchmark, people, model, how it was asked, chance."""
    results = [run.result for run in runs]
    people = {
        name: max((r.people(name, METRICS["vqa"]) or 0 for r in results), default=0)
        for name in ("forget", "retain")
    }
    given = (run.training.get("arguments", {}).get("model_id") for run in runs)
    model = next((name for name in given if isinstance(name, str)), "")
    entries = (r.entry("forget", METRICS["vqa"]) for r in results)
    chance = next((entry["chance"] for entry in entries if entry and "chance" in entry), None)
    parts = title(results).split(" · ")
    if people["forget"]:
        parts.insert(2, f"{people['forget']} of {sum(people.values())} people to forget")
    if chance is not None:
        parts.append(f"chance {chance:.0f} %")
    return parts + [f"model {'/'.join(Path(model).parts[-2:])}"] * bool(model)
