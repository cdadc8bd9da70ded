"""The map: what a mask sees, where the knowledge sits, and what each method removed, layer by layer.

Layers stand in the order in which a picture passes them: vision tower, projector, decoder. Panels from top to
bottom: the mask's density, and the squared gradients that it was made from; then, for questions about
pictures and in text, at each place of the decoder, what the retrained model's hidden states cost in the
vanilla model (δ1: the knowledge sits there, as far as it is more than on people whom it knows) and what each
method's cost (δ2: what it removed).
eval/results/depth.py defines the numbers, eval/probes/depth.py measures them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eval.results.depth import THRESHOLD
from eval.results.figures import DASHES, MARKERS, SERIES, shortened, svg
from utils.run.figures import INK, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {  # (modality, place): title
    ("image", "picture"): "VQA, at the picture's tokens",
    ("image", "answer"): "VQA, where the answer is read",
    ("text", "question"): "QA, at the question's tokens",
    ("text", "answer"): "QA, where the answer is read",
}
PARTS = {"tower": "vision tower", "projector": "projector", "decoder": "decoder"}
RETRAINED = "retrained (δ1)"
CONTROL = "retrained, on people it knows"


@dataclass(frozen=True)
class Layers:
    """The horizontal axis: stages with a gap between the parts."""

    names: list[str]
    parts: list[str]

    @classmethod
    def of(cls, found: dict[str, Any]) -> Layers:
        """found: results.json of the probe."""
        return cls([s["name"] for s in found["stages"]], [s["part"] for s in found["stages"]])

    def at(self, place: int) -> float:
        return place + 0.8 * len(set(self.parts[: place + 1]))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions with the number of the layer in its part; few enough to be read."""
        within = [self.parts[:k].count(part) for k, part in enumerate(self.parts)]
        step = max(1, len(self.names) // 24)
        return [
            (self.at(k), "" if part == "projector" else str(number))
            for k, (part, number) in enumerate(zip(self.parts, within, strict=True))
            if number % step == 0
        ]

    @property
    def spans(self) -> list[tuple[str, float, float]]:
        """(part, first, last position)."""
        found = []
        for part in dict.fromkeys(self.parts):
            places = [self.at(k) for k, own in enumerate(self.parts) if own == part]
            found.append((part, places[0], places[-1]))
        return found


@dataclass
class Tips:
    """What is shown on hover, by the id of what is drawn."""

    texts: dict[str, str] = field(default_factory=dict)

    def add(self, artist, text: str) -> None:
        name = f"tip{len(self.texts)}"
        artist.set_gid(name)
        self.texts[name] = text


def depth_svg(depths: dict[str, dict[str, Any]], coverage: dict[str, Any], name: str) -> str | None:
    """The map as an <svg> element for the report, with values on hover; None without results.

    depths: {label of a method: results.json of its depth probe}, of one benchmark and one vanilla and
    retrained model. coverage: of a mask, as coverage.json has it, {} without one. name: in the ids of the
    drawing.
    """
    drawn = depth_map(depths, coverage)
    return drawn and svg(drawn[0], name, drawn[1].texts)


def depth_map(depths: dict[str, dict[str, Any]], coverage: dict[str, Any]) -> tuple[Figure, Tips] | None:
    """The map with its tips; see depth_svg."""
    if not depths:
        return None
    first = next(iter(depths.values()))
    layers, tips = Layers.of(first), Tips()
    panels = [(m, p) for m, p in PANELS if p in first["modalities"].get(m, {"places": {}})["places"]]
    seen = [what for what in ("density", "saliency") if _seen(coverage, layers, what)]
    heights = [0.9] * len(seen) + [1.35] * len(panels)
    figure = new_figure(max(6.4, 2.2 + 0.17 * len(layers.names)), sum(heights) + 0.9)
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, what in zip(grid, seen):
        _draw_mask(axes, layers, what, _seen(coverage, layers, what), tips)
    for axes, panel in zip(grid[len(seen) :], panels, strict=True):
        _draw_panel(axes, layers, panel, depths, tips)
    _label_axis(grid[-1], layers)
    _legend(figure, list(depths))
    return figure, tips


# ---------------------------------------------------------------- what the mask sees
def _seen(coverage: dict[str, Any], layers: Layers, what: str) -> dict[str, list[float | None]]:
    """Numbers of the mask by layer: {"density": percent}, or {"forget", "preserve"}: mean squared gradients;
    {} where the mask's file does not have them."""
    groups = {name: entry for part in coverage.values() for name, entry in part.items()}
    entries = [_entry(groups, name) for name in layers.names]
    wanted = {"density": ("share",), "saliency": ("forget", "preserve")}[what]
    found = {
        key: [entry and entry.get(key) for entry in entries]
        for key in wanted
        if any(entry and key in entry for entry in entries)
    }
    if "share" in found:
        return {"density": [share if share is None else 100 * share for share in found["share"]]}
    return found


def _entry(groups: dict[str, Any], name: str) -> dict[str, float] | None:
    """A layer's entry of coverage.json; the projector's modules together."""
    own = groups.get(name)
    inside = [entry for key, entry in groups.items() if key.startswith(f"{name}.")]
    if own or not inside:
        return own
    weights = sum(entry["weights"] for entry in inside)
    keys = [key for key in ("share", "forget", "preserve") if all(key in entry for entry in inside)]
    return {key: sum(e[key] * e["weights"] for e in inside) / weights for key in keys}


def _draw_mask(axes: Axes, layers: Layers, what: str, rows: dict[str, list], tips: Tips) -> None:
    for number, (key, values) in enumerate(rows.items()):
        known = [k for k, value in enumerate(values) if value or (value == 0 and what == "density")]
        for k in known:
            if what == "density":
                drawn = axes.bar(layers.at(k), values[k], width=0.7, color=SERIES[0], alpha=0.75).patches[0]
                tips.add(drawn, f"{layers.names[k]}: {values[k]:.1f} % of the weights are salient")
            else:
                (drawn,) = axes.plot(layers.at(k), values[k], marker="v^"[number], ms=4, color=SERIES[number])
                tips.add(drawn, f"{layers.names[k]}: mean S({key}) {values[k]:.3g}")
        for part in dict.fromkeys(layers.parts) if what == "saliency" else ():
            points = [(layers.at(k), values[k]) for k in known if layers.parts[k] == part]
            axes.plot(*zip(*points), lw=0.9, ls=DASHES[number], color=SERIES[number], zorder=1)
    axes.set_title(
        "Mask: salient weights, %" if what == "density" else "Squared gradients: ▼ forget, ▲ preserve",
        color=INK, fontsize=8.5, loc="left",
    )  # fmt: skip
    if what == "saliency":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
        axes.tick_params(axis="y", which="minor", labelleft=False)
    plain(axes)


# ---------------------------------------------------------------- where the knowledge sits, what was removed
def _draw_panel(
    axes: Axes, layers: Layers, panel: tuple[str, str], depths: dict[str, dict[str, Any]], tips: Tips
) -> None:
    modality, place = panel
    first = next(iter(depths.values()))["modalities"][modality]["places"][place]["stages"]
    _draw_line(axes, layers, RETRAINED, {k: e["reference"] for k, e in first.items()}, None, tips)
    kept = {
        k: {"mean": e["retain"], "interval": None} for k, e in first.items() if e.get("retain") is not None
    }
    _draw_line(axes, layers, CONTROL, kept, -1, tips)
    for number, (label, found) in enumerate(depths.items()):
        stages = found["modalities"][modality]["places"][place]["stages"]
        _draw_line(axes, layers, label, {k: e["model"] for k, e in stages.items()}, number, tips)
    axes.axhline(THRESHOLD, color=INK, lw=0.6, ls=":", alpha=0.6)
    axes.set_title(f"{PANELS[panel]}: loss of log p, nats per token", color=INK, fontsize=8.5, loc="left")
    plain(axes)


def _style(number: int | None) -> dict[str, Any]:
    """Of a method, or, None, of the retrained model, or, -1, of its control: those in the text colour."""
    if number in (None, -1):
        return {"color": INK, "marker": "." if number else "o", "linestyle": ":" if number else "-"}
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[(number + 1) % len(MARKERS)],
        "linestyle": DASHES[1 + number % (len(DASHES) - 1)],
    }


