"""What a training shows while it runs and afterwards: trackers, the picture of its losses."""

import importlib.util
import sys
import types

import pytest
from conftest import jsonl, run_script
from PIL import Image

from utils.loop import tracking

GA = "MLLMU_GA.py"


def looked_for(patch, specs: dict) -> None:
    """What importlib says of these packages."""
    found = importlib.util.find_spec
    says = lambda name, *more: specs[name] if name in specs else found(name, *more)
    patch.setattr(importlib.util, "find_spec", says)


def test_a_tracker_gets_every_step(train_args, tmp_path, monkeypatch):
    """TensorBoard's own package stands in for all: accelerate speaks to each of them."""
    seen, settings = [], {}

    class SummaryWriter:
        def __init__(self, folder):
            assert ".run.partial" in folder

        def add_hparams(self, values, metric_dict):
            settings.update(values)

        def add_scalar(self, name, value, global_step):
            seen.append((global_step, name, value))

        flush = close = lambda self: None

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    looked_for(monkeypatch, {"tensorboardX": "here"})
    from accelerate import tracking as theirs
    from accelerate.utils import LoggerType

    monkeypatch.setattr(theirs, "_available_trackers", [LoggerType.TENSORBOARD])
    run_script(GA, *train_args(report_to="tensorboard"))
    log = jsonl(tmp_path / "run" / "log.jsonl")
    for name, column in (("forget/loss", "loss"), ("forget/grad_norm", "grad_norm"), ("lr", "lr")):
        assert [value for _, n, value in seen if n == name] == [line[column] for line in log]
    assert {step for step, *_ in seen} == {1, 2, 3, 4}
    assert settings["batch_size"] == 8 and settings["save_dir"] == str(tmp_path / "run")


def test_a_tracker_that_is_not_installed_is_told_before_anything_loads(train_args, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *m: None if name == "wandb" else found(name, *m)
    )
    with pytest.raises(SystemExit) as end:
        run_script(GA, *train_args(report_to="wandb"))
    said = capsys.readouterr().err
    assert end.value.code == 2 and "error: --report_to: wandb is not installed" in said
    assert "-m pip install wandb" in said


def test_the_losses_of_a_long_run_are_drawn(train_args, tmp_path, monkeypatch):
    run_script(GA, *train_args())
    assert not (tmp_path / "run" / "losses.png").exists(), "a run of seconds does not pay for it"
    monkeypatch.setattr(tracking, "LONG", 0)
    run_script(GA, *train_args())
    with Image.open(tmp_path / "run" / "losses.png") as picture:
        one = picture.size
    records = [{"phase": ("forget", "retain")[i % 2], "step": i + 1, "loss": 1 / (i + 1)} for i in range(100)]
    tracking.draw_losses(records, tmp_path / "two.png")
    with Image.open(tmp_path / "two.png") as picture:
        assert picture.width == 2 * one[0] and len(picture.convert("L").getcolors()) > 20


def test_a_tracker_that_fails_loses_nothing(train_args, tmp_path, monkeypatch, capsys):
    class SummaryWriter:
        def __init__(self, folder):
            pass

        def add_scalar(self, *_, **__):
            raise ConnectionError("the server is gone")

        add_hparams = flush = lambda *_, **__: None
        close = add_scalar

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    looked_for(monkeypatch, {"tensorboardX": "here"})
    from accelerate import tracking as theirs
    from accelerate.utils import LoggerType

    monkeypatch.setattr(theirs, "_available_trackers", [LoggerType.TENSORBOARD])
    run_script(GA, *train_args(report_to="tensorboard"))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert capsys.readouterr().err.count("the server is gone; the run goes on") == 1
