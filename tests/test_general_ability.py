"""General ability: how lmms-eval is called, what is refused and printed; checkpoints load without our code.

A stand-in for lmms_eval, found first, records its arguments and writes files as lmms_eval 0.7.3 does.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import FAMILIES, RATIO, ROOT, load_script, run_script

SCRIPT = "eval/general_ability.py"
NAMES = {"llava": "llava_hf", "qwen2_vl": "qwen2_vl", "mllama": "llama_vision"}

STAND_IN = """
import json, os, pathlib, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1] if name in words else None
record = {
    "argv": words, "gpus": os.environ["CUDA_VISIBLE_DEVICES"], "processes": os.environ.get("WORLD_SIZE")
}
pathlib.Path(os.environ["RECORD"], os.environ.get("RANK", "0") + ".json").write_text(json.dumps(record))
if "FAILS" in os.environ:
    sys.exit(int(os.environ["FAILS"]))
scores, reply = json.loads(os.environ.get("SCORES", "[1.0, 0.0]")), os.environ.get("REPLY", "Yes")
folder = pathlib.Path(value("--output_path"), "runs__model")
folder.mkdir(parents=True, exist_ok=True)
stem = os.environ.get("TIME", "20260101_000000") + "_"
tasks, mean = value("--tasks").split(","), sum(scores) / len(scores)
numbers = {"alias": "x", "acc,none": mean, "acc_stderr,none": "N/A", "acc_stderr_clt,none": 0.1}
numbers |= {"f1,none": mean / 2 + 0.1, "submission,none": []}
content = {
    "results": {task: numbers for task in tasks},
    "n-samples": {task: {"original": 9000, "effective": len(scores)} for task in tasks},
    "n-shot": {task: 0 for task in tasks},
    "config": {"model_backend": "x", "limit": value("--limit"), "offset": 0, "gen_kwargs": ""},
}
(folder / (stem + "results.json")).write_text(json.dumps(content))
for task in tasks:
    with (folder / (stem + "samples_" + task + ".jsonl")).open("w") as file:
        for i, score in enumerate(scores):
            line = {"doc_id": i, "filtered_resps": reply, "acc": {"question_id": "q", "score": score}}
            file.write(json.dumps(line | {"f1": score}) + chr(10))
