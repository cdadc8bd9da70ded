"""General ability: how lmms-eval is called, what is refused and printed.

A stand-in for lmms_eval, found first, records its arguments and writes files as lmms_eval 0.7.3 does.
"""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, load_script, run_script

from eval.general_ability import BACKENDS

SCRIPT = "eval/general_ability.py"
NAMES = {"llava": "llava_hf", "mllama": "llama_vision"}  # the others are called as the family

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
accuracy, reply = float(os.environ.get("ACCURACY", "0.5")), os.environ.get("REPLY", "Yes")
folder = pathlib.Path(value("--output_path"), "runs__model")
folder.mkdir(parents=True, exist_ok=True)
stem = os.environ.get("TIME", "20260101_000000") + "_"
tasks = value("--tasks").split(",")
numbers = {"alias": "x", "acc,none": accuracy, "acc_stderr,none": "N/A", "acc_stderr_clt,none": 0.1}
content = {
    "results": {task: numbers | {"submission,none": []} for task in tasks},
    "n-samples": {task: {"original": 9000, "effective": 2} for task in tasks},
    "n-shot": {task: 0 for task in tasks},
    "config": {"model_backend": "x", "limit": value("--limit"), "offset": 0, "gen_kwargs": ""},
}
(folder / (stem + "results.json")).write_text(json.dumps(content))
for task in tasks:
    lines = [json.dumps({"doc_id": i, "filtered_resps": reply}) + chr(10) for i in range(2)]
    (folder / (stem + "samples_" + task + ".jsonl")).write_text("".join(lines))
submissions = folder.parent / "submissions"  # as MMBench's task does
submissions.mkdir(exist_ok=True)
(submissions / "mmbench_en_dev_static_results.json").write_text("{}")
"""


@pytest.fixture
def model(tiny, tmp_path):
    """model(family) -> a copy of the family's tiny model, to be measured."""
    return lambda family="llava": shutil.copytree(tiny[family], tmp_path / "runs" / family)


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


