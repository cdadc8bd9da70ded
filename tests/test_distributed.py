"""Two processes give what one gives with the same global batch. CPU processes talk over gloo."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import RATIO, ROOT, run_script, weights

from utils.checkpoint import read_json
from utils.masks import Mask

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what the launcher says to its processes


def launch(script: str, *argv, engine: dict[str, str] | None = None) -> str:
    """`accelerate launch` of two CPU processes; returns their output. --cpu alone would start one;
    --multi_gpu is what starts several."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
        "0",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, str(ROOT / script), *map(str, argv)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | (engine or {}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_training_in_two_processes(masks, tiny, nano, tmp_path):
    """MMUnlearner: 30 forget and 120 retain questions in global batches of 4, the last of 2; a mask;
    clipping."""
    argv = [
        "--model_id", tiny["llava"], "--data_split_dir", nano / "MLLMMU-Bench", "--forget_ratio", RATIO,
        "--grad_mask_path", masks("llava") / "mllmu_language_mask.pt", "--lr", "1e-3", "--adam_eps", "1e-2",
    ]  # fmt: skip
    launch("MLLMU_manifold.py", *argv, "--batch_size", 2, "--save_dir", tmp_path / "two")
    run_script("MLLMU_manifold.py", *argv, "--batch_size", 4, "--save_dir", tmp_path / "one")
    manifests = [json.loads((tmp_path / n / "run.json").read_text()) for n in ("one", "two")]
    assert [m["processes"] for m in manifests] == [1, 2]
    assert manifests[0]["steps"] == manifests[1]["steps"]
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    assert [(x["phase"], x["terms"]) for x in logs[0]] == [(x["phase"], x["terms"]) for x in logs[1]]
    assert [x["loss"] for x in logs[0]] == pytest.approx([x["loss"] for x in logs[1]], abs=1e-4)
    assert [x["grad_norm"] for x in logs[0]] == pytest.approx([x["grad_norm"] for x in logs[1]], rel=1e-3)
    one, two, before = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(tiny["llava"])
    assert max(float((one[n] - before[n]).abs().max()) for n in one) > 1e-3, "the run should move the weights"
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(("engine", "flags"), [({}, []), (FSDP2, ["--blocks", 2])], ids=["ddp", "fsdp2"])
def test_masks_in_two_processes(engine, flags, masks, tiny, nano, tmp_path):
    """Under DDP each process has batches of its own, under FSDP2 both work on each of 4 samples."""
    told = launch(
        "data_process/MLLMU_gen_mask.py", "--model_id", tiny["llava"], "--data_split_dir",
        nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--save_dir", tmp_path / "two", *flags, engine=engine,
    )  # fmt: skip
    assert ("cut over 2 processes" in told) == bool(engine)
    for part in ("language", "vision", "both"):
        name = f"mllmu_{part}_mask.pt"
        one, two = (Mask.load(str(folder / name), "llava") for folder in (masks("llava"), tmp_path / "two"))
        assert one.bits.keys() == two.bits.keys() and one.about["data"] == two.about["data"]
        differ = sum(int((one.of(n) != two.of(n)).sum()) for n in one.bits)
        assert differ <= 1e-4 * one.count()[1]
    answers = [read_json(folder / "run.json")["answers"] for folder in (masks("llava"), tmp_path / "two")]
    assert answers[0] == pytest.approx(answers[1], rel=1e-3)


def test_processes_that_do_not_know_of_each_other_are_refused(tiny, nano, tmp_path, monkeypatch):
    """Started twice (WORLD_SIZE 2) with an accelerator that sees one process: both would write the same
    folder."""
    from accelerate import Accelerator

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    if Accelerator().num_processes != 1:
        pytest.skip("this accelerate joins them by itself")
    with pytest.raises(SystemExit):
        run_script(
            "MLLMU_GA.py", "--model_id", tiny["llava"], "--data_split_dir", nano, "--forget_ratio", RATIO,
            "--save_dir", tmp_path / "run",
        )  # fmt: skip
