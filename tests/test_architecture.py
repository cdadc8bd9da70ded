"""Arrows point one way: which room may import from which, and no cycle anywhere, hidden ones included."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

# A room imports from itself and from rooms of lower floors. Scripts at the top of the tree are the methods.
FLOOR = {"utils": 0, "data_process": 1, "scripts": 2, "eval": 2, "nano": 3, "perf": 4}


def modules() -> dict[str, Path]:
    """{dotted name: file} of everything but the tests."""
    files = [*ROOT.glob("*.py"), *(f for room in FLOOR for f in (ROOT / room).rglob("*.py"))]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files if f.stem != "__init__"}


def room(module: str) -> str:
    return module.partition(".")[0] if "." in module else "scripts"


def imports(file: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports, anywhere in it, but for what only type hints need."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    hints = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {node for hint in hints for node in ast.walk(hint)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & known


def graph() -> dict[str, set[str]]:
    found = modules()
    return {name: imports(file, set(found)) for name, file in found.items()}


def test_every_file_lies_in_a_known_room():
    folders = [p for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")]
    top = {p.name for p in folders if any(p.rglob("*.py"))}
    assert top - {"tests", "runs", "data"} == FLOOR.keys() - {"scripts"}


def test_arrows_point_one_way():
    wrong = [
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if room(name) != room(other) and FLOOR[room(name)] <= FLOOR[room(other)]
    ]
    assert not wrong


def test_there_is_no_cycle():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as why:
        pytest.fail(" -> ".join(why.args[1]))


def test_no_module_imports_a_script():
    """Scripts and commands share through modules: nothing imports from a file that is run."""
    run = {
        name
        for name, file in modules().items()
        if 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")
    }
    assert not [f"{name} -> {other}" for name, others in graph().items() for other in others & run]
