"""General ability (POPE, MME, MMMU, MMBench, ScienceQA ...) of a saved model: hands it over to lmms-eval.

    python eval/general_ability.py 0,1,2,3 path_to_vanilla_model pope,mme,mmmu_val,mmbench_en_dev_static,scienceqa_img
    python eval/general_ability.py 0,1,2,3 runs/manifold pope,mme,mmmu_val,mmbench_en_dev_static,scienceqa_img
    python eval/general_ability.py 0 runs/manifold pope --limit 8

gpu_ids model tasks, then any flags of `python -m lmms_eval --help`. Each GPU has a copy of the model and a
share of the questions; without a GPU one CPU process does it, which is only for tiny models. The benchmarks,
their prompts and their scores are those of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), which
fetches their data from the Hugging Face hub. What it writes lies in <model>/general. When a model's vanilla
has been measured in the same way, both are printed side by side. See "General ability" in
docs/reproducing.md.
"""  # noqa: E501  (a command is one line)

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import checkpoint, cli, models

LMMS_EVAL = "0.7.3"  # the release that this was written for and run with
# decord, which lmms-eval's model classes import, comes with this extra only
INSTALL = f'{sys.executable} -m pip install "lmms-eval[video-legacy]=={LMMS_EVAL}"'
BACKENDS = {"llava": "llava_hf", "qwen2_vl": "qwen2_vl", "mllama": "llama_vision"}  # lmms-eval's names
DTYPE_FIXED = ("qwen2_vl",)  # this class of lmms-eval takes no dtype, it loads weights as they are stored
PICTURES_ONLY = ("llava", "mllama")  # their classes of lmms-eval end at a question without a picture
WITHOUT_PICTURES = ("scienceqa", "scienceqa_full")  # tasks that have such questions
OURS = ("--model", "--tasks", "--output_path", "--device", "--config")  # flags of lmms_eval that are set here
RESULTS = re.compile(r"\d{8}_\d{6}_results\.json")


def gpu_ids(text: str) -> list[str] | cli.Bad:
    """`0,1,2,3`, each id once: a GPU holds one copy."""
    ids = text.split(",")
    if all(map(str.isdecimal, ids)) and len(set(ids)) == len(ids):
        return ids
    return cli.Bad(f"'{text}' is not a list of different GPU ids such as 0,1,2,3")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = cli.parser(__doc__)
    p.add_argument("gpu_ids", type=gpu_ids, help="GPUs to use, e.g. 0,1,2,3")
    p.add_argument("model", help="folder of the model, as the scripts of this suite save it")
    p.add_argument("tasks", help="tasks of lmms-eval, separated by commas; --tasks list shows them all")
    p.add_argument(
        "flags", nargs=argparse.REMAINDER, default=[], help="any flags of lmms_eval, e.g. --limit 8"
    )
    return cli.parse(p, argv)


# ---------------------------------------------------------------- before anything heavy is imported
def check(args) -> None:
    """Add every mistake of the input to `args.problems`."""
    missing = [name for name in ("lmms_eval", "decord") if importlib.util.find_spec(name) is None]
    if missing:
        args.problems.add(f"{' and '.join(missing)}: not installed where this runs: {INSTALL}")
    check_flags(args)
    folder = models.local_folder(args.model) if args.model else None
    if folder is not None:
        check_model(args, folder)
    elif args.model:
        args.problems.add(
            f"model: no such folder: {args.model}; the results lie in it, so a model of the hub is fetched"
            " first: hf download OWNER/NAME --local-dir FOLDER"
        )


def check_flags(args) -> None:
    """--model_args is taken out of args.flags, to join ours; other flags that are set here are refused."""
    args.model_args, kept = "", []
    words = iter(args.flags)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--model_args":
            args.model_args = value if equals else next(words, "")
        elif name.startswith("--") and any(ours.startswith(name) for ours in OURS):  # it knows abbreviations
            args.problems.add(f"{name}: is set by this script; see its --help")
        else:
            kept.append(word)
    args.flags = kept


def check_model(args, folder: Path) -> None:
    """A whole model of a family that is handed over, which lmms-eval will read as it was saved."""
    add, config = args.problems.add, read_json(folder / "config.json")
    family, saved = config.get("model_type"), config.get("transformers_version", "0")
    here = version("transformers")
    if family is not None and family not in BACKENDS:
        add(f"model: a {family} model; handed over are {', '.join(BACKENDS)}; run lmms_eval on it yourself")
        return
    models.check_model(args.model, "model", args.problems)
    models.check_processor([("model", args.model)], args.problems)
    if re.search(r"""[,'"{}\[\]]""", str(folder.resolve())):
        add(f"model: lmms_eval reads no path with a comma, a quote or a bracket: {folder.resolve()}")
    if release(saved) > release(here):
        # an older one gives the parts whose names it does not know random weights, and goes on
        add(f"model: was saved with transformers {saved}, here is {here}; pip install transformers=={saved}")
    if family == "llava" and models.has_processor(folder):
        check_llava_processor(args, folder)
    check_pictures(args, family)


