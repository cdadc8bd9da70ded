"""Where a run writes: what it may replace, what a kill leaves, and that two runs exclude each other."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import RATIO, ROOT, run_script

from eval.results.read import load_results
from utils import cli
from utils.run import folders

GA, MASKS = "MLLMU_GA.py", "data_process/MLLMU_gen_mask.py"


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["MLLMU_GA.py"])


def run_of(folder: Path, script: str = "MLLMU_GA.py", text: str = "model") -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"script": script}))
    (folder / "x").write_text(text)
    return folder


def problems_of(save_dir: Path, *inputs: Path, **more) -> list[str]:
    problems = cli.Problems()
    folders.check_save_dir(save_dir, problems, [("--model_id", i) for i in inputs], **more)
    return problems.lines


def one_problem(words: str, *given, **more) -> None:
    (line,) = problems_of(*given, **more)
    assert line.startswith("--save_dir: ") and words in line, line


@contextmanager
def comings_and_goings(folder: Path):
    """Folders in it that other processes make and take away all the time."""
    ended = threading.Event()

    def work():
        while not ended.is_set():
            places = [folder / f"of another run {i}" / "zero_shot" / "forget05" for i in range(8)]
            for place in places:
                place.mkdir(parents=True)
            for place in places:
                shutil.rmtree(place.parents[1])

    with ThreadPoolExecutor(1) as other:
        running = other.submit(work)
        try:
            yield
        finally:
            ended.set()
        running.result()


# ---------------------------------------------------------------- what may be replaced
def test_a_run_of_the_same_script_may_be_replaced(tmp_path):
    assert not problems_of(tmp_path / "new" / "run")
    assert not any(tmp_path.iterdir()), "asking whether it can be written leaves nothing"
    assert not problems_of(run_of(tmp_path / "run"))
    one_problem("holds a run of make_nano.py", run_of(tmp_path / "data", "make_nano.py"))
    (tmp_path / "data" / "run.json").write_text("[]")
    one_problem("cannot be read", tmp_path / "data")


def test_what_is_read_is_neither_in_it_nor_above_it(tmp_path):
    run = run_of(tmp_path / "run")
    model = tmp_path / "run" / "deep" / "model"
    model.mkdir(parents=True)
    one_problem("(--model_id), which would be lost", run, model)
    one_problem("same folder as --model_id", run, run)
    one_problem("lies in", run / "new", run)
    link = tmp_path / "link"
    link.symlink_to(run)
    one_problem("which would be lost", link, model)
    one_problem("which would be lost", run, link / "deep" / "model")
    one_problem("lies in", link / "new", run)


def test_places_that_are_for_other_things(nano, tiny, tmp_path, monkeypatch, capsys):
    """The cache of the hub's models, and a benchmark's folder, whichever benchmark is read."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    inside = tmp_path / "hub" / "models--owner--name" / "run"
    one_problem("the cache of the Hugging Face hub", inside)
    one_problem("a benchmark's folder", nano / "CLEAR" / "run")
    one_problem("a benchmark's folder", nano / "CLEAR" / "forget10" / "run")
    assert not problems_of(nano.parent / "run")
    base = ["--forget_ratio", 10, "--data_split_dir", nano / "MLLMU-Bench"]
    for script, flags in (
        (GA, ["--model_id", tiny["llava"], "--save_dir"]),
        (MASKS, ["--model_id", tiny["llava"], "--save_dir"]),
        ("eval/MLLMU_eval.py", ["--evaluated_model", tiny["llava"], "--output_dir"]),
    ):
        for place in (inside, nano / "CLEAR" / "run"):
            with pytest.raises(SystemExit) as end:
                run_script(script, *base, *flags, place)
            (line,) = capsys.readouterr().err.splitlines()
            assert end.value.code == 2 and line.endswith("choose a folder outside")


def test_links_into_it_and_devices(tmp_path):
    model, run = tmp_path / "model", run_of(tmp_path / "run")
    model.mkdir()
    (model / "model.safetensors").symlink_to(run / "x")
    one_problem("a link in", run, model)
    assert not problems_of(tmp_path / "other", model)
    os.mkfifo(tmp_path / "pipe")  # as a device: neither a file nor a folder
    one_problem("is a file", tmp_path / "pipe")


def test_other_runs_and_evaluations_in_it(tmp_path):
    run = run_of(tmp_path / "run")
    (run / "zero_shot").mkdir()
    with folders.alone(run / "zero_shot" / "forget05"):
        one_problem("is in use", run)
    assert not problems_of(run)
    run_of(run / "another", "MLLMU_NPO.py")
    one_problem("holds other runs", run)


