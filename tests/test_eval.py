"""Evaluation: the same answers in batches of any size, by any number of workers, and after a stop."""

import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, ROOT, edited, jsonl, picture_cell, read_table, run_script, write_table

from eval.answering.plan import MemoryCost, plan_batches
from utils.run import folders

EVAL = "eval/MLLMU_eval.py"
SIZES = [(32, 32), (64, 32), (32, 96), (100, 40), (48, 48)]


@pytest.fixture(scope="session")
def mixed(nano, tmp_path_factory):
    """A benchmark whose forget_5 has five people with few questions and pictures of all shapes."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    shutil.copytree(nano / "MLLMU-Bench", folder / "MLLMU-Bench")
    rows = read_table(folder / "MLLMU-Bench" / "Full_Set")
    write_table(folder / "MLLMU-Bench" / "retain_95", rows[5:], like=nano / "MLLMU-Bench" / "retain_95")
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
def evaluate(mixed, tiny, tmp_path, monkeypatch):
    """evaluate(name, **flags) -> (result folder, predictions of the forget split)."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})  # two workers, also on one core

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
    _, many = evaluate("many", evaluated_model=tiny[kind], mcq=mcq, shot=shot, batch_size=32)
    assert len(one) == 5 * 8
    assert len({line["reply"] for line in one}) > 5, "a model that always says the same would show nothing"
    assert_same(one, many)
    for line in one:
        scored = mcq == "likelihood" and line["task"] == "classification"
        assert bool(line.get("option_scores")) == scored
    assert {line["modality"] for line in one} == {"image", "text"}


def assert_same(one: list[dict], other: list[dict]) -> None:
    """Everything equal, option scores up to rounding."""
    for a, b in zip(one, other, strict=True):
        a, b = dict(a), dict(b)
        scores = a.pop("option_scores", {}), b.pop("option_scores", {})
        assert a == b
        assert scores[0] == pytest.approx(scores[1], abs=1.1e-4)


