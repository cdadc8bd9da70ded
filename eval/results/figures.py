"""The figures of eval/report.py: bars per split, lines over forget ratios, and the trade-off, which
eval/table.py draws too. Where a mask's weights lie is drawn by data_process/coverage.py.

Figures are drawn in fixed colours. `svg` makes
inline SVG of one and puts CSS variables of the page in the place of the colours: the same drawing serves
light, dark and print. No text is read as TeX, so any folder name is safe.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from data_process.coverage import HEAT
from eval.results.compare import title, vanilla_row
from eval.results.read import Result
from eval.tasks import METRICS, arrow
from utils.figures import INK, new_figure, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# light and dark values of the variables are in the template; these are drawn, and never shown
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0568f", "#8a6d00", "#56b4e9", "#7b5fd0")
CARD = "#fefefe"
COLOURS = {INK: "currentColor", HEAT: "var(--heat)", CARD: "var(--card)"} | {
    colour: f"var(--s{i})" for i, colour in enumerate(SERIES)
}
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
TAG = re.compile(r"<[^>]+>")
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"')  # HTML needs none, and so no address is left in the page
# panels of the lines over forget ratios, where there are numbers for them
PANELS = (("forget", "vqa"), ("forget", "qa"), ("retain", "vqa"), ("retain", "qa"), ("test", "vqa"))


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element in the page's colours. `name` is in all its ids: a page holds several
    figures, and what one refers to must not be found in another."""
    import matplotlib

    buffer = io.StringIO()
    # text stays text, and ids come from a fixed salt: the same results give the same page
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return TAG.sub(lambda tag: _page_tag(tag[0], name), METADATA.sub("", text[text.index("<svg") :]))


def _page_tag(tag: str, name: str) -> str:
    """One tag with the page's colours and with ids of its own; text between tags is nowhere touched."""
    for colour, variable in COLOURS.items():
        tag = tag.replace(colour, variable)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", NAMESPACE.sub("", tag))


def shortened(label: str) -> str:
    """A label that leaves room for the drawing; the table has it in full."""
    return label if len(label) <= 28 else f"{label[:11]}…{label[-16:]}"


# ---------------------------------------------------------------- bars per split
class Bar(NamedTuple):
    """A number in percent and, where it is known, its interval."""

    value: float
    interval: tuple[float, float] | None


def qa_key(results: Sequence[Result], split: str) -> str:
    """The metric that stands for QA. Where no result has multiple-choice text questions (CLEAR) it is the
    ROUGE-L of the text answers, times 100."""
    return "qa" if any(r.value(split, "qa") is not None for r in results) else "generation_text"


def bars(results: Sequence[Result], split: str) -> dict[str, list[Bar | None]]:
    """{metric key: one bar per result}, of VQA and QA on this split; metrics that no result has are left
    out."""
    found = {key: [_bar(result, split, key) for result in results] for key in ("vqa", qa_key(results, split))}
    return {key: row for key, row in found.items() if any(row)}


def _percent(result: Result, split: str, key: str) -> float | None:
    value = result.value(split, key)
    return value if value is None or METRICS[key].counted else 100 * value


def _bar(result: Result, split: str, key: str) -> Bar | None:
    value, scale = _percent(result, split, key), 1 if METRICS[key].counted else 100
    if value is None:
        return None
    interval = result.interval(split, METRICS[key])
    return Bar(value, interval and (scale * interval[0], scale * interval[1]))


def bar_name(split: str, key: str) -> str:
    """How the bars of a metric are called: `VQA %`, with the wanted direction."""
    metric = METRICS[key]
    name = metric.title if metric.counted else "QA (ROUGE-L × 100)"
    return f"{name} {arrow(split, metric)}"


