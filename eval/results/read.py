"""Result folders: find them, read them, name their rows."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.results import intervals
from eval.results.predictions import Prediction, is_number, read_predictions
from eval.tasks import METRICS, TASKS, Metric
from utils import checkpoint, cli, flags
from utils.benchmark import is_nano
from utils.run import folders

if TYPE_CHECKING:
    import argparse

EVALUATION = re.compile(r"forget\d+")  # folder of a finished evaluation
TRAINED = ("forget_ratio", "vanilla_dir", "keep_text")  # arguments of a training that results.json keeps
VERSION = 1  # of the form of results.json: eval/results/results.schema.json
NAMES = {"manifold": "MMUnlearner"}  # of scripts that are called otherwise where a person reads
NEEDED = ("benchmark", "forget_ratio", "shot", "splits")
FIELDS = {  # of results.json, as far as they are read
    "benchmark": str, "forget_ratio": int, "shot": str, "splits": dict, "model": str, "method": str,
    "mcq": str, "seed": int | None, "data": dict, "trained": dict, "cost": list, "differences": dict,
}  # fmt: skip


def add_result_args(p: argparse.ArgumentParser) -> None:
    """Which evaluations to compare: the same for the table and the report."""
    p.add_argument(
        "results",
        nargs="*",
        default=[],
        help="model folders, folders above them, folders with results.json, or such files; one row per"
        " evaluation, in this order; of a folder above several: vanilla, by path, retrained",
    )
    p.add_argument(
        "--vanilla",
        help='folder that differences are taken to; default: rows named "vanilla" or made by *_finetune.py',
    )
    p.add_argument(
        "--reference",
        help="folder of the retrained model, which never knew what is to be forgotten; default: the rows of"
        " *_reference.py, first those that kept the text",
    )
    flags.add_filter_args(p)


def given_results(args: argparse.Namespace) -> list[Result]:
    """The evaluations that add_result_args() names. Mistakes go to args.problems; the caller stops."""
    if not args.results:
        args.problems.add("results: name at least one result folder, e.g. runs/nano/vanilla")
    return load_results(
        args.results, args.problems, args.vanilla, args.shot, args.forget_ratio, args.reference
    )


@dataclass(eq=False)
class Result:
    """One evaluation of one model: one row. Hashed by identity: what is worked out for it is kept."""

    folder: Path  # holds results.json and predictions_<split>.jsonl
    content: dict[str, Any]  # of results.json
    method: str
    benchmark: str
    forget_ratio: int  # percent
    shot: str
    mcq: str
    seed: int | None
    splits: dict[str, dict]
    is_vanilla: bool = False
    is_reference: bool = False  # retrained: never knew what is to be forgotten
    label: str = ""

    @property
    def file(self) -> Path:
        return (self.folder / "results.json").resolve()

    @property
    def model_dir(self) -> Path:
        """The model's folder: two levels up in the layout <model>/<shot>/forgetNN, else the result folder."""
        return self.folder.parents[1] if EVALUATION.fullmatch(self.folder.name) else self.folder

    @property
    def is_nano(self) -> bool:
        return is_nano(self.benchmark)

    @property
    def is_own(self) -> bool:
        """Whether it is this suite's method."""
        return self.label.startswith(NAMES["manifold"])

    @property
    def trained(self) -> dict[str, Any]:
        """How its model was trained, as training_of() has it."""
        return self.content.get("trained", {})

    def never_knew(self, modality: str) -> bool:
        """Whether its model was retrained without what is to be forgotten of the people: their pictures, or
        them altogether. One that started from the vanilla model, as NPO's reference may, knew them."""
        if not self.trained:  # evaluated before results.json kept it
            return self.method.lower() == "reference"
        retrained = self.trained["script"].endswith("_reference.py") and not self.trained.get("vanilla_dir")
        return retrained and (modality == "image" or not self.trained.get("keep_text"))

    @property
    def role(self) -> int:
        """The order of rows that are found below a folder."""
        return 0 if self.is_vanilla else 2 if self.is_reference else 1

    @property
    def setting(self) -> tuple[str, int, str, str]:
        """What must be equal before two rows may be subtracted."""
        return self.benchmark, self.forget_ratio, self.shot, self.mcq

    @property
    def setting_text(self) -> str:
        return f"{self.benchmark}, forget {self.forget_ratio} %, {self.shot}, multiple choice by {self.mcq}"

    def asked_otherwise(self, other: Result) -> list[str]:
        """In what this row was asked otherwise than another of its setting, in words; what older files do not
        tell is left out."""
        own, theirs = (r.content.get("settings", {}) for r in (self, other))
        names = [n for n in ASKED if n in own and n in theirs and own[n] != theirs[n]]
        found = [f"{name} {own[name]}, not {theirs[name]}" for name in names]
        if self.shot == "few_shot" and not names and own.get("examples") != theirs.get("examples"):
            found.append("other solved examples")
        data, base = own.get("data", {}), theirs.get("data", {})
        if parts := [part for part in data if base.get(part, data[part]) != data[part]]:
            found.append(f"other questions or pictures in {', '.join(parts)}")
        return found

    @property
    def judge(self) -> str | None:
        """Who graded the generated answers, and by which prompt, as eval/judge.py has it."""
        judge = self.content.get("judge")
        if judge is None:
            return None
        return f"{' and '.join(judge['served'] or [judge['model']])}, prompt {judge['prompt']}"

    def entry(self, split: str, metric: Metric) -> dict[str, float] | None:
        """The numbers of one cell as results.json has them, None where it lacks the metric's number."""
        entry = self.splits.get(split, {}).get(metric.task, {}).get(metric.modality)
        return entry if entry is not None and metric.number in entry else None

    def entries(self) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
        """(split, task, modality, entry) of all that results.json has."""
        for split, tasks in self.splits.items():
            for task, kinds in tasks.items():
                for modality, entry in kinds.items():
                    yield split, task, modality, entry

    def value(self, split: str, key: str) -> float | None:
        entry = self.entry(split, METRICS[key])
        return None if entry is None else entry[METRICS[key].number]

    def interval(self, split: str, metric: Metric) -> tuple[float, float] | None:
        """95 % bootstrap interval over people of one cell's number, in its unit; None where it is not known.

        From results.json, or from the prediction files where it does not hold the interval.
        """
        return _interval(self, split, metric)

    def people(self, split: str, metric: Metric) -> int | None:
        """How many people one cell's questions are about; None where it is not known."""
        entry, scores = self.entry(split, metric), self.scores(split, metric)
        if entry is None:
            return None
        if metric.number == TASKS[metric.task].headline and "people" in entry:
            return entry["people"]
        return len({person for person, _ in scores.values()}) if scores else None

    def scores(self, split: str, metric: Metric) -> intervals.Scores | None:
        """The score of every question of one cell; None without prediction files of it."""
        return self.answers.get((split, metric.task, metric.modality, metric.number))

    @cached_property
    def answers(self) -> dict[intervals.Place, intervals.Scores]:
        """The scores of all predictions; empty without such files. Raises ValueError as predictions()."""
        return intervals.scores_by_place(self.predictions())

    def predictions(self) -> Iterator[Prediction]:
        """Those of all files beside results.json. Raises ValueError, naming the file that cannot be read."""
        for file in folders.found(self.folder, "predictions_*.jsonl"):
            yield from read_predictions(file)


