"""How strongly each method forgets at each learning rate, on the nano benchmark: where the demo's learning
rates come from.

    bash demo.sh        # first: the nano benchmark, its vanilla model, its masks
    python nano/learning_rates.py --save_dir runs/nano_lr
    python nano/learning_rates.py --save_dir runs/nano_lr --methods manifold:language \\
        --lrs 2e-4,3e-4 --num_epochs 2

Every run is the suite's own script, followed by the evaluation of the forget and retain splits (multiple
choice by likelihood). Methods are the scripts' names; "manifold:both" says which mask. The table goes to the
screen and to learning_rates.csv; runs that are there are not repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli, folders

CELLS = ("forget image", "forget text", "retain image", "retain text")


def parse_args():
    p = cli.parser(__doc__)
    words = lambda text: [word for word in text.split(",") if word]
    p.add_argument(
        "--save_dir", required=True, type=cli.path, help="folder for the runs and learning_rates.csv"
    )
    p.add_argument(
        "--nano", type=cli.path, default=ROOT / "runs/nano", help="what demo.sh made; default runs/nano"
    )
    p.add_argument("--methods", type=words, default=["GA", "manifold:both"], help="default GA,manifold:both")
    p.add_argument(
        "--lrs", type=words, default=["1e-4", "2e-4", "3e-4", "4e-4", "6e-4"], help="learning rates"
    )
    p.add_argument(
        "--seeds", type=words, default=["0", "1", "2"], help="seeds of the data order; default 0,1,2"
    )
    p.add_argument("--num_epochs", default="1", help="default 1")
    p.add_argument("--batch_size", default="4", help="default 4")
    args = cli.parse(p)
    if not (args.nano / "mask").is_dir():
        args.problems.add(f"--nano: {args.nano} holds no vanilla model with masks; run bash demo.sh first")
    if args.save_dir:
        folders.check_writable(args.save_dir, "--save_dir", args.problems)
    args.problems.stop()
    return args


def run(*command: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, command))}\n{done.stderr[-2000:]}")


def one_run(args, method: str, lr: str, seed: str) -> dict[str, float]:
    """Train and evaluate once; accuracies in percent by CELLS."""
    script, _, mask = method.partition(":")
    folder = args.save_dir / f"{script}_{mask}_lr{lr}_epochs{args.num_epochs}_seed{seed}"
    data, masks = args.nano / "data", args.nano / "mask"
    results = folder / "zero_shot/forget10/results.json"
    if not results.is_file():
        flags = ["--grad_mask_path", masks / f"mllmu_{mask}_mask.pt"] if mask else []
        run(
            f"MLLMU_{script}.py", "--model_id", args.nano / "vanilla",
            "--data_split_dir", data / "MLLMMU-Bench", "--forget_ratio", "10",
            "--save_dir", folder, "--lora", "False", "--lr", lr, "--seed", seed,
            "--num_epochs", args.num_epochs, "--batch_size", args.batch_size, *flags,
        )  # fmt: skip
        run(
            "eval/MLLMU_eval.py", "--evaluated_model", folder, "--data_split_dir", data / "MLLMU-Bench",
            "--forget_ratio", "10", "--mcq", "likelihood", "--splits", "forget,retain", "--batch_size", "64",
        )  # fmt: skip
        (folder / "model.safetensors").unlink()
    splits = json.loads(results.read_text())["splits"]
    pick = lambda cell: splits[cell.split()[0]]["classification"][cell.split()[1]]["accuracy"]
    return {cell: pick(cell) for cell in CELLS}


def main(args) -> None:
    import pandas as pd
    from tqdm import tqdm

    jobs = [(m, lr, seed) for m in args.methods for lr in args.lrs for seed in args.seeds]
    rows = [
        {"method": m, "lr": lr, "seed": s, **one_run(args, m, lr, s)} for m, lr, s in tqdm(jobs, unit="run")
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(args.save_dir / "learning_rates.csv", index=False)
    table = frame.groupby(["method", "lr"], sort=False)[list(CELLS)].agg(["mean", "min", "max"])
    cells = {
        cell: [f"{m:.0f} ({low:.0f}–{high:.0f})" for m, low, high in table[cell].itertuples(index=False)]
        for cell in CELLS
    }
    print(f"\nnano MLLMU-Bench, {args.num_epochs} epoch; accuracy %: mean (lowest–highest) of the seeds")
    print(pd.DataFrame(cells, index=table.index).reset_index().to_markdown(index=False))


if __name__ == "__main__":
    main(parse_args())
