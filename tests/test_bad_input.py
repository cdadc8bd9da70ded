"""Wrong input: every mistake told at once, one line each naming its flag, exit code 2, without torch."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import RATIO, ROOT, edited, load_script, run_script

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("MLLMU_*.py", "CLEAR_*.py", "data_process/*.py", "eval/*.py", "nano/*.py")
    for path in ROOT.glob(pattern)
    if "def parse_args" in path.read_text(encoding="utf-8")
)
TRAINING = [s for s in SCRIPTS if "/" not in s and s.startswith("MLLMU")]
MASKS, EVAL = "data_process/MLLMU_gen_mask.py", "eval/MLLMU_eval.py"

RUN = """
import runpy, sys
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path.insert(0, {root!r})
try:
    runpy.run_path(script, run_name="__main__")
    code = 0
except SystemExit as end:
    code = end.code
heavy = [name for name in ("torch", "transformers", "matplotlib", "datasets") if name in sys.modules]
print("imported:", *heavy)
sys.exit(code)
"""


def run(script: str, *argv) -> tuple[int, list[str], str]:
    """(exit code, lines on stderr, what was printed), on a screen of few characters; fails when something
    heavy was imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(root=str(ROOT)), str(ROOT / script), *map(str, argv)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert "imported:\n" in done.stdout, done.stdout[-200:] + done.stderr
    return done.returncode, done.stderr.splitlines(), done.stdout


def flags_of(lines: list[str]) -> list[str]:
    """The flag that each line begins with."""
    assert all(line.startswith("error: --") for line in lines), lines
    return [line.split()[1].rstrip(":") for line in lines]


# ---------------------------------------------------------------- help
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    code, errors, said = run(script, "--help")
    assert code == 0 and not errors
    assert f"python {script}" in said or "bash" in said, "the help opens with a complete command"


# ---------------------------------------------------------------- everything at once
@pytest.mark.parametrize("script", TRAINING)
def test_training_scripts_tell_all_mistakes_at_once(script):
    code, errors, _ = run(
        script, "--data_split_dir", "no/folder", "--forget_split_ratio", "7", "--batch_size", "0", "--lr",
        "fast",
        "--ans_only", "maybe", "--lr_schedule", "square", "--learning_rate", "1e-5",
    )  # fmt: skip
    expected = {
        "--data_split_dir", "--forget_ratio", "--batch_size", "--lr", "--ans_only", "--lr_schedule",
        "--learning_rate", "--model_id", "--save_dir",
    }  # fmt: skip
    if "add_mask_path(p, required=True)" in (ROOT / script).read_text(encoding="utf-8"):
        expected.add("--grad_mask_path")
    assert code == 2
    assert sorted(flags_of(errors)) == sorted(expected)


OTHERS = {  # script: wrong words, and the flags whose mistakes are told
    MASKS: (
        "--fisher full --threshold 0 --model_id nowhere/at/all --mask x",
        {"--fisher", "--threshold", "--model_id", "--mask", "--save_dir"},
    ),
    EVAL: (
        "--splits forget,tset --shot two --mcq lettre --max_new_tokens -1 --gpu 0",
        {"--splits", "--shot", "--mcq", "--max_new_tokens", "--gpu", "--evaluated_model"},
    ),
}


@pytest.mark.parametrize("script", OTHERS)
def test_masks_and_evaluation_tell_all_mistakes_at_once(script):
    words, flags = OTHERS[script]
    code, errors, _ = run(script, "--data_split_dir", "no/folder", "--forget_ratio", "50", *words.split())
    assert code == 2
    assert sorted(flags_of(errors)) == sorted({"--data_split_dir", "--forget_ratio"} | flags)


