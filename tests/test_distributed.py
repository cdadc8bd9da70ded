"""Two processes give what one gives with the same global batch. CPU processes talk over gloo; FSDP2 is
accelerate's and torch's own, on CPUs."""

import json
import os
import subprocess
import sys

import pytest
import several_runs
import torch
from conftest import RATIO, ROOT, jsonl, run_script, weights

from utils.checkpoint import read_json
from utils.masks import Mask

ENGINES = {
    "ddp": ["--multi_gpu"],
    "fsdp2": ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"],
}


def launch(script: str, *argv, engine: str = "ddp") -> str:
    """`accelerate launch` of two CPU processes; returns their output. --cpu alone would start one;
    --multi_gpu or --use_fsdp is what starts several."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *ENGINES[engine], "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
        "0",
    ]  # fmt: skip
    for _ in range(2):
        done = subprocess.run(
            [*command, str(ROOT / script), *map(str, argv)],
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "address already in use" not in done.stderr:  # the port that accelerate found free
            break
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL, LORA = ["--lora", "False"], ["--lora", "True", "--lora_dropout", "0"]
METHODS = {
    "GA": FULL,
    "GA_Diff": [*FULL, "--gradient_accumulation_steps", "2"],  # some forwards of a process hold no sample
    "KL_Min": LORA,
    "NPO": LORA,
    "SimNPO": FULL,
    "manifold": ["--weight_decay", "0.1"],
    # and of MMUnlearner:
    "forget_only": ["--weight_decay", "0.1"],
    "resumed": ["--weight_decay", "0.1", "--save_steps", "2"],
    "two_adapters": LORA,
    "bf16": ["--dtype", "bf16", "--moments", "8bit"],
}


def runs(model, data, mask, folder, processes: int) -> list:
    """Every method, for tests/several_runs.py, with the same global batches of 4; eps is large, since AdamW
    makes steps out of the rounding of gradients that are nearly 0."""
    every = []
    for name, own in METHODS.items():
        masked = name in ("manifold", "forget_only", "resumed", "two_adapters", "bf16")
        script = "MLLMU_manifold.py" if masked else f"MLLMU_{name}.py"
        size = 4 // processes // (2 if name == "GA_Diff" else 1)
        argv = [
            "--model_id", model, "--data_split_dir", data, "--forget_ratio", RATIO, "--lr", "1e-3",
            "--adam_eps", "1e-2", "--batch_size", size, "--save_dir", folder / name, *own,
            *(["--grad_mask_path", mask] if masked else []),
        ]  # fmt: skip
        argv = [str(word) for word in argv]
        if name == "resumed":
            every += [[script, argv, {"stop_after": 3}], [script, [*argv, "--resume", "True"], {}]]
        else:
            every.append([script, argv, {"forget_only": True} if name == "forget_only" else {}])
    return every


@pytest.fixture(scope="module")
def run_with(masks, tiny, nano, tmp_path_factory):
    """run_with(engine) -> folder with the models of all methods; "one" is one process."""
    made = {}

    def make(engine: str):
        if engine not in made:
            folder = made[engine] = tmp_path_factory.mktemp(engine)
            mask = masks("llava") / "mllmu_language_mask.pt"
            every = runs(
                tiny["llava"], nano / "MLLMMU-Bench", mask, folder, processes=1 if engine == "one" else 2
            )
            if engine == "one":
                for script, argv, settings in every:
                    several_runs.run(script, argv, **settings)
            else:
                (folder / "runs.json").write_text(json.dumps(every))
                launch("tests/several_runs.py", folder / "runs.json", engine=engine)
        return made[engine]

    return make


@pytest.mark.parametrize("engine", ENGINES)
def test_every_method_in_two_processes(engine, run_with, tiny, masks):
    """Weights equal to 1e-6 in fp32; logs, and what run.json says of the update; outside the mask no bit
    changes where all steps are forget steps."""
    one, two, before = run_with("one"), run_with(engine), weights(tiny["llava"])
    for method in METHODS:
        manifests = [json.loads((folder / method / "run.json").read_text()) for folder in (one, two)]
        assert [m["processes"] for m in manifests] == [1, 2]
        logs = [jsonl(folder / method / "log.jsonl") for folder in (one, two)]
        assert [(x["phase"], x["terms"]) for x in logs[0]] == [(x["phase"], x["terms"]) for x in logs[1]]
        a, b = weights(one / method), weights(two / method)
        assert max(float((a[n] - before[n]).abs().max()) for n in a) > 5e-4, "the run should move the weights"
        atol = 1e-6 if method != "bf16" else 2e-4  # of weights that move by 5e-3
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=f"{method}: {name}")
        if method != "bf16":
            one_update, two_update = (m["update"] for m in manifests)
            # a gradient that is rounding alone, as of a key's bias, is 0 in one of them
            seen = one_update.pop("weights_seen")
            assert two_update.pop("weights_seen") == pytest.approx(seen, abs=20)
            assert two_update.pop("moved") == pytest.approx(one_update.pop("moved"), abs=2e-3)
            assert one_update == two_update
            assert [x["loss"] for x in logs[0]] == pytest.approx([x["loss"] for x in logs[1]], rel=1e-5)
            norms = [[x["grad_norm"] for x in log] for log in logs]
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    mask = Mask.load(str(masks("llava") / "mllmu_language_mask.pt"), "llava")
    after = weights(two / "forget_only")
    for name, p in after.items():
        inside = mask.of(name) if name in mask.bits else torch.zeros(p.shape, dtype=torch.bool)
        assert torch.equal(p[~inside], before[name][~inside]), name
    assert sum(int((p != before[n]).sum()) for n, p in after.items()) > 0.5 * mask.count()[0]
    a, b = weights(two / "manifold"), weights(two / "resumed")
    assert all(torch.equal(a[n], b[n]) for n in a), "a stop changes nothing"


@pytest.mark.parametrize(("engine", "flags"), [("ddp", []), ("fsdp2", ["--blocks", 2])], ids=list(ENGINES))
def test_masks_in_two_processes(engine, flags, masks, tiny, nano, tmp_path):
    """Under DDP each process has batches of its own, under FSDP2 both work on each of 4 samples."""
    told = launch(
        "data_process/MLLMU_gen_mask.py", "--model_id", tiny["llava"], "--data_split_dir",
        nano / "MLLMMU-Bench", "--forget_ratio", RATIO, "--save_dir", tmp_path / "two", *flags, engine=engine,
    )  # fmt: skip
    assert ("cut over 2 processes" in told) == (engine == "fsdp2")
    for part in ("language", "vision", "both"):
        name = f"mllmu_{part}_mask.pt"
        one, two = (Mask.load(str(folder / name), "llava") for folder in (masks("llava"), tmp_path / "two"))
        assert one.bits.keys() == two.bits.keys() and one.about["data"] == two.about["data"]
        differ = sum(int((one.of(n) != two.of(n)).sum()) for n in one.bits)
        assert differ <= 5e-4 * one.count()[1]  # key biases, whose gradients are rounding alone
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