@pytest.mark.parametrize("mcq", ["letter", "likelihood"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_shared_prefixes_change_nothing(kind, mcq, evaluate, tiny, monkeypatch):
    """Against every prompt whole, one at a time, by transformers' generate."""
    from dataclasses import replace

    from utils import families

    _, ours = evaluate("ours", evaluated_model=tiny[kind], mcq=mcq, max_new_tokens=12)
    monkeypatch.setitem(families.FAMILIES, kind, replace(families.FAMILIES[kind], prefix_generation=False))
    _, plain = evaluate("plain", evaluated_model=tiny[kind], mcq=mcq, max_new_tokens=12, batch_size=1)
    assert_same(ours, plain)


def test_a_picture_is_encoded_once(evaluate, monkeypatch):
    """The five people's eight questions, half of them about a picture: five pictures, few forwards."""
    from transformers import LlavaForConditionalGeneration as Llava

    seen, whole = [], Llava.forward

    @functools.wraps(whole)
    def forward(self, *args, pixel_values=None, input_ids=None, **kwargs):
        seen.append((0 if pixel_values is None else len(pixel_values), input_ids.numel()))
        return whole(self, *args, pixel_values=pixel_values, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(Llava, "forward", forward)
    evaluate("letters", max_new_tokens=1, batch_size=64)
    assert sum(pictures for pictures, _ in seen) == 5
    seen.clear()
    evaluate("options", mcq="likelihood", max_new_tokens=1, batch_size=64)
    assert sum(pictures for pictures, _ in seen) == 5, "nor for every option"


def test_little_memory(evaluate, monkeypatch):
    """Batches are halved until they fit, from then on, and the answers are the same."""
    from eval.answering.generate import PrefixCachedBackend

    _, whole = evaluate("whole")
    sizes, answer = [], PrefixCachedBackend.answer

    def small(self, requests):
        sizes.append(len(requests))
        if len(requests) > 6:
            raise torch.OutOfMemoryError("out of memory")
        return answer(self, requests)

    monkeypatch.setattr(PrefixCachedBackend, "answer", small)
    _, halved = evaluate("halved")
    assert_same(whole, halved)
    assert max(sizes) > 12 and sum(size > 6 for size in sizes) <= 3, "what did not fit was not tried again"
    monkeypatch.setattr(
        PrefixCachedBackend, "answer", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("x"))
    )
    with pytest.raises(SystemExit, match="not even one question fits"):
        evaluate("none")


def costs(pictures: int, each: int, texts: int, tokens: int = 40) -> list[MemoryCost]:
    about = [MemoryCost((f"picture {p}",), 100, tokens) for p in range(pictures) for _ in range(each)]
    return about + [MemoryCost((), 0, tokens + i % 7) for i in range(texts)]


@pytest.mark.parametrize(("size", "tokens"), [(1, 10**6), (16, 10**6), (64, 1200), (10**6, 1), (200, 10**6)])
def test_batches_keep_their_limits(size, tokens):
    asked = costs(pictures=20, each=9, texts=180)
    batches = plan_batches(asked, size, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(asked)))
    for batch in batches:
        assert len({len(asked[i].pictures) for i in batch}) == 1, "with and without pictures, apart"
        shown = {asked[i].pictures for i in batch}
        used = sum(asked[i].tokens for i in batch) + sum(100 for pictures in shown if pictures)
        assert len(batch) <= size and (used <= tokens or len(batch) == 1)


def test_a_pictures_questions_stay_together():
    asked = costs(pictures=20, each=9, texts=0)
    batches = plan_batches(asked, batch_size=40, batch_tokens=10**6)
    homes = {}
    for number, batch in enumerate(batches):
        for i in batch:
            homes.setdefault(asked[i].pictures, set()).add(number)
    assert all(len(home) == 1 for home in homes.values())
    assert max(map(len, batches)) == 36 and len(batches[-1]) <= 10, "smaller towards the end"


@pytest.mark.parametrize("kind", FAMILIES)
def test_replies_are_greedy(kind, evaluate, tiny, mixed):
    """Against a loop that takes the likeliest token with the whole model run each time, no cache, no
    padding."""
    from eval.answering.generate import Answerer
    from utils.collate import encode
    from utils.data import Picture
    from utils.families import FAMILIES as ALL
    from utils.models import load_model, load_processor

    _, lines = evaluate("x", evaluated_model=tiny[kind])
    model, processor = load_model(str(tiny[kind])).eval(), load_processor(str(tiny[kind]))
    backend = Answerer(model, processor, ALL[kind], 6).backend
    rows = {row["ID"]: row for row in read_table(mixed / "MLLMU-Bench" / "forget_5")}
    ends = backend.stop_rule.end_tokens
    checked = 0
    for line in [line for line in lines if line["task"] == "generation"]:
        image = line["modality"] == "image"
        assert line["prompt"] == backend.collator.chat.prompt(_turn(line), int(image))
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
def test_stopping_early_keeps_every_score(kind, evaluate, tiny, monkeypatch):
    """Replies that go on to the end of the turn say the same at first, and score the same."""
    from eval.answering import generate

    _, stopped = evaluate("stopped", evaluated_model=tiny[kind], max_new_tokens=12)
    monkeypatch.setattr(
        generate.StopRule, "decided", lambda self, request, reply: reply[-1] in self.end_tokens
    )
    _, whole = evaluate("whole", evaluated_model=tiny[kind], max_new_tokens=12)
    shorter = 0
    for a, b in zip(stopped, whole, strict=True):
        assert a["choice"] == b["choice"] and a.get("correct") == b.get("correct")
        if a["task"] == "generation":
            assert a["reply"] == b["reply"]
        else:
            assert b["reply"].startswith(a["reply"])
            shorter += len(a["reply"]) < len(b["reply"])
    assert shorter > 5, "most replies should have been cut"


def test_a_cloze_reply_ends_at_the_hit(processors):
    from types import SimpleNamespace

    from eval.answering.generate import Request, StopRule

    tokenizer = processors["llava"].tokenizer
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    stop_rule = StopRule(model, processors["llava"])
    reply = tokenizer("They live in Lisbon, I think", add_special_tokens=False)["input_ids"]
    cloze, letter = Request("p", hit="lisbon"), Request("p", letter=True)
    cut = next(n for n in range(1, len(reply) + 1) if stop_rule.decided(cloze, reply[:n]))
    assert stop_rule.text(reply[:cut]).endswith("Lisbon")
    assert not any(stop_rule.decided(Request("p"), reply[:n]) for n in range(1, len(reply) + 1))
    assert stop_rule.decided(Request("p"), [*reply, tokenizer.eos_token_id])
    texts = {
        i: tokenizer.decode([i]) for i in set(range(len(tokenizer))) - stop_rule.bytes - stop_rule.end_tokens
    }
    dash = next(i for i, text in texts.items() if text.strip() and not any(c.isalnum() for c in text))
    assert not stop_rule.decided(letter, [dash]) and stop_rule.decided(letter, [dash, *reply[:2]])
    # a byte that looks like a letter is none when the next one makes nonsense of both
    a, high = tokenizer.convert_tokens_to_ids(["<0x41>", "<0xC3>"])
    assert stop_rule.text([a]) == "A" and "A" not in stop_rule.text([a, high])
    assert not stop_rule.decided(letter, [a]) and stop_rule.decided(letter, [a, dash])
    assert not stop_rule.decided(letter, [a, high]) and not stop_rule.decided(letter, [a, high, dash])
    assert not stop_rule.decided(Request("p", hit="a"), [a])
    assert stop_rule.text([a, dash]).startswith("A")


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


def test_differences_to_vanilla(evaluate, tiny, tmp_path):
    """Paired with the vanilla model's own evaluation; refused where that is missing or of another kind."""
    shutil.copytree(tiny["llava"], tmp_path / "vanilla")
    given = {"mcq": "likelihood", "max_new_tokens": 2}
    with pytest.raises(SystemExit):
        evaluate("x", vanilla_dir=tmp_path / "vanilla", **given)
    evaluate("vanilla", evaluated_model=tmp_path / "vanilla", **given)
    with pytest.raises(SystemExit):
        evaluate("x", vanilla_dir=tmp_path / "vanilla", mcq="letter", max_new_tokens=2)
    folder, _ = evaluate("x", evaluated_model=tiny["other_llava"], vanilla_dir=tmp_path / "vanilla", **given)
    before, after = (
        json.loads((path / "zero_shot" / "forget05" / "results.json").read_text())
        for path in (tmp_path / "vanilla", folder.parents[1])
    )
    assert Path(after["differences"]["vanilla"]) == tmp_path / "vanilla" / "zero_shot" / "forget05"
    assert "differences" not in before
    for modality in ("image", "text"):
        old, new = (r["splits"]["forget"]["classification"][modality] for r in (before, after))
        found = after["differences"]["splits"]["forget"]["classification"][modality]
        assert found["difference"] == pytest.approx(new["accuracy"] - old["accuracy"], abs=0.01)
        low, high = found["interval"]
        assert low <= found["difference"] <= high and found["people"] == 5 and found["questions"] == 10
        assert new["interval"][0] <= new["accuracy"] <= new["interval"][1] and new["people"] == 5


# ---------------------------------------------------------------- workers and stops
@pytest.mark.parametrize(
    ("kind", "mcq", "method"), [("llava", "letter", "spawn"), ("mllama", "likelihood", "forkserver")]
)
def test_two_workers_are_one(evaluate, tiny, kind, mcq, method, capfd, monkeypatch):
    """The same batches, whoever answers them: files equal byte by byte."""
    from eval.answering import workers

    context = multiprocessing.get_context(method)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    one, _ = evaluate("one", evaluated_model=tiny[kind], mcq=mcq, batch_size=8)
    # in turn: alone, a worker may answer everything before the other has loaded
    wait = workers.wait
    monkeypatch.setattr(workers, "wait", lambda lines: [line for line in lines if wait([line])])
    two, _ = evaluate("two", evaluated_model=tiny[kind], mcq=mcq, batch_size=8, gpus="0,0")
    assert_equal_files(one, two)
    cost = json.loads((two / "results.json").read_text())["cost"]
    assert sum(c["questions"] for c in cost) == 40 and len(cost) == 2
    told = capfd.readouterr().err
    assert "worker 0 (cpu)" in told and "worker 1 (cpu)" in told


def assert_equal_files(one, other) -> None:
    """Predictions byte by byte; results but for the times."""
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    for name in files:
        if name.startswith("predictions_"):
            assert (one / name).read_bytes() == (other / name).read_bytes()
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    assert a.pop("cost") and b.pop("cost")
    assert a == b


KILLED = """
import os, runpy, signal, sys
from eval.answering import workers
real, batches = workers.answer_batches, int(sys.argv.pop(1))
def answer_batches(*args):
    for count, answered in enumerate(real(*args)):
        if count == batches:
            os.kill(os.getpid(), signal.SIGKILL)
        yield answered
workers.answer_batches = answer_batches
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("workers", "moments"), [("0", (0, 7)), ("0,0", (3,))])
def test_a_killed_evaluation_goes_on(evaluate, mixed, tiny, tmp_path, workers, moments):
    """kill -9 before the first batch is written and after some, then the same settings again."""
    whole, _ = evaluate("whole", batch_size=2)
    flags = {
        "evaluated_model": tiny["llava"], "data_split_dir": mixed / "MLLMU-Bench", "forget_ratio": 5,
        "splits": "forget", "max_new_tokens": 6, "output_dir": tmp_path / "x", "batch_size": 2,
        "gpus": workers,
    }  # fmt: skip
    words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    for batches in moments:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(batches), ROOT / EVAL, *words],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        (part,) = (tmp_path / "x" / "zero_shot").glob(".forget05.*.partial")
        answers = part / "answers.jsonl"
        assert answers.read_bytes().count(b"\n") == batches
    folder, _ = evaluate("x", batch_size=2)
    assert_equal_files(whole, folder)
    assert [p.name for p in (tmp_path / "x" / "zero_shot").iterdir()] == ["forget05"]


def stopped(evaluate, monkeypatch, name: str, batches: int, **flags):
    """An evaluation that fails after some batches. Returns its file of answers."""
    from eval.answering import workers

    real = workers.answer_batches

    def some(*args):
        for count, answered in enumerate(real(*args)):
            if count == batches:
                raise KeyboardInterrupt
            yield answered

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workers, "answer_batches", some)
        evaluate(name, batch_size=4, **flags)


@pytest.mark.parametrize("where", ["line", "letter", "first", "none"])
def test_a_line_that_was_cut(evaluate, monkeypatch, tmp_path, where):
    """In the middle of a line; of a letter of two bytes; in the first line; between two lines."""
    whole, _ = evaluate("whole", batch_size=4)
    stopped(evaluate, monkeypatch, "x", batches=9)
    (part,) = (tmp_path / "x" / "zero_shot").glob(".forget05.*.partial/answers.jsonl")
    data = part.read_bytes()
    lines = data.splitlines(keepends=True)
    cut = {
        "line": len(b"".join(lines[:5])) + 33,
        "letter": data.index("ë".encode()) + 1,
        "first": 5,
        "none": len(b"".join(lines[:5])),
    }[where]
    part.write_bytes(data[:cut])
    folder, _ = evaluate("x", batch_size=4)
    assert_equal_files(whole, folder)
    cost = json.loads((folder / "results.json").read_text())["cost"]
    assert [c["questions"] for c in cost] == [40], "what earlier runs took counts, too"


def test_other_limits_take_kept_answers(evaluate, monkeypatch):
    """The batch size is free to change between a stop and going on."""
    _, whole = evaluate("whole")
    stopped(evaluate, monkeypatch, "x", batches=5)
    _, lines = evaluate("x", batch_size=7)
    assert_same(whole, lines)


def test_two_runs_exclude_each_other(evaluate, tmp_path):
    (tmp_path / "x" / "zero_shot").mkdir(parents=True)
    lock = tmp_path / "x" / "zero_shot" / ".forget05.lock"
    with folders.exclusive(lock, "somebody writes"), pytest.raises(SystemExit, match="already"):
        evaluate("x")
    assert not lock.exists() and not (tmp_path / "x" / "zero_shot" / "forget05").exists()
    evaluate("x")
    assert not lock.exists()


def test_one_worker_per_gpu(monkeypatch):
    from eval.answering.workers import pick_devices

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_devices([1, 0, 1]) == ["cuda:1", "cuda:0", "cuda:1"]
    with pytest.raises(SystemExit, match="--gpus: there is no GPU 5; this process sees 2"):
        pick_devices([0, 5])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert pick_devices([0, 1]) == ["cpu"] * 2 and pick_devices(range(8)) == ["cpu"] * 3


def test_a_worker_that_fails(evaluate, tiny, tmp_path, capfd):
    """A model whose weights are no numbers, which only its worker sees: one line, no traceback, and nothing
    that looks like a result."""
    from safetensors.torch import load_file, save_file

    file = Path(shutil.copytree(tiny["llava"], tmp_path / "broken")) / "model.safetensors"
    weights = {name: tensor * float("nan") for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SystemExit, match=r".*: NaN or infinity in .* \(worker [01]\)"):
        evaluate("x", evaluated_model=tmp_path / "broken", gpus="0,0")
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "x" / "zero_shot" / "forget05").exists()


def test_a_worker_that_dies(evaluate, monkeypatch, tmp_path):
    """Killed from outside, as the system does for want of memory: the same command then goes on."""
    from eval.answering import workers

    whole, _ = evaluate("whole", batch_size=1)
    wait, killed = workers.wait, []

    def wait_and_kill(pipes):
        if not killed:
            killed.append(multiprocessing.active_children()[-1])
            killed[0].kill()
        return wait(pipes)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=r"died \(exit code -9"):
        patch.setattr(workers, "wait", wait_and_kill)
        evaluate("x", gpus="0,0", batch_size=1)
    assert not (tmp_path / "x" / "zero_shot" / "forget05").exists()
    folder, _ = evaluate("x", batch_size=1)
    assert_equal_files(whole, folder)


def test_line_separators_in_texts(evaluate, mixed, monkeypatch, tmp_path):
    """U+2028 and U+0085 end a line for str.splitlines, but stand unescaped in JSON."""
    shutil.copytree(mixed, tmp_path / "data")
    table = tmp_path / "data" / "MLLMU-Bench" / "forget_5"
    rows = read_table(table)[:1]
    rows[0]["Generation_Task"][0]["Question"] = "first\u2028second\x85third?"
    write_table(table, rows, like=table)
    stopped(evaluate, monkeypatch, "x", batches=1, data_split_dir=tmp_path / "data")
    (part,) = (tmp_path / "x" / "zero_shot").glob(".forget05.*.partial/answers.jsonl")
    assert "\u2028" in part.read_text(encoding="utf-8")
    _, lines = evaluate("x", data_split_dir=tmp_path / "data", batch_size=4)
    assert any(line["question"] == "first\u2028second\x85third?" for line in lines) and len(lines) == 8


def test_other_settings_do_not_take_kept_answers(evaluate, monkeypatch, tmp_path):
    stopped(evaluate, monkeypatch, "x", batches=5, max_new_tokens=2)
    _, lines = evaluate("x", max_new_tokens=3)
    _, fresh = evaluate("fresh", max_new_tokens=3)
    assert lines == fresh
    assert [p.name for p in (tmp_path / "x" / "zero_shot").iterdir()] == ["forget05"]


def test_other_examples_do_not_take_kept_answers(evaluate, mixed, monkeypatch, tmp_path):
    """The few-shot examples come from Full_Set: when it changes, the prompts do."""
    shutil.copytree(mixed, tmp_path / "data")
    table = tmp_path / "data" / "MLLMU-Bench" / "Full_Set"
    few = {"shot": "few_shot", "data_split_dir": tmp_path / "data", "max_new_tokens": 2}
    stopped(evaluate, monkeypatch, "x", batches=5, **few)
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
        "05", 0, 0, 1, tiny["llava"], tiny["llava"], "few_shot", "--data_split_dir", mixed / "MLLMU-Bench",
        "--output_dir", tmp_path, "--max_new_tokens", 2, "--splits", "forget,test",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "few_shot" / "forget05"
    assert (folder / "results.json").is_file() and (folder / "predictions_test.jsonl").is_file()
    results = json.loads((folder / "results.json").read_text())
    assert sum(c["questions"] for c in results["cost"]) == len(
        jsonl(folder / "predictions_forget.jsonl")
    ) + len(jsonl(folder / "predictions_test.jsonl"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["05", "0", "0", "0"], "expected evaluated_model, original_model and shot"),
        (["05", "0", "m", "m"], "expected evaluated_model, original_model and shot"),
        ([], "bash MLLMU_eval.sh forget_ratio gpu1"),
        (["05", "x", "0", "0", "m", "m", "zero_shot"], "'x' is not a GPU id"),
        (["05", *["0"] * 9, "no_model", "no_model", "zero_shot"], "--gpus"),
        (["7", "0", "0", "0", "0", "no_model", "no_model", "zero_shot"], "--evaluated_model"),
        (["05", "0", "no_model", "no_model", "one_shot"], "--shot"),
        (["05", "0", "no_model", "no_model", "zero_shot", "--vanilla_dir", "no_vanilla"], "--vanilla_dir"),
    ],
)
def test_the_shell_script_with_wrong_arguments(words, said):
    done = shell(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


# ---------------------------------------------------------------- what would be a wrong number
def test_logits_that_are_no_numbers_are_no_forgetting(evaluate, tiny, tmp_path, capfd):
    """Every weight is finite, what is computed with them is not."""
    from safetensors.torch import load_file, save_file

    file = Path(shutil.copytree(tiny["llava"], tmp_path / "broken")) / "model.safetensors"
    held = load_file(file)
    held = {n: w.float() if "lm_head" not in n else torch.full(w.shape, 3e38) for n, w in held.items()}
    save_file(held, file, metadata={"format": "pt"})
    with edited(file.with_name("config.json")) as config:
        config["dtype"] = "float32"
    for mcq in ("letter", "likelihood"):
        with pytest.raises(SystemExit) as end:
            evaluate(mcq, evaluated_model=tmp_path / "broken", mcq=mcq, tasks="classification", dtype="fp32")
        assert end.value.code == 3 and "logits are NaN or infinity" in capfd.readouterr().err
        assert not (tmp_path / mcq / "zero_shot" / "forget05").exists()


def test_nothing_to_ask_and_another_benchmarks_answers(evaluate, mixed, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate("none", splits="world", tasks="cloze", data_split_dir=mixed / "MLLMU-Bench")
    assert end.value.code == 2
    folder, _ = evaluate("one", tasks="cloze")
    with edited(folder / "results.json") as content:
        content["benchmark"] = "nano CLEAR"
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        evaluate("one", tasks="cloze")
    assert end.value.code == 2 and "holds an evaluation on nano CLEAR" in capsys.readouterr().err


def test_a_vanilla_that_was_asked_otherwise(evaluate, tmp_path, capsys):
    folder, _ = evaluate("vanilla", tasks="cloze")
    for key, value, told in (
        ("max_new_tokens", 5, "with --max_new_tokens 5, not 6"),
        ("data", {"forget cloze": "0"}, "other questions, or about other pictures, in forget cloze"),
    ):
        with edited(folder / "results.json") as content:
            before, content["settings"][key] = content["settings"][key], value
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            evaluate("x", tasks="cloze", vanilla_dir=tmp_path / "vanilla")
        assert end.value.code == 2 and told in capsys.readouterr().err
        with edited(folder / "results.json") as content:
            content["settings"][key] = before
    evaluate("x", tasks="cloze", vanilla_dir=tmp_path / "vanilla")
