"""Which engine runs, what it cannot carry, and a process's share of weights and masks."""

import pytest
import torch

from utils import engines
from utils.cli import Problems
from utils.masks import Mask, pack, repack, unpack


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
    ],
)
def test_what_cannot_be_carried_is_refused_in_one_line(launched, variables, words):
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
