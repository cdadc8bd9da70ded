"""General ability (POPE, MME, MMMU, MMBench, ScienceQA ...) of a saved model: hands it over to lmms-eval.

    python eval/general_ability.py 0,1,2,3 path_to_vanilla_model pope,mme,mmmu_val,mmbench_en_dev_static,scienceqa_img
    python eval/general_ability.py 0,1,2,3 runs/manifold pope,mme,mmmu_val,mmbench_en_dev_static,scienceqa_img
    python eval/general_ability.py 0 runs/manifold pope --limit 8

gpu_ids model tasks, then any flags of `python -m lmms_eval --help`. Each GPU has a copy of the model and a
share of the questions; without a GPU one CPU process does it, which is only for tiny models. The benchmarks,
their prompts and their scores are those of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), which
fetches their data from the Hugging Face hub. What it writes lies in <model>/general. When a model's vanilla
has been measured in the same way, both are printed side by side. See docs/general_ability.md.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import checkpoint, cli
from utils.adapters import stored
from utils.planning import loadable
from utils.reading import model_files
from utils.run import folders, jsonl

# decord, which lmms-eval's model classes import, comes with this extra only
INSTALL = f'{sys.executable} -m pip install "lmms-eval[video-legacy]==0.7.3"'
BACKENDS = {  # {family: (lmms-eval's name, whether its class takes a dtype)}
    "llava": ("llava_hf", True),
    "qwen2_vl": ("qwen2_vl", False),
    "qwen2_5_vl": ("qwen2_5_vl", False),
    "qwen3_vl": ("qwen3_vl", False),
    "mllama": ("llama_vision", True),
}
OURS = ("--model", "--tasks", "--output_path", "--device")  # flags of lmms_eval that are set here


def gpu_ids(text: str) -> list[str] | cli.Bad:
    ids = text.split(",")
    if all(map(str.isdecimal, ids)) and len(set(ids)) == len(ids):
        return ids
    return cli.Bad(f"'{text}' is not a list of different GPU ids such as 0,1,2,3")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = cli.parser(__doc__)
    p.add_argument("gpu_ids", type=gpu_ids, help="GPUs to use, e.g. 0,1,2,3")
    p.add_argument("model", help="folder of the model, as the scripts of this suite save it")
    p.add_argument("tasks", help="tasks of lmms-eval, separated by commas; --tasks list shows them all")
    p.add_argument("flags", nargs=argparse.REMAINDER, default=[], help="flags of lmms_eval, e.g. --limit 8")
    args = cli.parse(p, argv)
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--model_args", default="")  # joined to ours
    known, args.flags = flags.parse_known_args(args.flags)
    args.model_args = known.model_args
    for name in (word.partition("=")[0] for word in args.flags):
        if name in OURS:
            args.problems.add(f"{name}: is set by this script; see its --help")
    return args


def check(args) -> None:
    """Add every mistake of the input to `args.problems`; a whole model is read as it was saved."""
    add = args.problems.add
    missing = [name for name in ("lmms_eval", "decord") if importlib.util.find_spec(name) is None]
    if missing:
        add(f"{' and '.join(missing)}: not installed where this runs: {INSTALL}")
    if not args.model:
        return
    if model_files.local_folder(args.model) is None:
        add(f"model: no such folder: {args.model}; first hf download OWNER/NAME --local-dir FOLDER")
        return
    folder = Path(args.model).resolve()
    if stored.is_adapter(folder):
        add(f"model: {args.model} is an adapter; lmms_eval reads whole models, which --merge True saves")
        return
    folders.check_writable(folder / "general", "model", args.problems)
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    if family is not None and family not in BACKENDS:
        add(f"model: a {family} model; handed over are {', '.join(BACKENDS)}; run lmms_eval on it yourself")
        return
    loadable.check_model(args.model, "model", args.problems)
    loadable.check_processor([("model", args.model)], args.problems)
    if re.search(r"""[,'"{}\[\]]""", str(folder)):
        add(f"model: lmms_eval reads no path with a comma, a quote or a bracket: {folder}")
    saved, here = config.get("transformers_version", "0"), version("transformers")
    if Version(saved).release[:2] > Version(here).release[:2]:
        # an older one gives the parts whose names it does not know random weights, and goes on
        add(f"model: was saved with transformers {saved}, here is {here}; pip install transformers=={saved}")


def read_json(path: Path) -> dict[str, Any]:
    """The file's content; {} where there is none or it is no JSON object, which check_model tells."""
    try:
        content = jsonl.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# ---------------------------------------------------------------- the command
def command(args, on_gpu: bool) -> list[str]:
    """The call of lmms_eval. Several GPUs: one process each, by accelerate, as its documentation has it."""
    folder = Path(args.model).resolve()
    name, takes_dtype = BACKENDS[read_json(folder / "config.json")["model_type"]]
    spread = "device_map=auto" in args.model_args.split(",")  # one copy over all GPUs
    processes = len(args.gpu_ids) if on_gpu and not spread else 1
    model_args = [f"pretrained={folder}"]
    if takes_dtype:
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
        "--model", name, "--model_args", ",".join(model_args),
        *([] if on_gpu else ["--device", "cpu"]), "--tasks", args.tasks, "--batch_size", "1",
        "--output_path", str(folder / "general"), "--log_samples", *args.flags,
    ]  # fmt: skip


def run(args) -> Path:
    """Print the command and run it; its results file, after a record of the run is written beside that."""
    import torch

    on_gpu, folder = torch.cuda.is_available(), Path(args.model).resolve()
    visible = ",".join(args.gpu_ids) if on_gpu else ""
    words, before = command(args, on_gpu), results_of(folder)
    print(f"CUDA_VISIBLE_DEVICES={visible} {shlex.join(words)}", flush=True)
    code = subprocess.run(words, env=os.environ | {"CUDA_VISIBLE_DEVICES": visible}, check=False).returncode
    new = [file for file in results_of(folder) if file not in before]
    if code or not new:  # it ends with 0 after most errors, too
        raise SystemExit("error: lmms_eval wrote no results; what it says of the reason is above")
    versions = checkpoint.versions() | {"lmms_eval": version("lmms_eval")}
    checkpoint.write_json(beside(new[-1], "run.json"), {"command": words, "versions": versions})
    return new[-1]


# ---------------------------------------------------------------- what came out
def results_of(folder: Path) -> list[Path]:
    """lmms-eval's results on a model, oldest first: it names its files by the time of the start."""
    return sorted(folder.glob("general/*/[0-9]*_[0-9]*_results.json"), key=lambda path: path.name)


def is_whole(results: Path) -> bool:
    """Whether a file is such results as lmms-eval writes."""
    content = read_json(results)
    parts = [content.get(name) for name in ("results", "config", "n-samples", "n-shot")]
    whole = all(isinstance(part, dict) for part in parts)
    return whole and all(isinstance(found, dict) for found in parts[0].values())


def beside(results: Path, name: str) -> Path:
    return results.with_name(results.name.removesuffix("results.json") + name)


def numbers(results: Path, task: str) -> dict[str, float]:
    """{metric: number}, as lmms-eval scales it, without its standard errors."""
    found = read_json(results)["results"][task].items()
    plain = {name: value for name, value in found if "_stderr" not in name and isinstance(value, int | float)}
    return {name.partition(",")[0]: value for name, value in plain.items() if "," in name}


def setting(results: Path, task: str) -> list[Any]:
    """What must be equal before two numbers may be compared."""
    content, record = read_json(results), read_json(beside(results, "run.json"))
    counts = [content[count].get(task) for count in ("n-samples", "n-shot")]
    config = [content["config"].get(name) for name in ("model_backend", "limit", "offset", "gen_kwargs")]
    return [record.get("versions", {}).get("lmms_eval"), *counts, *config]


def compare(after: Path, folder: Path) -> None:
    """Print the numbers, beside those of the model that `folder` was made from where they were measured."""
    from tabulate import tabulate

    made = read_json(folder / "run.json").get("arguments")
    made = made if isinstance(made, dict) else {}
    name = made.get("vanilla_dir") or made.get("model_id")
    vanilla = model_files.local_folder(str(name)) if name else None
    rows, earlier = [], results_of(vanilla) if vanilla else []
    for broken in (run for run in earlier if not is_whole(run)):
        print(f"note: {broken} holds no results of lmms-eval; take it away")
    earlier = list(filter(is_whole, earlier))
    for task, count in read_json(after)["n-samples"].items():
        equal = [run for run in earlier if setting(run, task) == setting(after, task)]
        if vanilla and not equal:
            print(f"note: {task}: no equal run on {vanilla} to compare with")
        old = numbers(equal[-1], task) if equal else {}
        for metric, new in numbers(after, task).items():
            was = [f"{old[metric]:.4f}", f"{new - old[metric]:+.4f}"] if metric in old else ["", ""]
            rows.append([task, metric, count["effective"], f"{new:.4f}", *was])
    head = ["task", "metric", "questions", str(folder), str(vanilla or "vanilla"), "difference"]
    print(tabulate(rows, head, "github", disable_numparse=True))


def warn_of_empty_replies(results: Path) -> None:
    """lmms-eval's llava_hf turns an error in a question, such as a full GPU, into an empty reply."""
    for task in read_json(results)["n-samples"]:
        lines = beside(results, f"samples_{task}.jsonl").read_text(encoding="utf-8").split("\n")
        replies = [json.loads(line)["filtered_resps"] for line in lines if line]
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
    print(f"results: {results}")
    warn_of_empty_replies(results)
    compare(results, Path(args.model))


if __name__ == "__main__":
    main(parse_args())
