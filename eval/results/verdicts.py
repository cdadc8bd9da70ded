"""What the numbers say, in words: is it forgotten, what did that cost, compared with never having known.

Forgetting is compared with the retrained model of the same setting, everything else with vanilla, question by
question, with 95 % intervals over people (eval/results/intervals.py). A word claims what the interval allows:

    forgotten pictures, own number − retrained model's
        not yet        the whole interval lies above 0: more is known than by a model that never knew
        too far        the whole interval lies below 0: a new trace, not more forgetting
        at its level   0 lies inside, and no end is further off than half of what there was to forget
    everything else, own number − vanilla's
        damage         the whole interval lies below 0, and the loss is not shown as 0
        kept           it does not, and no end is further below than MARGIN
    unclear            neither: too few people; no word at all where there is no interval

What there was to forget is the gate: vanilla − retrained on the people to forget. Where its interval holds 0,
a measure says nothing about forgetting, whatever the rows say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.results.compare import difference, reference_row, vanilla_row
from eval.results.read import Result
from eval.tasks import METRICS, Metric

NOT_YET, TOO_FAR, LEVEL, NOTHING = "not yet", "too far", "at its level", "nothing to forget"
KEPT, DAMAGE, UNCLEAR = "kept", "damage", "unclear"
AS_WANTED, NOT_WANTED = (LEVEL, KEPT), (NOT_YET, TOO_FAR, DAMAGE)
MARGIN = 10.0  # points; how large a loss must be outside the interval of what is called kept
OUTSIDE = ("real", "real_faces")  # splits about people whom no method was shown


# ---------------------------------------------------------------- what is looked at
@dataclass(frozen=True)
class Aim:
    """One number that a reader looks at first. `header`: two lines above a column. `short`: in a sentence.
    `words`: on a card."""

    split: str
    metric: Metric
    header: tuple[str, str]
    short: str
    words: str
    forgets: bool = False

    @property
    def scale(self) -> float:
        """Points in the unit of the number."""
        return 1.0 if self.metric.counted else 0.01

    def number(self, value: float | None, sign: bool = False) -> str:
        """`25`, `+10`, `±0`; scores in 0..1 with two decimals."""
        if value is None:
            return "–"
        text = f"{value:z.{0 if self.metric.counted else 2}f}"
        return text if not sign or text.startswith("-") else f"{'+' if float(text) else '±'}{text}"

    def bounds(self, interval: Sequence[float] | None) -> str:
        """`[-5, 25]`; nothing where it is not known."""
        return "[{}, {}]".format(*map(self.number, interval)) if interval else ""


def aims(results: Sequence[Result]) -> list[Aim]:
    """What is looked at of these results: what none of them has is left out."""
    outside = next((name for name in OUTSIDE if any(r.value(name, "vqa") is not None for r in results)), "")
    text = {split: text_key(results, split) for split in ("forget", "retain")}
    views = any(r.value("test", "vqa") is not None for r in results)
    seen = ("forgotten pictures", "seen") if views else ("forgotten", "pictures")
    vqa, about, others = METRICS["vqa"], METRICS[text["forget"]], METRICS[text["retain"]]
    found = (
        Aim("forget", vqa, seen, "their pictures", "Their pictures, as trained on", True),
        Aim(
            "test",
            vqa,
            ("forgotten pictures", "other view"),
            "their other pictures",
            "Other pictures of them",
            True,
        ),
        Aim(
            "forget", about, ("same people", "in text"), "the same people in text", "The same people, in text"
        ),
        Aim("retain", vqa, ("others", "pict."), "others' pictures", "Pictures of others"),
        Aim("retain", others, ("others", "text"), "others in text", "Others, in text"),
        Aim(outside, vqa, ("people", "outside"), "pictures of people outside", "Pictures of people outside"),
    )
    return [aim for aim in found if any(r.value(aim.split, aim.metric.key) is not None for r in results)]


def text_key(results: Sequence[Result], split: str) -> str:
    """The metric that stands for QA: ROUGE-L of the text answers where no result has multiple choice in text
    (CLEAR)."""
    return "qa" if any(r.value(split, "qa") is not None for r in results) else "generation_text"


def between(result: Result, base: Result, split: str, metric: Metric) -> tuple[float, list[float]] | None:
    """result − base with its paired interval; None unless both answered the same questions, by their
    predictions, about more than one person."""
    own, other = result.entry(split, metric), base.entry(split, metric)
    found = difference(result, base, split, metric) if own and other else None
    if found is None or not found.questions == own[metric.total] == other[metric.total]:
        return None
    return found.difference, found.interval


# ---------------------------------------------------------------- is there anything to forget
@dataclass(frozen=True)
class Gate:
    """How much vanilla knows of the people to forget that the retrained model does not, by one measure."""

    metric: Metric
    vanilla: float
    retrained: float
    difference: float
    interval: list[float]
    people: int | None

    @property
    def open(self) -> bool:
        """Whether rows of this measure can say anything about forgetting."""
        return self.interval[0] > 0

    @property
    def text(self) -> str:
        """`90 [80, 100]`, in points; scores in 0..1 with two decimals."""
        aim = Aim("forget", self.metric, ("", ""), "", "")
        return f"{aim.number(self.difference)} {aim.bounds(self.interval)}"


def gates(results: Sequence[Result]) -> list[Gate]:
    """One per measure that the first vanilla row and its retrained row share, of what the retrained model
    never knew; none without such rows or without their predictions."""
    vanilla = next((r for r in results if r.is_vanilla and reference_row(r, results)), None)
    retrained = vanilla and reference_row(vanilla, results)
    found = []
    for metric in METRICS.values() if retrained else ():
        known = metric.modality == "text" and not retrained.never_knew("text")
        if not known and (gap := between(vanilla, retrained, "forget", metric)):
            values = (r.value("forget", metric.key) for r in (vanilla, retrained))
            found.append(Gate(metric, *values, *gap, vanilla.people("forget", metric)))
    return found


def gate_summary(results: Sequence[Result]) -> list[str]:
    """The gate in few words: what there was to forget by multiple choice about pictures, and the measures by
    which there was nothing."""
    lines = gate_lines(results)
    if len(_gated(results)) > 1:
        return lines
    vqa = next((gate for gate in gates(results) if gate.metric.key == "vqa" and gate.open), None)
    if vqa is None:
        return lines
    aim = Aim("forget", vqa.metric, ("", ""), "", "")
    first = f"There are {aim.number(vqa.difference)} points {aim.bounds(vqa.interval)} to forget in pictures"
    first += f" (vanilla {aim.number(vqa.vanilla)}, retrained {aim.number(vqa.retrained)})."
    return [first, *(line for line in lines if line.startswith("warning"))]


def gate_lines(results: Sequence[Result]) -> list[str]:
    """What there was to forget, by measure and modality; "warning" where a measure says nothing about it. Of
    each setting, named where there are several."""
    settings = _gated(results)
    if len(settings) < 2:
        return _gate_lines(results)
    return [
        f"{line} ({text})"
        for setting, text in settings.items()
        for line in _gate_lines([r for r in results if r.setting == setting])
    ]


def _gated(results: Sequence[Result]) -> dict[tuple, str]:
    """The settings that have a vanilla and a retrained row, in words."""
    return {r.setting: r.setting_text for r in results if r.is_vanilla and reference_row(r, results)}


def _gate_lines(results: Sequence[Result]) -> list[str]:
    if not _gated(results):
        return [
            "No vanilla and retrained model (*_reference.py, or --reference FOLDER) of one setting: how much"
            " there was to forget, and how low is low enough, is not known."
        ]
    found = gates(results)
    lines = []
    for modality, where in (("image", "in pictures"), ("text", "in text")):
        of = [gate for gate in found if gate.metric.modality == modality]
        if told := ", ".join(f"{gate.metric.name} {gate.text}" for gate in of if gate.open):
            lines.append(f"To forget {where}, vanilla − retrained: {told}.")
        if shut := ", ".join(f"{gate.metric.name} {gate.text}" for gate in of if not gate.open):
            lines.append(
                f"warning: nothing to forget {where} by {shut}: rows of this measure say nothing about"
                " forgetting"
            )
    return lines or ["How much there was to forget is not known: no predictions of both, or one person."]


# ---------------------------------------------------------------- verdicts
@dataclass(frozen=True)
class Finding:
    """One aim of one row: its number, those it is compared with, and what can be said."""

    aim: Aim
    value: float
    vanilla: float | None
    retrained: float | None
    difference: float | None = (
        None  # to the retrained model's, of what was to be forgotten; else to vanilla's
    )
    interval: list[float] | None = None
    word: str = ""

    @property
    def wanted(self) -> bool | None:
        return True if self.word in AS_WANTED else False if self.word in NOT_WANTED else None

    @property
    def change(self) -> str:
        """`+10 [-5, 25]`, or nothing."""
        if self.difference is None:
            return ""
        return f"{self.aim.number(self.difference, sign=True)} {self.aim.bounds(self.interval)}"

    @property
    def loss(self) -> str:
        """`10 points [5, 25]`: the same with the signs of a loss."""
        low, high = self.interval
        unit = " points" if self.aim.metric.counted else " of ROUGE-L"
        return f"{self.aim.number(-self.difference)}{unit} {self.aim.bounds((-high, -low))}"


def findings(result: Result, results: Sequence[Result]) -> list[Finding]:
    """One per aim that the row has a number of."""
    vanilla, retrained = vanilla_row(result, results), reference_row(result, results)
    out = []
    for aim in aims(results):
        value, *others = (
            row and row.value(aim.split, aim.metric.key) for row in (result, vanilla, retrained)
        )
        base = retrained if aim.forgets else vanilla
        gap = between(result, base, aim.split, aim.metric) if base and value is not None else None
        if gap is not None:
            out.append(Finding(aim, value, *others, *gap, _word(aim, *gap, vanilla, retrained)))
        elif value is not None:
            out.append(Finding(aim, value, *others))
    return out


def _word(
    aim: Aim, difference: float, interval: list[float], vanilla: Result | None, retrained: Result | None
) -> str:
    low, high = interval
    margin = MARGIN * aim.scale
    if not aim.forgets:
        seen = float(aim.number(difference)) != 0  # a loss that is shown as 0 is none
        return DAMAGE if high < 0 and seen else KEPT if low >= -margin else UNCLEAR
    gap = vanilla and between(vanilla, retrained, aim.split, aim.metric)
    if gap and gap[1][0] <= 0:
        return NOTHING
    if low > 0 or high < 0:
        return NOT_YET if low > 0 else TOO_FAR
    return LEVEL if max(-low, high) <= (gap[0] / 2 if gap else margin) else UNCLEAR


def standing(found: Sequence[Finding]) -> str:
    """Where a row stands beside the retrained model, over all pictures of the people to forget: what is known
    of any of them is not yet forgotten."""
    worst = _worst([f for f in found if f.aim.forgets])
    if worst is None:
        return ""
    other = worst.word == NOT_YET and worst.aim.split != "forget"
    return f"{worst.word}, {worst.aim.header[1]}" if other else worst.word


def _worst(pictures: Sequence[Finding]) -> Finding | None:
    order = (NOT_YET, TOO_FAR, UNCLEAR, LEVEL, NOTHING, "")
    return min(pictures, key=lambda f: order.index(f.word), default=None)


def headline(result: Result, results: Sequence[Result]) -> str:
    """A sentence's beginning: forgotten or not, and whether that cost anything."""
    found = findings(result, results)
    rest = [f for f in found if not f.aim.forgets]
    word = standing(found).partition(",")[0]
    lost = [f.aim.short for f in rest if f.word == DAMAGE]
    forgot = {
        LEVEL: "forgot the pictures as if never seen",
        NOT_YET: "has not forgotten the pictures",
        TOO_FAR: "went further than never having seen the pictures",
        UNCLEAR: "may have forgotten the pictures",
        NOTHING: "had no pictures to forget",
    }.get(word, "is not compared with a retrained model")
    if lost:
        return f"{forgot}; it damaged {_joined(lost)}"
    return f"{forgot} and kept the rest" if rest and all(f.word == KEPT for f in rest) else forgot


