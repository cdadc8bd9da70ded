"""perf/gpu.py on a bare machine, without a GPU: the smallest models, one process."""

import inspect
import json
import os
import subprocess
import sys

import torch
from conftest import ROOT, load_script

from nano import stand_ins
from utils import models
from utils.reading import weightless

# not installed there; a finder hides them
BARE = """
import runpy, sys
from importlib.machinery import PathFinder

missing = {"pyarrow", "pandas", "datasets", "matplotlib", "scipy", "nltk", "rouge_score", "tabulate"}

class Bare:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in missing else PathFinder.find_spec(name, path, target)

sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_row_needs_no_data_and_no_other_packages(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(ROOT / "perf" / "gpu.py"), "--size", "tiny", "--families",
         "qwen2_vl", "--batch_size", "1", "--row", "MMUnlearner, LoRA"],
        capture_output=True, text=True, check=False, env=os.environ | {"PERF_FOLDER": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"peak", "plan", "seconds", "share"} and min(found.values()) > 0


def test_a_row_that_fails_is_told_and_the_others_go_on(monkeypatch, capsys):
    gpu = load_script("perf/gpu.py")
    ends = iter([
        (1, "", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        (1, "", "Traceback\nValueError: no"), (-9, "", ""),
        (0, json.dumps({"peak": 2e9, "plan": 1e9, "seconds": 0.5, "share": 0.25}), ""),
    ])  # fmt: skip
    monkeypatch.setattr(gpu, "ROWS", dict.fromkeys("abcd"))
    monkeypatch.setattr(
        gpu.subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, *next(ends))
    )
    monkeypatch.setattr(sys, "argv", ["perf/gpu.py", "--families", "llava"])
    gpu.main(gpu.parse_args())
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("| llava")]
    assert "not measured on a GPU" in said
    assert [row.split("|")[3].strip() for row in rows] == [
        "does not fit", "failed: ValueError: no", "does not fit", "2,000"
    ]  # fmt: skip


def test_models_are_built_as_loaded_ones_are_asked_for(tmp_path):
    """With the published sizes and the ids of its tokenizer."""
    gpu = load_script("perf/gpu.py")
    parameters = lambda function: list(inspect.signature(function).parameters)
    assert parameters(gpu.build) == parameters(models.load_model)
    args = type("Args", (), {"size": "real"})
    gpu.write_files(args, "llava", tmp_path)
    with torch.device("meta"):
        empty = weightless.empty_model(str(tmp_path))
    assert sum(p.numel() for p in empty.parameters()) == 7_063_427_072
    processor = models.load_processor(str(tmp_path))
    assert (
        empty.config.image_token_id
        == processor.image_token_id
        < stand_ins.Files("llava", stand_ins.Size()).length
    )