submissions = folder.parent / "submissions"  # as MMBench's task does
submissions.mkdir(exist_ok=True)
(submissions / "mmbench_en_dev_static_results.json").write_text("{}")
"""


@pytest.fixture(scope="module")
def saved(tiny, nano, tmp_path_factory):
    """{family: a model as a training script leaves it}, made from tiny[family]."""
    folder = tmp_path_factory.mktemp("saved")
    for family in FAMILIES:
        run_script(
            "MLLMU_GA.py", "--model_id", tiny[family], "--data_split_dir", nano / "MLLMMU-Bench",
            "--forget_ratio", RATIO, "--save_dir", folder / family, "--batch_size", 8, "--lr", 1e-3,
        )  # fmt: skip
    return {family: folder / family for family in FAMILIES}


@pytest.fixture
def model(saved, tmp_path):
    """The trained LLaVA, in a folder of this test's own."""
    return shutil.copytree(
        saved["llava"], tmp_path / "runs" / "model", ignore=shutil.ignore_patterns("general")
    )


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts the stand-in first; calling it gives what each process of lmms_eval was started with."""
    packages = tmp_path / "packages"
    (packages / "lmms_eval").mkdir(parents=True)
    (packages / "lmms_eval" / "__init__.py").touch()
    (packages / "lmms_eval" / "__main__.py").write_text(STAND_IN)
    (packages / "decord.py").touch()
    (packages / "lmms_eval-0.7.3.dist-info").mkdir()
    (packages / "lmms_eval-0.7.3.dist-info" / "METADATA").write_text("Name: lmms_eval\nVersion: 0.7.3\n")
    records = tmp_path / "records"
    records.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("RECORD", str(records))
    monkeypatch.syspath_prepend(str(packages))
    return lambda: [json.loads(path.read_text()) for path in sorted(records.iterdir())]


def mistakes(capsys, *argv) -> list[str]:
    """What the script says when it refuses its input."""
    with pytest.raises(SystemExit) as end:
        run_script(SCRIPT, *argv)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


def parsed(*argv):
    module = load_script(SCRIPT)
    args = module.parse_args([str(word) for word in argv])
    module.check(args)
    assert not args.problems.lines
    return module, args


# ---------------------------------------------------------------- the command
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_gpu_one_process_measures_each_family(family, saved, stand_in, capfd):
    folder = saved[family]
    run_script(SCRIPT, "0,1", folder, "pope,mme", "--limit", 8, "--verbosity=DEBUG")
    dtype = "" if family == "qwen2_vl" else ",dtype=float32"
    words = [
        "--model", NAMES[family], "--model_args", f"pretrained={folder}{dtype},device_map=cpu",
        "--device", "cpu", "--tasks", "pope,mme", "--batch_size", "1",
        "--output_path", f"{folder}/general", "--log_samples", "--limit", "8", "--verbosity=DEBUG",
    ]  # fmt: skip
    assert stand_in() == [{"argv": words, "gpus": "", "processes": None}]
    said = capfd.readouterr().out
    assert f"CUDA_VISIBLE_DEVICES= {sys.executable} -m lmms_eval {' '.join(words)}\n" in said
    results = folder / "general" / "runs__model" / "20260101_000000_results.json"
    assert f"results: {results}\n" in said
    record = json.loads((results.parent / "20260101_000000_run.json").read_text())
    assert record["command"] == [sys.executable, "-m", "lmms_eval", *words]
    assert record["versions"]["lmms_eval"] == "0.7.3" and "transformers" in record["versions"]


def test_one_gpu_is_one_process_that_sees_it(model, stand_in, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    run_script(SCRIPT, "3", model, "pope")
    (process,) = stand_in()
    assert process["gpus"] == "3" and process["processes"] is None
    assert process["argv"][3] == f"pretrained={model},dtype=bfloat16,device_map=cuda"
    assert "--device" not in process["argv"]


def test_several_gpus_are_one_process_each_by_accelerate(model, stand_in, monkeypatch):
    """Launched by the real accelerate; two CPU processes stand for two GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run_script(SCRIPT, "2,5", model, "pope", "--limit", 8)
    first, second = stand_in()
    assert first == second
    assert first["gpus"] == "2,5" and first["processes"] == "2"
    # with a device_map each process would answer all questions
    assert first["argv"][:4] == ["--model", "llava_hf", "--model_args", f"pretrained={model},dtype=bfloat16"]
    assert first["argv"][-2:] == ["--limit", "8"]


@pytest.mark.parametrize("family", FAMILIES)
def test_model_args_join_ours_and_a_model_can_be_spread(family, saved, stand_in):
    dtype = "" if family == "qwen2_vl" else ",dtype=bfloat16"
    module, args = parsed("0,1", saved[family], "pope", "--model_args", "use_cache=False", "--limit", "8")
    words = module.command(args, on_gpu=True)
    assert words[words.index("--model_args") + 1] == f"pretrained={saved[family]}{dtype},use_cache=False"
    assert words.count("--model_args") == 1 and words[-2:] == ["--limit", "8"]
    module, args = parsed("0,1", saved[family], "pope", "--model_args=device_map=auto")
    words = module.command(args, on_gpu=True)
    assert words[:3] == [sys.executable, "-m", "lmms_eval"]
    assert words[words.index("--model_args") + 1] == f"pretrained={saved[family]}{dtype},device_map=auto"


# ---------------------------------------------------------------- what is refused
def test_mistakes_are_told_at_once_with_the_command_that_installs(tmp_path):
    """In a process of its own, without the stand-in. Where lmms-eval is installed, that line is not said."""
    done = subprocess.run(
        [sys.executable, ROOT / SCRIPT, "0,x", tmp_path / "none", "pope", "--model", "llava", "--out=x"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and all(line.startswith("error: ") for line in lines)
    install = [line for line in lines if "not installed" in line]
    if install:
        assert install[0].endswith(f'{sys.executable} -m pip install "lmms-eval[video-legacy]==0.7.3"')
    told = [line.split()[1] for line in lines if line not in install]
    assert told == ["gpu_ids:", "--model:", "--out:", "model:"]


def test_nothing_given(stand_in, capsys):
    assert [line.split()[1] for line in mistakes(capsys)] == ["gpu_ids", "model", "tasks"]


@pytest.mark.parametrize("missing", ["lmms_eval", "decord"])
def test_lmms_eval_has_to_be_installed_with_decord(missing, model, stand_in, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    (line,) = mistakes(capsys, "0", model, "pope")
    assert line.startswith(f"error: {missing}: not installed") and "lmms-eval[video-legacy]" in line


def test_one_gpu_is_given_once(model, stand_in, capsys):
    (line,) = mistakes(capsys, "0,0", model, "pope")
    assert line.startswith("error: gpu_ids: '0,0'")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "llava_next"}, "a llava_next model; handed over are llava, qwen2_vl, mllama"),
        ({"transformers_version": "99.1.0"}, "saved with transformers 99.1.0"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "written by other code"),
    ],
)
def test_a_model_that_lmms_eval_would_read_otherwise(change, told, model, stand_in, capsys):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    (line,) = mistakes(capsys, "0", model, "pope")
    assert line.startswith("error: model: ") and told in line


