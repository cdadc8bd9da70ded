"""Which engine runs, what it cannot carry, and a process's share of weights and masks."""

import os
import re
import shlex
import sys

import pytest
import torch
from conftest import ROOT, load_script

from utils.cli import Problems
from utils.loop import engines
from utils.masks import Mask, pack, repack, unpack
from utils.run import machine


@pytest.fixture
def launched(monkeypatch):
    """launched(FSDP_VERSION=2, ...): the environment of `accelerate launch`; returns the problems found."""

    def problems(**variables) -> list[str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        found = Problems()
        engines.check(found)
        return found.lines

    return problems


def test_the_engine_is_what_the_launcher_says(launched):
    assert engines.engine().title == "one process" and not launched()
    assert not launched(WORLD_SIZE=2) and engines.engine().title == "DDP"
    assert not launched(ACCELERATE_USE_FSDP="true", FSDP_VERSION=2) and engines.engine().sharded


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, ["FSDP1", "no mask", "configs/4gpu_fsdp2.yaml"]),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": 3},
            ["ZeRO-3", "flat partitions", "configs/4gpu_fsdp2.yaml"],
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, ["Megatron-LM"]),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ["mixed_precision bf16", "--dtype"]),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, ["fsdp_offload_params", "8bit"]),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, ["--gradient_checkpointing True"]),
    ],
)
def test_what_cannot_be_carried_is_refused_in_one_line(launched, variables, words):
    if any(name.startswith("FSDP_") for name in variables):
        variables |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": 2}
    (line,) = launched(**variables)
    assert all(word in line for word in words)


def test_a_share_of_a_packed_mask():
    """It may begin and end within a byte, or be empty."""
    mask = torch.rand(61) < 0.5
    for first, last in [(0, 61), (0, 7), (3, 61), (8, 16), (13, 14), (20, 20), (16, 61)]:
        part = repack(pack(mask), first, last)
        assert torch.equal(unpack(part, [last - first]), mask[first:last])
        assert torch.equal(part, pack(mask[first:last])), "bits behind the end are 0, as they are counted"


def test_a_mask_knows_what_is_salient_in_no_share():
    mask = Mask({"a": pack(torch.zeros(9).bool()), "b": pack(torch.ones(3).bool())}, {"a": [9], "b": [3]})
    assert mask.closed == {"a"}
    whole = mask.shard({"a": torch.empty(9), "b": torch.empty(3)})
    assert torch.equal(whole.of("b"), mask.of("b")) and whole.closed == {"a"}


# ---------------------------------------------------------------- configs/
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def command_of(file) -> list[str]:
    """The command in the comment that a file opens with."""
    comment = re.match(r"(#.*\n)+", file.read_text().partition("#!/bin/bash\n")[2] or file.read_text())[0]
    lines = [line.removeprefix("#").strip() for line in comment.splitlines() if line.startswith("#     ")]
    return shlex.split(" ".join(line.removesuffix("\\") for line in lines))


def check_command(words: list[str], monkeypatch) -> None:
    """A script that is there, with flags that it has and values that it reads."""
    assert (ROOT / words[0]).is_file()
    monkeypatch.setattr("sys.argv", words)
    assert not load_script(words[0]).parse_args().problems.lines


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_says_its_command_and_its_engine(file, monkeypatch):
    """accelerate's own launcher reads it; what it tells its processes is an engine that carries a mask."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

    accelerate, launch, *words = command_of(file)
    assert (accelerate, launch, words[:2]) == (
        "accelerate",
        "launch",
        ["--config_file", f"configs/{file.name}"],
    )
    words[1] = str(file)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    check_command([args.training_script, *args.training_script_args], monkeypatch)
    kind = {"1gpu": "one", "ddp": "ddp"}.get(file.stem.rpartition("_")[2], "fsdp2")
    several = kind != "one"
    environment = prepare_multi_gpu_env(args) if several else prepare_simple_launcher_cmd_env(args)[1]
    for name, value in environment.items():
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.setenv("WORLD_SIZE", str(args.num_processes))
    found = Problems()
    engines.check(found)
    assert engines.engine().kind == kind and not found.lines
    flags = dict(zip(args.training_script_args[::2], args.training_script_args[1::2]))
    step = int(flags["--batch_size"]) * args.num_processes
    assert f"a step is of {step} samples" in file.read_text()
    assert args.num_machines == 2 if "nodes" in file.stem else args.num_machines in (None, 1)


def test_the_slurm_file_says_its_command(monkeypatch):
    sbatch, file, *words = command_of(ROOT / "configs" / "train.slurm")
    assert (sbatch, file) == ("sbatch", "configs/train.slurm")
    check_command(words, monkeypatch)
    assert "configs/2nodes_fsdp2.yaml" in (ROOT / file).read_text()


# ---------------------------------------------------------------- the machine
def test_what_a_mac_does_not_tell(monkeypatch):
    peak = machine.peak_memory()
    assert 10_000_000 < peak < 10**12 and machine.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(sys, "platform", "darwin")  # there in bytes
    assert machine.cores() == 8 and machine.peak_memory() < peak / 500
