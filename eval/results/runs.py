"""What is known of a result beyond its numbers: what training and evaluation cost, and with which mask."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_process.coverage import outside_layers
from eval.results.predictions import is_number
from eval.results.read import Result
from utils import checkpoint
from utils.run.ending import Problems

FIELDS = {"arguments": dict, "device": str, "processes": int, "started": str}  # of run.json


def _read_json(path: Path, problems: Problems) -> dict[str, Any]:
    """The content of a JSON file; {} where there is none, and a problem where what is read of a run.json is
    of another kind."""
    try:
        content = checkpoint.read_json(path) if path.is_file() else {}
        wrong = [name for name, kind in FIELDS.items() if not isinstance(content.get(name, kind()), kind)]
        if not isinstance(content.get("arguments", {}).get("grad_mask_path", ""), str | None):
            wrong.append("grad_mask_path")
        if "seconds" in content and not all(
            is_number(content[name]) for name in ("seconds", "peak_memory_bytes")
        ):
            wrong.append("cost")
        if wrong:
            raise TypeError(f"of another kind: {', '.join(wrong)}")
        return content
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = "is not valid JSON" if isinstance(error, ValueError) else "is none of ours"
        problems.add(f"results: {path} {what} ({error}); write it again, or take it away")
        return {}


@dataclass
class Run:
    """A result with the run.json of its model, {} where there is none, as of a model from a hub."""

    result: Result
    training: dict[str, Any]
    folder: Path  # of the model, as far as it is known

    @property
    def mask_path(self) -> str | None:
        """The mask that the model was trained with, as the training was given it."""
        return self.training.get("arguments", {}).get("grad_mask_path")


def load_runs(results: Sequence[Result], problems: Problems) -> list[Run]:
    """One Run per result. run.json lies above the evaluation, or, where that was written elsewhere, in the
    folder that results.json names as the model."""
    runs = []
    for result in results:
        own = result.model_dir
        places = [own, *_places(result.content.get("model", own), own)]
        found = next((place for place in places if (place / "run.json").is_file()), own)
        runs.append(Run(result, _read_json(found / "run.json", problems), found))
    return runs


def training_cost(run: dict[str, Any]) -> dict[str, str]:
    """Time, memory and device of a run.json as text; memory is that of its first process."""
    if "seconds" not in run:
        return {}
    gpu, host = run.get("peak_gpu_memory_bytes"), size_text(run["peak_memory_bytes"])
    return {
        "time": time_text(run["seconds"]),
        "memory": f"{size_text(gpu)} GPU" if gpu else host,
        "host": f"{host} host" if gpu else "",
        "device": device_text([run.get("device", "")] * run.get("processes", 1)),
    }


def evaluation_cost(workers: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The costs of an evaluation's workers as one: they run side by side, so the longest time counts, and
    memory adds up. Starting up and loading the model are in the time."""
    if not workers:
        return {}
    questions, seconds = sum(w["questions"] for w in workers), max(w["seconds"] for w in workers)
    gpus = [size for w in workers if (size := w.get("peak_gpu_memory_bytes"))]
    memory, unit = (gpus, " GPU") if gpus else ([w["peak_memory_bytes"] for w in workers], "")
    return {
        "questions": f"{questions:,}",
        "time": time_text(seconds),
        "rate": f"{questions / seconds:.1f}" if seconds else "",
        "memory": size_text(sum(memory)) + unit,
        "each": f"at most {size_text(max(memory))} each" if len(workers) > 1 else "",
        "device": device_text([w["device"] for w in workers]),
    }


def device_text(devices: Sequence[str]) -> str:
    """`4 × cuda` of cuda:0 to cuda:3; one device is named without a number."""
    kinds = [device.partition(":")[0] for device in devices]
    counts = {kind: kinds.count(kind) for kind in kinds}
    return ", ".join(f"{count} × {kind}" if count > 1 else kind for kind, count in counts.items())


def time_text(seconds: float) -> str:
    """`42 s`, `12 min 5 s`, `3 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size_text(size: int) -> str:
    """Bytes as `812 MB` or `15.3 GB`, decimal."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@dataclass
