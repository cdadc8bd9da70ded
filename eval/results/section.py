"""An evaluation as a section of its model's card (utils/loop/card.py): its numbers with counts and
intervals."""

from __future__ import annotations

from typing import Any

from eval.tasks import METRICS, TASKS, Metric

ABOUT = """\
Multiple choice by {mcq}, seed {seed}. Percent right (right of all) or a mean score (of how many), and in
brackets its 95 % bootstrap interval over people. To read beside the same numbers of the model before
unlearning and of one that never saw the people."""


def name(results: dict[str, Any]) -> str:
    return f"evaluation {results['shot']}, forget {results['forget_ratio']} %"


def section(results: dict[str, Any]) -> str:
    """Markdown of a results.json."""
    splits = results["splits"]
    entry = lambda split, metric: splits[split].get(metric.task, {}).get(metric.modality, {})
    metrics = [m for m in METRICS.values() if any(m.number in entry(split, m) for split in splits)]
    rows = [["", *(m.title for m in metrics)], ["---"] * (len(metrics) + 1)]
    rows += [[split.replace("_", " "), *(_cell(entry(split, m), m) for m in metrics)] for split in splits]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    title = (
        f"### {results['benchmark']}, {results['shot'].replace('_', '-')}, forget {results['forget_ratio']} %"
    )
    return f"{title}\n\n{ABOUT.format(**results)}\n\n{table}\n"


def _cell(entry: dict[str, Any], metric: Metric) -> str:
    if metric.number not in entry:
        return ""
    of = f"{entry['correct']}/{entry['total']}" if metric.counted else f"{entry[metric.total]}"
    text = f"{entry[metric.number]:.{metric.digits}f} ({of})"
    if metric.number == TASKS[metric.task].headline and entry.get("interval"):
        text += " [{:.{d}f}, {:.{d}f}]".format(*entry["interval"], d=metric.digits)
    return text
