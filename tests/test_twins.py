"""MLLMU_X.py and CLEAR_X.py are twins: one program but for the lines that say which benchmark is read."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

TWINS = sorted([*ROOT.glob("MLLMU_*.py"), *ROOT.glob("data_process/MLLMU_*.py")])
WORDS = {  # what the data lines are made of
    "from utils.mllmu import MLLMUBench": "from utils.clear import CLEARBench",
    "MLLMUBench(": "CLEARBench(",
    'folder="data/MLLMU-Bench"': 'folder="data/CLEAR"',
    'folder="data/MLLMMU-Bench"': 'folder="data/CLEAR"',
    'prefix="mllmu"': 'prefix="clear"',
}


def program(path: Path) -> str:
    """The source without its module docstring."""
    source = path.read_text(encoding="utf-8")
    end = ast.parse(source).body[0].end_lineno
    return "\n".join(source.splitlines()[end:])


def test_there_are_seven_methods():
    names = {p.stem.removeprefix("MLLMU_") for p in ROOT.glob("MLLMU_*.py")}
    assert names == {"finetune", "reference", "GA", "GA_Diff", "KL_Min", "NPO", "manifold"}


@pytest.mark.parametrize("path", TWINS, ids=lambda p: p.stem)
def test_twins_differ_only_in_their_data_lines(path):
    twin = path.with_name(path.name.replace("MLLMU_", "CLEAR_"))
    ours = program(path)
    for word, other in WORDS.items():
        ours = ours.replace(word, other)
    assert ours == program(twin)
    assert "MLLMU" not in twin.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TWINS, ids=lambda p: p.stem)
def test_a_script_can_be_read_in_ten_minutes(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    order = [n.name for n in ast.parse("\n".join(lines)).body if isinstance(n, ast.FunctionDef)]
    assert order[0] == "parse_args" and order[-1] == "main"
