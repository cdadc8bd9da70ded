"""What a training writes beside its log while it runs, for those who watch: accelerate's trackers
(--report_to); and the losses as a picture."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.run.ending import first_line
from utils.run.figures import INK, new_figure, plain

if TYPE_CHECKING:
    from accelerate import Accelerator

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
PROJECT = "MMUnlearner"
PICTURE = "losses.png"
LONG = 30  # seconds: drawing costs about half a second, which a shorter run would notice
LINE, SMOOTH = "#9db8de", "#1f4e9c"


def check(args) -> None:
    """Add a problem for a tracker that is not installed."""
    packages = PACKAGES.get(args.report_to, ())
    if packages and not any(map(importlib.util.find_spec, packages)):
        install = f"{sys.executable} -m pip install {packages[0]}"
        args.problems.add(f"--report_to: {args.report_to} is not installed: {install}")


@contextmanager
def tracker(args, accelerator: Accelerator, folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that passes on a record of log.jsonl, to what --report_to names. TensorBoard's files go into
    the folder."""
    if args.report_to == "none":
        yield lambda record: None
        return
    from accelerate.tracking import filter_trackers

    plain_values = (bool, int, float, str)
    settings = {k: v if isinstance(v, plain_values) else str(v) for k, v in cli.settings(args).items()}
    named = {"name": Path(args.save_dir).name}
    accelerator.project_configuration.logging_dir = str(folder)
    accelerator.log_with = filter_trackers([args.report_to], str(folder))
    accelerator.init_trackers(PROJECT, settings, {"wandb": named, "trackio": named})

    told: list[str] = []

    def unhurt(act: Callable, *words, **more) -> None:
        """What a tracker raises, a lost network for instance, is told once and stops no training."""
        try:
            act(*words, **more)
        except Exception as why:  # whatever its package raises
            if not told:
                print(
                    f"\nnote: --report_to {args.report_to}: {first_line(why)}; the run goes on",
                    file=sys.stderr,
                )
            told.append(str(why))

    def track(record: dict[str, Any]) -> None:
        names = ("loss", "grad_norm", "ce")
        values = {f"{record['phase']}/{name}": record[name] for name in names if name in record}
        unhurt(accelerator.log, values | {"lr": record["lr"]}, step=record["step"])

    try:
        yield track
    finally:
        for each in accelerator.trackers:
            unhurt(each.finish)


def draw_losses(records: list[dict[str, Any]], path: Path) -> None:
    """A PNG with one panel per phase: its loss at every step, and the mean of the last twentieth."""
    phases = list(dict.fromkeys(record["phase"] for record in records))
    figure = new_figure(5 * len(phases), 3)
    for axes, phase in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases):
        steps = [record["step"] for record in records if record["phase"] == phase]
        losses = [record["loss"] for record in records if record["phase"] == phase]
        wide = max(1, len(losses) // 20)
        means = [sum(near := losses[max(0, i - wide + 1) : i + 1]) / len(near) for i in range(len(losses))]
        axes.plot(steps, losses, color=LINE, linewidth=0.8, marker="." if len(steps) < 40 else None)
        axes.plot(steps, means, color=SMOOTH, linewidth=1.6)
        axes.set_title(f"{phase}: loss of {len(steps)} steps", color=INK, fontsize=9, loc="left")
        axes.set_xlabel("step", color=INK, fontsize=8.5)
        plain(axes)
    figure.savefig(path)