@cache
def _interval(result: Result, split: str, metric: Metric) -> tuple[float, float] | None:
    entry = result.entry(split, metric)
    if entry is None:
        return None
    if metric.number == TASKS[metric.task].headline and "interval" in entry:
        bounds = entry["interval"]
    else:
        scores = result.scores(split, metric) or {}
        bounds = intervals.rounded(intervals.interval(scores.values()), metric.number)
    return tuple(bounds) if bounds else None


def load_results(
    paths: Sequence[str | Path],
    problems: cli.Problems,
    vanilla: str | Path | None = None,
    shot: str | None = None,
    forget_ratio: int | None = None,
    reference: str | Path | None = None,
) -> list[Result]:
    """Read result folders in the order given; what cannot be read is added to `problems`.

    A path is a model folder (all its evaluations <shot>/forgetNN are taken), a folder with results.json,
    that file, or a folder with model folders anywhere below: vanilla first, then by path, the retrained last.
    `shot` and `forget_ratio` (percent) keep the matching evaluations. Vanilla is every row of the folder
    `vanilla` (added in front when it is not among the paths), else every row whose method is "vanilla" or
    that *_finetune.py has trained; retrained every row of the folder `reference` (added at the end), else
    every one of a model that never knew the pictures to forget.
    """
    named = {"--vanilla": vanilla, "--reference": reference}
    files_of = {flag: set(_result_files(Path(path))) for flag, path in named.items() if path is not None}
    wanted = [("results", Path(path)) for path in paths]
    listed = {file for _, path in wanted for file in _result_files(path)}
    for flag, files in files_of.items():
        if not (files and files <= listed):
            wanted.insert(0 if flag == "--vanilla" else len(wanted), (flag, Path(named[flag])))
    results: dict[Path, Result] = {}
    for argument, path in wanted:
        files = _result_files(path)
        if not files:
            missing = (
                "no results.json in it nor below; run the evaluation first"
                if path.exists()
                else "no such folder"
            )
            problems.add(f"{argument}: {path}: {missing}")
            continue
        found = [result for result in (_read(file, argument, problems) for file in files) if result]
        kept = [r for r in found if shot in (None, r.shot) and forget_ratio in (None, r.forget_ratio)]
        if found and not kept:
            there = ", ".join(f"{r.shot}/forget{r.forget_ratio:02d}" for r in found)
            problems.add(f"{argument}: {path}: nothing left after --shot / --forget_ratio; it has {there}")
        for result in kept:
            chosen = {flag: result.file in files for flag, files in files_of.items()}
            result.is_vanilla = chosen.get("--vanilla", _is_finetuned(result))
            retrained = chosen.get("--reference", result.never_knew("image"))
            result.is_reference = retrained and not result.is_vanilla
        for result in sorted(kept, key=lambda result: result.role):
            results.setdefault(result.file, result)
    _name_rows(rows := list(results.values()))
    return rows


