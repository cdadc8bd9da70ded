"""Evaluation: the same answers in batches of any size, by any number of workers, and after a stop."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import FAMILIES, ROOT, jsonl, picture_cell, read_table, run_script, write_table

from eval.metrics import letter_choice
from eval.run import share_of
from utils.data import Question

EVAL = "eval/MLLMU_eval.py"
SIZES = [(32, 32), (64, 32), (32, 96), (100, 40), (48, 48)]


@pytest.fixture(scope="session")
def mixed(nano, tmp_path_factory):
    """A benchmark whose forget_5 has five people with few questions and pictures of all shapes."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    shutil.copytree(nano, folder)
    rows = read_table(folder / "MLLMU-Bench" / "Full_Set")
    for k, (row, size) in enumerate(zip(rows, SIZES)):
        row["image"] = picture_cell(*size, ("red", "green", "blue", "white", "black")[k])
        for column, n in (("Image_Textual_Questions", 2), ("Pure_Text_Questions", 2)):
            row["Classification_Task"][column] = row["Classification_Task"][column][:n]
        for column in ("Generation_Task", "Mask_Task"):
            kinds = {item["Type"]: item for item in row[column]}
            row[column] = list(kinds.values())
    rows[0]["Generation_Task"][0]["Question"] = "What is said of Zoë Núñez, 你好?"
    rows[1]["Generation_Task"][0]["Question"] += " At length, please:" + " word" * 60
    write_table(folder / "MLLMU-Bench" / "forget_5", rows[:5], like=nano / "MLLMU-Bench" / "forget_5")
    return folder


@pytest.fixture
def evaluate(mixed, tiny, tmp_path):
    """evaluate(name, **flags) -> (result folder, predictions of the forget split)."""

    def run(name: str, **flags):
        given = {
            "evaluated_model": tiny["llava"],
            "data_split_dir": mixed / "MLLMU-Bench",
            "forget_ratio": "05",
            "splits": "forget",
            "shot": "zero_shot",
            "max_new_tokens": 6,
            "output_dir": tmp_path / name,
        } | flags
        run_script(EVAL, *(str(word) for flag, value in given.items() for word in (f"--{flag}", value)))
        folder = tmp_path / name / given["shot"] / "forget05"
        lines = folder / "predictions_forget.jsonl"
        return folder, jsonl(lines) if lines.is_file() else None

    return run


# ---------------------------------------------------------------- batches
@pytest.mark.parametrize("shot", ["zero_shot", "few_shot"])
@pytest.mark.parametrize("mcq", ["letter", "likelihood"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_batches_change_nothing(kind, mcq, shot, evaluate, tiny):
    _, one = evaluate("one", evaluated_model=tiny[kind], mcq=mcq, shot=shot, batch_size=1)
    _, many = evaluate("many", evaluated_model=tiny[kind], mcq=mcq, shot=shot, batch_size=16)
    assert len(one) == 5 * 8
    assert len({line["reply"] for line in one}) > 5, "a model that always says the same would show nothing"
    for a, b in zip(one, many):
        a, b = dict(a), dict(b)
        scores = a.pop("option_scores", {}), b.pop("option_scores", {})
        assert a == b
        assert scores[0] == pytest.approx(scores[1], abs=2e-5)
        assert bool(scores[0]) == (mcq == "likelihood" and a["task"] == "classification")
    pictures = {line["modality"] for line in one}
    assert pictures == {"image", "text"}


@pytest.mark.parametrize("kind", FAMILIES)
def test_replies_are_greedy(kind, evaluate, tiny, mixed):
    """Against a loop that takes the likeliest token with the whole model run each time, no cache, no
    padding."""
    from eval.generate import Answerer
    from utils.collate import encode
    from utils.data import Picture
    from utils.models import FAMILIES as ALL
    from utils.models import load_model, load_processor

    _, lines = evaluate("x", evaluated_model=tiny[kind])
    model, processor = load_model(str(tiny[kind])).eval(), load_processor(str(tiny[kind]))
    answerer = Answerer(model, processor, ALL[kind], 6)
    rows = {row["ID"]: row for row in read_table(mixed / "MLLMU-Bench" / "forget_5")}
    ends = set(answerer.config.eos_token_id)
    checked = 0
    for line in [line for line in lines if line["task"] == "generation"]:
        image = line["modality"] == "image"
        assert line["prompt"] == answerer.chat.prompt(_turn(line), int(image))
        pictures = [[Picture(rows[line["person"]]["image"]["bytes"], "x").load()]] if image else []
        inputs = encode(processor, [line["prompt"]], pictures, "left")
        start = inputs["input_ids"].shape[1]
        for _ in range(6):
            with torch.no_grad():
                token = model(**inputs, use_cache=False).logits[0, -1].argmax().view(1, 1)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
            for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
                if name in inputs:
                    new = torch.full((1, 1), value, dtype=inputs[name].dtype)
                    inputs[name] = torch.cat([inputs[name], new], 1)
            if "cross_attention_mask" in inputs:
                mask = inputs["cross_attention_mask"]
                inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:]], 1)
            if int(token) in ends:
                break
        reply = processor.tokenizer.decode(inputs["input_ids"][0, start:], skip_special_tokens=True).strip()
        assert line["reply"] == reply
        checked += 1
    assert checked == 10


def _turn(line) -> str:
    from eval.prompts import SENTENCE

    return f"{line['question']}\n{SENTENCE}"


def test_option_scores_by_hand(evaluate, tiny, mixed, processors):
    """log p(option | prompt) from the full logits, without the end of turn, divided by the option's bytes."""
    from utils.collate import Chat
    from utils.models import load_model

    _, lines = evaluate("x", mcq="likelihood")
    line = next(x for x in lines if x["task"] == "classification" and x["modality"] == "text")
    model, processor = load_model(str(tiny["llava"])).eval(), processors["llava"]
    chat = Chat(processor)
    assert line["prompt"] == chat.prompt(line["question"], 0)
    for letter, option in line["options"].items():
        ids = processor.tokenizer(line["prompt"] + chat.lead + option, return_tensors="pt")["input_ids"]
        n = len(processor.tokenizer(line["prompt"])["input_ids"])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        score = sum(float(log_p[t - 1, ids[0, t]]) for t in range(n, ids.shape[1])) / len(option.encode())
        assert line["option_scores"][letter] == pytest.approx(score, abs=1e-4)
    best = max(line["option_scores"], key=line["option_scores"].get)
    assert line["choice"] == best and line["reply"] == line["options"][best]


@pytest.mark.parametrize("kind", FAMILIES)
def test_stopping_at_the_first_letter_keeps_the_choice(kind, evaluate, tiny, monkeypatch):
    from eval import generate

    _, stopped = evaluate("stopped", evaluated_model=tiny[kind], max_new_tokens=12)
    monkeypatch.setattr(
        generate.FirstLetter,
        "__call__",
        lambda self, ids, scores, **_: torch.zeros(len(ids), dtype=torch.bool),
    )
    _, whole = evaluate("whole", evaluated_model=tiny[kind], max_new_tokens=12)
    shorter = 0
    for a, b in zip(stopped, whole):
        assert a["choice"] == b["choice"] and a.get("correct") == b.get("correct")
        if a["task"] == "classification":
            assert a["choice"] == letter_choice(b["reply"], b["options"])
            shorter += len(a["reply"]) < len(b["reply"])
        else:
            assert a["reply"] == b["reply"]
    assert shorter > 5, "most replies should have been cut"


# ---------------------------------------------------------------- results
def test_results_are_the_sums_of_predictions(evaluate, tiny):
    folder, lines = evaluate("x", splits="forget,real", mcq="likelihood")
    results = json.loads((folder / "results.json").read_text())
    assert results["benchmark"] == "nano MLLMU-Bench" and results["model"] == str(tiny["llava"])
    assert (results["forget_ratio"], results["shot"], results["mcq"], results["seed"]) == (
        5,
        "zero_shot",
        "likelihood",
        42,
    )
    assert list(results["splits"]) == ["forget", "real"]
    for split in ("forget", "real"):
        lines = jsonl(folder / f"predictions_{split}.jsonl")
        for task in ("classification", "cloze", "generation"):
            for modality in ("image", "text"):
                of = [x for x in lines if (x["task"], x["modality"]) == (task, modality)]
                cell = results["splits"][split][task][modality]
                assert cell["total"] == len(of) > 0
                if task == "generation":
                    mean = sum(x["scores"]["rougeL"] for x in of) / len(of)
                    assert cell["rougeL"] == pytest.approx(mean, abs=1e-4)
                else:
                    assert cell["correct"] == sum(x["correct"] for x in of)
                    assert cell["accuracy"] == pytest.approx(100 * cell["correct"] / len(of), abs=0.01)
    assert sorted(p.name for p in folder.iterdir()) == [
        "predictions_forget.jsonl", "predictions_real.jsonl", "results.json",
    ]  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == ["forget05"], "no partial folder stays"


