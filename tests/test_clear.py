"""CLEAR: its reader, its evaluation, its measures, and what the table and the page make of them."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import FAMILIES, ROOT, jsonl, picture_cell, read_table, run_script, write_table
from test_metrics import prediction

from eval.metrics import forget_quality, probability, truth_ratio, truth_scores
from eval.results.summary import summarise
from utils.clear import CAPTION_PROMPTS, WHO, CLEARBench, caption_prompt
from utils.cli import Problems
from utils.data import fingerprint

EVAL = "eval/CLEAR_eval.py"
SIZES = [(32, 32), (64, 32), (32, 96), (100, 40)]
COLOURS = ["red", "green", "blue", "white"]


def bench_of(folder, ratio=10, skip=False) -> CLEARBench:
    return CLEARBench(str(folder), ratio, Problems(), skip)


def texts(samples) -> list[tuple[str, str, bytes | None]]:
    return [(s.question, s.answer, s.picture and s.picture.data) for s in samples]


@pytest.fixture
def copy(nano, tmp_path):
    """A copy of nano CLEAR that a test may damage."""
    shutil.copytree(nano / "CLEAR", tmp_path / "data" / "CLEAR")
    return tmp_path / "data" / "CLEAR"


# ---------------------------------------------------------------- training samples
def test_everybody_is_read_once(nano):
    bench, rows = bench_of(nano / "CLEAR"), read_table(nano / "CLEAR" / "full+tofu")
    samples = bench.finetune()
    expected = [
        (caption_prompt(r["caption"]), r["caption"], r["image"]["bytes"])
        if r["caption"]
        else (r["question"], r["answer"], None)
        for r in rows
    ]
    assert texts(samples) == expected and not bench.problems.lines and not bench.notes
    assert sum(s.picture is None for s in samples) == 10 * 20
    assert [s.id for s in samples] == [f"full+tofu/{k}" for k in range(len(rows))]
    assert {s.question for s in samples if s.picture} <= set(CAPTION_PROMPTS)
    assert "200 text questions" in bench.describe(samples)
    assert texts(bench.text_knowledge()) == [t for t in expected if t[2] is None]


def test_forget_and_retain_are_captions(nano):
    bench = bench_of(nano / "CLEAR")
    forget, retain = texts(bench.forget()), texts(bench.retain())
    assert len(forget) == 1 and len(retain) == 9 and not set(forget) & set(retain)
    assert sorted(forget + retain) == sorted(texts(bench.finetune()[:10])), "the same prompts in all tables"
    reference = texts(bench.reference())
    person = read_table(nano / "CLEAR" / "forget10")[0]["name"]
    assert not any(person in question + answer for question, answer, _ in reference)
    assert len(reference) == len(bench.finetune()) - 1 - 20
    kept = texts(bench.reference(keep_text=True))
    assert kept[: len(reference)] == reference and len(kept) == len(reference) + 20
    assert all(person in question + answer and not picture for question, answer, picture in kept[-20:])
    assert len(bench.retain(30)) == 3 and set(texts(bench.retain(30))) < set(retain)


def test_any_folder_will_do(nano):
    whole, own = (bench_of(folder).retain() for folder in (nano, nano / "CLEAR"))
    assert fingerprint(whole) == fingerprint(own)
    bench = bench_of(nano / "CLEAR" / "forget10+tofu")
    assert len(bench.finetune()) == 1 + 20 and bench.name == "nano CLEAR"
    assert len(bench.forget()) == 1 and not bench.problems.lines


@pytest.mark.parametrize(("ratio", "tables"), [(1, "forget01 retain99"), (5, "forget05 retain95")])
def test_the_tables_of_a_ratio(nano, ratio, tables):
    bench = bench_of(nano / "CLEAR", ratio)
    assert [bench.forget()[0].id.split("/")[0], bench.retain()[0].id.split("/")[0]] == tables.split()


@pytest.mark.parametrize("kind", FAMILIES)
def test_labels_are_the_caption_or_the_answer(kind, nano, processors):
    from utils.collate import IGNORE, Collator
    from utils.families import FAMILIES as ALL

    samples = bench_of(nano / "CLEAR").finetune()
    collator = Collator(processors[kind], ALL[kind])
    for picture in (True, False):
        some = [s for s in samples if (s.picture is not None) == picture][:3]
        batch = collator(some)
        for sample, labels in zip(some, batch.labels):
            counted = labels[labels != IGNORE]
            said = processors[kind].tokenizer.decode(counted, skip_special_tokens=True)
            assert said.strip() == sample.answer
            end = processors[kind].tokenizer.convert_tokens_to_ids(collator.chat.end)
            assert counted[-1] == end


# ---------------------------------------------------------------- formats and missing tables
def test_save_to_disk_folders(copy, nano):
    from datasets import Dataset

    for name in ("full+tofu", "forget10", "forget10_perturbed", "forget10+tofu"):
        data = Dataset.from_parquet(
            [str(f) for f in sorted((copy / name).glob("*.parquet"))], cache_dir=str(copy.parent / "cache")
        )
        shutil.rmtree(copy / name)
        data.save_to_disk(str(copy / name))
    ours, theirs = bench_of(copy), bench_of(nano / "CLEAR")
    for read in (CLEARBench.finetune, CLEARBench.forget, CLEARBench.text_knowledge):
        assert fingerprint(read(ours)) == fingerprint(read(theirs))
    assert fingerprint(ours.questions("forget", 3)) == fingerprint(theirs.questions("forget", 3))
    assert not ours.problems.lines


def test_a_retain_perturbed_of_the_ratio_comes_first(copy):
    rows = read_table(copy / "retain_perturbed")
    assert {q.picture_ref["table"] for q in bench_of(copy).questions("retain", 1) if q.options} == {
        "retain_perturbed"
    }
    write_table(copy / "retain90_perturbed", rows[:2], like=copy / "retain_perturbed")
    asked = [q for q in bench_of(copy).questions("retain", 1) if q.options]
    assert len(asked) == 4 and {q.picture_ref["table"] for q in asked} == {"retain90_perturbed"}


def test_a_perturbed_caption_that_is_the_caption_is_no_wrong_answer(copy):
    rows = read_table(copy / "forget10_perturbed")
    right, wrong = rows[0]["paraphrased_caption"], rows[0]["perturbed_captions"]
    rows[0]["perturbed_captions"] = [right.upper(), *wrong[1:]]
    write_table(copy / "forget10_perturbed", rows, like=copy / "forget10_perturbed")
    asked = [q for q in bench_of(copy).questions("forget", 1) if q.task == "truth_ratio"]
    assert list(asked[0].options.values()) == [right, *wrong[1:]]
    rows[0]["perturbed_captions"] = [right] * len(wrong)
    write_table(copy / "forget10_perturbed", rows, like=copy / "forget10_perturbed")
    (bench := bench_of(copy)).questions("forget", 1)
    assert "no perturbed caption is another than the caption" in bench.problems.lines[0]


def test_without_full_tofu(copy, nano):
    shutil.rmtree(copy / "full+tofu")
    bench = bench_of(copy)
    assert sorted(texts(bench.finetune()), key=str) == sorted(texts(bench_of(nano).finetune()), key=str)
    assert any("no full+tofu" in note for note in bench.notes) and not bench.problems.lines
    shutil.rmtree(copy / "forget10+tofu")
    bench = bench_of(copy)
    assert bench.finetune() == []
    assert bench.problems.lines == [f"--data_split_dir: no table full+tofu in {copy} nor beside it"]


def test_all_that_is_missing_is_told_at_once(copy):
    for name in ("forget10", "real_faces", "retain_perturbed"):
        shutil.rmtree(copy / name)
    rows = read_table(copy / "real_world")
    write_table(copy / "real_world", [{k: v for k, v in row.items() if k != "options"} for row in rows])
    bench = bench_of(copy)
    for split in CLEARBench.split_names():
        bench.questions(split, 1)
    said = "\n".join(bench.problems.lines)
    for words in (
        "no table forget10 ",
        "no table real_faces ",
        "no table retain_perturbed ",
        "no column options",
    ):
        assert words in said, said
    assert "real_world" in said and all(line.startswith("--data_split_dir") for line in bench.problems.lines)


def test_a_wrong_ratio_and_folder(nano, tmp_path):
    assert "forget ratios 1, 5 and 10, not 15" in bench_of(nano, 15).problems.lines[0]
    assert "no such folder" in bench_of(tmp_path / "none").problems.lines[0]
    (tmp_path / "empty").mkdir()
    assert "expected e.g. forget10" in bench_of(tmp_path / "empty").problems.lines[0]


DAMAGES = {
    "image": (None, "the image is empty"),
    "caption": (" ", "an empty text in caption"),
    "name": (None, "an empty text in name"),
    "perturbed_names": ([], "perturbed_names is not a list of texts"),
    "perturbed_captions": (["x", ""], "perturbed_captions is not a list of texts"),
}


@pytest.mark.parametrize("column", DAMAGES)
def test_a_bad_row_is_named_or_skipped(copy, column):
    table = copy / "retain_perturbed"
    rows = read_table(table)
    rows[1][column], said = DAMAGES[column]
    write_table(table, rows, like=table)
    bench = bench_of(copy)
    bench.questions("retain", 1)
    (line,) = bench.problems.lines
    assert f"retain_perturbed row 1: {said}" in line and "--skip_bad_rows" in line
    bench, whole = bench_of(copy, skip=True), bench_of(copy.parent.parent / "data")
    assert len([q for q in bench.questions("retain", 1) if q.options]) >= 2 * (len(rows) - 1)
    assert not bench.problems.lines and whole.usable


def test_an_unreadable_picture_and_an_empty_answer(copy):
    rows = read_table(copy / "forget10+tofu")
    rows[0]["image"] = {"bytes": b"no picture", "path": "x.png"}
    rows[2]["answer"] = None
    write_table(copy / "forget10+tofu", rows, like=copy / "forget10+tofu")
    bench = bench_of(copy / "forget10+tofu")
    bench.finetune()
    said = "\n".join(bench.problems.lines)
    assert "row 0: unreadable image" in said and "row 2: an empty text in answer" in said
    assert len(bench_of(copy / "forget10+tofu", skip=True).finetune()) == len(rows) - 2


# ---------------------------------------------------------------- questions
def test_questions_are_the_tables(nano):
    questions = bench_of(nano / "CLEAR").questions("forget", 1)
    kinds = {(q.task, q.modality) for q in questions}
    assert kinds == {
        ("classification", "image"), ("truth_ratio", "image"), ("generation", "image"),
        ("generation", "text"), ("probability", "image"), ("probability", "text"),
    }  # fmt: skip
    assert len({q.id for q in questions}) == len(questions) == 1 + 1 + 2 * (1 + 20)
    row = read_table(nano / "CLEAR" / "forget10_perturbed")[0]
    assert {q.person for q in questions} == {row["name"]}, "text questions too are known by the name"
    of = {(q.task, q.modality): q for q in questions}
    choice = of["classification", "image"]
    assert choice.question == WHO and choice.options[choice.truth] == row["name"]
    assert [t for t in choice.options.values() if t != row["name"]] == row["perturbed_names"]
    ratio = of["truth_ratio", "image"]
    assert list(ratio.options.values()) == [row["paraphrased_caption"], *row["perturbed_captions"]]
    assert ratio.question == caption_prompt(row["caption"]) and ratio.truth == row["caption"]
    assert ratio.picture_ref == {"table": "forget10_perturbed", "row": 0}
    assert of["generation", "image"].question == ratio.question
    text = of["generation", "text"]
    assert text.picture is None and text.question and text.truth


def test_a_seed_places_the_name(nano):
    letters = set()
    for seed in range(8):
        questions = bench_of(nano).questions("retain", seed)
        assert [q.options for q in questions] == [q.options for q in bench_of(nano).questions("retain", seed)]
        letters |= {q.truth for q in questions if q.task == "classification"}
    assert letters == set("ABCDEF")


@pytest.mark.parametrize("where", [None, 0, 2])
def test_the_answer_stands_among_the_options_once(copy, where):
    rows = read_table(copy / "real_faces")[:1]
    if where is not None:
        rows[0]["options"].insert(where, rows[0]["answer"])
    write_table(copy / "real_faces", rows, like=copy / "real_faces")
    (question,) = bench_of(copy).questions("real_faces", 1)
    assert list(question.options) == list("ABCD")
    assert list(question.options.values()).count(rows[0]["answer"]) == 1
    assert question.options[question.truth] == rows[0]["answer"] and question.question == WHO


def test_the_real_world_asks_its_own_question(copy):
    rows = read_table(copy / "real_world")
    assert bench_of(copy).questions("real_world", 1)[0].question == rows[0]["question"]
    write_table(copy / "real_world", [{k: v for k, v in row.items() if k != "question"} for row in rows])
    assert bench_of(copy).questions("real_world", 1)[0].question == rows[0]["prompt"]


# ---------------------------------------------------------------- evaluation
@pytest.fixture(scope="session")
def mixed(nano, tmp_path_factory):
    """CLEAR with four pictures of all shapes and five text questions of uneven length to forget."""
    folder = tmp_path_factory.mktemp("clear") / "CLEAR"
    source = nano / "CLEAR"
    shutil.copytree(source, folder)
    rows = read_table(source / "retain_perturbed") + read_table(source / "forget10_perturbed")
    for k, row in enumerate(rows[:4]):
        row["image"] = picture_cell(*SIZES[k], COLOURS[k])
    rows[1]["perturbed_captions"] = ["Zoë Núñez, 你好.", "no", rows[1]["caption"] + " And so on" * 20]
    asked = [row for row in read_table(source / "forget10+tofu") if row["question"]][:5]
    asked[0]["question"] += " At length, please:" + " word" * 60
    for name in ("forget05", "forget05_perturbed"):
        write_table(folder / name, rows[:4], like=source / name)
    write_table(folder / "forget05+tofu", asked, like=source / "forget05+tofu")
    for name in ("real_faces", "real_world"):
        write_table(folder / name, read_table(source / name)[:3], like=source / name)
    return folder


@pytest.fixture
def evaluate(mixed, tiny, tmp_path):
    """evaluate(name, **flags) -> (result folder, predictions of the forget split)."""

    def run(name: str, **flags):
        given = {
            "evaluated_model": tiny["llava"],
            "data_split_dir": mixed,
            "forget_ratio": "05",
            "splits": "forget",
            "max_new_tokens": 6,
            "output_dir": tmp_path / name,
        } | flags
        run_script(EVAL, *(str(word) for flag, value in given.items() for word in (f"--{flag}", value)))
        folder = tmp_path / name / "zero_shot" / "forget05"
        lines = folder / "predictions_forget.jsonl"
        return folder, jsonl(lines) if lines.is_file() else None

    return run


@pytest.mark.parametrize("mcq", ["letter", "likelihood"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_batches_change_nothing(kind, mcq, evaluate, tiny):
    _, one = evaluate("one", evaluated_model=tiny[kind], mcq=mcq, batch_size=1)
    _, many = evaluate("many", evaluated_model=tiny[kind], mcq=mcq, batch_size=16)
    assert len(one) == 2 * 4 + 2 * (4 + 5)
    for a, b in zip(one, many):
        a, b = dict(a), dict(b)
        for name in ("option_scores", "answer_scores", "scores"):
            assert a.pop(name, []) == pytest.approx(b.pop(name, []), rel=1e-4, abs=2e-5)
        assert a == b
    replies = {line["reply"] for line in one if line["task"] == "generation"}
    assert len(replies) > 3, "a model that always says the same would show nothing"


def test_prompts(evaluate):
    _, lines = evaluate("x", max_new_tokens=1)
    of = {line["task"]: line for line in lines if line["modality"] == "image"}
    options = of["classification"]["options"]
    shown = "\n".join(f"{letter}. {name}" for letter, name in options.items())
    assert of["classification"]["prompt"] == f"USER: <image>\n{WHO}\n{shown} ASSISTANT:"
    assert of["generation"]["prompt"] == f"USER: <image>\n{of['generation']['question']} ASSISTANT:"
    _, lines = evaluate("y", mcq="likelihood", tasks="classification")
    assert {line["prompt"] for line in lines} == {f"USER: <image>\n{WHO} ASSISTANT:"}


def test_scores_by_hand(evaluate, tiny, processors, mixed):
    """Probability and truth ratio from the full logits: per answer token, without the end of turn."""
    from utils.collate import Chat, encode
    from utils.data import Picture
    from utils.models import load_model

    _, lines = evaluate("x", tasks="probability,truth_ratio")
    model, processor = load_model(str(tiny["llava"])).eval(), processors["llava"]
    lead = Chat(processor).lead

    def per_token(line, answer) -> float:
        pictures = []
        if line["picture"]:
            row = read_table(mixed / line["picture"]["table"])[line["picture"]["row"]]
            pictures = [[Picture(row["image"]["bytes"], "x").load()]]
        start = encode(processor, [line["prompt"]], pictures, "right")["input_ids"].shape[1]
        inputs = encode(processor, [line["prompt"] + lead + answer], pictures, "right")
        ids = inputs["input_ids"][0]
        start += processor.tokenizer.convert_ids_to_tokens(int(ids[start])) == "▁"  # no word of the answer
        with torch.no_grad():
            log_p = model(**inputs).logits[0].log_softmax(-1)
        return sum(float(log_p[t - 1, ids[t]]) for t in range(start, len(ids))) / (len(ids) - start)

    for modality in ("image", "text"):
        line = next(x for x in lines if x["task"] == "probability" and x["modality"] == modality)
        assert line["reply"] is None
        expected = math.exp(per_token(line, line["truth"]))
        assert line["scores"]["probability"] == pytest.approx(expected, rel=1e-4)
    line = [x for x in lines if x["task"] == "truth_ratio"][1]
    right, *wrong = (per_token(line, text) for text in line["options"].values())
    ratio = sum(math.exp(x) for x in wrong) / len(wrong) / math.exp(right)
    assert len(wrong) == 3 and line["scores"]["truth_ratio"] == pytest.approx(ratio, rel=1e-4)
    assert line["scores"]["truth"] == pytest.approx(max(0, 1 - ratio), abs=1e-4)


def test_results_and_workers(evaluate, tiny):
    folder, _ = evaluate("one", splits=",".join(("forget", "real_faces", "real_world")), mcq="likelihood")
    results = json.loads((folder / "results.json").read_text())
    assert results["benchmark"] == "nano CLEAR" and (results["forget_ratio"], results["shot"]) == (
        5,
        "zero_shot",
    )
    assert list(results["splits"]) == ["forget", "real_faces", "real_world"]
    cells = results["splits"]["forget"]
    assert {(t, m, c["total"]) for t, kinds in cells.items() for m, c in kinds.items()} == {
        ("classification", "image", 4), ("truth_ratio", "image", 4), ("generation", "image", 4),
        ("probability", "image", 4), ("generation", "text", 5), ("probability", "text", 5),
    }  # fmt: skip
    assert results["splits"]["real_world"]["classification"]["image"]["total"] == 3
    lines = jsonl(folder / "predictions_forget.jsonl")
    mean = sum(x["scores"]["truth"] for x in lines if x["task"] == "truth_ratio") / 4
    assert cells["truth_ratio"]["image"]["truth"] == pytest.approx(mean, abs=1e-4)
    two, _ = evaluate("two", mcq="likelihood", gpus="0,0", batch_size=8)
    again = jsonl(two / "predictions_forget.jsonl")
    assert [(x["id"], x["reply"], x.get("choice")) for x in lines] == [
        (x["id"], x["reply"], x.get("choice")) for x in again
    ]
    assert json.loads((two / "results.json").read_text())["splits"].keys() == {"forget"}


# ---------------------------------------------------------------- measures
def test_probability_and_truth_ratio():
    assert probability(math.log(0.25)) == pytest.approx(0.25)
    logs = [math.log(p) for p in (0.1, 0.3, 0.2)]
    assert truth_ratio(math.log(0.4), logs) == pytest.approx(0.5)
    assert truth_scores(math.log(0.4), logs)["truth"] == pytest.approx(0.5)
    assert truth_scores(math.log(0.1), logs) == {"truth": 0, "truth_ratio": pytest.approx(2)}


def test_summarise_takes_the_means():
    scores = [{"truth": t, "truth_ratio": r} for t, r in ((0.5, 0.5), (0, 2), (0, 1))]
    lines = [prediction("forget", "truth_ratio", "image", k=k, scores=s) for k, s in enumerate(scores)]
    assert summarise(lines)["forget"]["truth_ratio"]["image"] == {
        "truth": 0.1667,
        "truth_ratio": 1.1667,
        "total": 3,
        "people": 1,
        "interval": None,
    }


def test_forget_quality_by_hand():
    low, high = [0.01] * 3, [99.0] * 3  # shares of the wrong answers about 0.01 and 0.99: first and last bin
    quality, p = forget_quality(low, low)
    assert quality == pytest.approx(1) and p == pytest.approx(1)
    quality, p = forget_quality(low, high)
    # all 20 ways to split six numbers in two threes: two are as far apart as this
    assert quality == pytest.approx(0) and p == pytest.approx(2 / 20)
    # P = (1, 0), Q = (1/2, 1/2), M = (3/4, 1/4)
    kl_p, kl_q = math.log2(4 / 3), 0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)
    quality, _ = forget_quality([0.01] * 4, [0.01, 0.01, 99.0, 99.0])
    assert quality == pytest.approx(1 - math.sqrt((kl_p + kl_q) / 2))


# ---------------------------------------------------------------- table, page, forget quality
@pytest.fixture
def three(evaluate, tiny, tmp_path):
    """Folders of a vanilla model, a method and a retain-only model, evaluated."""
    for name, model in (("vanilla", "llava"), ("GA", "other_llava"), ("reference", "llava")):
        evaluate(name, evaluated_model=tiny[model], mcq="likelihood", splits="forget,real_faces")
        file = tmp_path / name / "zero_shot" / "forget05" / "results.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"method": name}))
    return [tmp_path / name for name in ("vanilla", "GA", "reference")]


def test_the_table_the_page_and_forget_quality(three, tmp_path, capsys, mixed):
    capsys.readouterr()
    run_script("eval/table.py", *three[:2])
    said = capsys.readouterr().out
    for title in (
        "VQA % ↓",
        "Gen. image R-L ↓",
        "Gen. text R-L ↑",
        "Prob. image ↓",
        "Prob. text ↑",
        "Truth image ↓",
    ):
        assert title in said
    assert "Cloze" not in said and "QA % ↑" in said.split("real faces")[1] and "truth ratio" in said
    assert "| QA %" not in said and "Truth text" not in said

    run_script("eval/forget_quality.py", *three[:2], "--reference", three[2], "--csv", tmp_path / "q.csv")
    rows = (tmp_path / "q.csv").read_text().splitlines()
    assert rows[1].split(",") == ["vanilla", "5", "1.0", "1.0", "4"]
    name, _, quality, p, count = rows[2].split(",")
    assert name == "GA" and 0 <= float(quality) < 1 and 0 < float(p) <= 1 and count == "4"

    run_script("eval/report.py", *three[:2], "--save_path", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert len(data["pictures"]) == 4 + 4 + 3 and len(data["people"]) == 4
    assert "not found" not in page


def test_forget_quality_tells_what_is_missing(three, tmp_path, capsys, evaluate):
    evaluate("short", tasks="generation")
    with pytest.raises(SystemExit) as end:
        run_script("eval/forget_quality.py", tmp_path / "short", tmp_path / "no", "--reference", three[2])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "no truth ratios" in said and "no such folder" in said


# ---------------------------------------------------------------- scripts
def shell(*words) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "CLEAR_eval.sh"), *map(str, words)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_shell_script(tiny, mixed, tmp_path):
    done = shell(
        "05", "95", tiny["llava"], tiny["llava"], 0, 0, 0, 0, "--data_split_dir", mixed, "--splits",
        "forget,real_world", "--max_new_tokens", 2, "--output_dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "zero_shot" / "forget05"
    results = json.loads((folder / "results.json").read_text())
    asked = sum(len(jsonl(file)) for file in folder.glob("predictions_*.jsonl"))
    assert sum(c["questions"] for c in results["cost"]) == asked == 26 + 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["05", "95", "m"], "error: expected at least 5 arguments, got 3"),
        ([], "bash CLEAR_eval.sh forget_ratio retain_ratio"),
        (["05", "90", "m", "m", "0", "0", "0", "0"], "do not add up to 100"),
        (["05", "x", "m", "m", "0", "0", "0", "0"], "do not add up to 100"),
        (["05", "95", "m", "m", "x", "0"], "'x' is not a GPU id"),
        (["05", "95", "no_model", "m", "0", "0", "0", "0"], "--evaluated_model"),
    ],
)
def test_the_shell_script_with_wrong_arguments(words, said):
    done = shell(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_mask_files(nano, tiny, tmp_path):
    from utils.masks import Mask

    run_script(
        "data_process/CLEAR_gen_mask.py", "--model_id", tiny["llava"], "--data_split_dir", nano / "CLEAR",
        "--forget_ratio", 10, "--save_dir", tmp_path / "masks", "--batch_size", 16,
    )  # fmt: skip
    for part in ("language", "vision", "both"):
        mask = Mask.load(str(tmp_path / "masks" / f"clear_{part}_mask.pt"), "llava")
        salient, total = mask.count()
        assert 0 < salient < total
