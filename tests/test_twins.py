"""MLLMU_X.py and CLEAR_X.py are twins: one program but for the lines that say which benchmark is read. So are
the scripts of any benchmark that has masks."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

BENCHMARKS = sorted(p.stem.removesuffix("_gen_mask") for p in ROOT.glob("data_process/*_gen_mask.py"))


def scripts(benchmark: str) -> dict[str, Path]:
    """{script without the benchmark's name: path}"""
    found = [*ROOT.glob(f"{benchmark}_*.py"), *ROOT.glob(f"data_process/{benchmark}_*.py")]
    return {str(p.relative_to(ROOT)).replace(f"{benchmark}_", ""): p for p in sorted(found)}


PAIRS = [(script, other) for other in BENCHMARKS if other != "MLLMU" for script in scripts(other)]


def program(path: Path, benchmark: str) -> tuple[list[str], list[str]]:
    """Imports, sorted, and the other lines, without the module docstring and with the benchmark's names taken
    out."""
    source = path.read_text(encoding="utf-8")
    body = "\n".join(source.splitlines()[ast.parse(source).body[0].end_lineno :])
    names = (f"{benchmark}Bench", f"utils.{benchmark.lower()} ", f'prefix="{benchmark.lower()}"')
    for name in names:
        body = body.replace(name, "…")
    body = re.sub(r'folder="data/[\w-]+"', "…", body)
    imports = re.findall(r"^(?:import|from) .*", body, re.MULTILINE)
    return sorted(imports), [line for line in body.splitlines() if line not in imports]


@pytest.mark.parametrize("other", BENCHMARKS)
def test_every_benchmark_has_every_script(other):
    assert scripts(other).keys() == scripts("MLLMU").keys()


@pytest.mark.parametrize(("script", "other"), PAIRS)
def test_twins_differ_only_in_their_data_lines(script, other):
    twin = scripts(other)[script]
    assert program(twin, other) == program(scripts("MLLMU")[script], "MLLMU")
    assert "MLLMU" not in twin.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", scripts("MLLMU").values(), ids=lambda p: p.stem)
def test_a_script_can_be_read_in_ten_minutes(path):
    """Short, its arguments first, and nothing but torch imported inside a function."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    order = [n.name for n in ast.parse("\n".join(lines)).body if isinstance(n, ast.FunctionDef)]
    assert order[0] == "parse_args" and order[-1] == "main"
    inside = [line.split()[1] for line in lines if re.match(r"\s+(import|from) ", line)]
    assert {name.partition(".")[0] for name in inside} <= {"torch"}
