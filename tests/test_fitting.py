"""What a processor can take is asked before weights load: its own tokens in texts, pictures, lengths."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import RATIO, edited, picture_cell, read_table, run_script, sample, write_table

from nano.stand_ins import STAND_INS
from utils import families, models
from utils.cli import Problems
from utils.collate import IGNORE, Collator
from utils.planning import fitting, loadable
from utils.planning.fitting import Fitting, own_tokens

COMMANDS = {
    "MLLMU": ["MLLMU_GA.py", "data_process/MLLMU_gen_mask.py", "eval/MLLMU_eval.py"],
    "CLEAR": ["CLEAR_GA.py", "data_process/CLEAR_gen_mask.py", "eval/CLEAR_eval.py"],
}


@pytest.fixture
def fits(tiny, processors):
    made = {}
    return lambda name: made.setdefault(name, Fitting(processors[name], str(tiny[name])))


# ---------------------------------------------------------------- the kinds, family by family
@pytest.mark.parametrize("name", STAND_INS)
def test_a_token_of_the_processors_own_is_no_text(name, fits, processors):
    """Whatever would be one of its special tokens is found by its text; what is left is text, token by
    token."""
    fit, tokenizer = fits(name), processors[name].tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token in own_tokens(processors[name]):
        assert token in fit.sample(sample(question=f"Is it {token} or not?"))
        assert "its answer" in fit.sample(sample(answer=f"x{token}y"))
    others = set().union(*(own_tokens(processors[other]) for other in ("llava", "qwen2_vl", "mllama")))
    for text in [*others, "<b>", "a < b", "<|", "[INST", "< image >", "USER: hi ASSISTANT: no"]:
        found = set(tokenizer(text, add_special_tokens=False)["input_ids"]) & special
        assert bool(found) == bool(fit.texts({"question": text})), text


def test_what_a_processor_refuses_is_named(fits):
    long, small = picture_cell(300, 1), picture_cell(1, 1)
    for name, refused in (("qwen2_vl", True), ("pixtral", True), ("llava", False)):
        why = fits(name).sample(sample(picture=long))
        assert bool(why) == refused and (not why or "300 x 1 pixels" in why)
        assert fits(name).sample(sample(picture=small)) is None
    assert "200" in fits("qwen2_vl").sample(sample(picture=long))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
@pytest.mark.parametrize("cell", [None, picture_cell(64, 64)])
def test_the_context_to_the_token(name, cell, fits, processors):
    """Exactly as long is right, one token more is not; and the shortcut never lets a longer one pass."""
    fit, collate = fits(name), Collator(processors[name], families.FAMILIES[name])
    for text in ("word " * 40, "ﷺ" * 30, "你好" * 40, "x" * 200):
        row = sample(question="Why?", answer=text, picture=cell)
        tokens = collate([row]).inputs["input_ids"].shape[1]
        fit.context = tokens
        assert fit.sample(row) is None
        fit.context = tokens - 1
        assert fit.sample(row).startswith(f"{tokens:,} tokens")


def test_the_context_is_the_smallest_limit(tiny, processors):
    assert Fitting(processors["llava"], str(tiny["llava"])).context == 4096


def test_ten_thousand_samples_take_no_time(fits):
    rows = [
        sample("Who is shown? " * 20, "Zoë Müller, a baker. " * 9, picture_cell(), str(k)) for k in range(50)
    ]
    began = time.process_time()
    assert not any(map(fits("llava").sample, rows * 200))
    assert time.process_time() - began < 2


# ---------------------------------------------------------------- in every command, before weights load
def spoilt(nano, folder, kind: str, text: str) -> tuple[list, str]:
    """(argv, the bad row's place) of nano tables in which one row of the forget set has `text`."""
    shutil.copytree(nano, folder)
    if kind == "CLEAR":
        for name in ("forget10", "full+tofu", "forget10_perturbed", "forget10+tofu"):
            table = folder / "CLEAR" / name
            rows = read_table(table)
            rows[0]["caption"] += text
            write_table(table, rows, like=table)
        return ["--data_split_dir", folder / "CLEAR", "--forget_ratio", 10], "0"
    table = folder / "MLLMMU-Bench" / f"forget_{RATIO}"
    rows = read_table(table)
    person, items = rows[0]["ID"], json.loads(rows[0]["metadata"])
    items[2]["Answer"] += text
    rows[0]["metadata"] = json.dumps(items)
    write_table(table, rows, like=table)
    table = folder / "MLLMU-Bench" / f"forget_{RATIO}"
    rows = read_table(table)
    (asked,) = [row for row in rows if row["ID"] == person]
    for item in asked["Generation_Task"]:
        item["Question"] += text
    write_table(table, rows, like=table)
    return ["--data_split_dir", folder / "MLLMMU-Bench", "--forget_ratio", RATIO], person


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize(
    ("text", "said"), [(" <image>", "holds <image>"), (" far" * 5000, "the model's context has 4,096")]
)
def test_every_command_names_the_row(kind, text, said, nano, tiny, tmp_path, monkeypatch, capsys):
    argv, place = spoilt(nano, tmp_path / "data", kind, text)
    monkeypatch.setattr(models, "load_model", None)
    for script in COMMANDS[kind]:
        where = ["--output_dir", tmp_path / "out", "--evaluated_model"]
        if "eval" not in script:
            where = ["--save_dir", tmp_path / "out", "--model_id"]
        if "eval" in script and kind == "CLEAR" and "far" in text:
            continue  # a caption is the answer here, and its prompt is short
        with pytest.raises(SystemExit) as end:
            run_script(script, *argv, *where, tiny["llava"])
        lines = capsys.readouterr().err.splitlines()
        assert end.value.code == 2, script
        assert lines and all(line.startswith("error: --data_split_dir: ") for line in lines), script
        assert all(said in line or "more such questions" in line for line in lines)
        assert place in lines[0] and "--skip_bad_rows" in lines[0]
        assert not (tmp_path / "out").exists()


def test_bad_rows_are_left_out(nano, tiny, tmp_path, capsys):
    argv, _ = spoilt(nano, tmp_path / "data", "MLLMU", " </s>")
    argv += ["--skip_bad_rows", True, "--batch_size", 30]
    run_script("MLLMU_GA.py", *argv, "--model_id", tiny["llava"], "--save_dir", tmp_path / "run")
    assert "skipped 1 questions" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["forget"]["samples"] == 29
    run_script(
        "eval/MLLMU_eval.py", *argv, "--evaluated_model", tiny["llava"], "--output_dir", tmp_path / "out",
        "--splits", "forget", "--max_new_tokens", 2,
    )  # fmt: skip
    assert "skipped 4 questions" in capsys.readouterr().out


def test_bad_rows_of_clear_are_left_out(nano, tiny, tmp_path, capsys):
    argv, _ = spoilt(nano, tmp_path / "data", "CLEAR", " </s>")
    argv += ["--skip_bad_rows", True, "--model_id", tiny["llava"], "--save_dir", tmp_path / "run"]
    run_script("CLEAR_finetune.py", *argv, "--batch_size", 100)
    assert "skipped 1 questions: full+tofu/0" in capsys.readouterr().out


def test_a_solved_example_is_never_left_out(nano, tiny, tmp_path, monkeypatch, capsys):
    """It would change all prompts."""
    shutil.copytree(nano, tmp_path / "data")
    table = tmp_path / "data" / "MLLMU-Bench" / "Full_Set"
    rows = read_table(table)
    for row in rows:
        row["Mask_Task"][0]["Ground_Truth"] += "</s>"
    write_table(table, rows, like=table)
    monkeypatch.setattr(models, "load_model", None)
    with pytest.raises(SystemExit) as end:
        run_script(
            "eval/MLLMU_eval.py", "--data_split_dir", table.parent, "--forget_ratio", RATIO, "--splits",
            "real", "--evaluated_model", tiny["llava"], "--output_dir", tmp_path / "out", "--shot",
            "few_shot", "--skip_bad_rows", True,
        )  # fmt: skip
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "its answer holds </s>" in line and "another --seed" in line


def test_nothing_left_is_told(tiny, capsys):
    args = SimpleNamespace(
        vanilla_dir=None, model_id=str(tiny["llava"]), skip_bad_rows=True, problems=Problems()
    )
    data = {"forget": [sample("<image>")], "retain": [sample()]}
    with pytest.raises(SystemExit):
        fitting.check_samples(args, data)
    assert "nothing is left of the forget data" in capsys.readouterr().err


# ---------------------------------------------------------------- processors that are not whole
def test_a_tokenizer_without_a_padding_token(tiny, tmp_path):
    """The end-of-text token pads; labels go by lengths, so that real ends of turns stay labels."""
    shutil.copytree(tiny["bakllava"], tmp_path / "model")
    with edited(tmp_path / "model" / "tokenizer_config.json") as config:
        del config["pad_token"]
    bare, whole = models.load_processor(str(tmp_path / "model")), models.load_processor(str(tiny["bakllava"]))
    assert bare.tokenizer.pad_token_id == bare.tokenizer.eos_token_id != whole.tokenizer.pad_token_id
    rows = [sample(answer=a, picture=picture_cell()) for a in ("Ann", "Ann of Oslo, a baker")]
    for ans_only in (True, False):
        ours, theirs = (Collator(p, families.FAMILIES["llava"], ans_only)(rows) for p in (bare, whole))
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.inputs["attention_mask"], theirs.inputs["attention_mask"])
        last = ours.labels[0][ours.labels[0] != IGNORE][-1]
        assert last == bare.tokenizer.eos_token_id


@pytest.mark.parametrize("gone", ["tokenizer.json", "chat_template.jinja"])
def test_half_a_processor_is_passed_over(gone, tiny, tmp_path):
    shutil.copytree(tiny["llava"], tmp_path / "half")
    (tmp_path / "half" / gone).unlink()
    half, whole = str(tmp_path / "half"), str(tiny["llava"])
    problems = Problems()
    (note,) = loadable.check_processor([("--vanilla_dir", half), ("--model_id", whole)], problems)
    assert gone in note and not problems.lines
    assert models.load_processor(half, whole).chat_template
    assert not loadable.check_processor([("--model_id", half)], problems)
    assert len(problems.lines) == 1 and "--model_id: no whole processor" in problems.lines[0]