def test_a_folder_in_use(tmp_path):
    with folders.alone(tmp_path / "run"):
        one_problem("another run writes", tmp_path / "run")
        with pytest.raises(SystemExit, match="already"), folders.alone(tmp_path / "run"):
            pass
    assert not problems_of(tmp_path / "run")


def test_no_evaluation_in_what_a_training_writes(nano, tiny, tmp_path, capsys):
    """The model is there, and a new one of its name is being trained: the answers would go with the old."""
    model = shutil.copytree(tiny["llava"], tmp_path / "model")
    with folders.alone(model), pytest.raises(SystemExit) as end:
        run_script(
            "eval/MLLMU_eval.py", "--evaluated_model", model, "--data_split_dir", nano / "MLLMU-Bench",
            "--forget_ratio", RATIO,
        )  # fmt: skip
    told = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(told) == 1
    assert told[0].startswith("error: --evaluated_model: ") and "another run writes" in told[0]


def test_a_forked_process_does_not_hold_the_lock(tmp_path):
    """Processes that prepare batches outlive a killed training by seconds."""
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from utils.run import folders
with folders.alone({str(tmp_path / "run")!r}):
    ends = os.pipe()
    if os.fork() == 0:
        os.write(ends[1], b"x")
        time.sleep(20)
        os._exit(0)
    os.read(ends[0], 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert folders.lock_file(tmp_path / "run").exists()
    assert not folders.is_held(folders.lock_file(tmp_path / "run"))


def test_what_others_take_away_meanwhile_is_passed_over(tmp_path):
    with comings_and_goings(tmp_path):
        for _ in range(500):
            assert not problems_of(tmp_path / "run")
            assert not load_results([tmp_path], cli.Problems())


def test_a_kept_state_is_not_another_scripts(tmp_path):
    (folders.partial_folder(tmp_path / "run") / "state").mkdir(parents=True)
    one_problem("a training's state is kept", tmp_path / "run")
    assert not problems_of(tmp_path / "run", trains=True)


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    one_problem("lies under a file", tmp_path / "file" / "run")
    one_problem("cannot be written: File name too long", tmp_path / ("x" * 255))
    one_problem("cannot be written", Path("/proc/nowhere/run"))
    monkeypatch.setattr(folders, "is_mount", lambda folder: True)
    one_problem("is a mount point", tmp_path / "run")
    monkeypatch.undo()
    assert folders.is_mount(Path("/proc")) and not folders.is_mount(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    one_problem("cannot be written: Permission denied", tmp_path / "run")
    tmp_path.chmod(0o700)


def test_the_benchmark_is_not_deleted(nano, tiny, tmp_path, capsys):
    """Training into the folder that nano's make_nano.py wrote, and that holds the tables it reads."""
    data = shutil.copytree(nano, tmp_path / "data")
    for script in (GA, MASKS):
        with pytest.raises(SystemExit) as end:
            run_script(
                script, "--model_id", tiny["llava"], "--data_split_dir", data / "MLLMMU-Bench",
                "--forget_ratio", RATIO, "--save_dir", data,
            )  # fmt: skip
        assert end.value.code == 2 and "--save_dir" in capsys.readouterr().err
    assert (data / "MLLMMU-Bench").is_dir()


# ---------------------------------------------------------------- publishing
def moments(tmp_path: Path, monkeypatch) -> list[Path]:
    """The whole folder's publishing stopped before each of its steps: copies of the tree."""
    calls, found = ("rename", "rmtree"), []

    def before(step):
        def stopped(*given, **more):
            copy = tmp_path / f"moment{len(found)}"
            shutil.copytree(tmp_path / "tree", copy)
            found.append(copy)
            return step(*given, **more)

        return stopped

    rmtree, rename = shutil.rmtree, Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "rmtree", before(rmtree))
        patch.setattr(Path, "rename", before(rename))
        folders.publish(folders.partial_folder(tmp_path / "tree" / "run"), tmp_path / "tree" / "run")
    assert len(found) >= len(calls) * 2
    return found


def test_a_kill_while_publishing_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    run_of(tmp_path / "tree" / "run", text="old")
    partial = run_of(folders.partial_folder(tmp_path / "tree" / "run"), text="new")
    (partial / "state").mkdir()
    for tree in moments(tmp_path, monkeypatch):
        folders.recover(tree / "run")
        assert (tree / "run" / "x").read_text() == "new"
        assert [p.name for p in tree.iterdir()] == ["run"] and not (tree / "run" / "state").exists()
    assert (tmp_path / "tree" / "run" / "x").read_text() == "new"


def test_recover_gives_the_old_its_name_back(tmp_path):
    run_of(tmp_path / ".run.old", text="old")
    (tmp_path / ".run.partial").mkdir()
    assert not folders.recover(tmp_path / "run")
    assert (tmp_path / "run" / "x").read_text() == "old" and (tmp_path / ".run.partial").is_dir()
    run_of(tmp_path / ".run.old")
    with folders.alone(tmp_path / "run"):
        assert not folders.recover(tmp_path / "run") and (tmp_path / ".run.old").exists(), "somebody works"


def test_what_reads_a_model_finds_it_too(tiny, tmp_path):
    from utils.planning import loadable

    shutil.copytree(tiny["llava"], tmp_path / ".model.old")
    loadable.check_model(str(tmp_path / "model"), "--model_id", problems := cli.Problems())
    assert not problems.lines and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_link_is_followed(tmp_path):
    target = tmp_path / "disk" / "run"
    target.parent.mkdir()
    (tmp_path / "run").symlink_to(target)
    assert not problems_of(tmp_path / "run")
    for text in ("old", "new"):
        run_of(folders.partial_folder(tmp_path / "run"), text=text)
        folders.publish(folders.partial_folder(tmp_path / "run"), tmp_path / "run")
    assert (tmp_path / "run").is_symlink() and (target / "x").read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["run"]


# ---------------------------------------------------------------- files
def test_files_that_may_be_written(tmp_path):
    def line_of(path: Path) -> str:
        problems = cli.Problems()
        folders.check_file(path, "--csv", problems, ".csv")
        return "".join(problems.lines)

    assert not line_of(tmp_path / "new" / "t.csv") and not (tmp_path / "new").exists()
    (tmp_path / "t.csv").touch()
    (tmp_path / "results.json").touch()
    assert not line_of(tmp_path / "t.csv") and not line_of(tmp_path / "other.txt")
    assert "no .csv file" in line_of(tmp_path / "results.json")
    assert "is a folder" in line_of(tmp_path)
    assert "cannot be written" in line_of(Path("/proc/nowhere/t.csv"))


def test_every_command_asks_before_it_loads(nano, tiny, tmp_path, capsys):
    """One line for what is not its own, or cannot be written; nothing is changed."""
    (tmp_path / "mine" / "zero_shot" / f"forget{RATIO}").mkdir(parents=True)
    (thesis := tmp_path / "mine" / "zero_shot" / f"forget{RATIO}" / "thesis.tex").write_text("years of work")
    evaluation = ["--evaluated_model", tiny["llava"], "--data_split_dir", nano / "MLLMU-Bench"]
    evaluation += ["--forget_ratio", RATIO, "--output_dir"]
    nowhere, evaluated = "/proc/nowhere/x", tmp_path / "evaluated"
    for model in ("vanilla", "manifold", "retrained"):  # as demo.sh leaves them
        (there := evaluated / model / "zero_shot/forget10").mkdir(parents=True)
        (evaluated / model / "run.json").write_text("{}")
        (there / "results.json").write_text("{}")
    commands = {
        "--output_dir": [
            ("eval/MLLMU_eval.py", *evaluation, tmp_path / "mine"),
            ("eval/MLLMU_eval.py", *evaluation, nowhere),
        ],
        "--save_dir": [
            ("nano/make_nano.py", "--save_dir", tmp_path / "mine"),
            ("nano/make_nano.py", "--save_dir", nowhere),
            ("nano/make_tiny_model.py", "--family", "llava", "--text", nano, "--save_dir", tmp_path / "mine"),
            ("data_process/download.py", "--benchmark", "mllmu", "--save_dir", nowhere),
            ("nano/probes.py", "--save_dir", thesis),
            ("nano/trust.py", "--save_dir", nowhere),
            ("nano/study.py", "--nano", evaluated, "--save_dir", thesis),
        ],
        "--csv": [
            ("eval/table.py", tmp_path, "--csv", thesis),
            ("eval/forget_quality.py", tmp_path, "--csv", nowhere),
        ],
        "--save_path": [
            ("eval/report.py", tmp_path, "--save_path", thesis),
            ("nano/figures.py", "--nano", evaluated, "--save_path", thesis),
        ],
        "--judge_cache": [
            ("eval/judge.py", tmp_path, "--judge_url", "http://localhost:1", "--judge_model", "m", "--yes",
             "--judge_cache", nowhere),
        ],
    }  # fmt: skip
    for flag, given in commands.items():
        for words in given:
            with pytest.raises(SystemExit) as end:
                run_script(*words)
            lines = [
                line for line in capsys.readouterr().err.splitlines() if line.startswith(f"error: {flag}: ")
            ]
            assert end.value.code == 2 and len(lines) == 1, words
            why = ("ours", "cannot be written", "exists and is no", "is a file")
            assert any(words in lines[0] for words in why)
    assert [p.name for p in (tmp_path / "mine").rglob("*") if p.is_file()] == ["thesis.tex"]
