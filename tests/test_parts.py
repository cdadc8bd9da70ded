"""An evaluation in parts, as on several machines with one file system: the files of one machine, whoever is
last."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, run_script
from test_eval import assert_equal_files
from test_golden import answered

from eval.answering import workers
from eval.answering.plan import MemoryCost, plan_batches, share
from utils.run import folders

BENCHMARKS = {
    "MLLMU-Bench": ("eval/MLLMU_eval.py", "--splits", "forget"),
    "CLEAR": ("eval/CLEAR_eval.py", "--splits", "forget", "--tasks", "classification,generation"),
}


@pytest.fixture
def evaluate(nano, tiny, tmp_path):
    """evaluate(name, *flags) -> the result folder, of that benchmark; each name is a folder of its own."""

    def run(name: str, *flags, benchmark: str = "MLLMU-Bench"):
        script, *given = BENCHMARKS[benchmark]
        run_script(
            script, "--evaluated_model", tiny["llava"], "--data_split_dir", nano / benchmark,
            "--forget_ratio", 10, "--max_new_tokens", 3, "--mcq", "letter", "--batch_size", 4, *given,
            "--output_dir", tmp_path / name, *flags,
        )  # fmt: skip
        return tmp_path / name / "zero_shot" / "forget10"

    return run


@pytest.mark.parametrize(("benchmark", "order"), [("MLLMU-Bench", "21"), ("CLEAR", "132")])
def test_parts_are_one(benchmark, order, evaluate, capsys):
    one = evaluate("one", benchmark=benchmark)
    capsys.readouterr()
    for part in order:
        several = evaluate("several", "--part", f"{part}/{len(order)}", benchmark=benchmark)
        said = capsys.readouterr().out
        last = part == order[-1]
        assert (several.exists(), "saved" in said, "left to the others" in said) == (last, last, not last)
    assert_equal_files(one, several)
    assert [p.name for p in several.parent.iterdir()] == ["forget10"], "nothing else stays"
    cost = json.loads((several / "results.json").read_text())["cost"]
    questions = [worker["questions"] for worker in cost]
    assert len(questions) == len(order) and max(questions) < 2 * min(questions), "each has its share"


def test_parts_at_once(evaluate, nano, tiny, tmp_path):
    """By the Slurm file, as an array of two; one of them merges."""
    one = evaluate("one", "--shot", "few_shot")
    words = [
        "bash", ROOT / "configs" / "evaluate.slurm", ROOT / "MLLMU_eval.sh", 10, 0, tiny["llava"],
        tiny["llava"], "few_shot", "--data_split_dir", nano / "MLLMU-Bench", "--max_new_tokens", 3,
        "--mcq", "letter", "--batch_size", 4, "--splits", "forget", "--output_dir", tmp_path / "several",
        "--original_model", tiny["llava"],
    ]  # fmt: skip
    shared = os.environ | {"PYTHON": sys.executable, "PARTS": "2", "SLURM_SUBMIT_DIR": str(tmp_path)}
    running = [
        subprocess.Popen(
            list(map(str, words)), env=shared | {"SLURM_ARRAY_TASK_ID": part}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for part in "12"
    ]  # fmt: skip
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert sum("saved" in out for out, _ in said) == 1
    several = tmp_path / "several" / "few_shot" / "forget10"
    results = json.loads((several / "results.json").read_text())
    results["settings"]["original_model"] = None  # the shell script always names one
    (several / "results.json").write_text(json.dumps(results))
    assert_equal_files(one.parents[1] / "few_shot" / "forget10", several)


@pytest.fixture
def quick(evaluate, monkeypatch):
    """The same without a model: replies come from the prompts."""
    monkeypatch.setattr(workers, "answer_batches", answered)
    return evaluate


def test_a_stopped_part_goes_on(quick, monkeypatch):
    """Ctrl-C after some batches, and a line that is not whole: of this part, and of another that goes on
    writing it."""
    one = quick("one")
    with monkeypatch.context() as patch:

        def stopped(setup, devices, batches):
            yield from list(answered(setup, devices, batches))[:1]
            raise KeyboardInterrupt

        patch.setattr(workers, "answer_batches", stopped)
        with pytest.raises(KeyboardInterrupt) as end:
            quick("several", "--part", "1/2")
    (note,) = end.value.__notes__
    assert re.fullmatch("[1-8] of 18 answers are kept; the same command goes on", note)
    (kept,) = one.parents[2].glob("several/zero_shot/.forget10.*.partial/answers.1of2.jsonl")
    whole = kept.read_bytes()
    kept.write_bytes(whole + b'{"worker": 0, "co')
    quick("several", "--part", "2/2")
    assert kept.read_bytes() != whole, "another part's file is left as it is"
    several = quick("several", "--part", "1/2")
    assert_equal_files(one, several)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seed", 1), "seed"),
        (("--batch_size", 2), "batch_size, batches"),
        (("--part", "2/3"), "parts"),
        (("--evaluated_model", "other"), "model"),
        (("--dtype", "bf16"), "dtype, precision"),
    ],
)
def test_other_parts_are_refused(flags, named, quick, tiny, capsys):
    quick("x", "--part", "1/2")
    capsys.readouterr()
    flags = [tiny["other_llava"] if word == "other" else word for word in flags]
    with pytest.raises(SystemExit) as end:
        quick("x", "--part", "2/2", *flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: --part: other ") and named in line
    assert quick("x", "--part", "2/2").exists(), "the right one still finds the first"


def test_who_excludes_whom(quick, tmp_path):
    """A part that runs excludes itself and a whole evaluation, not the other parts; a whole one excludes
    parts."""
    place = tmp_path / "x" / "zero_shot"
    place.mkdir(parents=True)
    with (
        folders.exclusive(place / ".forget10.lock", "", shared=True),
        folders.exclusive(place / ".forget10.1of2.lock", ""),
    ):
        with pytest.raises(SystemExit, match=r"part 1 of 2 of an evaluation writes .* already"):
            quick("x", "--part", "1/2")
        with pytest.raises(SystemExit, match=r"an evaluation writes .* already"):
            quick("x")
        quick("x", "--part", "2/2")
    with folders.exclusive(place / ".forget10.lock", ""), pytest.raises(SystemExit, match="already"):
        quick("x", "--part", "1/2")
    assert quick("x", "--part", "1/2").exists()
    assert [p.name for p in place.iterdir()] == ["forget10"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "a/b"])
def test_what_is_no_part(text, quick, capsys):
    with pytest.raises(SystemExit):
        quick("x", "--part", text)
    assert f"error: --part: '{text}' is no part" in capsys.readouterr().err


def test_shares_are_even():
    costs = [MemoryCost((i // 5,), 100, 20 + i % 40) for i in range(900)]
    batches = plan_batches(costs, 16, 10**6)
    parts = share(costs, batches, 3)
    assert sorted(set(parts)) == [1, 2, 3] and parts == share(costs, batches, 3)
    work = [
        sum(costs[i].tokens for batch, part in zip(batches, parts) if part == wanted for i in batch)
        for wanted in (1, 2, 3)
    ]
    assert max(work) < 1.05 * min(work)
    assert share(costs, batches[:1], 3) == [1], "more parts than batches"
