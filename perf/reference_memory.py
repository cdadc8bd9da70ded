"""KL_Min and NPO without a second model in memory, against the plain way that keeps the frozen model beside
the trained one.

    python perf/reference_memory.py --data_split_dir runs/nano/data/MLLMU-Bench

Both ways take the same steps on the same batches of a LLaVA of about 50 M random weights (AdamW, fp32), each
in a process of its own. Printed: peak memory of the process, seconds (our one pass over the data included),
their ratios, and the largest difference between the losses of the two ways.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nano import stand_ins
from nano.tables import read_texts
from utils import cli, models, reference
from utils.losses import label_logits, sequence_log_prob
from utils.mllmu import MLLMUBench


def parse_args():
    p = cli.parser(__doc__)
    folder = "runs/nano/data/MLLMU-Bench"
    p.add_argument("--data_split_dir", default=folder, help=f"default {folder}")
    p.add_argument("--steps", type=cli.number(int, 1), default=12, help="optimizer steps; default 12")
    p.add_argument("--hidden_size", type=cli.number(int, 64), default=640, help="width; default 640")
    p.add_argument("--layers", type=cli.number(int, 1), default=8, help="its layers; default 8")
    p.add_argument("--one", help=argparse.SUPPRESS)  # "KL_Min:ours": this process is one measurement
    p.add_argument("--model_dir", help=argparse.SUPPRESS)
    return cli.parse(p)


def samples_of(args) -> list:
    samples = MLLMUBench(args.data_split_dir, 10, args.problems).forget()
    args.problems.stop()
    return samples[: 4 * args.steps]


def make_model(args, folder: str) -> int:
    """Write the model; returns its number of weights."""
    tokenizer = stand_ins.train_tokenizer(read_texts([Path(args.data_split_dir)]), "llava", vocab_size=2048)
    size = stand_ins.Size(
        image_size=56, layers=args.layers, key_value_heads=8, head_dim=args.hidden_size // 8,
        vision_layers=3, vision_heads=3, vision_head_dim=32, mlp_ratio=2,
    )  # fmt: skip
    return stand_ins.write("llava", tokenizer, Path(folder), size, dtype="float32").num_parameters()


class Resident:
    """The plain way: the frozen model stays in memory and runs beside the trained one in every step."""

    def __init__(self, name: str):
        self.model = models.load_model(name).eval().requires_grad_(False)

    def log_probs(self, batch):
        return label_logits(self.model, batch)[0].log_softmax(-1)

    def of(self, batch):
        return sequence_log_prob(self.model, batch)


def measure(args) -> None:
    """Take the steps one way and print {"losses", "seconds", "peak"} as JSON."""
    import importlib

    import torch

    from utils.collate import Collator

    method, way = args.one.split(":")
    script, samples = importlib.import_module(f"MLLMU_{method}"), samples_of(args)
    sys.argv = [f"MLLMU_{method}.py", "--model_id", args.model_dir, "--save_dir", "unused", "--dtype", "fp32"]
    settings = script.parse_args()
    started = time.monotonic()
    kinds = {"KL_Min": reference.AnswerStates, "NPO": reference.SequenceLogProbs}
    frozen = Resident(args.model_dir) if way == "plain" else kinds[method](settings, args.model_dir, samples)
    losses = {
        "KL_Min": lambda model, batch: script.retain_loss(model, batch, frozen),
        "NPO": lambda model, batch: script.forget_loss(model, batch, frozen, beta=0.4),
    }
    model = models.load_model(args.model_dir).train()
    collate = Collator(models.load_processor(args.model_dir), models.family_of(model))
    optimizer, values = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), []
    for i in range(0, len(samples), 4):
        loss = losses[method](model, collate(samples[i : i + 4])).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"losses": values, "seconds": time.monotonic() - started, "peak": peak}))


def main(args) -> None:
    if args.one:
        measure(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = make_model(args, folder)
        idle = [sys.executable, "-c", "import torch, transformers, resource;"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"]  # fmt: skip
        base = int(subprocess.run(idle, capture_output=True, text=True, check=True).stdout)
        print(f"{weights:,} weights, {args.steps} steps of 4; an idle process takes {base / 1e6:,.0f} MB\n")
        print("| method | way | peak MB | seconds |\n|---|---|---|---|")
        for method in ("KL_Min", "NPO"):
            found = {}
            for way in ("plain", "ours"):
                command = [sys.executable, __file__, "--one", f"{method}:{way}", "--model_dir", folder]
                command += ["--data_split_dir", args.data_split_dir, "--steps", str(args.steps)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"error: {done.stderr[-2000:]}")
                found[way] = json.loads(done.stdout.splitlines()[-1])
                print(f"| {method} | {way} | {found[way]['peak'] / 1e6:,.0f} | {found[way]['seconds']:.1f} |")
            plain, ours = found["plain"], found["ours"]
            apart = max(abs(a - b) for a, b in zip(plain["losses"], ours["losses"]))
            memory, seconds = ours["peak"] / plain["peak"], ours["seconds"] / plain["seconds"]
            print(f"| {method} | ours / plain | {memory:.2f} | {seconds:.2f} |")
            print(f"| {method} | largest difference of a step's loss | {apart:.1e} | |")


if __name__ == "__main__":
    main(parse_args())
