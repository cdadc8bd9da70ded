"""The figures of eval/report.py: lines over forget ratios, and the trade-off, which eval/table.py draws too.
Where a mask's weights lie is drawn by data_process/coverage.py.

Figures are drawn in fixed colours. `svg` makes inline SVG of one and puts CSS variables of the page in the
place of the colours: the same drawing serves light, dark and print. What an artist's gid is given a title for
says it on hover. No text is read as TeX, so any folder name is safe.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from data_process.coverage import HEAT
from eval.results.read import Result, known_name
from eval.tasks import METRICS, arrow
from utils.run.figures import INK, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# light and dark values of the variables are in the template; these are drawn, and never shown
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0568f", "#8a6d00", "#56b4e9", "#7b5fd0")
CARD, SOFT, ACCENT = "#fefefe", "#5d646e", "#2b5c9f"
PAGE = {
    INK: "currentColor",
    HEAT: "var(--heat)",
    CARD: "var(--card)",
    SOFT: "var(--soft)",
    ACCENT: "var(--accent)",
}
COLOURS = PAGE | {colour: f"var(--s{i})" for i, colour in enumerate(SERIES)}
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
TAG = re.compile(r"<[^>]+>")
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"')  # HTML needs none, and so no address is left in the page
# panels of the lines over forget ratios, where there are numbers for them
PANELS = (("forget", "vqa"), ("forget", "qa"), ("retain", "vqa"), ("retain", "qa"), ("test", "vqa"))


def svg(figure: Figure, name: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure as an <svg> element in the page's colours. `name` is in all its ids: a page holds several
    figures, and what one refers to must not be found in another. titles: {gid: what it says on hover}."""
    import matplotlib
    from markupsafe import escape

    buffer = io.StringIO()
    # text stays text, and ids come from a fixed salt: the same results give the same page
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = TAG.sub(lambda tag: _page_tag(tag[0], name), METADATA.sub("", text[text.index("<svg") :]))
    for gid, words in (titles or {}).items():
        group = f'<g id="{name}-{gid}">'
        text = text.replace(group, f"{group}<title>{escape(words)}</title>")
    return text


def _page_tag(tag: str, name: str) -> str:
    """One tag with the page's colours and with ids of its own; text between tags is nowhere touched."""
    for colour, variable in COLOURS.items():
        tag = tag.replace(colour, variable)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", NAMESPACE.sub("", tag))


def shortened(label: str) -> str:
    """A label that leaves room for the drawing; the table has it in full."""
    return label if len(label) <= 28 else f"{label[:11]}…{label[-16:]}"


class Point(NamedTuple):
    """A number in percent and, where it is known, its interval."""

    value: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        bounds = " [{:.1f}, {:.1f}]".format(*self.interval) if self.interval else ""
        return f"{self.value:.1f} %{bounds}"


def _point(result: Result, split: str, key: str) -> Point | None:
    value, scale = result.value(split, key), 1 if METRICS[key].counted else 100
    if value is None:
        return None
    interval = result.interval(split, METRICS[key])
    return Point(scale * value, interval and (scale * interval[0], scale * interval[1]))


# ---------------------------------------------------------------- lines over forget ratios
def line_name(result: Result) -> str:
    """The method without a forget ratio at its end: `GA_05` evaluated at 5 % and `GA_10` at 10 % are GA."""
    ending = re.fullmatch(r"(.+?)(?:[-_.](?:forget[-_.]?)?|forget[-_.]?|(?<=[A-Za-z]))0*(\d+)", result.method)
    return known_name(ending[1] if ending and int(ending[2]) == result.forget_ratio else result.method)


def ratio_lines(results: Sequence[Result]) -> dict[str, list[Result]]:
    """{name: results by forget ratio} of all methods, or nothing unless one has two ratios or more.

    Rows with different benchmark, shot or multiple-choice rule are different lines, and so are the first and
    the second row of a method at one ratio.
    """
    lines: dict[tuple, dict[int, Result]] = {}
    for result in results:
        name, time = line_name(result), 1
        about = (result.benchmark, result.shot, result.mcq)
        while result.forget_ratio in lines.get((name, about, time), {}):
            time += 1
        lines.setdefault((name, about, time), {})[result.forget_ratio] = result
    if not any(len(line) > 1 for line in lines.values()):
        return {}
    settings = list(dict.fromkeys(about for _, about, _ in lines))
    named = {}
    for (name, about, time), line in lines.items():
        extra = [", ".join(about)] * (len(settings) > 1) + [f"no. {time}"] * (time > 1)
        label = f"{name} ({'; '.join(extra)})" if extra else name
        named[label] = [line[ratio] for ratio in sorted(line)]
    return named


def ratio_plot(results: Sequence[Result]) -> Figure | None:
    """One panel per split and metric, x: forget ratio, y: percent, one line per method with its intervals."""
    lines = ratio_lines(results)
    panels = [
        (split, key)
        for split, key in PANELS
        if any(sum(r.value(split, key) is not None for r in line) > 1 for line in lines.values())
    ]
    if not panels:
        return None
    rows = (len(panels) + 1) // 2
    names = list(lines)
    figure = new_figure(7.4, 2.35 * rows + 0.25 * (1 + len(names) // 4))
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).flatten()
    ratios = sorted({result.forget_ratio for line in lines.values() for result in line})
    for axes, (split, key) in zip(grid, panels):
        for place, name in enumerate(names):
            shift = (place - (len(names) - 1) / 2) * 0.012 * (ratios[-1] - ratios[0])
            _draw_line(axes, lines[name], split, key, place, shift)
        metric = METRICS[key]
        axes.set_title(f"{split} {metric.title} {arrow(split, metric)}", color=INK, fontsize=9.5, loc="left")
        axes.set_xticks(ratios, [f"{ratio} %" for ratio in ratios])
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_ylim(0, 104)
        plain(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    _legend(figure, names, {name for name, line in lines.items() if line[0].is_vanilla})
    return figure


def ratio_words(results: Sequence[Result]) -> str:
    """The numbers of ratio_plot in words."""
    said = []
    for name, line in ratio_lines(results).items():
        for split, key in PANELS:
            points = [(r.forget_ratio, point) for r in line if (point := _point(r, split, key))]
            if points:
                numbers = ", ".join(f"{point} at {ratio} %" for ratio, point in points)
                said.append(f"{name}, {split} {METRICS[key].name}: {numbers}")
    return "; ".join(said)


def _style(place: int, vanilla: bool) -> dict[str, Any]:
    """Colour, marker and dashes of the line number `place`; vanilla is drawn in the text colour."""
    return {
        "color": INK if vanilla else SERIES[place % len(SERIES)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[place // len(SERIES) % len(DASHES)],
        "linewidth": 1.5,
        "markersize": 5,
    }


def _draw_line(axes: Axes, line: list[Result], split: str, key: str, place: int, shift: float) -> None:
    """A method's numbers at its ratios; the shift to the side keeps intervals of several methods apart."""
    found = [(result.forget_ratio + shift, _point(result, split, key)) for result in line]
    points = [(x, point) for x, point in found if point]
    style = _style(place, line[0].is_vanilla)
    axes.plot([x for x, _ in points], [point.value for _, point in points], **style, zorder=3)
    for x, point in points:
        if point.interval:
            axes.plot([x, x], point.interval, color=style["color"], linewidth=0.9, alpha=0.6, zorder=2)


def _legend(figure: Figure, names: Sequence[str], vanilla: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_style(place, name in vanilla)) for place, name in enumerate(names)]
    # matplotlib leaves out labels that begin with an underscore, so the names come in afterwards
    legend = figure.legend(
        handles, [str(place) for place in range(len(names))], loc="outside lower center", ncols=4,
        frameon=False, fontsize=9, labelcolor=INK,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), names):
        text.set(text=shortened(name), parse_math=False)


# ---------------------------------------------------------------- trade-off
@dataclass(frozen=True)
class Standing:
    """Where one row stands: picture questions about the people to forget, and about those to retain."""

    result: Result
    forget: Point
    retain: Point

    @property
    def text(self) -> str:
        """`GA: forget VQA 10.0 % [0.0, 25.0], retain VQA 78.0 % [70.0, 86.0]`"""
        return f"{self.result.label}: forget VQA {self.forget}, retain VQA {self.retain}"


def tradeoff(results: Sequence[Result]) -> list[Standing]:
    """Rows without one of the two numbers are left out."""
    pairs = ((r, _point(r, "forget", "vqa"), _point(r, "retain", "vqa")) for r in results)
    return [Standing(*pair) for pair in pairs if None not in pair]


def tradeoff_titles(results: Sequence[Result]) -> dict[str, str]:
    """What the points of tradeoff_plot say on hover."""
    return {f"point-{i}": standing.text for i, standing in enumerate(tradeoff(results))}


def tradeoff_plot(
    results: Sequence[Result], heading: str = "", width: float = 7, height: float = 4.6, size: float = 9.5
) -> Figure | None:
    """Forget VQA against retain VQA, one labelled point per row of tradeoff(); None where that has none.
    width, height: inches; size: of the type, points.

    To the right fewer of the people to forget are known by their pictures: the band is the retrained model's
    level with its interval, the dotted line is guessing. This suite's method has the accent's colour, others
    are grey, vanilla and retrained hollow; words name the points, and nothing depends on colour.
    """
    rows = tradeoff(results)
    if not rows:
        return None
    figure = new_figure(width, height, dpi=160)
    axes = figure.add_subplot()
    plain(axes)
    axes.tick_params(labelsize=size)
    _limits(axes, rows)
    _level(axes, rows, size)
    for i, row in enumerate(rows):
        _cross(axes, row, f"point-{i}")
    axes.set_xlabel("forget VQA, % (fewer to the right)", color=INK, fontsize=size)
    axes.set_ylabel("retain VQA, %", color=INK, fontsize=size)
    if heading:
        axes.set_title(heading, color=INK, fontsize=size, loc="left", parse_math=False)
    _label_points(figure, axes, rows, size)
    return figure


def _limits(axes: Axes, rows: Sequence[Standing]) -> None:
    """From the lowest end of an interval to 100, with room for names; forget VQA grows to the left."""
    ends = [end for row in rows for end in (row.retain.value, *(row.retain.interval or ()))]
    room = 0.12 * max(10.0, 100 - min(ends))
    axes.set_ylim(min(ends) - room, max(ends) + room)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.set_ylim(min(ends) - room, max(ends) + room)
    axes.set_xlim(106, -9)
    axes.set_xticks(range(0, 101, 20))


def _level(axes: Axes, rows: Sequence[Standing], size: float) -> None:
    """The retrained model's band and the line of guessing, with their names at the foot."""
    about = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "rotation": 90}
    about |= {"fontsize": size - 1.5, "color": SOFT, "va": "bottom"}
    retrained = next((row.forget for row in rows if row.result.is_reference), None)
    if retrained and len({row.result.setting for row in rows}) == 1:  # else it is not everybody's level
        if retrained.interval:
            axes.axvspan(*retrained.interval, color=ACCENT, alpha=0.12, linewidth=0, zorder=0)
        axes.axvline(retrained.value, color=ACCENT, alpha=0.5, linewidth=0.8, zorder=0)
        axes.annotate("retrained level", (retrained.value, 0), (3, 3), ha="left", **about)
    entries = (row.result.entry("forget", METRICS["vqa"]) for row in rows)
    chance = next((entry["chance"] for entry in entries if "chance" in entry), None)
    if chance is not None:
        axes.axvline(chance, color=INK, alpha=0.6, linewidth=0.9, linestyle=":", zorder=1)
        axes.annotate("chance", (chance, 0), (-3, 3), ha="right", **about)


def _cross(axes: Axes, row: Standing, gid: str) -> None:
    """A point with its intervals."""
    hollow = row.result.is_vanilla or row.result.is_reference
    colour = ACCENT if row.result.is_own else INK if hollow else SOFT
    x, y = row.forget.value, row.retain.value
    thin = {"color": colour, "linewidth": 1, "alpha": 0.55, "zorder": 2}
    if row.forget.interval:
        axes.plot(row.forget.interval, [y, y], **thin)
    if row.retain.interval:
        axes.plot([x, x], row.retain.interval, **thin)
    look = {"facecolors": CARD if hollow else colour, "edgecolors": colour, "linewidths": 1.5, "gid": gid}
    # the larger point below: none hides one at the same place
    axes.scatter([x], [y], s=80 if row.result.is_own else 36, zorder=3 if row.result.is_own else 4, **look)


def _label_points(figure: Figure, axes: Axes, rows: Sequence[Standing], size: float) -> None:
    """Write each name at the place around its point where it covers least: names and points, then intervals
    and the foot's words; with a line to its point where that is far."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # places the axes, so that positions in pixels are known
    pixel = figure.dpi / 72
    centres = axes.transData.transform([(row.forget.value, row.retain.value) for row in rows])
    busy = [Bbox.from_bounds(x - 5 * pixel, y - 5 * pixel, 10 * pixel, 10 * pixel) for x, y in centres]
    light = [text.get_window_extent() for text in axes.texts]
    light += [line.get_window_extent().padded(pixel) for line in axes.lines if line.get_zorder() == 2]
    steps = [step * sign * size for step in (1.3, 2.5, 3.7, 4.9, 6.1) for sign in (1, -1)]
    around = [(0, steps[0], "center"), (0, steps[1], "center"), (8, 0, "left"), (-8, 0, "right")]
    around += [(x, step, align) for step in steps for x, align in ((8, "left"), (-8, "right"))]
    for row in sorted(rows, key=lambda row: not row.result.is_own):
        text = axes.annotate(
            shortened(row.result.label), (row.forget.value, row.retain.value), (0, 0), parse_math=False,
            textcoords="offset points", va="center", color=ACCENT if row.result.is_own else INK,
            fontsize=size, weight="bold" if row.result.is_own else "normal",
            bbox={"facecolor": CARD, "alpha": 0.7, "pad": 0.4, "linewidth": 0},
        )  # fmt: skip

        def covered(place, text=text):
            text.set(ha=place[2], position=place[:2])
            box = text.get_window_extent()
            outside = not (axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1)
            outside |= not (axes.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1)
            return 20 * outside + sum(
                weight * box.overlaps(other) for weight, boxes in ((5, busy), (1, light)) for other in boxes
            )

        dx, dy, align = min(around, key=covered)
        text.set(ha=align, position=(dx, dy))
        busy.append(text.get_window_extent())
        if abs(dy) > 2 * size:
            axes.annotate(
                "", (row.forget.value, row.retain.value), (dx, dy), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip
