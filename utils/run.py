"""What every command does around its work: check all input first, and write down what was run."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from utils import checkpoint, models
from utils.data import Sample, fingerprint


def check(args, data: dict[str, list[Sample]], bench) -> None:
    """Everything that can be wrong is told here, at once, before torch is imported or a model loads."""
    vanilla = vars(args).get("vanilla_dir")  # some scripts have no such flag
    models.check_model(args.model_id, "--model_id", args.problems)
    models.check_model(vanilla, "--vanilla_dir", args.problems)
    models.check_model(vars(args).get("oracle_model_id"), "--oracle_model_id", args.problems)
    models.check_processor([("--vanilla_dir", vanilla), ("--model_id", args.model_id)], args.problems)
    inputs = {"--model_id": args.model_id, "--vanilla_dir": vanilla, "--data_split_dir": args.data_split_dir}
    checkpoint.check_save_dir(args.save_dir, args.problems, inputs, vars(args).get("resume", False))
    check_mask_file(args, vanilla or args.model_id)
    if args.answer_tokens == "skip_first" and (args.loss_tokens == "all" or not args.ans_only):
        args.problems.add(
            "--answer_tokens: skip_first is about a loss on the answer alone; not with --loss_tokens all or"
            " --ans_only False"
        )
    if args.save_dir and not args.problems.lines:
        check_resume(args, data)
    args.problems.stop()
    if os.environ.get("RANK", "0") != "0":
        return
    for line in bench.notes:
        print(f"note: {line}")
    for name, samples in data.items():
        print(f"{name}: {bench.describe(samples)}")


def check_resume(args, data: dict[str, list[Sample]]) -> None:
    """--resume goes on with the run that kept the state: same arguments, same data."""
    kept = checkpoint.partial_folder(args.save_dir) / "state" / "progress.json"
    if not vars(args).get("resume") or not kept.is_file():
        return
    before, free = json.loads(kept.read_text()), {"resume", "save_steps", "num_workers"}
    for name, value in before["arguments"].items():
        if name not in free and vars(args).get(name) != value:
            args.problems.add(
                f"--{name}: the kept run had {value}, not {vars(args).get(name)}; --resume goes on with it"
            )
    for name, entry in before["data"].items():
        if name in data and fingerprint(data[name]) != entry["fingerprint"]:
            args.problems.add(f"--resume: the {name} data are not those of the kept run")


def check_mask_file(args, model_name: str | None) -> None:
    """--grad_mask_path: there, a mask, of this model, and not together with LoRA."""
    path = vars(args).get("grad_mask_path")
    if not path:
        return
    if args.lora:
        args.problems.add(
            "--lora: a mask is over full weights, not an adapter's; with --grad_mask_path use --lora False"
        )
    if not Path(path).is_file():
        args.problems.add(f"--grad_mask_path: no such file: {path}")
    if args.problems.lines or models.local_folder(model_name) is None:
        return  # a hub model is checked when it is there
    from utils.masks import Mask, MaskError, model_fingerprint

    empty = models.empty_model(model_name)
    try:
        mask = Mask.load(path, empty.config.model_type, args.mask_names)
        mask.check({name: list(p.shape) for name, p in empty.named_parameters()})
        made_for = mask.about.get("model", {}).get("fingerprint")
        if made_for and made_for != model_fingerprint(Path(model_name)):
            raise MaskError(
                f"it was made for other weights ({mask.about['model']['name']}) than {model_name};"
                " run data_process/MLLMU_gen_mask.py or CLEAR_gen_mask.py on this model"
            )
    except MaskError as why:
        args.problems.add(f"--grad_mask_path: {why}")


def check_processes(accelerator) -> None:
    """End the run where several processes were started that do not know of each other: each would do all of
    the work and write the same folder."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise SystemExit(
            f"error: {started} processes were started, but they do not work together; on CPUs launch with"
            " ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
        )


# ---------------------------------------------------------------- what was run
def manifest(args, data: dict[str, list], accelerator) -> dict[str, Any]:
    """The beginning of a run.json: resolved arguments, versions, commit, device, and a fingerprint of each
    data set."""
    return {
        "script": Path(sys.argv[0]).name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": {name: value for name, value in vars(args).items() if name != "problems"},
        "seed": args.seed,
        "git_commit": checkpoint.git_commit(),
        "versions": checkpoint.versions(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "data": {
            name: {"samples": len(items), "fingerprint": fingerprint(items)} for name, items in data.items()
        },
    }


def cost(started: float) -> dict[str, Any]:
    """Wall time since `started` (time.monotonic) and peak memory of this process, for the end of a
    run.json."""
    import torch

    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # ru_maxrss is in KiB
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }
