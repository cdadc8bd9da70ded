"""The README's commands, run as printed and in its order, in an empty folder that holds only the data."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

LEFT_OUT = (  # minutes long, this test itself, the network, an abbreviation
    "bash demo.sh", "bash test.sh", "bash probe.sh", "source .venv", "python data_process/download.py",
    "accelerate launch",
)  # fmt: skip
EXPAND = """
show() { printf '%q ' "$@"; echo; }
python() { show python "$@"; }
bash() { show bash "$@"; }
accelerate() { show accelerate "$@"; }
source() { show source "$@"; }
"""


def text() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The words of every command, as bash makes them of the README's variables and loops."""
    blocks = re.findall(r"```bash\n(.*?)```", text(), re.DOTALL)
    done = subprocess.run(
        ["bash", "-euc", EXPAND + "\n".join(blocks)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    return [shlex.split(line) for line in lines if not line.startswith(LEFT_OUT)]


def test_every_command_of_the_readme_runs_as_printed(nano, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(nano)
    monkeypatch.chdir(tmp_path)
    run = commands()
    assert len(run) >= 40, run
    (tmp_path / "say").write_text("#!/bin/bash\nprintf '%q ' \"$@\"\n")
    (tmp_path / "say").chmod(0o700)
    started = set()
    for program, script, *words in run:
        assert (ROOT / script).is_file(), f"the README names {script}"
        if program == "python":
            run_script(script, *words)
            continue
        assert program == "bash", program
        again = script in started
        started.add(script)
        environment = os.environ | {"PYTHON": str(tmp_path / "say") if again else sys.executable}
        argv = ["bash", ROOT / script, *words]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script} {words}\n{done.stderr}"
        if again:  # what it starts, in this process, which has torch loaded
            run_script(*shlex.split(done.stdout), "--gpus", "0")
    for made in (
        "mllmu/MMUnlearner/run.json",
        "mllmu/GA/zero_shot/forget05/results.json",
        "clear/GA/run.json",
    ):
        assert (tmp_path / "runs" / made).is_file(), made
    assert (tmp_path / "runs/mllmu.html").stat().st_size > 10_000


def test_every_script_is_in_the_readme():
    for script in [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), *ROOT.glob("data_process/*_gen_mask.py")]:
        assert script.name in text(), f"{script.name} is not in the README"


def test_the_readme_is_short_and_its_commands_fit():
    assert len(text().split()) <= 1800
    for block in re.findall(r"```bash\n(.*?)```", text(), re.DOTALL):
        assert max(map(len, block.splitlines())) <= 110, block


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", text()))))
def test_its_links_lead_somewhere(link):
    assert (ROOT / link).exists()
