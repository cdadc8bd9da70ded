"""Garbage, cut and foreign files that the commands of eval/ read: one line that names the file, never a
traceback, and nothing answered before."""

import copy
import json
import os
import random
import shutil

import pytest
from conftest import run_script
from test_golden import answered

from eval.answering import workers

GARBAGE = {
    "empty": b"",
    "cut": b'{"benchmark": "nano CLEAR", "splits": {"forget"',
    "binary": b"\x00\xff\xfe\x80",
    "list": b"[1, 2]",
    "nested": b"[" * 99_999,
    "null": b"null",
    "foreign": b'{"epoch": 3, "loss": 0.5}',
    "wrong kinds": b'{"benchmark": "x", "forget_ratio": "ten", "shot": "zero_shot", "splits": [1]}',
}
VALUES = [None, 5, -1, 0.5, True, "x", "", [], [1], {}, {"x": 1}, float("nan"), float("inf")]
SEED = int(os.environ.get("BROKEN_SEED", "0"))


@pytest.fixture(scope="module")
def evaluations(nano, tiny, tmp_path_factory):
    """Two models evaluated on each benchmark; replies come from the prompts."""
    folder = tmp_path_factory.mktemp("evaluations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "answer_batches", answered)
        for script, benchmark, splits in (
            ("eval/MLLMU_eval.py", "MLLMU-Bench", "forget,real"),
            ("eval/CLEAR_eval.py", "CLEAR", "forget,real_faces"),
        ):
            for name in ("vanilla", "GA"):
                flags = ["--output_dir", folder / benchmark / name, "--splits", splits, "--mcq", "letter"]
                run_script(
                    script, "--evaluated_model", tiny["llava"], "--data_split_dir", nano / benchmark,
                    "--forget_ratio", 10, *flags,
                )  # fmt: skip
                record = {
                    "script": f"{benchmark}_{name}.py",
                    "arguments": {"forget_ratio": 10},
                    "seconds": 1.0,
                }
                record |= {"peak_memory_bytes": 10**6, "started": "2026-01-01", "device": "cpu"}
                (folder / benchmark / name / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def copies(evaluations, tmp_path):
    return shutil.copytree(evaluations, tmp_path / "evaluations")


def commands(folder, out):
    """Every command that reads evaluations, on those of a benchmark."""
    rows = [folder / "vanilla", folder / "GA"]
    judge = ["--judge_url", "http://localhost:1/v1", "--judge_model", "m", "--dry_run", "True"]
    judge += ["--judge_cache", out / "cache.jsonl"]
    yield "eval/table.py", [*rows, "--csv", out / "t.csv", "--latex", out / "t.tex", "--plot", out / "t.png"]
    yield "eval/table.py", [*rows, "--brief", "--long", out / "t.csv"]
    yield "eval/report.py", [*rows, "--save_path", out / "page.html"]
    yield "eval/judge.py", [*rows, *judge]
    if folder.name == "CLEAR":
        yield "eval/forget_quality.py", [rows[1], "--reference", rows[0]]


def said_of(capsys, script, argv) -> list[str]:
    """The lines of standard error of a command that refuses its input; none where it went through."""
    capsys.readouterr()
    try:
        run_script(script, *argv)
    except SystemExit as end:
        assert end.code == 2, end.code
        lines = capsys.readouterr().err.splitlines()
        assert lines and all(line.startswith("error: ") for line in lines)
        return lines
    return []


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("name", ["results.json", "predictions_forget.jsonl"])
@pytest.mark.parametrize("benchmark", ["MLLMU-Bench", "CLEAR"])
def test_garbage_in_place_of_results(benchmark, name, kind, copies, tmp_path, capsys):
    file = copies / benchmark / "GA" / "zero_shot" / "forget10" / name
    file.write_bytes(GARBAGE[kind])
    for script, argv in commands(copies / benchmark, tmp_path):
        lines = said_of(capsys, script, argv)
        told = [line for line in lines if "run that evaluation again" in line and name in line]
        none = [line for line in lines if "no truth ratios" in line and kind == "empty"]
        assert told or none, (script, lines)
    assert not list(tmp_path.glob("page.html")) and not list(tmp_path.glob("t.*"))


@pytest.mark.parametrize("benchmark", ["MLLMU-Bench", "CLEAR"])
def test_predictions_of_another_evaluation(benchmark, copies, tmp_path, capsys):
    """Of another split, twice the same question, fewer than results.json counts."""
    folder = copies / benchmark / "GA" / "zero_shot" / "forget10"
    file = folder / "predictions_forget.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    other = next(p for p in folder.glob("predictions_real*.jsonl")).read_text()
    for text, told in (
        (other, "it is of the split real"),
        ("".join([*lines, lines[0]]), "is answered twice"),
        ("".join(lines[1:]), "in results.json"),
    ):
        file.write_text(text)
        argv = [copies / benchmark / "vanilla", copies / benchmark / "GA"]
        assert told in said_of(capsys, "eval/table.py", argv)[0]


def changed(content, chance: random.Random):
    """A copy with one value anywhere in it replaced or taken away."""
    content = copy.deepcopy(content)
    place, key = content, chance.choice(list(content))
    while isinstance(place[key], dict | list) and place[key] and chance.random() < 0.85:
        place = place[key]
        key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
    if chance.random() < 0.3:
        del place[key]
    else:
        place[key] = chance.choice(VALUES)
    return content


@pytest.mark.parametrize("benchmark", ["MLLMU-Bench", "CLEAR"])
@pytest.mark.parametrize("name", ["results.json", "predictions_forget.jsonl", "run.json"])
def test_any_change_ends_in_numbers_or_in_one_line(benchmark, name, copies, tmp_path, capsys):
    """One value replaced by another kind, or taken away: the command goes through, or refuses the file."""
    chance = random.Random(SEED)
    model = copies / benchmark / "GA"
    file = model / name if name == "run.json" else model / "zero_shot" / "forget10" / name
    whole, refused = file.read_text(), 0
    for turn in range(40):
        if name.endswith(".jsonl"):
            lines = whole.splitlines()
            k = chance.randrange(len(lines))
            lines[k] = json.dumps(changed(json.loads(lines[k]), chance))
            text = "\n".join(lines) + "\n"
        else:
            text = json.dumps(changed(json.loads(whole), chance))
        file.write_text(text)
        script, argv = chance.choice(list(commands(copies / benchmark, tmp_path)))
        try:
            refused += bool(said_of(capsys, script, argv))
        except Exception as error:
            raise AssertionError(f"seed {SEED}, turn {turn}: {script} with {text[:3000]}") from error
    assert name == "run.json" or refused, "some changes must be seen"


# ---------------------------------------------------------------- what an evaluation reads
@pytest.fixture
def evaluate(nano, tiny, tmp_path, monkeypatch):
    """evaluate(benchmark, *flags): replies come from the prompts; asking is refused after `refuse()`."""
    monkeypatch.setattr(workers, "answer_batches", answered)

    def run(benchmark: str, *flags):
        script = "eval/MLLMU_eval.py" if benchmark == "MLLMU-Bench" else "eval/CLEAR_eval.py"
        run_script(
            script, "--evaluated_model", tiny["llava"], "--data_split_dir", nano / benchmark,
            "--forget_ratio", 10, "--mcq", "letter", "--splits", "forget", "--output_dir", tmp_path / "out",
            "--batch_size", 4, *flags,
        )  # fmt: skip
        return tmp_path / "out" / "zero_shot"

    return run


def one_line(capsys, evaluate, *flags) -> str:
    """What an evaluation that may answer nothing refuses its input with."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(workers, "answer_batches", lambda *_: pytest.fail("something was answered"))
        evaluate(*flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: ")
    return line


BATCH = b'{"settings": "0", "part": 1, "worker": 0, "cost": {}, "predictions": [{}]}\n'


@pytest.mark.parametrize("kind", [*GARBAGE, "other settings", "other part of a line"])
@pytest.mark.parametrize("benchmark", ["MLLMU-Bench", "CLEAR"])
def test_garbage_in_place_of_kept_answers(benchmark, kind, evaluate, monkeypatch, capsys):
    """Whole lines that are no answers of this evaluation are refused, named; without that file it goes on."""
    part = ("--part", "1/2")
    place = evaluate(benchmark, *part)
    (kept,) = place.glob(".forget10.*.partial/answers.1of2.jsonl")
    whole = kept.read_bytes()
    other = {"other settings": BATCH, "other part of a line": whole[9:]}
    kept.write_bytes(other.get(kind) or GARBAGE[kind] + b"\n")
    line = one_line(capsys, evaluate, benchmark, "--part", "2/2")
    assert f"{kept}, line 1: no answers of this evaluation" in line and "take that file away" in line
    kept.unlink()
    evaluate(benchmark, "--part", "2/2")
    evaluate(benchmark, *part)
    assert (place / "forget10" / "results.json").is_file()


@pytest.mark.parametrize("kind", ["empty", "cut", "binary", "list", "null"])
def test_garbage_in_place_of_what_the_parts_agree_on(kind, evaluate, capsys):
    place = evaluate("CLEAR", "--part", "1/2")
    (place / ".forget10.parts.json").write_bytes(GARBAGE[kind])
    line = one_line(capsys, evaluate, "CLEAR", "--part", "2/2")
    assert line.startswith("error: --part: ") and "remove it to start anew" in line


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("name", ["results.json", "predictions_forget.jsonl"])
@pytest.mark.parametrize("benchmark", ["MLLMU-Bench", "CLEAR"])
def test_garbage_in_place_of_vanilla_results(benchmark, name, kind, evaluate, copies, capsys):
    """Before anything is answered; so is a vanilla model's evaluation on the other benchmark."""
    vanilla = copies / benchmark / "vanilla"
    if kind == "empty" and name != "results.json":
        shutil.rmtree(vanilla)
        shutil.copytree(copies / ({"CLEAR", "MLLMU-Bench"} - {benchmark}).pop() / "vanilla", vanilla)
        told = "--benchmark"
    else:
        (vanilla / "zero_shot" / "forget10" / name).write_bytes(GARBAGE[kind])
        told = name
    line = one_line(capsys, evaluate, benchmark, "--vanilla_dir", vanilla)
    assert line.startswith("error: --vanilla_dir: ") and told in line


def test_garbage_in_the_judges_cache(copies, tmp_path, capsys):
    *_, (script, argv) = [c for c in commands(copies / "CLEAR", tmp_path) if c[0] == "eval/judge.py"]
    for content in [*GARBAGE.values(), b'{"key": "a", "score": "7", "text": "7", "served": "m"}\n']:
        (tmp_path / "cache.jsonl").write_bytes(content)
        if not content:
            continue
        (line,) = said_of(capsys, script, argv)
        assert "is no file of a judge's answers" in line
    assert (tmp_path / "cache.jsonl").read_bytes() == content, "another's file is left as it is"
    (tmp_path / "cache.jsonl").unlink()
    (tmp_path / "cache.jsonl").mkdir()
    (line,) = said_of(capsys, script, argv)
    assert line == f"error: --judge_cache: {tmp_path / 'cache.jsonl'} is no file"


@pytest.mark.parametrize("benchmark", ["MLLMU-Bench", "CLEAR"])
def test_two_questions_of_one_id(benchmark, evaluate, monkeypatch, capsys):
    """Answers are kept by the id, so one of the two would never be asked."""
    from utils.clear import CLEARBench
    from utils.mllmu import MLLMUBench

    for bench in (MLLMUBench, CLEARBench):
        real = bench.questions
        monkeypatch.setattr(bench, "questions", lambda *args, real=real: [*(q := real(*args)), q[0]])
    line = one_line(capsys, evaluate, benchmark)
    assert line.startswith("error: --data_split_dir: 1 ids are of several questions, e.g. forget")


def test_what_a_result_may_not_replace(evaluate, tmp_path, capsys):
    """A folder of the result's name that holds something else, and a place that cannot be written."""
    mine = tmp_path / "out" / "zero_shot" / "forget10" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    assert "exists and is not ours" in one_line(capsys, evaluate, "CLEAR")
    assert mine.read_text() == "x"
    (tmp_path / "file").write_text("")
    assert "lies under a file" in one_line(capsys, evaluate, "CLEAR", "--output_dir", tmp_path / "file")
    part = ("--output_dir", tmp_path / "file", "--part", "1/2")
    assert "cannot be written: Not a directory" in one_line(capsys, evaluate, "CLEAR", *part)


@pytest.mark.parametrize("benchmark", ["MLLMU-Bench", "CLEAR"])
def test_a_full_disk(benchmark, evaluate, monkeypatch):
    """One line; what fitted is kept, and the same command goes on."""
    from utils.run import jsonl

    real, left = jsonl.append, [2]

    def append(file, content):
        left[0] -= 1
        if left[0] < 0:
            file.write(b'{"settings": "ab')
            raise OSError(28, "No space left on device")
        real(file, content)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as end:
        patch.setattr(jsonl, "append", append)
        evaluate(benchmark)
    assert "answers are kept; the same command goes on" in end.value.__notes__[0]
    place = evaluate(benchmark)
    assert [p.name for p in place.iterdir()] == ["forget10"]
