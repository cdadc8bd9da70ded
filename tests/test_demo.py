"""The demo's steps: scripts that are there, flags that they take, and an order that leads to the table."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT, load_script

from nano.settings import DEMOS, RATIO

demo = load_script("nano/demo.py")


@pytest.mark.parametrize("name", DEMOS)
def test_every_step_can_be_taken(name, monkeypatch):
    steps = demo.steps(DEMOS[name])
    made = {one.makes for one in steps}
    assert len(made) == len({one.name for one in steps}) == len(steps)
    for one in steps:
        script, *flags = one.argv
        assert all(need in made or (ROOT / need).is_file() for need in one.needs), one.name
        monkeypatch.setattr(sys, "argv", [script, *flags])
        args = load_script(script).parse_args()  # SystemExit for a flag that the script has not
        if "--save_dir" in flags:
            assert Path(args.save_dir) / "run.json" == one.makes


@pytest.mark.parametrize("name", DEMOS)
def test_what_is_asked_at_last(name):
    steps, models = demo.steps(DEMOS[name]), DEMOS[name].models
    asked = [one.makes.parts[-4] for one in steps if one.argv[0].startswith("eval/")]
    assert sorted(asked) == sorted(models) and set(demo.FIRST_TABLE) <= set(models)
    assert all(f"forget{RATIO}" in str(one.makes) for one in steps if one.argv[0].startswith("eval/"))
    train = demo._next(DEMOS[name], "MMUnlearner")
    assert "_language_mask.pt" in train and "/manifold" not in train
    assert max(map(len, train.splitlines())) <= 100
