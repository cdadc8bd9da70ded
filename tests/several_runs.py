"""Run several training scripts in turn in this process, or in the processes that `accelerate launch` started:
what takes longest in a test of two processes is their start.

    accelerate launch ... tests/several_runs.py runs.json

runs.json: [[script, [argument, ...], settings], ...]; settings: {"stop_after": a step, after which the run
ends as if it were killed, a state being kept late by all processes but the first}, or {"forget_only": true},
no retain steps.
"""

import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

SAMPLES = 11  # of each set, at most: a global batch of 4 leaves one of 3


class Killed(Exception):
    pass


def few(read):
    return lambda *words: read(*words)[:SAMPLES]


def run(script: str, argv: list[str], stop_after: int | None = None, forget_only: bool = False) -> None:
    """The script on a few samples of each set."""
    import pytest
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from conftest import run_script

    from utils import training
    from utils.mllmu import MLLMUBench

    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # a first process that has not let go of its folder yet
    AcceleratorState._reset_state()  # one run after the other, as if each were alone
    GradientState._reset_state()
    take_step, save_state = training.Trainer._step, Accelerator.save_state

    def step(self, phase, forwards, number):
        if stop_after and number > stop_after:
            raise Killed
        return take_step(self, phase, forwards, number)

    def save_late(self, place):
        time.sleep(0 if self.is_main_process else 1)
        return save_state(self, place)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("forget", "retain"):
            patch.setattr(MLLMUBench, name, few(getattr(MLLMUBench, name)))
        patch.setattr(training.Trainer, "_step", step)
        if stop_after:
            patch.setattr(Accelerator, "save_state", save_late)
        if forget_only:
            patch.setattr(training, "alternate", lambda forget, *_: training.once(forget))
        try:
            run_script(script, *argv)
        except Killed:
            assert stop_after


if __name__ == "__main__":
    for script, argv, settings in json.loads(Path(sys.argv[1]).read_text()):
        run(script, argv, **settings)
