"""Every script's optimizer step against a bare one, and its peak of memory.

    python perf/training.py

Bare is forward, backward, clipping and torch's AdamW on batches that are ready: what a step cannot do
without. Scripts run as a user runs them, decoding pictures and writing their log included, on a LLaVA of
about 46 M random weights with 144 image tokens, in fp32, all weights trained, batch 4; bare loops run before,
between and after them, so that a noisy machine is noisy for all. Printed per script and kind of step: its
median seconds, their ratio to bare, and the peak of the process; and MMUnlearner's masked forget step beside
GA_Diff's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from perf.setting import data, prepare, run
from utils import checkpoint, cli, families, models
from utils.mllmu import MLLMUBench
from utils.run import jsonl, machine

SCRIPTS = {"GA": 4, "NPO": 4, "GA_Diff": 1, "KL_Min": 1, "SimNPO": 1, "manifold": 1}  # epochs
SKIPPED = 2  # first steps of a run, which touch memory for the first time


def parse_args():
    p = cli.parser(__doc__)
    p.add_argument("--threads", type=cli.number(int, 1), default=2, help="default 2")
    p.add_argument("--hidden_size", type=cli.number(int, 64), default=512, help="width; default 512")
    p.add_argument("--layers", type=cli.number(int, 1), default=14, help="its layers; default 14")
    p.add_argument(
        "--bare", help=argparse.SUPPRESS
    )  # a folder: this process is one bare loop on what lies there
    args = cli.parse(p)
    args.problems.stop()
    return args


def bare_loop(folder: Path) -> None:
    """Print {"seconds" of every step, "peak"} as JSON."""
    import torch

    from utils.collate import Collator
    from utils.losses import token_nll

    samples = MLLMUBench(folder / "data" / "MLLMMU-Bench", 10, cli.Problems()).retain()
    model = models.load_model(str(folder / "model"), "fp32").train()
    collate = Collator(models.load_processor(str(folder / "model")), families.family_of(model))
    batches = [collate(samples[i : i + 4]) for i in range(0, 40, 4)]
    optimizer, seconds = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True), []
    for batch in batches:
        begin = time.perf_counter()
        token_nll(model, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    peak = machine.peak_memory()
    print(json.dumps({"seconds": seconds[SKIPPED:], "peak": peak}))


def script_steps(args, folder: Path, name: str, epochs: int) -> tuple[dict[str, list[float]], int]:
    """({kind of step: seconds of each}, peak of memory in bytes) of a script's run."""
    mask = ["--grad_mask_path", folder / "masks" / "mllmu_both_mask.pt"] if name == "manifold" else []
    run(
        args.threads, f"MLLMU_{name}.py", *data(folder), "--save_dir", folder / name, "--lora", False,
        "--num_epochs", epochs, *mask,
    )  # fmt: skip
    lines = [json.loads(line) for line in jsonl.read(folder / name / "log.jsonl")[0]]
    found: dict[str, list[float]] = {}
    for before, line in list(itertools.pairwise(lines))[SKIPPED:]:
        found.setdefault(line["phase"], []).append(line["seconds"] - before["seconds"])
    return found, checkpoint.read_json(folder / name / "run.json")["peak_memory_bytes"]


def main(args) -> None:
    if args.bare:
        bare_loop(Path(args.bare))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = prepare(folder, args.threads, args.hidden_size, args.layers)
        run(args.threads, "data_process/MLLMU_gen_mask.py", *data(folder), "--save_dir", folder / "masks")
        bare, found = [], {}
        for script, epochs in [*SCRIPTS.items(), (None, 0)]:
            bare.append(json.loads(run(args.threads, __file__, "--bare", folder).splitlines()[-1]))
            if script:
                found[script] = script_steps(args, folder, script, epochs)
    plain = statistics.median(second for loop in bare for second in loop["seconds"])
    loops = ", ".join(f"{statistics.median(loop['seconds']):.2f}" for loop in bare)
    print(
        f"LLaVA of {weights:,} weights, {args.threads} threads; a bare step {plain:.2f} s (loops: {loops})\n"
    )
    print("| script | step | seconds | / bare | peak MB |\n|---|---|---|---|---|")
    print(f"| bare | | {plain:.2f} | 1.00 | {max(loop['peak'] for loop in bare) / 1e6:,.0f} |")
    for script, (steps, peak) in found.items():
        for phase, seconds in steps.items():
            median = statistics.median(seconds)
            print(f"| {script} | {phase} | {median:.2f} | {median / plain:.2f} | {peak / 1e6:,.0f} |")
    masked, unmasked = (statistics.median(found[name][0]["forget"]) for name in ("manifold", "GA_Diff"))
    print(f"\nmasked forget step / unmasked: {masked / unmasked:.2f}")


if __name__ == "__main__":
    main(parse_args())
