"""The README's commands, run as printed and in its order, in an empty folder that holds only the data."""

import os
import re
import shlex
import subprocess
import sys

from conftest import ROOT, run_script

LEFT_OUT = (
    "bash demo.sh",
    "bash test.sh",
    "accelerate launch",
)  # minutes long, this test itself, an abbreviation


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [
        line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line and not line.startswith(LEFT_OUT)]


def test_every_command_of_the_readme_runs_as_printed(nano, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(nano)
    monkeypatch.chdir(tmp_path)
    run = commands()
    assert len(run) >= 9, run
    environment = os.environ | {"PYTHON": sys.executable}
    for line in run:
        program, script, *words = shlex.split(line)
        assert (ROOT / script).is_file(), f"the README names {script}"
        if program == "python":
            run_script(script, *words)
        else:
            assert program == "bash", line
            done = subprocess.run(
                ["bash", ROOT / script, *words], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
    for made in ("runs/GA/run.json", "runs/manifold/zero_shot/forget05/results.json", "runs/tradeoff.png"):
        assert (tmp_path / made).is_file(), made
    assert (tmp_path / "runs/report.html").stat().st_size > 10_000


def test_every_script_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for script in [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), *ROOT.glob("data_process/*_gen_mask.py")]:
        assert script.name in text, f"{script.name} is not in the README"
