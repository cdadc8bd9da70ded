"""Where the salient weights lie: per layer on the screen and in coverage.json, per layer and module as a heat
map."""

from __future__ import annotations

import re
from pathlib import Path

LAYER = re.compile(r"(.*?\.(?:layers|blocks))\.(\d+)\.(.*)\.(?:weight|bias)$")


def coverage(
    salient: dict[str, int], sizes: dict[str, int], part_of: dict[str, str]
) -> dict[str, dict[str, dict]]:
    """{part: {group: {"salient", "weights", "share"}}}; a group is a numbered layer, or a module outside the
    layers."""
    report: dict[str, dict[str, dict]] = {}
    for name, size in sizes.items():
        layer = LAYER.match(name)
        group = f"{layer[1]}.{layer[2]}" if layer else name.rpartition(".")[0]
        group = group.removeprefix("model.")
        for key in (group, "all"):
            entry = report.setdefault(part_of[name], {}).setdefault(key, {"salient": 0, "weights": 0})
            entry["salient"] += salient[name]
            entry["weights"] += size
    for groups in report.values():
        for entry in groups.values():
            entry["share"] = round(entry["salient"] / entry["weights"], 6)
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
    salient.

    A module's weight and bias count together; what lies outside the stacks is in coverage.json only.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    stacks: dict[str, dict[tuple[int, str], list[int]]] = {}
    for name, size in sizes.items():
        if layer := LAYER.match(name):
            stack = f"{part_of[name]}: {layer[1].removeprefix('model.')}"
            cell = stacks.setdefault(stack, {}).setdefault((int(layer[2]), layer[3]), [0, 0])
            cell[0] += salient[name]
            cell[1] += size
    width = max(len({module for _, module in cells}) for cells in stacks.values())
    heights = [2 + 0.28 * len({layer for layer, _ in cells}) for cells in stacks.values()]
    figure, axes = plt.subplots(
        len(stacks), 1, figsize=(3 + 0.55 * width, sum(heights)), height_ratios=heights, layout="constrained"
    )
    for axis, (title, cells) in zip(np.atleast_1d(axes), stacks.items()):
        modules = list(dict.fromkeys(module for _, module in cells))
        shares = np.full((1 + max(layer for layer, _ in cells), len(modules)), np.nan)
        for (layer, module), (count, size) in cells.items():
            shares[layer, modules.index(module)] = 100 * count / size
        image = axis.imshow(shares, cmap="viridis", vmin=0, aspect="auto")
        axis.set_xticks(range(len(modules)), modules, rotation=40, ha="right", fontsize=7)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("layer")
        axis.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axis, label="salient, %")
    figure.savefig(path, dpi=150)
    plt.close(figure)
