"""Result files stay what they are, byte for byte: prompts, scores, sums and their order are frozen here.

Replies come from the questions' ids instead of a model, so that the files are the same on every machine.
What a machine or a version may change (folders, fingerprints, versions, costs) is left out. To accept a
change that is meant: GOLDEN=write python -m pytest tests/test_golden.py, and look at the difference.
"""

import hashlib
import json
import os
import random
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT, run_script

from eval.answering import workers

GOLDEN = Path(__file__).parent / "golden"
VOLATILE = ("model", "method", "data", "settings", "versions", "cost")
PEOPLE = 1  # of each split, which is enough to freeze the form and keeps the files readable


def reply(request) -> str | list[float]:
    """Something that depends on the request alone, sometimes right."""
    random_ = random.Random(hashlib.sha256(request.prompt.encode()).hexdigest())
    if request.options is not None:
        return [round(-4 * random_.random(), 6) for _ in request.options]
    if request.letter:
        return random_.choice("ABCDE") + ": so it is"
    if request.hit is not None:
        return f"It is {request.hit}." if random_.random() < 0.5 else "It is not known."
    return " ".join(random_.sample(request.prompt.split(), 6))


def answered(setup, devices, batches):
    for number, requests in batches.items():
        cost = {
            "questions": len(requests), "seconds": 1.0, "device": "none", "peak_memory_bytes": 1,
            "peak_gpu_memory_bytes": None,
        }  # fmt: skip
        yield workers.Answered(0, number, [reply(request) for request in requests], cost)


CASES = {
    "mllmu_letter": ("eval/MLLMU_eval.py", "MLLMU-Bench", ()),
    "mllmu_few_shot": ("eval/MLLMU_eval.py", "MLLMU-Bench", ("--mcq", "likelihood", "--shot", "few_shot")),
    "clear_letter": ("eval/CLEAR_eval.py", "CLEAR", ()),
    "clear_likelihood": ("eval/CLEAR_eval.py", "CLEAR", ("--mcq", "likelihood")),
}


@pytest.mark.parametrize("case", CASES)
def test_result_files_are_frozen(case, nano, tiny, tmp_path, monkeypatch):
    script, benchmark, flags = CASES[case]
    monkeypatch.setattr(workers, "answer_batches", answered)
    run_script(
        script, "--evaluated_model", tiny["llava"], "--data_split_dir", nano / benchmark,
        "--forget_ratio", 10, "--output_dir", tmp_path, *flags,
    )  # fmt: skip
    (results,) = tmp_path.glob("*/forget10/results.json")
    summary = json.loads(results.read_text(encoding="utf-8"))
    schema = json.loads((ROOT / "eval/results/results.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(summary)
    files = {"results.json": json.dumps({k: v for k, v in summary.items() if k not in VOLATILE}, indent=1)}
    for file in sorted(results.parent.glob("predictions_*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        people = list(dict.fromkeys(json.loads(line)["person"] for line in lines))[:PEOPLE]
        files[file.name] = "".join(line for line in lines if json.loads(line)["person"] in people)
    folder = GOLDEN / case
    if os.environ.get("GOLDEN") == "write":
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    assert sorted(p.name for p in folder.iterdir()) == sorted(files)
    for name, text in files.items():
        assert text == (folder / name).read_text(encoding="utf-8"), f"{case}/{name}"
