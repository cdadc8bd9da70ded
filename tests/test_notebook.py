"""The notebook runs from top to bottom, as a smaller one: fewer people, one epoch."""

import json
import sys
from types import ModuleType

from conftest import ROOT


def code_cells() -> list[str]:
    cells = json.loads((ROOT / "notebooks/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    display = ModuleType("IPython.display")  # Jupyter's, which is not needed otherwise
    shown: list[dict] = []
    display.Image, display.display = lambda **given: given, shown.append
    ipython = ModuleType("IPython")
    ipython.version_info, ipython.get_ipython = (9, 0), lambda: None  # asked for by matplotlib
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for cell in code_cells():
        small = cell.replace('Path("runs/quickstart"), 40, 10', f"Path({str(tmp_path)!r}), 10, 1")
        exec(compile(small, "quickstart.ipynb", "exec"), names)
    pictures = [given for given in shown if "data" in given or "filename" in given]
    assert len(pictures) == 2, "the one to forget, and the mask's map"
    out = capsys.readouterr().out
    assert "What does the person in the image do for a living?" in out and "forgotten pictures" in out