def _result_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path.resolve()] if path.name == "results.json" else []
    own = path / "results.json"
    if own.is_file():
        return [own.resolve()]
    return _evaluations(path) or [file for model in _models_below(path) for file in _evaluations(model)]


def _evaluations(model: Path) -> list[Path]:
    files = folders.found(model, "*/forget*/results.json")[::-1]  # zero_shot before few_shot
    return [file.resolve() for file in files if EVALUATION.fullmatch(file.parent.name)]


def _models_below(folder: Path) -> list[Path]:
    """Model folders with evaluations anywhere below, by path; what is hidden is not whole."""
    folder = folder.absolute()  # "." has no folders above
    files = folders.found_below(folder, "results.json")
    models = {file.parents[2] for file in files if EVALUATION.fullmatch(file.parent.name)}
    inside = {model: model.relative_to(folder).parts for model in models if model.is_relative_to(folder)}
    return sorted(model for model, parts in inside.items() if not any(p.startswith(".") for p in parts))


def _is_finetuned(result: Result) -> bool:
    """Whether it is the vanilla model, by its folder's name or by the script that trained it."""
    return result.method.lower() == "vanilla" or result.trained.get("script", "").endswith("_finetune.py")


def read_results(file: Path) -> dict[str, Any]:
    """The content of a results.json. Raises ValueError, naming the file, for what an evaluation does not
    write."""
    shown = f".../{Path(*file.parts[-4:])}"
    try:
        data = checkpoint.read_json(file)
        if not isinstance(data, dict):
            raise TypeError("it is no object")
        checked = {name: kind for name, kind in FIELDS.items() if name in data or name in NEEDED}
        if wrong := [name for name, kind in checked.items() if not isinstance(data[name], kind)]:
            raise TypeError(f"of another kind: {', '.join(wrong)}")
        for tasks in data["splits"].values():
            for entry in (entry for kinds in tasks.values() for entry in kinds.values()):
                _check_entry(entry)
        if data.get("version", VERSION) != VERSION:
            raise TypeError(f"of version {data['version']}, and this suite reads {VERSION}")
        if "data" in data and not isinstance(data["data"]["folder"], str):
            raise TypeError("data.folder is no text")
        if "trained" in data and not isinstance(data["trained"]["script"], str):
            raise TypeError("trained.script is no text")
        if "differences" in data:
            Path(data["differences"]["vanilla"])
            for tasks in data["differences"]["splits"].values():
                _ = [intervals.Difference(**found) for kinds in tasks.values() for found in kinds.values()]
        for worker in data.get("cost", []):
            numbers = [worker[name] for name in ("questions", "seconds", "peak_memory_bytes")]
            numbers.append(worker.get("peak_gpu_memory_bytes") or 0)
            if not (all(map(is_number, numbers)) and isinstance(worker["device"], str)):
                raise TypeError("a cost is no number")
    except OSError as error:  # its model or its evaluation is just being replaced
        raise ValueError(f"{shown} cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{shown} is not valid JSON ({error})") from error
    except KeyError as error:
        raise ValueError(
            f"{shown} has no {error}; it is no result of eval/MLLMU_eval.py or CLEAR_eval.py"
        ) from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{shown} is no result of eval/MLLMU_eval.py or CLEAR_eval.py ({error})") from error
    return data