def check_llava_processor(args, folder: Path) -> None:
    if read_json(folder / "processor_config.json").get("patch_size") is None:
        complete = f"load_processor('{args.model}').save_pretrained('{args.model}')"
        args.problems.add(
            "model: its processor is from before transformers 4.47 and has no patch_size; complete it:"
            f' {sys.executable} -c "from utils.models import load_processor; {complete}"'
        )


def check_pictures(args, family: str | None) -> None:
    """Questions without a picture, where lmms-eval's class for the family has no place for them."""
    if family not in PICTURES_ONLY:
        return
    for task in sorted({*(args.tasks or "").split(",")} & {*WITHOUT_PICTURES}):
        args.problems.add(
            f"tasks: {task} has questions without a picture, at which lmms-eval's {BACKENDS[family]} ends;"
            " scienceqa_img has none"
        )
    if family == "llava" and "--force_simple" in args.flags:
        args.problems.add(
            "--force_simple: lmms-eval's simple llava_hf answers a question without a picture from the"
            " picture and question before it"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The file's content; {} where there is none or it is no JSON, which models.check_model tells."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def release(text: str) -> tuple[int, ...]:
    """(5, 23) of 5.23.0 and of 5.23.0.dev0: names of weights do not change in a patch release."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


# ---------------------------------------------------------------- the command
def command(args, on_gpu: bool) -> list[str]:
    """The call of lmms_eval. Several GPUs: one process each, by accelerate, as its documentation has it."""
    folder = Path(args.model).resolve()
    family = read_json(folder / "config.json")["model_type"]
    spread = "device_map=auto" in args.model_args.split(",")  # one copy over all GPUs
    processes = len(args.gpu_ids) if on_gpu and not spread else 1
    model_args = [f"pretrained={folder}"]
    if family not in DTYPE_FIXED:
        model_args.append(f"dtype={'bfloat16' if on_gpu else 'float32'}")
    if processes == 1 and not spread:
        # the default is an empty device_map, which transformers refuses; several processes need it empty
        model_args.append(f"device_map={'cuda' if on_gpu else 'cpu'}")
    if args.model_args:
        model_args.append(args.model_args)  # of equal names lmms_eval takes the last
    launch = (
        "accelerate.commands.launch --multi_gpu --num_machines 1 --gpu_ids all --mixed_precision no"
        f" --dynamo_backend no --main_process_port 0 --num_processes {processes} -m"
    )
    return [
        sys.executable, "-m", *(launch.split() if processes > 1 else []), "lmms_eval",
        "--model", BACKENDS[family], "--model_args", ",".join(model_args),
        *([] if on_gpu else ["--device", "cpu"]), "--tasks", args.tasks, "--batch_size", "1",
        "--output_path", str(folder / "general"), "--log_samples", *args.flags,
    ]  # fmt: skip


def run(args) -> Measured:
    """Print the command and run it; what it measured, after a record of the run is written beside that."""
    import torch

    on_gpu, folder = torch.cuda.is_available(), Path(args.model).resolve()
    visible = ",".join(args.gpu_ids) if on_gpu else ""
    if not on_gpu:
        print("no GPU here: one process on the CPU, which is only for tiny models")
    packages = checkpoint.versions() | {"lmms_eval": version("lmms_eval")}
    if packages["lmms_eval"] != LMMS_EVAL:
        print(f"note: this is lmms_eval {packages['lmms_eval']}; the script was written for {LMMS_EVAL}")
    words, before = command(args, on_gpu), measured(folder)
    print(f"CUDA_VISIBLE_DEVICES={visible} {shlex.join(words)}", flush=True)
    code = subprocess.run(words, env=os.environ | {"CUDA_VISIBLE_DEVICES": visible}, check=False).returncode
    new = [found for found in measured(folder) if found not in before]
    if code or not new:  # it ends with 0 after most errors, too
        raise SystemExit("error: lmms_eval wrote no results; what it says of the reason is above")
    record = {"command": words, "versions": packages, "git_commit": checkpoint.git_commit()}
    checkpoint.write_json(new[-1].beside("run.json"), record)
    return new[-1]


# ---------------------------------------------------------------- what came out
@dataclass(frozen=True)
class Measured:
    """One run of lmms_eval on one model: `<time>_results.json`, and what lies beside it."""

    file: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        return json.loads(self.file.read_text(encoding="utf-8"))

    @property
    def tasks(self) -> list[str]:
        return list(self.content["n-samples"])

    def beside(self, name: str) -> Path:
        return self.file.with_name(self.file.name.removesuffix("results.json") + name)

    def answers(self, task: str) -> list[dict[str, Any]]:
        """One line per question, as --log_samples keeps them."""
        lines = self.beside(f"samples_{task}.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    def numbers(self, task: str) -> dict[str, float]:
        """{metric: number}, as lmms-eval scales it, without the standard errors."""
        return {
            name.partition(",")[0]: value
            for name, value in self.content["results"][task].items()
            if "," in name and "_stderr" not in name and isinstance(value, int | float)
        }

    def scores(self, task: str, metric: str) -> dict[int, float]:
        """{question: score} of a metric that is the mean of its questions' scores; {} of any other."""
        values = {line["doc_id"]: line.get(metric) for line in self.answers(task)}
        scores = {id: v.get("score") if isinstance(v, dict) else v for id, v in values.items()}
        if not scores or not all(isinstance(score, int | float) for score in scores.values()):
            return {}
        mean = sum(scores.values()) / len(scores)
        return scores if abs(mean - self.numbers(task)[metric]) < 1e-6 else {}  # F1 is no such mean

    def setting(self, task: str) -> list[Any]:
        """What must be equal before two numbers may be subtracted."""
        config = self.content["config"]
        return [
            read_json(self.beside("run.json")).get("versions", {}).get("lmms_eval"),
            self.content["n-samples"][task],
            self.content["n-shot"][task],
            *(config[name] for name in ("model_backend", "limit", "offset", "gen_kwargs")),
        ]


def measured(folder: Path) -> list[Measured]:
    """The runs on a model, oldest first: lmms-eval names its files by the time of the start."""
    found = [path for path in folder.glob("general/*/*_results.json") if RESULTS.fullmatch(path.name)]
    return [Measured(path) for path in sorted(found, key=lambda path: path.name)]


def vanilla_of(folder: Path) -> Path | None:
    """The folder that the model was made from, as its run.json has it."""
    made = read_json(folder / "run.json").get("arguments", {})
    name = made.get("vanilla_dir") or made.get("model_id")
    return models.local_folder(name) if name else None


def compare(after: Measured, folder: Path) -> None:
    """Print the numbers beside those of the model that `folder` was made from, where they were measured."""
    import pandas as pd

    vanilla = vanilla_of(folder)
    if vanilla is None:
        return
    rows, earlier = [], measured(vanilla)
    for task in after.tasks:
        equal = [run for run in earlier if task in run.tasks and run.setting(task) == after.setting(task)]
        if equal:
            rows += differences(equal[-1], after, task)
        else:
            print(f"note: {task}: no equal run on {vanilla} to compare with")
    if rows:
        columns = ["task", "metric", "questions", str(vanilla), str(folder), "difference", "95 % interval"]
        print(pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True))


