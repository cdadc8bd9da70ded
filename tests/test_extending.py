"""docs/extending.md: what it shows is what there is, and what it tells to write runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import RATIO, ROOT, jsonl, run_script, weights

from utils.masks import Mask


def blocks(section: str, language: str) -> list[str]:
    """The code blocks of a section of the page."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (found,) = [part for part in re.split(r"^## ", text, flags=re.MULTILINE) if part.startswith(section)]
    return re.findall(rf"```{language}\n(.*?)```", found, re.DOTALL)


def test_the_method_is_the_script():
    script = (ROOT / "MLLMU_SimNPO.py").read_text(encoding="utf-8")
    shown = blocks("Add a method", "python")
    assert all(block in script for block in shown) and len(shown) >= 3


@pytest.mark.parametrize("lora", [True, False])
def test_npo_with_a_mask_as_the_document_combines_them(lora, train_args, masks, tiny, tmp_path):
    """The document's own diff makes the copy; NPO takes forget steps only, so all that moved lies inside."""
    source = (ROOT / "MLLMU_NPO.py").read_text(encoding="utf-8")
    (diff,) = blocks("Combine parts", "diff")
    assert len(re.findall(r"^[-+]", diff, re.MULTILINE)) == 4
    for sign, old, new in re.findall(r"^([- ])(.*\n)((?:\+.*\n)+)", diff, re.MULTILINE):
        assert source.count(old) == 1
        kept = old if sign == " " else ""
        source = source.replace(old, kept + re.sub(r"^\+", "", new, flags=re.MULTILINE))
    (tmp_path / "MLLMU_NPO_masked.py").write_text(source, encoding="utf-8")
    path = masks("llava") / "mllmu_language_mask.pt"
    run_script(
        tmp_path / "MLLMU_NPO_masked.py", *train_args(grad_mask_path=path, weight_decay=0.1, lora=lora)
    )
    mask, before, after = Mask.load(str(path), "llava"), weights(tiny["llava"]), weights(tmp_path / "run")
    moved = 0
    for name in before:
        inside = mask.of(name) if name in mask.bits else torch.zeros(before[name].shape, dtype=torch.bool)
        assert torch.equal(before[name][~inside], after[name][~inside]), name
        moved += int((before[name] != after[name]).sum())
    assert moved > (0.2 if lora else 0.3) * mask.count()[0]


def test_the_family_is_the_tables_entry():
    code = lambda text: re.sub(r"\s+", "", re.sub(r"#.*", "", text)).replace(",)", ")")
    table, stand_ins = (
        code((ROOT / file).read_text(encoding="utf-8")) for file in ("utils/families.py", "nano/stand_ins.py")
    )
    entry, made = blocks("Add a model family", "python")
    assert code(entry).rstrip(",") in table
    for line in made.splitlines():
        assert code(line).rstrip(",") in stand_ins


def test_the_task_is_scored_and_summed():
    """In a process of its own: the tables of tasks and metrics stay as they are here."""
    (block,) = blocks("Add a task", "python")
    program = f"""
from typing import Any
from eval.tasks import METRICS, TASKS, Metric, Task
from utils.data import Question
{block}
from eval.results.predictions import Prediction
from eval.results.summary import summarise
asked = [Question(str(i), str(i), "forget", "yes_no", "image", "Is it Ann?", "Yes") for i in range(4)]
replies = ("Yes, it is.", "No.", " yes", "It is not.")
found = summarise(Prediction.of(q, "p", reply) for q, reply in zip(asked, replies))
entry = found["forget"]["yes_no"]["image"]
assert (entry["correct"], entry["total"], entry["accuracy"]) == (2, 4, 50.0), entry
assert METRICS["yes_no_image"].counted and METRICS["yes_no_image"].title == "Yes/no image %"
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_probe_runs(nano, tiny, tmp_path):
    (block,) = blocks("Add a probe", "python")
    (tmp_path / "polite.py").write_text(block, encoding="utf-8")
    for name in ("GA", "retrained", "vanilla"):
        shutil.copytree(tiny["llava"], tmp_path / name)
        run_script(
            "eval/MLLMU_eval.py", "--evaluated_model", tmp_path / name, "--data_split_dir",
            nano / "MLLMU-Bench", "--forget_ratio", RATIO, "--splits", "forget,retain", "--tasks",
            "classification",
        )  # fmt: skip
    run_script(
        tmp_path / "polite.py", tmp_path / "GA", "--reference", tmp_path / "retrained", "--vanilla",
        tmp_path / "vanilla",
    )  # fmt: skip
    folder = tmp_path / "GA" / "probes" / "polite"
    lines = jsonl(folder / "answers" / "predictions_forget.jsonl")
    assert lines and all("I have a question about somebody, please." in line["prompt"] for line in lines)
    assert (folder / "results.json").is_file()


def test_the_copies_for_a_benchmark_are_scripts(tmp_path):
    """The loop of the page, run on the method scripts."""
    (loop,) = blocks("Add a benchmark", "bash")
    for script in ROOT.glob("MLLMU_*.py"):
        (tmp_path / script.name).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run(["bash", "-c", loop], cwd=tmp_path, check=True)
    copies = sorted(tmp_path.glob("TOY_*.py"))
    assert len(copies) == len(list(ROOT.glob("MLLMU_*.py")))
    for copy in copies:
        source = copy.read_text(encoding="utf-8")
        assert "MLLM" not in source.upper(), copy.name
        assert "from utils.toy import TOYBench" in source and 'folder="data/TOY"' in source
        compile(source, copy.name, "exec")


def test_the_page_is_whole():
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for what in ("a method", "a model family", "a task", "a probe", "a benchmark"):
        assert f"\n## Add {what}\n" in text
    named = re.findall(r"`((?:utils|eval|nano|tests|docs|data_process)/[\w./]+?\.(?:py|md))", text)
    missing = [path for path in named if not Path(ROOT, path).is_file() and "TOY" not in path]
    assert named and not missing