def _check_entry(entry: dict[str, Any]) -> None:
    """Raises TypeError or KeyError unless it has a cell's numbers."""
    counts = [entry[name] for name in ("total", *(["correct"] if "accuracy" in entry else []))]
    bounds = [] if entry.get("interval") is None else entry["interval"]
    numbers = [value for name, value in entry.items() if name != "interval"]
    if not all(isinstance(count, int) for count in counts) or len(bounds) not in (0, 2):
        raise TypeError("a count or an interval is none")
    if not all(map(is_number, [*numbers, *bounds])):
        raise TypeError("a number is none")


def _read(file: Path, argument: str, problems: cli.Problems) -> Result | None:
    try:
        data = read_results(file)
    except ValueError as error:
        problems.add(f"{argument}: {error}; run that evaluation again")
        return None
    result = Result(
        folder=file.parent,
        content=data,
        method=data.get("method", ""),
        benchmark=data["benchmark"],
        forget_ratio=data["forget_ratio"],
        shot=data["shot"],
        mcq=data.get("mcq", "an unnamed rule"),
        seed=data.get("seed"),
        splits=data["splits"],
    )
    try:
        _ = result.judge and data["judge"]["model"]
    except (KeyError, TypeError):
        shown = Path(*file.parts[-4:])
        problems.add(f'{argument}: .../{shown}: broken entry "judge"; take it out, judge it again')
        return None
    result.method = result.method or result.model_dir.name
    return result


def training_of(model: str | Path) -> dict[str, Any]:
    """The script of a model's run.json and the TRAINED of its arguments; {} without one. Raises ValueError
    for a broken one."""
    path = Path(model) / "run.json"
    if not path.is_file():
        return {}
    try:
        run = checkpoint.read_json(path)
        given = {name: value for name, value in run["arguments"].items() if name in TRAINED}
        return {"script": str(run["script"])} | given
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a training ({error!r}); take it away") from error


ASKED = ("shots", "max_new_tokens")  # settings that are the same in rows that are subtracted


def other_ratio(trained: dict[str, Any], forget_ratio: int) -> int | None:
    """The percentage that a model was trained to forget, where that is not the one it is evaluated at."""
    ratio = trained.get("forget_ratio")
    return None if ratio == forget_ratio or trained.get("script", "").endswith("_finetune.py") else ratio


def read_answers(results: Iterable[Result], problems: cli.Problems) -> None:
    """Read the prediction files; what cannot be read is added to `problems`."""
    for result in results:
        try:
            _check_totals(result)
        except ValueError as error:
            problems.add(f"results: {error}; run that evaluation again")


def _check_totals(result: Result) -> None:
    """Raises ValueError where the predictions are not those that the numbers were worked out from."""
    for split, tasks in result.splits.items():
        if not (result.folder / f"predictions_{split}.jsonl").is_file():
            continue
        for task, kinds in tasks.items():
            for modality, entry in kinds.items():
                number = TASKS[task].headline if task in TASKS else ""
                found = len(result.answers.get((split, task, modality, number), ()))
                if number and found != entry["total"]:
                    raise ValueError(
                        f"{result.folder}: {entry['total']} answers to {split} {task} {modality} in"
                        f" results.json, {found} in predictions_{split}.jsonl"
                    )


def known_name(name: str) -> str:
    """A method's or folder's name with the script's name at its beginning in the reader's words."""
    script, rest = re.fullmatch(r"([A-Za-z]*)(.*)", name, re.DOTALL).groups()
    return NAMES.get(script, script) + rest


def _in_words(result: Result) -> str:
    """Who a row is: retrained (without their pictures), retrained without them, or a method's name."""
    if result.is_reference and result.never_knew("image"):
        return "retrained without them" if result.never_knew("text") else "retrained"
    return known_name(result.method)


def _name_rows(results: list[Result]) -> None:
    """Label rows by method in the reader's words; by folder where folders share a method; by evaluation too
    where that differs."""
    folders = defaultdict(set)
    for result in results:
        folders[_in_words(result)].add(result.model_dir)
    many_shots = len({result.shot for result in results}) > 1
    many_ratios = len({result.forget_ratio for result in results}) > 1
    for result in results:
        result.label = _in_words(result)
        names = [folder.name for folder in folders[result.label]]
        if len(names) > 1:  # the same method twice, e.g. with two learning rates
            unique = len(set(names)) == len(names)
            name = known_name(result.model_dir.name)
            result.label = name if unique else f"{result.model_dir.parent.name}/{name}"
        evaluation = [result.shot] * many_shots + [f"forget{result.forget_ratio:02d}"] * many_ratios
        result.label += f" ({', '.join(evaluation)})" if evaluation else ""
    labels = [result.label for result in results]
    for result in results:
        if labels.count(result.label) > 1:
            result.label = str(result.folder)
