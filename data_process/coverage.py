"""Where the salient weights lie: per layer on the screen and in coverage.json, per layer and module as a heat
map, per layer in the report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.run.figures import INK, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STACK = r"(.*?\.(?:layers|blocks))\.(\d+)"
LAYER = re.compile(STACK)  # a group of coverage.json that is a layer of a stack
WEIGHT = re.compile(STACK + r"\.(.*)\.(?:weight|bias)$")  # a parameter in a layer
HEAT = "#4a86d0"  # which eval/results/figures.py swaps for the colour of its page


def coverage(
    salient: dict[str, int],
    sizes: dict[str, int],
    part_of: dict[str, str],
    saliency: dict[str, tuple[float, ...]] | None = None,
) -> dict[str, dict[str, dict]]:
    """{part: {group: {"salient", "weights", "share", "forget", "preserve"}}}; a group is a numbered layer, or
    a module outside the layers.

    saliency: sums of S(forget) and S(preserve) over each parameter; "forget" and "preserve" are their means
    over the weights of a group, and absent where nothing is known of them.
    """
    report: dict[str, dict[str, dict]] = {}
    for name, size in sizes.items():
        layer = WEIGHT.match(name)
        group = f"{layer[1]}.{layer[2]}" if layer else name.rpartition(".")[0]
        group = group.removeprefix("model.")
        for key in (group, "all"):
            entry = report.setdefault(part_of[name], {}).setdefault(key, {"salient": 0, "weights": 0})
            entry["salient"] += salient[name]
            entry["weights"] += size
            for set_name, total in zip(("forget", "preserve"), saliency[name] if saliency else ()):
                entry[set_name] = entry.get(set_name, 0.0) + total
    for groups in report.values():
        for entry in groups.values():
            entry["share"] = round(entry["salient"] / entry["weights"], 6)
            for set_name in entry.keys() & {"forget", "preserve"}:
                entry[set_name] = float(f"{entry[set_name] / entry['weights']:.6g}")
    return report


def print_coverage(report: dict[str, dict[str, dict]]) -> None:
    print(f"\n{'salient weights':44} {'salient':>14} {'of':>14} {'share':>8}")
    for part, groups in report.items():
        for group, entry in sorted(groups.items(), key=lambda item: item[0] != "all"):
            label = f"{part}" if group == "all" else f"  {group}"
            print(f"{label:44} {entry['salient']:14,} {entry['weights']:14,} {100 * entry['share']:7.2f}%")
    print()


def heat_map(salient: dict[str, int], sizes: dict[str, int], part_of: dict[str, str], path: Path) -> None:
    """A PNG with one panel per stack of layers: rows are layers, columns modules, colour the share that is
    salient, in one scale.

    A module's weight and bias count together; what lies outside the stacks is in coverage.json only.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    stacks: dict[str, dict[tuple[int, str], list[int]]] = {}
    for name, size in sizes.items():
        if layer := WEIGHT.match(name):
            stack = f"{part_of[name]}: {layer[1].removeprefix('model.')}"
            cell = stacks.setdefault(stack, {}).setdefault((int(layer[2]), layer[3]), [0, 0])
            cell[0] += salient[name]
            cell[1] += size
    width = max(len({module for _, module in cells}) for cells in stacks.values())
    top = max(100 * count / size for cells in stacks.values() for count, size in cells.values())
    heights = [2 + 0.28 * len({layer for layer, _ in cells}) for cells in stacks.values()]
    figure = new_figure(3 + 0.55 * width, sum(heights))
    axes = figure.subplots(len(stacks), 1, height_ratios=heights, squeeze=False)
    for axis, (title, cells) in zip(axes[:, 0], stacks.items()):
        modules = list(dict.fromkeys(module for _, module in cells))
        shares = np.full((1 + max(layer for layer, _ in cells), len(modules)), np.nan)
        for (layer, module), (count, size) in cells.items():
            shares[layer, modules.index(module)] = 100 * count / size
        image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=top or 1, aspect="auto")
        axis.set_xticks(range(len(modules)), modules, rotation=40, ha="right", fontsize=7)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("layer")
        axis.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axis, label="salient, %")
    figure.savefig(path, dpi=150)


def stacks(groups: dict[str, dict[str, Any]]) -> dict[str, dict[int, float]]:
    """{stack: {layer: percent salient}} from one part of coverage.json."""
    found: dict[str, dict[int, float]] = {}
    for name, entry in groups.items():
        if layer := LAYER.fullmatch(name):
            found.setdefault(layer[1], {})[int(layer[2])] = 100 * entry["share"]
    return found


def outside_layers(groups: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries of one part of coverage.json that are no layer: embeddings, head, projector, norms."""
    return {name: entry for name, entry in groups.items() if name != "all" and not LAYER.fullmatch(name)}


def top_share(coverage: dict[str, dict[str, dict[str, Any]]]) -> float:
    """The largest share of a layer in coverage.json, in percent; 0 where there is no layer."""
    rows = (row for groups in coverage.values() for row in stacks(groups).values())
    return max((share for row in rows for share in row.values()), default=0.0)


def layer_words(coverage: dict[str, dict[str, dict[str, Any]]]) -> dict[str, str]:
    """{gid of a cell of layer_map: what it says in words}."""
    named = [
        (f"{part}: {name}", row) for part, groups in coverage.items() for name, row in stacks(groups).items()
    ]
    return {
        f"cell-{place}-{layer}": f"{name}.{layer}: {share:.1f} % salient"
        for place, (name, row) in enumerate(named)
        for layer, share in row.items()
    }


def layer_map(coverage: dict[str, dict[str, dict[str, Any]]], top: float | None = None) -> Figure | None:
    """A heat map with one row per stack of layers and one cell per layer; None where there is no layer.

    coverage: {part: {group: {"share": 0..1}}} as in coverage.json. The colour is the share of weights that
    are salient, from 0 to `top` percent, so that several maps have one scale; default: to the largest of all
    cells, which also say it in percent.
    """
    found = {
        f"{part}: {name}": row for part, groups in coverage.items() for name, row in stacks(groups).items()
    }
    if not found:
        return None
    from matplotlib.patches import Rectangle

    width = 1 + max(layer for row in found.values() for layer in row)
    top = top_share(coverage) if top is None else top
    figure = new_figure(9, 0.45 + 0.62 * len(found))
    axes = figure.add_subplot()
    for place, (name, row) in enumerate(found.items()):
        axes.annotate(name, (-0.5, place - 0.3), color=INK, fontsize=8.5, parse_math=False)
        for layer, share in row.items():
            alpha = 0.05 + 0.75 * share / top if top else 0.05
            cell = Rectangle((layer - 0.5, place - 0.2), 1, 0.55, facecolor=HEAT, alpha=alpha, lw=0)
            cell.set_gid(f"cell-{place}-{layer}")
            axes.add_patch(cell)
            if width <= 48:  # more cells have no room for two digits
                axes.annotate(
                    f"{share:.0f}", (layer, place + 0.08), color=INK, fontsize=7, ha="center", va="center"
                )
    axes.set_xlim(-0.5, max(width, 12) - 0.5)  # few layers need no cells as wide as the page
    axes.set_xticks(range(0, width, max(1, width // 8)))
    axes.set_ylim(len(found) - 0.5, -0.6)
    axes.set_yticks([])
    axes.set_xlabel("layer", color=INK, fontsize=9, loc="left")
    plain(axes)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(-0.5, width - 0.5)
    return figure