def mistake(capsys, *argv) -> str:
    """The one line that the script says when it refuses its input."""
    with pytest.raises(SystemExit) as end:
        run_script(SCRIPT, *argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    return line


# ---------------------------------------------------------------- the command
@pytest.mark.parametrize("family", BACKENDS)
def test_without_a_gpu_one_process_measures_each_family(family, model, stand_in, capfd):
    folder = model(family)
    run_script(SCRIPT, "0,1", folder, "pope,mme", "--limit", 8, "--verbosity=DEBUG")
    dtype = ",dtype=float32" if family in NAMES else ""
    words = [
        "--model", NAMES.get(family, family), "--model_args", f"pretrained={folder}{dtype},device_map=cpu",
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


def test_several_gpus_are_one_process_each_by_accelerate(model, stand_in, monkeypatch):
    """Launched by the real accelerate; two CPU processes stand for two GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = model()
    run_script(SCRIPT, "2,5", folder, "pope", "--limit", 8)
    first, second = stand_in()
    assert first == second
    assert first["gpus"] == "2,5" and first["processes"] == "2"
    # with a device_map each process would answer all questions
    assert first["argv"][:4] == ["--model", "llava_hf", "--model_args", f"pretrained={folder},dtype=bfloat16"]
    assert first["argv"][-2:] == ["--limit", "8"]


@pytest.mark.parametrize(
    ("gpus", "flags", "added"),
    [
        ("3", [], "device_map=cuda"),
        ("0,1", ["--model_args", "use_cache=False"], "use_cache=False"),
        ("0,1", ["--model_args=device_map=auto"], "device_map=auto"),  # one copy over both
    ],
)
def test_model_args_on_gpus(gpus, flags, added, model):
    module, folder = load_script(SCRIPT), model()
    args = module.parse_args([gpus, str(folder), "pope", *flags, "--limit", "8"])
    words = module.command(args, on_gpu=True)
    assert words[words.index("--model_args") + 1] == f"pretrained={folder},dtype=bfloat16,{added}"
    assert words.count("--model_args") == 1 and words[-2:] == ["--limit", "8"]
    assert ("--multi_gpu" in words) == (added == "use_cache=False")


# ---------------------------------------------------------------- what is refused
def test_mistakes_are_told_at_once_with_the_command_that_installs(tmp_path):
    """In a process of its own, without the stand-in. Where lmms-eval is installed, that line is not said."""
    done = subprocess.run(
        [sys.executable, ROOT / SCRIPT, "0,0", tmp_path / "none", "pope", "--model", "llava"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and all(line.startswith("error: ") for line in lines)
    install = [line for line in lines if "not installed" in line]
    if install:
        assert install[0].endswith(f'{sys.executable} -m pip install "lmms-eval[video-legacy]==0.7.3"')
    assert [x.split()[1] for x in lines if x not in install] == ["gpu_ids:", "--model:", "model:"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "llava_next"}, "a llava_next model; handed over are llava, qwen2_vl,"),
        ({"transformers_version": "99.1.0"}, "saved with transformers 99.1.0"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "written by other code"),
    ],
)
def test_a_model_that_lmms_eval_would_read_otherwise(change, told, model, stand_in, capsys):
    folder = model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    line = mistake(capsys, "0", folder, "pope")
    assert line.startswith("error: model: ") and told in line


def test_a_path_that_lmms_eval_cannot_read(model, stand_in, capsys):
    folder = model()
    assert "comma" in mistake(capsys, "0", folder.rename(folder.with_name("lr=1e-5,seed=1")), "pope")


# ---------------------------------------------------------------- what came out
@pytest.mark.parametrize("code", ["0", "1"])
def test_a_run_without_results_is_an_error_whatever_its_exit_code(code, model, stand_in, monkeypatch):
    folder = model()
    run_script(SCRIPT, "0", folder, "pope")  # an earlier run's results do not hide it
    monkeypatch.setenv("FAILS", code)
    with pytest.raises(SystemExit, match="wrote no results"):
        run_script(SCRIPT, "0", folder, "pope")


def test_numbers_stand_beside_those_of_the_vanilla_model(model, stand_in, monkeypatch, capfd):
    folder, vanilla = model(), model("qwen2_vl")
    (folder / "run.json").write_text(json.dumps({"arguments": {"vanilla_dir": str(vanilla)}}))

    def measure(of, time: str, accuracy: str, *flags) -> tuple[list[str], str]:
        """(the cells of the printed row, all that was printed)"""
        monkeypatch.setenv("TIME", f"20260101_{time}")
        monkeypatch.setenv("ACCURACY", accuracy)
        run_script(SCRIPT, "0", of, "pope", *flags)
        said = capfd.readouterr().out
        (row,) = [line for line in said.splitlines() if line.startswith("| pope")]
        return [cell.strip() for cell in row.split("|")[1:-1]], said

    assert measure(vanilla, "000001", "0.1")[0] == ["pope", "acc", "2", "0.1000", "", ""]
    measure(vanilla, "000002", "0.8")  # the last one counts
    row, said = measure(folder, "000003", "0.6")
    assert row == ["pope", "acc", "2", "0.6000", "0.8000", "-0.2000"] and "warning" not in said
    garbage = [
        b"",
        b'{"results": {',
        b"\x00\xff",
        b"[1]",
        b'{"results": {"pope": 1}, "config": {}}',
        b'{"results": [1]}',
    ]
    for k, content in enumerate(garbage):  # later than what counts
        (vanilla / "general" / "runs__model" / f"20260101_00001{k}_results.json").write_bytes(content)
    row, said = measure(folder, "000005", "0.6")
    assert row[4:] == ["0.8000", "-0.2000"] and said.count("holds no results of lmms-eval; take it away") == 6
    monkeypatch.setenv("REPLY", "")
    row, said = measure(folder, "000004", "0.6", "--limit", 20)
    assert row[4:] == ["", ""] and f"note: pope: no equal run on {vanilla}" in said
    assert "warning: pope: 2 of 2 replies are empty" in said