def test_default_place_is_the_models_folder(tiny, mixed, tmp_path):
    shutil.copytree(tiny["llava"], tmp_path / "model")
    run_script(
        EVAL, "--evaluated_model", tmp_path / "model", "--data_split_dir", mixed, "--forget_ratio", 5,
        "--splits", "forget", "--max_new_tokens", 2,
    )  # fmt: skip
    assert (tmp_path / "model" / "zero_shot" / "forget05" / "results.json").is_file()


def test_few_shot_examples_are_of_nobody_to_forget(evaluate):
    _, lines = evaluate("x", shot="few_shot", max_new_tokens=1)
    _, plain = evaluate("y", max_new_tokens=1)
    assert [x["id"] for x in lines] == [x["id"] for x in plain]
    for few, none in zip(lines, plain):
        assert few["prompt"].count("<image>") == 2 * none["prompt"].count("<image>")
        assert (
            len(few["prompt"]) > len(none["prompt"])
            and few["question"].replace("__", "[Blank]") in few["prompt"]
        )


# ---------------------------------------------------------------- workers
def questions(people: int, each: int) -> list[Question]:
    return [
        Question(f"{p}/{k}", str(p), "forget", "cloze", "text", "q", "t")
        for p in range(people)
        for k in range(each)
    ]


@pytest.mark.parametrize(("people", "workers"), [(10, 4), (7, 2), (3, 3), (2, 4), (1, 1)])
def test_shares_are_even_and_whole(people, workers):
    asked = questions(people, 18)
    shares = [share_of(asked, w, workers) for w in range(workers)]
    assert sorted(q.id for share in shares for q in share) == sorted(q.id for q in asked)
    assert max(map(len, shares)) - min(map(len, shares)) <= 18
    assert all(
        len({q.person for q in a} & {q.person for q in b}) == 0 for a in shares for b in shares if a is not b
    )


@pytest.mark.parametrize("mcq", ["letter", "likelihood"])
def test_two_workers_are_one(evaluate, mcq):
    one, _ = evaluate("one", mcq=mcq)
    for worker in (1, 0):
        evaluate("two", mcq=mcq, worker=worker, workers=2)
    two, _ = evaluate("two", mcq=mcq, merge=True, workers=2)
    a, b = ((folder / "predictions_forget.jsonl").read_bytes() for folder in (one, two))
    assert a == b
    splits = [json.loads((folder / "results.json").read_text())["splits"] for folder in (one, two)]
    assert splits[0] == splits[1]
    cost = json.loads((two / "results.json").read_text())["cost"]
    assert sum(c["questions"] for c in cost) == 40 and len(cost) == 2


def test_a_merge_with_answers_missing_fails(evaluate, tmp_path):
    evaluate("x", worker=0, workers=2)
    with pytest.raises(SystemExit, match="16 of 40 questions have no answer"):
        evaluate("x", merge=True, workers=2)
    assert not (tmp_path / "x" / "zero_shot" / "forget05").exists()


def part_file(folder):
    (part,) = folder.glob(".forget05.*.partial/worker_*.jsonl")
    return part


@pytest.mark.parametrize("where", ["line", "letter", "first", "none"])
def test_a_stopped_evaluation_goes_on(evaluate, tmp_path, where):
    """Killed in the middle of a line; in the middle of a letter of two bytes; in the first line; between
    two lines."""
    whole, _ = evaluate("whole")
    evaluate("x", worker=0, workers=1)
    part = part_file(tmp_path / "x" / "zero_shot")
    data = part.read_bytes()
    lines = data.splitlines(keepends=True)
    letter = data.index("ë".encode()) + 1
    cut = {
        "line": len(b"".join(lines[:20])) + 33,
        "letter": letter,
        "first": 5,
        "none": len(b"".join(lines[:20])),
    }[where]
    part.write_bytes(data[:cut])
    kept = data[:cut].count(b"\n")
    folder, _ = evaluate("x")
    assert (folder / "predictions_forget.jsonl").read_bytes() == (
        whole / "predictions_forget.jsonl"
    ).read_bytes()
    cost = json.loads((folder / "results.json").read_text())["cost"]
    assert [c["questions"] for c in cost] == [40 - kept]