def bar_plot(results: Sequence[Result], split: str) -> Figure | None:
    """Horizontal bars, grouped by result, with whiskers for the intervals; None without a number.

    Dotted lines continue the first vanilla row's bars, to compare with.
    """
    rows = bars(results, split)
    if not rows:
        return None
    thick = 0.78 / len(rows)
    figure = new_figure(4.6, 0.65 + len(results) * (0.11 + 0.16 * len(rows)))
    axes = figure.add_subplot()
    vanilla = next((i for i, result in enumerate(results) if result.is_vanilla), None)
    for place, row in enumerate(rows.values()):
        for i, bar in enumerate(row):
            if bar:
                at = i + (place - (len(rows) - 1) / 2) * thick
                _draw_bar(axes, at, bar, SERIES[place], 0.88 * thick)
        if vanilla is not None and row[vanilla]:
            axes.axvline(row[vanilla].value, color=SERIES[place], linewidth=1, linestyle=":", zorder=1)
    axes.set_xlim(0, 114)  # room for the numbers beside the longest bars
    axes.set_xticks(range(0, 101, 20))
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_yticks(range(len(results)), [shortened(result.label) for result in results], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("percent", color=INK, fontsize=8.5)
    axes.spines["bottom"].set_bounds(0, 100)
    plain(axes)
    return figure


def _draw_bar(axes: Axes, at: float, bar: Bar, colour: str, thick: float) -> None:
    """One bar at height `at`, its whisker, and its number at the end of both."""
    axes.barh(at, bar.value, height=thick, color=colour, alpha=0.75, zorder=2)
    low, high = bar.interval or (bar.value, bar.value)
    if bar.interval:
        axes.plot([low, high], [at, at], color=INK, linewidth=1.2, marker="|", markersize=5, zorder=3)
    axes.annotate(
        f"{bar.value:.1f}", (max(bar.value, high), at), (4, 0), textcoords="offset points",
        va="center", color=INK, fontsize=7.5, bbox={"facecolor": CARD, "pad": 0.6, "linewidth": 0},
    )  # fmt: skip


# ---------------------------------------------------------------- lines over forget ratios
def line_name(result: Result) -> str:
    """The method without a forget ratio at its end: `GA_05` evaluated at 5 % and `GA_10` at 10 % are GA."""
    ending = re.fullmatch(r"(.+?)(?:[-_.](?:forget[-_.]?)?|forget[-_.]?|(?<=[A-Za-z]))0*(\d+)", result.method)
    return ending[1] if ending and int(ending[2]) == result.forget_ratio else result.method


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
    found = [(result.forget_ratio + shift, _bar(result, split, key)) for result in line]
    points = [(x, bar) for x, bar in found if bar]
    style = _style(place, line[0].is_vanilla)
    axes.plot([x for x, _ in points], [bar.value for _, bar in points], **style, zorder=3)
    for x, bar in points:
        if bar.interval:
            axes.plot([x, x], bar.interval, color=style["color"], linewidth=0.9, alpha=0.6, zorder=2)


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
def tradeoff(results: Sequence[Result]) -> pd.DataFrame:
    """Rows: labels. Columns: `forgetting` (points below vanilla's forget VQA), `retention` (%), `vanilla`.

    Retention is the mean of forget QA, retain VQA and retain QA (see qa_key). Rows without a vanilla or
    without one of the numbers are left out.
    """
    import pandas as pd

    qa, rows = qa_key(results, "forget"), {}
    for result in results:
        base = result if result.is_vanilla else vanilla_row(result, results)
        kept = [_percent(result, *place) for place in (("forget", qa), ("retain", "vqa"), ("retain", qa))]
        own, vanilla = result.value("forget", "vqa"), base and base.value("forget", "vqa")
        if None not in (own, vanilla, *kept):
            rows[result.label] = (round(vanilla - own, 4), round(sum(kept) / len(kept), 4), result.is_vanilla)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["forgetting", "retention", "vanilla"])


def tradeoff_plot(results: Sequence[Result]) -> Figure | None:
    """The trade-off, one labelled point per row of tradeoff(); None where that has none.

    Shapes tell vanilla from methods, words name the points, and nothing depends on colour.
    """
    points = tradeoff(results)
    if points.empty:
        return None
    figure = new_figure(7, 4.6, dpi=160)
    axes = figure.add_subplot()
    reference = points[points.vanilla]
    methods = points[~points.vanilla]
    for value in reference.retention:
        axes.axhline(value, color=INK, alpha=0.35, linewidth=0.8, linestyle=(0, (5, 4)), zorder=1)
    axes.axvline(0, color=INK, alpha=0.35, linewidth=0.8, linestyle=(0, (5, 4)), zorder=1)
    hollow = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.6}
    axes.scatter(reference.forgetting, reference.retention, s=64, **hollow, zorder=3)
    axes.scatter(methods.forgetting, methods.retention, s=58, color=INK, zorder=3)
    plain(axes)
    axes.tick_params(labelsize=10)
    axes.margins(0.16, 0.2)
    last = "accuracy" if qa_key(results, "forget") == "qa" else "QA = ROUGE-L × 100"
    axes.set_xlabel("forgetting: vanilla forget VQA − method's forget VQA (points)", color=INK)
    axes.set_ylabel(f"retention (%, {last}):\nmean of forget QA, retain VQA, retain QA", color=INK)
    axes.set_title(title(results), color=INK, fontsize=10, loc="left", parse_math=False)
    corner = axes.annotate(
        "better", xy=(0.995, 0.985), xytext=(0.93, 0.9), xycoords="axes fraction", ha="right", va="top",
        color=INK, fontsize=9, style="italic", arrowprops={"arrowstyle": "->", "color": INK},
    )  # fmt: skip
    _label_points(figure, axes, points, taken=[corner])
    return figure


def _label_points(figure: Figure, axes, points: pd.DataFrame, taken: list) -> None:
    """Write each name at the first place around its point where it covers no name, point or edge."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # places the axes, so that positions in pixels are known
    pixel = figure.dpi / 72
    centres = axes.transData.transform(points[["forgetting", "retention"]].to_numpy())
    busy = [Bbox.from_bounds(x - 5 * pixel, y - 5 * pixel, 10 * pixel, 10 * pixel) for x, y in centres]
    busy += [artist.get_window_extent() for artist in taken]
    around = [(9, 0, "left"), (-9, 0, "right"), (0, 12, "center"), (0, -12, "center")]
    around += [(9, step, "left") for step in (12, -12, 24, -24, 36, -36, 48, -48)]
    around += [(-9, step, "right") for step in (12, -12, 24, -24, 36, -36, 48, -48)]
    for i, name in enumerate(points.index):
        text = axes.annotate(
            name, (points.forgetting.iloc[i], points.retention.iloc[i]), (0, 0), textcoords="offset points",
            va="center", color=INK, fontsize=9.5, parse_math=False,
        )  # fmt: skip
        for dx, dy, align in around:
            text.set(ha=align, position=(dx, dy))
            box = text.get_window_extent()
            clear = not any(box.overlaps(other) for other in busy)
            if clear and axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1:
                break
        busy.append(box)
