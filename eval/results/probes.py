"""Results of probes: what an attack brings back, beside what it brings to a model that never knew.

A probe asks the same questions before and after an attack (other words, another picture, rounded weights, a
few steps of training). What a model recovers is after - before. That alone measures learning, or an easier
question; so the retrained model is attacked in the same way, and only what the unlearned model recovers
beyond it was still there. All intervals are over people, and paired: both models are asked the same questions
about the same people, and the same people are drawn for both (eval/results/intervals.py).

<model>/probes/<probe>/results.json holds the rows, with sums per person, and the findings made of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.results.intervals import interval_of_sums, tail
from eval.tasks import TASKS
from utils import checkpoint
from utils.run import folders

if TYPE_CHECKING:
    import numpy as np

VERSION = 1  # of results.json
NEEDED = {"version": int, "probe": str, "settings": dict, "rows": list, "findings": list}
HIDDEN, GONE, AS_RETRAINED = "hidden, not forgotten", "not brought back", "no more than the retrained model"
NOTHING_LOST, UNKNOWN = "nothing was lost", "too few people to tell"
HARMED = "not brought back, by what harms the people to retain, too"

FEWEST = 4  # people of whom anything is claimed: three are all of one sign by chance one time in four

People = Mapping[str, Sequence[float]]  # person -> sums of scores, and last the number of questions


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its 95 % interval over people; no interval with fewer than FEWEST."""

    value: float
    interval: list[float] | None

    @classmethod
    def of(cls, sums: Mapping[str, tuple[float, int]], number: str) -> Estimate:
        """sums: {person: (sum of scores, questions)}."""
        digits = 2 if number == "accuracy" else 4
        tidy = lambda value: round(value, digits) + 0.0  # no minus zero
        mean = sum(s for s, _ in sums.values()) / sum(n for _, n in sums.values())
        bounds = interval_of_sums(sums) if len(sums) >= FEWEST else None
        return cls(tidy(mean), bounds and [tidy(bound) for bound in bounds])

    @classmethod
    def of_draws(cls, values: np.ndarray, people: int) -> Estimate:
        """The first value, of everybody drawn once, with the interval of the others, NaN left out."""
        import numpy as np

        known = values[1:][~np.isnan(values[1:])]
        share = tail(people) if people >= FEWEST and known.size else None
        bounds = None if share is None else np.percentile(known, [share, 100 - share])
        tidy = lambda value: round(float(value), 4) + 0.0  # no minus zero
        return cls(tidy(values[0]), None if bounds is None else [tidy(bound) for bound in bounds])

    @property
    def above_zero(self) -> bool:
        return bool(self.interval) and self.interval[0] > 0

    def text(self, number: str) -> str:
        """`40.0 [28.0, 52.0]`"""
        digits = 1 if number == "accuracy" else 3
        bounds = self.interval and "[{:z.{d}f}, {:z.{d}f}]".format(*self.interval, d=digits)
        return " ".join(filter(None, (f"{self.value:z.{digits}f}", bounds)))


@dataclass(frozen=True)
class Row:
    """The scores of one model in one condition, about one kind of people and questions.

    who: forget | retain. number: the task's headline, in percent for accuracy. people: {person: [sum of
    vanilla's scores, of the model's before, of the model's after, questions]}.
    """

    condition: str
    who: str
    task: str
    modality: str
    people: dict[str, list[float]]

    @property
    def number(self) -> str:
        return TASKS[self.task].headline

    @property
    def place(self) -> tuple[str, str, str]:
        return self.condition, self.task, self.modality

    @property
    def n(self) -> int:
        return int(sum(sums[3] for sums in self.people.values()))

    def mean(self, which: int) -> float:
        return sum(sums[which] for sums in self.people.values()) / self.n

    def fields(self) -> dict[str, Any]:
        """What results.json has of it: the means are for the reader, the sums for whoever counts again."""
        return {
            "condition": self.condition, "who": self.who, "task": self.task, "modality": self.modality,
            "vanilla": round(self.mean(0), 4), "before": round(self.mean(1), 4),
            "after": round(self.mean(2), 4), "n": self.n, "people": self.people,
        }  # fmt: skip

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Row:
        return cls(**{name: fields[name] for name in ("condition", "who", "task", "modality", "people")})

    @property
    def lost(self) -> Estimate:
        """vanilla - before"""
        return self._difference(0, 1)

    @property
    def change(self) -> Estimate:
        """after - before"""
        return self._difference(2, 1)

    def _difference(self, one: int, other: int) -> Estimate:
        sums = {person: (s[one] - s[other], int(s[3])) for person, s in self.people.items()}
        return Estimate.of(sums, self.number)

    def beyond(self, reference: Row) -> Estimate:
        """How much more it changes than the reference does. Raises ValueError where they were not asked the
        same."""
        theirs = reference.people
        if self.place != reference.place or {p: s[3] for p, s in self.people.items()} != {
            p: s[3] for p, s in theirs.items()
        }:
            raise ValueError(f"{', '.join(self.place)}: the reference was not asked the same questions")
        sums = {
            person: (s[2] - s[1] - theirs[person][2] + theirs[person][1], int(s[3]))
            for person, s in self.people.items()
        }
        return Estimate.of(sums, self.number)


@dataclass(frozen=True)
class Finding:
    """What a probe found out, of one kind of questions about the people to forget.

    verdict: in words. n: questions, people: how many these are about. lost: what unlearning took (vanilla -
    before); recovered: after - before; reference: the same of the retrained model; beyond: recovered -
    reference; retain: the model's change on the people to retain. number: their unit, accuracy is in points.
    A probe whose numbers are no differences of scores has them in `values`, and leaves the others out.
    """

    condition: str
    verdict: str
    task: str = ""
    modality: str = ""
    number: str = ""
    n: int = 0
    people: int = 0
    lost: Estimate | None = None
    recovered: Estimate | None = None
    reference: Estimate | None = None
    beyond: Estimate | None = None
    retain: Estimate | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """`image`, or `image, probability`"""
        return ", ".join(filter(None, (self.modality, self.task.replace("classification", ""))))

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Finding:
        names = ("lost", "recovered", "reference", "beyond", "retain")
        found = {name: Estimate(**fields[name]) for name in names if fields.get(name)}
        return cls(**{**fields, **found})


def verdict(lost: Estimate, recovered: Estimate, beyond: Estimate, retain: Estimate | None = None) -> str:
    """In this order: nothing was lost, if the interval of what unlearning took is not wholly above 0; hidden,
    if the model recovers something, and more than the retrained model, with both whole intervals above 0; no
    more than the retrained model, if it recovers something; else it was not brought back, which says little
    where the attack took from the people to retain (their whole interval below 0)."""
    if recovered.interval is None:
        return UNKNOWN
    if not lost.above_zero:
        return NOTHING_LOST
    if recovered.above_zero:
        return HIDDEN if beyond.above_zero else AS_RETRAINED
    return HARMED if retain and retain.interval and retain.interval[1] < 0 else GONE


def in_words(finding: Finding) -> str:
    """`recovers 40.0 of 75.0 points [28.0, 52.0]; the retrained model 6.0 [0.0, 12.0]: hidden, not
    forgotten`"""
    number, recovered, lost = finding.number, finding.recovered, finding.lost
    found = verdict(lost, recovered, finding.beyond, finding.retain)
    digits, unit = (1, "points") if number == "accuracy" else (3, f"of {number}")
    value, *bounds = recovered.text(number).split(" ", 1)
    of = f"{value} of {lost.value:z.{digits}f} {unit}" if found != NOTHING_LOST else f"{value} {unit}"
    theirs = finding.reference.text(number)
    return f"recovers {' '.join([of, *bounds])}; the retrained model {theirs}: {found}"


def findings(own: Iterable[Row], reference: Iterable[Row]) -> list[Finding]:
    """One for each condition and kind of questions about the people to forget. Raises ValueError where the
    reference was not asked the same."""
    own = list(own)
    theirs = {row.place: row for row in reference if row.who == "forget"}
    kept = {row.place: row.change for row in own if row.who == "retain"}
    found = []
    for row in own:
        if row.who != "forget":
            continue
        if row.place not in theirs:
            raise ValueError(f"{', '.join(row.place)}: the reference was not asked the same questions")
        reference = theirs[row.place]
        finding = Finding(
            row.condition, "", row.task, row.modality, row.number, row.n, len(row.people), row.lost,
            row.change, reference.change, row.beyond(reference), kept.get(row.place),
        )  # fmt: skip
        found.append(replace(finding, verdict=in_words(finding)))
    return found


# ---------------------------------------------------------------- files
def probe_folder(model: str | Path, probe: str) -> Path:
    return Path(model) / "probes" / probe


def write_probe(
    model: str | Path,
    probe: str,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    found: Sequence[Finding] = (),
    **more: Any,
) -> Path:
    """Write <model>/probes/<probe>/results.json. settings: whatever changes a row. more: further entries."""
    path = probe_folder(model, probe) / "results.json"
    content = {"version": VERSION, "probe": probe, "model": str(model), "settings": dict(settings), **more}
    content |= {"rows": list(rows), "findings": [asdict(finding) for finding in found]}
    checkpoint.write_json(path, content | {"versions": checkpoint.versions()})
    return path


def read_probe(path: Path) -> dict[str, Any]:
    """The content of a probe's results.json, its findings as `Finding`. Raises ValueError, naming the file,
    for what no probe of this version writes."""
    try:
        content = checkpoint.read_json(path)
        if wrong := [name for name, kind in NEEDED.items() if not isinstance(content[name], kind)]:
            raise TypeError(f"of another kind: {', '.join(wrong)}")
        if content["version"] != VERSION:
            raise ValueError(f"of version {content['version']}, not {VERSION}")
        return content | {"findings": [Finding.read(fields) for fields in content["findings"]]}
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no result of a probe ({error}); take it away") from error


def probe_rows(model: str | Path) -> list[tuple[str, Finding]]:
    """(probe, finding) of all probes of a model; none where it was not probed. Raises ValueError as
    `read_probe`."""
    read = [read_probe(file) for file in folders.found(Path(model), "probes/*/results.json")]
    return [(content["probe"], finding) for content in read for finding in content["findings"]]


def table(found: Iterable[tuple[str, Finding]]) -> str:
    """The findings as a table for the screen."""
    from tabulate import tabulate

    show = lambda estimate, number: estimate.text(number) if estimate else ""
    rows = [
        [
            probe, f.condition, f.asked, f.n or "", show(f.lost, f.number), show(f.recovered, f.number),
            show(f.reference, f.number), show(f.retain, f.number), f.verdict.rpartition(": ")[2],
        ]
        for probe, f in found
    ]  # fmt: skip
    head = ["probe", "condition", "asked in", "n", "lost", "recovered", "retrained", "retain", "verdict"]
    return tabulate(rows, head, "github", disable_numparse=True)
