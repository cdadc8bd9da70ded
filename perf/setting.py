"""What measurements stand on: a benchmark of ten people, a LLaVA of random weights, and processes that run
one thing each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nano import stand_ins
from nano.tables import read_texts


def run(threads: int, *command) -> str:
    """What a Python script prints. Raises SystemExit with the end of its errors where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


def prepare(folder: Path, threads: int, hidden_size: int, layers: int) -> int:
    """Data and, in folder/model, a LLaVA with 144 image tokens, in fp32; returns its number of weights."""
    run(threads, "nano/make_nano.py", "--save_dir", folder / "data", "--people", 10, "--views", 1)
    tokenizer = stand_ins.train_tokenizer(read_texts([folder / "data" / "MLLMU-Bench"]), "llava", 4096)
    size = stand_ins.Size(
        image_size=168, layers=layers, key_value_heads=8, head_dim=hidden_size // 8,
        vision_layers=6, vision_heads=6, vision_head_dim=64, mlp_ratio=2,
    )  # fmt: skip
    return stand_ins.write("llava", tokenizer, folder / "model", size, dtype="float32").num_parameters()


def data(folder: Path) -> list:
    """The flags that name them."""
    tables = folder / "data" / "MLLMMU-Bench"
    return ["--model_id", folder / "model", "--data_split_dir", tables, "--forget_ratio", 10]