@pytest.mark.parametrize("script", [*TRAINING, MASKS])
def test_wrong_folders_are_told_together(script, tmp_path, nano):
    """Values that can be read, but are wrong: what the checks of files and folders find."""
    for name in ("model", "taken", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken" / "x").write_text("x")
    flags = {"--model_id": "model", "--data_split_dir": "data", "--save_dir": "taken"}
    argv = [word for flag, name in flags.items() for word in (flag, tmp_path / name)]
    expected = {"--data_split_dir", "--model_id"}
    if script in TRAINING:
        expected.add("--save_dir")
    if "add_mask_path" in (ROOT / script).read_text(encoding="utf-8"):
        argv += ["--grad_mask_path", tmp_path / "no.pt"]
        expected.add("--grad_mask_path")
    if script in TRAINING and "finetune" not in script:
        argv += ["--vanilla_dir", tmp_path / "vanilla"]
        expected.add("--vanilla_dir")
    code, errors, _ = run(script, *argv)
    assert code == 2
    assert set(flags_of(errors)) >= expected
    assert (tmp_path / "taken" / "x").read_text() == "x"


def test_the_mask_script_does_not_overwrite_strange_folders(tmp_path, tiny, nano):
    (tmp_path / "x").write_text("x")
    argv = ["--model_id", tiny["llava"], "--data_split_dir", nano, "--forget_ratio", RATIO]
    code, errors, _ = run(MASKS, *argv, "--save_dir", tmp_path)
    assert code == 2 and flags_of(errors) == ["--save_dir"]


# ---------------------------------------------------------------- models
def test_what_is_wrong_with_a_model_folder(tmp_path, tiny, nano):
    def said(folder) -> str:
        code, errors, _ = run(
            "MLLMU_GA.py", "--model_id", folder, "--data_split_dir", nano, "--forget_ratio", RATIO,
            "--save_dir",
            tmp_path / "out",
        )  # fmt: skip
        assert code == 2 and set(flags_of(errors)) == {"--model_id"}
        return errors[0]

    shutil.copytree(tiny["llava"], tmp_path / "bad")
    config, weights = tmp_path / "bad" / "config.json", tmp_path / "bad" / "model.safetensors"
    right = json.loads(config.read_text())
    for wrong, word in (
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "the Hugging Face form of LLaVA-1.5"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantized"),
        ({"text_config": right["text_config"] | {"quantization_config": {"bits": 4}}}, "quantized"),
        ({"model_type": None}, "no model_type"),
        ({"model_type": [1]}, "no model_type"),
        ({"text_config": 3}, "under text_config"),
        ({"architectures": 3}, "under architectures"),
    ):
        config.write_text(json.dumps(right | wrong))
        assert word in said(tmp_path / "bad")
    for text in ("{", "[]x", "3"):
        config.write_text(text)
        assert "not valid JSON" in said(tmp_path / "bad")
    config.write_text(json.dumps(right))
    for name in ("generation_config.json", "processor_config.json", "model.safetensors.index.json"):
        path = tmp_path / "bad" / name
        before = path.read_bytes() if path.exists() else None
        for content in (b"", b"[1]", b"\xff", b'{"weight_map": 3}'[: None if before is None else 9]):
            path.write_bytes(content)
            assert f"{path} is not valid JSON" in said(tmp_path / "bad")
        path.unlink()
        if before:
            path.write_bytes(before)
    weights.rename(weights.with_name("kept"))
    weights.mkdir()
    assert "is no file" in said(tmp_path / "bad")
    weights.rmdir()
    weights.with_name("kept").rename(weights)
    first, second = (tmp_path / "bad" / f"model-0000{k}-of-00002.safetensors" for k in (1, 2))
    weights.rename(first)
    index = tmp_path / "bad" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": first.name, "b": second.name}}))
    assert f"{second.name} missing" in said(tmp_path / "bad")
    for content, word in (
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs"), (b"", "cut short"),
        (first.read_bytes()[:-7], "bytes, not"), (bytes([9]) + bytes(90), "header"),
    ):  # fmt: skip
        second.write_bytes(content)
        assert word in said(tmp_path / "bad")
    index.unlink()
    second.unlink()
    first.rename(tmp_path / "bad" / "optimizer.bin")
    assert "no weights" in said(tmp_path / "bad")
    adapter = tmp_path / "bad" / "adapter_config.json"
    for wrong, word in (
        ({"peft_type": "IA3"}, "only LoRA adapters"),
        ({"peft_type": "LORA", "base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "bad")}, "name each other"),
        ({"peft_type": "LORA", "base_model_name_or_path": str(tiny["llava"])}, "adapter_model.safetensors"),
    ):
        adapter.write_text(json.dumps(wrong))
        assert word in said(tmp_path / "bad")
    (tmp_path / "bad" / "adapter_model.safetensors").write_text("x")
    adapter.write_text(json.dumps(wrong | {"base_model_name_or_path": str(tmp_path / "nowhere")}))
    assert f"the base of {tmp_path / 'bad'}: no such model folder" in said(tmp_path / "bad")
    assert "no such model folder" in said(tmp_path / "nowhere")


def test_another_vocabulary_than_the_weights(tmp_path, tiny):
    from utils.models import load_model

    shutil.copytree(tiny["llava"], tmp_path / "bad")
    with edited(tmp_path / "bad" / "config.json") as config:
        config["text_config"]["vocab_size"] += 8
    with pytest.raises(SystemExit, match=r"in its files and \[\d+, \d+\] by its config.json"):
        load_model(str(tmp_path / "bad"))


def test_a_tokenizer_larger_than_the_embeddings(tmp_path, tiny):
    from utils.models import load_model, load_processor

    processor = load_processor(str(tiny["llava"]))
    load_model(str(tiny["llava"]), processor=processor)
    processor.tokenizer.add_tokens([f"word{k}" for k in range(99)])
    with pytest.raises(SystemExit, match=r"embeddings for \d+ tokens, its tokenizer has"):
        load_model(str(tiny["llava"]), processor=processor)


def test_a_hub_that_does_not_answer_is_told_at_once(tmp_path, nano, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    argv = ["--data_split_dir", nano, "--forget_ratio", RATIO, "--save_dir", tmp_path / "out"]
    began = time.monotonic()
    code, errors, _ = run("MLLMU_GA.py", "--model_id", "nobody/nothing", *argv)
    assert code == 2 and flags_of(errors) == ["--model_id"] and "does not answer" in errors[0]
    assert time.monotonic() - began < 100  # its client would try for minutes


FIX = "install one, and requirements.txt in it"


def test_outside_the_environment(tmp_path, nano):
    """Without the packages: one line; where there is .venv, the command goes on in it."""
    shutil.copytree(ROOT / "utils", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "MLLMU_GA.py", tmp_path)
    own = tmp_path / ".venv"
    command = [
        sys.executable, "-S", str(tmp_path / "MLLMU_GA.py"), "--model_id", "m", "--save_dir", "s",
        "--data_split_dir", str(nano), "--forget_ratio", str(RATIO),
    ]  # fmt: skip
    run = lambda: subprocess.run(command, capture_output=True, text=True, check=False)
    alone = run()
    assert alone.returncode == 2 and "requirements.txt" in alone.stderr
    assert len(alone.stderr.splitlines()) == 1 and alone.stderr.startswith("error: ")
    (own / "bin").mkdir(parents=True)
    (own / "bin" / "python").write_text('#!/bin/sh\necho "$VIRTUAL_ENV" "$@"\n')
    (own / "bin" / "python").chmod(0o755)
    inside = run()
    assert inside.returncode == 0 and inside.stdout.split() == [str(own), *command[2:]], "without -S"
    assert inside.stderr.startswith("note: ") and len(inside.stderr.splitlines()) == 1
    old = f"import sys; sys.version_info = (3, 10, 1); sys.path[0] = {str(tmp_path)!r}; import utils"
    command[1:] = ["-c", old]
    assert run().returncode == 0
    shutil.rmtree(own)
    assert run().stderr == f"error: {sys.executable} is older than Python 3.11: {FIX}\n"


@pytest.mark.parametrize("script", ["MLLMU_eval.sh", "CLEAR_eval.sh"])
def test_which_python_the_shell_scripts_take(script, tmp_path):
    """$PYTHON, python, .venv's, python3: the first there is."""
    shutil.copy(ROOT / script, tmp_path)
    for tool in ("bash", "dirname", "sed"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    words = ["05", "0", "m", "m", "zero_shot"] if script == "MLLMU_eval.sh" else ["05", "95", "m", "m", "0"]
    run = lambda **env: subprocess.run(
        ["bash", tmp_path / script, *words], capture_output=True, text=True, check=False,
        env={"PATH": str(tmp_path / "bin"), **env},
    )  # fmt: skip
    none = run()
    assert none.returncode == 2 and none.stderr.splitlines()[-1].startswith("error: no Python is on the path")
    for name in ("bin/python3", ".venv/bin/python", "bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!{shutil.which('sh')}\necho {name}\n")
        (tmp_path / name).chmod(0o755)
        assert run().stdout.strip() == name
    assert run(PYTHON=str(tmp_path / "bin/python3")).stdout.strip() == "bin/python3"


def test_no_processor_anywhere(tmp_path, tiny, nano):
    shutil.copytree(tiny["llava"], tmp_path / "bare")
    for path in (tmp_path / "bare").glob("*processor_config.json"):
        path.unlink()
    argv = ["--data_split_dir", nano, "--forget_ratio", RATIO, "--save_dir", tmp_path / "out"]
    code, errors, _ = run("MLLMU_GA.py", "--model_id", tmp_path / "bare", *argv)
    assert code == 2 and len(errors) == 1 and "no processor" in errors[0]
    code, errors, _ = run(EVAL, "--evaluated_model", tmp_path / "bare", *argv[:4])
    assert code == 2 and len(errors) == 1 and "--original_model" in errors[0]


# ---------------------------------------------------------------- data
def test_bad_rows_are_told_with_the_other_mistakes(tmp_path, nano, tiny):
    from conftest import read_table, write_table

    shutil.copytree(nano, tmp_path / "data")
    table = tmp_path / "data" / "MLLMMU-Bench" / f"forget_{RATIO}"
    rows = read_table(table)
    rows[1]["image"]["bytes"] = b"no picture"
    write_table(table, rows, like=table)
    code, errors, _ = run(
        "MLLMU_GA.py", "--model_id", tmp_path / "no", "--data_split_dir", tmp_path / "data",
        "--forget_ratio", RATIO,
        "--save_dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 2 and sorted(flags_of(errors)) == ["--data_split_dir", "--model_id"]
    assert f"row 1 (ID {rows[1]['ID']})" in errors[0]


# ---------------------------------------------------------------- values that are right
def parsed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["MLLMU_GA.py", "--model_id", "m", "--save_dir", "s", *words])
    return load_script("MLLMU_GA.py").parse_args()


@pytest.mark.parametrize(
    ("words", "value"),
    [("", True), ("--ans_only", True), ("--ans_only True", True), ("--ans_only False", False),
     ("--ans_only false", False), ("--ans_only=0", False), ("--ans_only --seed 1", True)],
)  # fmt: skip
def test_a_boolean_flag(monkeypatch, words, value):
    args = parsed(monkeypatch, *words.split())
    assert args.ans_only is value and not args.problems.lines


@pytest.mark.parametrize("flag", ["--forget_ratio", "--forget_split_ratio"])
@pytest.mark.parametrize(("text", "value"), [("05", 5), ("5", 5), ("10", 10), ("15", 15)])
def test_a_ratio(monkeypatch, flag, text, value):
    args = parsed(monkeypatch, flag, text)
    assert args.forget_ratio == value and not args.problems.lines


@pytest.mark.parametrize("flag", ["--data_split_dir", "--data_folder", "--data_dir"])
def test_spellings_of_the_data_folder(monkeypatch, flag):
    assert parsed(monkeypatch, flag, "x").data_split_dir == "x"


@pytest.mark.parametrize(
    "words",
    ["--forget_ratio 5%", "--forget_ratio ²", "--forget_ratio -5", "--batch_size 1.5", "--lr nan", "--lr inf",
     "--lr -1", "--lora_dropout 1", "--seed x", "--dtype fp16", "--shuffle 2"],
)  # fmt: skip
def test_a_value_out_of_range(monkeypatch, words):
    (problem,) = parsed(monkeypatch, *words.split()).problems.lines
    assert problem.startswith(words.split()[0])


HUGE = {  # script: flags that take memory by their number, or go into 32 bits
    "MLLMU_GA.py": "num_epochs batch_size gradient_accumulation_steps lora_r seed forget_ratio num_workers",
    "CLEAR_manifold.py": "num_epochs batch_size gradient_accumulation_steps lora_r seed forget_ratio",
    MASKS: "batch_size blocks seed",
    "data_process/CLEAR_gen_mask.py": "batch_size blocks seed",
    EVAL: "batch_size batch_tokens max_new_tokens shots seed gpus part",
    "eval/CLEAR_eval.py": "batch_size batch_tokens max_new_tokens seed gpus part",
    "eval/judge.py": "judge_concurrency judge_retries judge_timeout",
    "nano/make_nano.py": "people real_people views image_size seed",
    "nano/make_tiny_model.py": "layers image_size head_dim key_value_heads vision_layers vocab_size seed",
}


@pytest.mark.parametrize("script", HUGE)
@pytest.mark.parametrize("number", ["999999999999", "9" * 5000])
def test_a_number_that_is_absurd(script, number, capsys, tmp_path):
    flags = [f"--{name}" for name in HUGE[script].split()]
    values = {"--part": f"1/{number}"}
    argv = [word for flag in flags for word in (flag, values.get(flag, number))]
    with pytest.raises(SystemExit) as end:
        run_script(script, *argv, "--save_dir" if "eval/" not in script else "--shot", tmp_path / "out")
    told = [line.split()[1].rstrip(":") for line in capsys.readouterr().err.splitlines()]
    assert end.value.code == 2 and set(flags) <= set(told)


@pytest.mark.parametrize("script", ["MLLMU_GA.py", "data_process/CLEAR_gen_mask.py", "eval/table.py", EVAL])
def test_names_and_surroundings_that_cannot_be(script, tiny, tmp_path, monkeypatch, capsys):
    """A link that leads to itself, a ~ that no shell has replaced, no current folder, a launcher's number."""

    def said(*argv) -> str:
        with pytest.raises(SystemExit) as end:
            run_script(script, *argv)
        assert end.value.code == 2
        return capsys.readouterr().err

    os.symlink(tmp_path / "loop", tmp_path / "loop")
    flags = ["--model_id", "--save_dir"]
    flags = {"eval/table.py": ["--csv", "--plot"], EVAL: ["--evaluated_model", "--output_dir"]}.get(
        script, flags
    )
    for flag in flags:
        assert f"error: {flag}: {tmp_path}/loop/x is a symbolic link that leads to itself" in said(
            flag, f"{tmp_path}/loop/x"
        )
        assert f"error: {flag}: ~/x begins with a ~" in said(flag, "~/x")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "many")
        assert said() == f"error: the environment variable {name} is 'many', no number; unset it\n"
        monkeypatch.delenv(name)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert said() == "error: the current folder does not exist any more; change to one that does\n"


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\udcff", "x" * 300, "/"])
def test_a_name_that_is_none(name, tiny, tmp_path, monkeypatch, capsys):
    """An empty one, of a variable that is not set, would be the folder at hand: that is not replaced."""
    model, save_dir = ["--model_id", tiny["llava"]], ["--save_dir", tmp_path / "s"]
    calls = [
        (MASKS, "--save_dir", model), (MASKS, "--model_id", save_dir), (MASKS, "--data_dir", model),
        ("MLLMU_GA.py", "--save_dir", model), ("CLEAR_manifold.py", "--vanilla_dir", [*model, *save_dir]),
        ("eval/CLEAR_eval.py", "--evaluated_model", []), ("eval/table.py", "--csv", []),
        ("nano/make_nano.py", "--save_dir", []),
    ]  # fmt: skip
    if name != "/":
        calls += [
            ("CLEAR_manifold.py", "--grad_mask_path", [*model, *save_dir]), ("eval/table.py", "results", []),
            (EVAL, "--output_dir", ["--evaluated_model", tiny["llava"]]),
            ("data_process/check_data.py", "--data_dir", []),
        ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for script, flag, argv in calls:
        with pytest.raises(SystemExit) as end:
            run_script(script, *argv, *[flag] * (flag != "results"), name)
        lines = capsys.readouterr().err.split("\n")[:-1]
        assert end.value.code == 2 and all(line.startswith("error: ") for line in lines), lines[:5]
        assert any(line.startswith(f"error: {flag.removesuffix('dir')}") for line in lines), (script, flag)
        assert not list(tmp_path.iterdir())
