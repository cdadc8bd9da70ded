"""What the probes of models have found, for the page and the compact table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import probes
from eval.results.depth_map import Layers, depth_rows
from eval.results.runs import Run
from utils.run.ending import Problems


@dataclass
class Probed:
    """What the probes of one model have found: their findings, and the whole results of the depth probe."""

    label: str
    findings: list[tuple[str, probes.Finding]]  # (probe, finding)
    depth: dict[str, Any] | None

    @property
    def line(self) -> str:
        """How many attacks bring back something of what was lost, and more than in the retrained model; ""
        without attacks. Those that could not, or whose silence is no proof, are not counted."""
        silent = (probes.NOTHING_LOST, probes.UNKNOWN, probes.HARMED)
        tried = [pair for pair in self.findings if pair[1].recovered and not pair[1].verdict.endswith(silent)]
        hidden = [probe for probe, finding in tried if finding.verdict.endswith(probes.HIDDEN)]
        if hidden:
            names = ", ".join(dict.fromkeys(hidden))
            return f"Hidden, not forgotten, by {len(hidden)} of {len(tried)} attacks ({names})."
        return f"No attack of {len(tried)} recovers more than in the retrained model." if tried else ""


def probed(runs: Sequence[Run], problems: Problems) -> list[Probed]:
    """One per model that was probed; what no probe writes is a problem."""
    out = []
    for run in runs:
        try:
            if found := probes.probe_rows(run.folder):
                out.append(Probed(run.result.label, found, _depth(run.folder)))
        except ValueError as error:
            problems.add(f"results: {error}")
    return out


def _depth(model: Path) -> dict[str, Any] | None:
    """The results of the depth probe; None without it. Raises ValueError for what it does not write."""
    path = probes.probe_folder(model, "depth") / "results.json"
    content = probes.read_probe(path) if path.is_file() else None
    try:
        _ = content and (Layers.of(content), depth_rows({"": content}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no result of the depth probe ({error!r}); take it away") from error
    return content