def _draw_line(
    axes: Axes, layers: Layers, label: str, deltas: dict[str, dict], number: int | None, tips: Tips
) -> None:
    style = _style(number)
    for part in dict.fromkeys(layers.parts):
        known = [k for k, n in enumerate(layers.names) if layers.parts[k] == part and n in deltas]
        found = [(layers.at(k), deltas[layers.names[k]]["mean"]) for k in known]
        if found:
            axes.plot(*zip(*found), color=style["color"], linestyle=style["linestyle"], lw=1.3, zorder=2)
        for k in known:
            delta = deltas[layers.names[k]]
            (drawn,) = axes.plot(
                layers.at(k), delta["mean"], color=style["color"], marker=style["marker"], ms=4, zorder=3,
                mfc="none" if number is None else style["color"],
            )  # fmt: skip
            bounds = delta["interval"]
            span = f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else ""
            tips.add(drawn, f"{label} · {layers.names[k]}: {delta['mean']:.2f}{span} nats per token")


def _label_axis(axes: Axes, layers: Layers) -> None:
    axes.set_xticks([x for x, _ in layers.ticks], [text for _, text in layers.ticks], fontsize=7.5)
    for part, first, last in layers.spans:
        axes.annotate(
            PARTS[part], ((first + last) / 2, 0), (0, -24), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="top", color=INK, fontsize=8.5,
        )  # fmt: skip


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    names = [RETRAINED, CONTROL, *labels]
    styles = [_style(None), _style(-1), *(_style(k) for k in range(len(labels)))]
    handles = [Line2D([], [], ms=4, lw=1.3, **style) for style in styles]
    legend = figure.legend(
        handles, [str(k) for k in range(len(names))], loc="outside lower center", ncols=4, frameon=False,
        fontsize=8.5, labelcolor=INK,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name if name == CONTROL else shortened(name), parse_math=False)


# ---------------------------------------------------------------- as a table
def depth_rows(depths: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method, modality, place and stage, with all that the map shows: for the report's table and
    for a CSV."""
    return [
        {
            "method": label, "modality": modality, "place": place, "stage": stage,
            "reference": entry["reference"]["mean"], "model": entry["model"]["mean"],
            "retain": entry.get("retain"), "erased": entry["erased"], "holds": entry["holds"],
        }
        for label, found in depths.items()
        for modality, of in found["modalities"].items()
        for place, at in of["places"].items()
        for stage, entry in at["stages"].items()
    ]  # fmt: skip