def test_line_separators_in_texts(evaluate, mixed, tmp_path):
    """U+2028 and U+0085 end a line for str.splitlines, but stand unescaped in JSON."""
    shutil.copytree(mixed, tmp_path / "data")
    table = tmp_path / "data" / "MLLMU-Bench" / "forget_5"
    rows = read_table(table)[:1]
    rows[0]["Generation_Task"][0]["Question"] = "first\u2028second\x85third?"
    write_table(table, rows, like=table)
    evaluate("x", data_split_dir=tmp_path / "data", worker=0, workers=1)
    _, lines = evaluate("x", data_split_dir=tmp_path / "data", merge=True)
    assert any(line["question"] == "first\u2028second\x85third?" for line in lines) and len(lines) == 8


def test_a_worker_leaves_the_line_that_another_is_writing(evaluate, tmp_path):
    """Workers start at different times: what is half written in another's file will be whole in a moment."""
    evaluate("x", worker=0, workers=2)
    part = part_file(tmp_path / "x" / "zero_shot")
    half = part.read_bytes()[:-30]
    part.write_bytes(half)
    evaluate("x", worker=1, workers=2)
    assert part.read_bytes() == half


def test_other_settings_do_not_take_kept_answers(evaluate, tmp_path):
    evaluate("x", worker=0, workers=1, max_new_tokens=2)
    _, lines = evaluate("x", max_new_tokens=3)
    _, fresh = evaluate("fresh", max_new_tokens=3)
    assert lines == fresh
    assert [p.name for p in (tmp_path / "x" / "zero_shot").iterdir()] == ["forget05"]


def test_other_examples_do_not_take_kept_answers(evaluate, mixed, tmp_path):
    """The few-shot examples come from Full_Set: when it changes, the prompts do."""
    shutil.copytree(mixed, tmp_path / "data")
    table = tmp_path / "data" / "MLLMU-Bench" / "Full_Set"
    few = {"shot": "few_shot", "data_split_dir": tmp_path / "data", "max_new_tokens": 2}
    evaluate("x", worker=0, workers=1, **few)
    rows = read_table(table)
    for row in rows:
        for column in ("Generation_Task", "Mask_Task"):
            for item in row[column]:
                item["Ground_Truth"] = "something else"
    write_table(table, rows, like=table)
    _, lines = evaluate("x", **few)
    assert all("something else" in line["prompt"] for line in lines if line["task"] != "classification")


def test_an_answered_evaluation_is_answered_anew(evaluate, tiny, tmp_path):
    """The same command again evaluates again: the result is replaced as a whole."""
    folder, first = evaluate("x")
    (folder / "predictions_test.jsonl").write_text("of an earlier run\n")
    folder, again = evaluate("x")
    assert first == again and not (folder / "predictions_test.jsonl").exists()


# ---------------------------------------------------------------- the shell script
def shell(*words) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(ROOT / "MLLMU_eval.sh"), *map(str, words)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_shell_script(tiny, mixed, tmp_path):
    done = shell(
        "05", 0, 0, 0, 0, tiny["llava"], tiny["llava"], "few_shot", "--data_split_dir", mixed / "MLLMU-Bench",
        "--output_dir", tmp_path, "--max_new_tokens", 2, "--splits", "forget,test",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "few_shot" / "forget05"
    assert (folder / "results.json").is_file() and (folder / "predictions_test.jsonl").is_file()
    results = json.loads((folder / "results.json").read_text())
    assert sum(c["questions"] for c in results["cost"]) == len(
        jsonl(folder / "predictions_forget.jsonl")
    ) + len(jsonl(folder / "predictions_test.jsonl"))


def test_the_shell_script_with_a_broken_model(tiny, mixed, tmp_path):
    shutil.copytree(tiny["llava"], tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    done = shell(
        "05", 0, 0, 0, 0, tmp_path / "broken", tiny["llava"], "zero_shot", "--data_split_dir", mixed,
        "--splits", "forget",
    )  # fmt: skip
    assert done.returncode not in (0, 2), done.stderr
    assert "failed" in done.stderr and not (tmp_path / "broken" / "zero_shot" / "forget05").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["05", "0", "0", "0"], "error: expected 8 arguments, got 4"),
        ([], "bash MLLMU_eval.sh forget_ratio gpu1"),
        (["05", "0", "x", "0", "0", "m", "m", "zero_shot"], "'x' is not a GPU id"),
        (["7", "0", "0", "0", "0", "no_model", "no_model", "zero_shot"], "--evaluated_model"),
        (["05", "0", "0", "0", "0", "no_model", "no_model", "one_shot"], "--shot"),
    ],
)
def test_the_shell_script_with_wrong_arguments(words, said):
    done = shell(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