def test_a_folder_that_is_no_whole_model(model, stand_in, capsys):
    (model / "model.safetensors").unlink()
    (model / "processor_config.json").unlink()
    lines = mistakes(capsys, "0", model, "pope")
    assert "holds no weights" in lines[0] and "no processor" in lines[1] and len(lines) == 2
    (model / "config.json").write_text("{")
    assert "not valid JSON" in mistakes(capsys, "0", model, "pope")[0]


def test_a_path_that_lmms_eval_cannot_read(model, stand_in, capsys):
    (line,) = mistakes(capsys, "0", model.rename(model.with_name("lr=1e-5,seed=1")), "pope")
    assert "comma" in line


def test_an_old_processor_and_the_command_that_completes_it(model, stand_in, capsys):
    config = json.loads((model / "processor_config.json").read_text())
    (model / "processor_config.json").write_text(
        json.dumps({k: config[k] for k in config if k != "patch_size"})
    )
    (line,) = mistakes(capsys, "0", model, "pope")
    python, option, code = shlex.split(line.partition("complete it: ")[2])
    assert (python, option) == (sys.executable, "-c")
    exec(code)
    assert json.loads((model / "processor_config.json").read_text())["patch_size"] == config["patch_size"]
    parsed("0", model, "pope")


def test_questions_without_a_picture_where_they_cannot_be_answered(saved, stand_in, capsys):
    for family in ("llava", "mllama"):
        (line,) = mistakes(capsys, "0", saved[family], "pope,scienceqa")
        assert line.startswith("error: tasks: scienceqa has") and "scienceqa_img" in line
        parsed("0", saved[family], "scienceqa_img")
    assert "--force_simple" in mistakes(capsys, "0", saved["llava"], "pope", "--force_simple")[0]
    parsed("0", saved["qwen2_vl"], "scienceqa", "--force_simple")


# ---------------------------------------------------------------- what came out
@pytest.mark.parametrize("code", ["0", "1"])
def test_a_run_without_results_is_an_error_whatever_its_exit_code(code, model, stand_in, monkeypatch):
    monkeypatch.setenv("TIME", "20260101_000001")
    run_script(SCRIPT, "0", model, "pope")  # an earlier run's results do not hide it
    monkeypatch.setenv("FAILS", code)
    with pytest.raises(SystemExit, match="wrote no results"):
        run_script(SCRIPT, "0", model, "pope")


def rows(said: str) -> list[list[str]]:
    """The printed table, without its two head lines."""
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line[:1] == "|"
    ][2:]


def measure(monkeypatch, folder, time: str, scores: list[float], *flags) -> None:
    monkeypatch.setenv("TIME", f"20260101_{time}")
    monkeypatch.setenv("SCORES", json.dumps(scores))
    run_script(SCRIPT, "0", folder, "pope", *flags)