class MaskUse:
    """A mask and the results whose model was trained with it. `folder` is None where neither coverage.json
    nor coverage.png was found beside the mask."""

    path: str
    folder: Path | None
    labels: list[str] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)  # run.json beside the mask
    coverage: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    remade: bool = False  # written again after a training that used it

    @property
    def name(self) -> str:
        return "/".join(Path(self.path).parts[-2:])

    @property
    def about(self) -> str:
        """How the mask was made, in a few words; "" where its folder does not say."""
        given = self.made.get("arguments", {})
        names = ("mask_kind", "saliency", "fisher", "threshold")
        words = [f"{name} {given[name]}" for name in names if name in given]
        return ", ".join(words).replace("mask_kind ", "kind ")

    @property
    def table(self) -> list[dict[str, Any]]:
        """Each part as a whole, then its groups that are no layer: what the heat map does not show."""
        return [
            {"part": name == part, "name": name, **entry}
            for part, groups in self.coverage.items()
            for name, entry in {part: groups["all"], **outside_layers(groups)}.items()
        ]

    @property
    def picture(self) -> str | None:
        """coverage.png, layer by module, as a data URI."""
        if self.folder and (file := self.folder / "coverage.png").is_file():
            return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
        return None


def masks_of(runs: Sequence[Run], problems: Problems) -> list[MaskUse]:
    """Each mask that a training used, once, with what lies beside it."""
    uses: dict[Path | str, MaskUse] = {}
    for run in runs:
        if not run.mask_path:
            continue
        places = [place.parent for place in _places(run.mask_path, run.result.model_dir)]
        files = [place / name for place in places for name in ("coverage.json", "coverage.png")]
        folder = next((file.parent.resolve() for file in files if file.is_file()), None)
        key = folder / Path(run.mask_path).name if folder else run.mask_path
        if key not in uses:
            uses[key] = use = MaskUse(run.mask_path, folder)
            if folder:
                use.made = _read_json(folder / "run.json", problems)
                use.coverage = _covered(_read_json(folder / "coverage.json", problems), run.mask_path)
                _check_coverage(use, folder, problems)
        uses[key].labels.append(run.result.label)
        times = [about.get("started") for about in (run.training, uses[key].made)]
        uses[key].remade |= None not in times and times[0] < times[1]  # ISO 8601, UTC: in order as text
    return list(uses.values())


def training_time(run: Run, masks: Sequence[MaskUse]) -> str:
    """How long it took to make the model, with its mask where it has one; "" where that is not known."""
    made = [use.made.get("seconds") for use in masks if run.result.label in use.labels]
    if "seconds" not in run.training:
        return ""
    time = time_text(run.training["seconds"] + sum(filter(None, made)))
    return f"{time} + mask" if None in made else time


def _places(path: str | Path, model_dir: Path) -> list[Path]:
    """Where a path may lie that was relative to the folder in which something ran: under the folders above
    the model, which may have been copied here as a whole, nearest first, then under this folder."""
    return [base / path for base in (*model_dir.absolute().parents, Path.cwd())]


def _check_coverage(use: MaskUse, folder: Path, problems: Problems) -> None:
    """Drop what is no coverage, with a problem."""
    try:
        entries = [entry for groups in use.coverage.values() for entry in groups.values()]
        _ = use.table, [entry[name] + 0.0 for entry in entries for name in ("salient", "weights", "share")]
    except (KeyError, TypeError, AttributeError) as error:
        problems.add(f"results: {folder / 'coverage.json'} is no coverage of a mask ({error}); take it away")
        use.coverage = {}


def _covered(coverage: dict[str, Any], mask: str) -> dict[str, Any]:
    """The parts of coverage.json that the mask names, by its file name; all where that does not say."""
    part = re.search(r"_(language|vision)_mask\.pt$", mask)
    return {part[1]: coverage[part[1]]} if part and part[1] in coverage else coverage


def cost_rows(runs: Sequence[Run], masks: Sequence[MaskUse]) -> list[dict[str, Any]]:
    """One row of the cost table per result: its name, and the costs of training, mask and evaluation, {}
    where they are not known."""
    made = {label: use.made for use in masks for label in use.labels}
    return [
        {
            "label": run.result.label,
            "vanilla": run.result.is_vanilla,
            "training": training_cost(run.training),
            "mask": training_cost(made.get(run.result.label, {})),
            "evaluation": evaluation_cost(run.result.content.get("cost", [])),
        }
        for run in runs
    ]