def differences(before: Measured, after: Measured, task: str) -> list[list[str]]:
    """One row per metric; the interval is a bootstrap over questions of the paired difference, and left out
    where no question's score changed: that is no proof that none would."""
    from eval.results import intervals

    old, new, rows = before.numbers(task), after.numbers(task), []
    for metric in [name for name in new if name in old]:
        was, now, bounds = before.scores(task, metric), after.scores(task, metric), None
        if was != now and was.keys() == now.keys():
            bounds = intervals.interval((str(id), now[id] - was[id]) for id in now)
        rows.append(
            [
                task,
                metric,
                str(after.content["n-samples"][task]["effective"]),
                f"{old[metric]:.4f}",
                f"{new[metric]:.4f}",
                f"{new[metric] - old[metric]:+.4f}",
                f"[{bounds[0]:+.4f}, {bounds[1]:+.4f}]" if bounds else "",
            ]
        )
    return rows


def warn_of_empty_replies(run: Measured) -> None:
    """lmms-eval's llava_hf turns an error in a question, such as a full GPU, into an empty reply."""
    for task in run.tasks:
        replies = [line["filtered_resps"] for line in run.answers(task)]
        empty = sum(reply in ("", [""], []) for reply in replies)
        if empty:
            print(
                f"warning: {task}: {empty} of {len(replies)} replies are empty and count as wrong; where the"
                " output above says 'in generating', they are errors, not answers"
            )


def main(args) -> None:
    check(args)
    args.problems.stop()
    results = run(args)
    print(f"results: {results.file}")
    warn_of_empty_replies(results)
    compare(results, Path(args.model))


if __name__ == "__main__":
    main(parse_args())