def sentence(result: Result, results: Sequence[Result]) -> str:
    """What one method did, in a few sentences, as strong as its intervals allow."""
    found = findings(result, results)
    pictures, rest = ([f for f in found if f.aim.forgets is forgets] for forgets in (True, False))
    parts = [f"{result.label} {_forgot(pictures, reference_row(result, results))}."] if pictures else []
    told = {word: [f for f in rest if f.word == word] for word in (KEPT, DAMAGE, UNCLEAR)}
    if told[KEPT]:
        parts.append(f"It kept {_joined([f.aim.short for f in told[KEPT]])}.")
    if told[DAMAGE]:
        parts.append(f"It lost {_joined([f'{f.loss} on {f.aim.short}' for f in told[DAMAGE]])}.")
    if told[UNCLEAR]:
        parts.append(
            f"Not clear from so few: {_joined([f'{f.aim.short} ({f.change})' for f in told[UNCLEAR]])}."
        )
    return " ".join(parts)


def _forgot(pictures: Sequence[Finding], retrained: Result | None) -> str:
    """The rest of a sentence that begins with the method's name."""
    worst = _worst(pictures)
    if worst is None or retrained is None or not worst.word:
        shown = " and ".join(f"{f.aim.number(f.value)} % ({f.aim.header[1]})" for f in pictures)
        why = "no interval" if retrained else "no retrained model"
        return f"answers {shown} of the picture questions to forget; {why} says how that compares"
    never = "a model that never knew them" if retrained.never_knew("text") else "a model that never saw them"
    which = "" if worst.aim.split == "forget" else " (other views)"
    points, by = worst.aim.number(abs(worst.difference)), worst.aim.bounds(worst.interval)
    return {
        NOTHING: f"had nothing to forget in pictures{which}",
        LEVEL: f"answers pictures of the people to forget like {never} (difference {worst.change} points)",
        NOT_YET: f"still knows {points} points {by}{which} more of them in pictures than {never}",
        TOO_FAR: f"knows {worst.loss}{which} less of them in pictures than {never}: a new trace, not"
        " more forgetting",
        UNCLEAR: f"may answer pictures{which} of the people to forget like {never}, or not (difference"
        f" {worst.change} points)",
    }[worst.word]


def _joined(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
