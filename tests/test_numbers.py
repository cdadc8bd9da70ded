"""Numbers that mean something else than they say: which scoring, unreadable replies, another forget ratio."""

import json
import shutil

import pytest
from conftest import run_script
from test_golden import answered

from eval.answering import workers

SCRIPTS = {"MLLMU-Bench": "eval/MLLMU_eval.py", "CLEAR": "eval/CLEAR_eval.py"}


@pytest.fixture
def evaluate(nano, tiny, tmp_path, monkeypatch):
    """evaluate(benchmark, *flags) -> results.json; replies come from the prompts. The data are a copy."""
    monkeypatch.setattr(workers, "answer_batches", answered)
    shutil.copytree(nano, tmp_path / "data")

    def run(benchmark: str, *flags):
        run_script(
            SCRIPTS[benchmark], "--evaluated_model", tiny["llava"], "--data_split_dir",
            tmp_path / "data" / benchmark, "--forget_ratio", 10, "--output_dir", tmp_path / "out", *flags,
        )  # fmt: skip
        return json.loads((tmp_path / "out" / "zero_shot" / "forget10" / "results.json").read_text())

    return run


@pytest.mark.parametrize("benchmark", SCRIPTS)
def test_a_nano_benchmark_chooses_its_scoring(benchmark, evaluate, tmp_path, capsys):
    marker = tmp_path / "data" / benchmark / "nano.json"
    marker.write_text(json.dumps({"mcq": "likelihood"}))
    assert evaluate(benchmark)["mcq"] == "likelihood"
    assert f"multiple choice by likelihood (as {marker} says)" in capsys.readouterr().out
    assert evaluate(benchmark, "--mcq", "letter")["mcq"] == "letter"
    assert "multiple choice by letter (--mcq)" in capsys.readouterr().out
    marker.write_text("{}")
    assert evaluate(benchmark)["mcq"] == "letter"
    assert "multiple choice by letter (the benchmark's rule)" in capsys.readouterr().out
    for broken in ("{", "[1]", '{"mcq": "guess"}', "\x00\xff"):
        marker.write_bytes(broken.encode("latin-1"))
        with pytest.raises(SystemExit) as end:
            evaluate(benchmark)
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith(f"error: --data_split_dir: {marker} is not as ")


def test_what_make_nano_chooses(tmp_path):
    """The README's evaluation has no --mcq: a letter would be asked of models that answer with a name."""
    few = ("--people", 10, "--real_people", 4, "--views", 1, "--image_size", 32)
    run_script("nano/make_nano.py", "--save_dir", tmp_path / "data", *few)
    for benchmark in SCRIPTS:
        assert json.loads((tmp_path / "data" / benchmark / "nano.json").read_text())["mcq"] == "likelihood"


def test_unreadable_replies_are_told(evaluate, monkeypatch, capsys):
    """At the end of the evaluation, one line per cell; counted in results.json."""

    def unreadable(setup, devices, batches):
        for found in answered(setup, devices, batches):
            replies = ["Hm" if r.letter else a for r, a in zip(batches[found.batch], found.answers)]
            yield workers.Answered(found.worker, found.batch, replies, found.cost)

    monkeypatch.setattr(workers, "answer_batches", unreadable)
    entry = evaluate("MLLMU-Bench")["splits"]["retain"]["classification"]["text"]
    assert (entry["correct"], entry["unreadable"], entry["chance"]) == (0, entry["total"], 25.0)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: retain")]
    assert told == [
        f"warning: retain classification {modality}: {doubt}"
        for modality in ("image", "text")
        for doubt in (
            f"{entry['total']} of {entry['total']} replies name no option and count as wrong",
            "0.0 % is below chance (25.0 %)",
        )
    ]


@pytest.mark.parametrize("benchmark", SCRIPTS)
def test_a_model_unlearned_at_another_ratio(benchmark, evaluate, tiny, tmp_path, capsys):
    model = shutil.copytree(tiny["llava"], tmp_path / "model")
    run = {"script": "MLLMU_GA.py", "arguments": {"forget_ratio": 5}}
    (model / "run.json").write_text(json.dumps(run))
    results = evaluate(benchmark, "--evaluated_model", model)
    assert results["trained"] == {"script": "MLLMU_GA.py", "forget_ratio": 5}
    said = capsys.readouterr().out
    assert f"note: {model} was trained at forget 5 %, and is evaluated at 10 %" in said
    for same in ({"script": "MLLMU_finetune.py"}, {"arguments": {"forget_ratio": 10}}):
        (model / "run.json").write_text(json.dumps(run | same))
        evaluate(benchmark, "--evaluated_model", model)
        assert "was trained at" not in capsys.readouterr().out
    (model / "run.json").write_text("{}")
    with pytest.raises(SystemExit):
        evaluate(benchmark, "--evaluated_model", model)
    assert "error: --evaluated_model: " in capsys.readouterr().err
