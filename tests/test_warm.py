"""Commands in warm processes: in the order of what they need, none twice, and one line where one fails."""

import os
from pathlib import Path

import pytest

from nano.warm import Crew, step

SCRIPT = """
import sys
from dataclasses import dataclass
from pathlib import Path

from utils import cli

@dataclass
class Args:
    words: list[str]

def parse_args():
    return Args(sys.argv[1:])

def main(args):
    made, *needs = args.words
    for need in needs:
        if not Path(need).is_file():
            cli.fail(f"no {need}")
    with Path(made).open("a") as file:
        file.write("made\\n")
"""


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "touch.py").write_text(SCRIPT)
    return tmp_path / "touch.py"


def run(steps, folder, ended=lambda *_: None) -> list[str]:
    names = []
    with Crew(1, folder / "logs", warm=False) as crew:
        crew.run(steps, lambda one, seconds: (names.append(one.name), ended(one, seconds)))
    return names


def test_what_is_needed_comes_first_and_nothing_twice(script, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    steps = [step("second", [script, b, a], b, [a]), step("first", [script, a], a)]
    assert run(steps, tmp_path) == ["first", "second"]
    assert run(steps, tmp_path) == [] and a.read_text() == "made\n"
    os.utime(a)  # newer than what was made of it
    assert run(steps, tmp_path) == ["second"] and b.read_text() == "made\n" * 2
    a.unlink()
    assert run(steps, tmp_path) == ["first", "second"]


def test_a_step_that_fails_ends_it_in_one_line(script, tmp_path):
    steps = [step("lame", [script, tmp_path / "x", tmp_path / "nowhere"], tmp_path / "x")]
    with pytest.raises(SystemExit) as end:
        run(steps, tmp_path)
    assert str(end.value).startswith("error: lame: exit code 2: no ")
    assert "lame.txt" in str(end.value) and len(str(end.value).splitlines()) == 1