def test_a_model_is_shown_beside_the_vanilla_model_it_was_made_from(
    model, tiny, stand_in, monkeypatch, capfd
):
    vanilla = shutil.copytree(tiny["llava"], model.with_name("vanilla"))
    manifest = json.loads((model / "run.json").read_text())
    manifest["arguments"]["vanilla_dir"] = str(vanilla)
    (model / "run.json").write_text(json.dumps(manifest))
    measure(monkeypatch, vanilla, "000001", [0.0] * 20)
    measure(monkeypatch, vanilla, "000002", [1.0] * 16 + [0.0] * 4)  # the last one counts
    assert not rows(capfd.readouterr().out), "a vanilla model has nothing to be compared with"
    measure(monkeypatch, model, "000003", [1.0] * 12 + [0.0] * 8)
    accuracy, f1 = rows(capfd.readouterr().out)
    assert accuracy[:6] == ["pope", "acc", "20", "0.8000", "0.6000", "-0.2000"]
    low, high = map(float, accuracy[6].strip("[]").split(", "))
    # four of twenty questions lost: 1.96 standard errors of the paired difference are 0.175
    assert low == pytest.approx(-0.375, abs=0.05) and high == pytest.approx(-0.025, abs=0.05)
    assert f1 == ["pope", "f1", "20", "0.5000", "0.4000", "-0.1000", ""], (
        "f1 is not the mean of its questions"
    )

    measure(monkeypatch, model, "000004", [1.0] * 16 + [0.0] * 4)
    assert [row[6] for row in rows(capfd.readouterr().out)] == ["", ""], "no changed question is no proof"
    measure(monkeypatch, model, "000005", [1.0] * 20, "--limit", 20)
    said = capfd.readouterr().out
    assert not rows(said) and f"note: pope: no equal run on {vanilla}" in said


def test_empty_replies_are_told(model, stand_in, monkeypatch, capfd):
    run_script(SCRIPT, "0", model, "pope")
    assert "warning" not in capfd.readouterr().out
    monkeypatch.setenv("REPLY", "")
    monkeypatch.setenv("TIME", "20260101_000001")
    run_script(SCRIPT, "0", model, "pope")
    assert "warning: pope: 2 of 2 replies are empty" in capfd.readouterr().out


# ---------------------------------------------------------------- the hand-over
PLAIN = """
import json, sys
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

picture = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who is this?"}]}]
classes = {"llava": "LlavaForConditionalGeneration", "qwen2_vl": "Qwen2VLForConditionalGeneration",
           "mllama": "MllamaForConditionalGeneration"}
out = {}
for folder in sys.argv[1:]:
    auto, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    family = auto.config.model_type
    own = getattr(transformers, classes[family])
    model = own.from_pretrained(folder, torch_dtype="auto", device_map="cpu").eval()
    pixels = {"max_pixels": 602112, "min_pixels": 3136} if family == "qwen2_vl" else {}
    processor = AutoProcessor.from_pretrained(folder, **pixels)
    processor.tokenizer.padding_side = "left"
    prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    if family == "mllama":
        inputs = processor([picture], prompt, add_special_tokens=False, return_tensors="pt")
    else:
        inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
    end = {} if family == "mllama" else {"eos_token_id": processor.tokenizer.eos_token_id}
    with torch.inference_mode():
        reply = model.generate(**inputs, **end, do_sample=False, max_new_tokens=8)
    out[family] = {
        "info": {name: sorted(map(str, found)) for name, found in info.items()},
        "same": all(torch.equal(a, b) for a, b in zip(auto.parameters(), model.parameters())),
        "weight": float(sum(p.detach().double().abs().sum() for p in model.parameters())),
        "prompt": prompt, "new": reply.shape[1] - inputs["input_ids"].shape[1],
        "end": processor.tokenizer.eos_token,
    }
assert not any(name == "utils" or name.startswith("utils.") for name in sys.modules)
print(json.dumps(out))
"""


def test_checkpoints_are_plain_hugging_face_models(saved, tmp_path):
    """Loaded and asked as lmms-eval's classes do, by a process that does not see this repository."""
    from utils.models import load_model

    (tmp_path / "plain.py").write_text(PLAIN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, tmp_path / "plain.py", *saved.values()],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert list(out) == list(FAMILIES)
    for family, found in out.items():
        assert not any(found["info"].values()), "every weight has its place, none is missing"
        ours = load_model(str(saved[family])).parameters()
        assert found["same"] and found["weight"] == float(sum(p.detach().double().abs().sum() for p in ours))
        assert 1 <= found["new"] <= 8
    assert (
        out["llava"]["prompt"] == "USER: <image>\nWho is this? ASSISTANT:" and out["llava"]["end"] == "</s>"
    )
    assert "<|vision_start|><|image_pad|><|vision_end|>Who is this?<|im_end|>" in out["qwen2_vl"]["prompt"]
    assert out["qwen2_vl"]["end"] == "<|im_end|>"
    assert "<|image|>Who is this?<|eot_id|>" in out["mllama"]["prompt"]
