"""Runs that are killed, told to stop, or run out of room: what is left is whole, and going on ends in the
same bits. Every run is a fork of this process, so that it starts at once and dies as a process does."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from conftest import RATIO, ROOT, jsonl, run_script, weights
from test_broken_results import evaluations  # noqa: F401 (a fixture)
from test_training import equal

from utils import cli, flags
from utils.loop import state
from utils.run import ending, folders

GA, MANIFOLD, MASKS = "MLLMU_GA.py", "MLLMU_manifold.py", "data_process/MLLMU_gen_mask.py"
SEED = int(os.environ.get("FAULTS_SEED", time.time_ns() % 10_000))


class Run:
    """A script in a process of its own."""

    def __init__(self, script: str, *argv, first=lambda: None):
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                out = os.open(os.devnull, os.O_WRONLY)
                os.dup2(out, 1)
                sys.dont_write_bytecode = True  # a full disk would cut a module's short
                first()
                code = code_of(lambda: run_script(script, *argv))
            finally:
                os._exit(code)

    def stop(self, number: signal.Signals, after: float) -> int:
        """Its exit code, or -number where that killed it."""
        time.sleep(after)
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def code_of(main) -> int:
    """The exit code that Python gives a program that ends so."""
    try:
        try:
            main()
        except SystemExit:
            raise
        except BaseException:
            sys.excepthook(*sys.exc_info())
            return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def timeless(log) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in jsonl(log)]


CASES = {
    GA: {"num_epochs": 6, "lora_dropout": 0.5, "save_steps": 2},
    MANIFOLD: {"batch_size": 16, "num_epochs": 2, "save_steps": 3},
}


@pytest.mark.parametrize("script", CASES)
def test_killed_at_random_moments_and_resumed(script, train_args, masks, tmp_path, capsys):
    """Five moments each: the weights and the log are those of a run that was left alone, to the bit."""
    more = {"grad_mask_path": masks("llava") / "mllmu_both_mask.pt"} if script == MANIFOLD else {}
    argv = train_args(**CASES[script], **more)
    begun = time.monotonic()
    assert Run(script, *argv, "--save_dir", tmp_path / "whole").wait() == 0
    length = time.monotonic() - begun
    draw = random.Random(f"{SEED}/{script}")
    with capsys.disabled():
        print(f"\n{script}: FAULTS_SEED={SEED}, {length:.1f} s undisturbed", end=" ")
    run, moments, quicker = tmp_path / "run", 0, 0
    while moments < 5:
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])
        resume = ["--resume"] if state.find(run) else []
        code = Run(script, *argv, *resume).stop(number, after=draw.uniform(0.1, 0.9) * length)
        assert code in (-number, 0) or (number, code) == (signal.SIGTERM, state.STOPPED), code
        assert (code == state.STOPPED) <= (state.find(run) is not None)
        moments += code != 0
        if code == 0 and moments < 5:  # it was quicker: once more
            quicker += 1
            run.rename(tmp_path / f"run{quicker}")
    assert Run(script, *argv, *(["--resume"] if state.find(run) else [])).wait() == 0
    assert equal(weights(tmp_path / "whole"), weights(run))
    assert timeless(run / "log.jsonl") == timeless(tmp_path / "whole" / "log.jsonl")
    assert not list(tmp_path.glob(".run.[!l]*")), "a killed process leaves a lock that nobody holds, no more"


def when_steps(patch, step: int, does) -> None:
    from utils import training

    whole = training.Trainer._step

    def acts(self, phase, forwards, number):
        if number == step:
            does()
        return whole(self, phase, forwards, number)

    patch.setattr(training.Trainer, "_step", acts)


def test_a_signal_keeps_the_state_and_ctrl_c_says_what_is_kept(train_args, tmp_path, monkeypatch, capfd):
    argv = train_args(num_epochs=2, lora_dropout=0.5, save_steps=0)
    run_script(GA, *argv, "--save_dir", tmp_path / "whole")
    told = lambda number: lambda: when_steps(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    assert Run(GA, *argv, first=told(signal.SIGINT)).wait() == ending.INTERRUPTED
    said = capfd.readouterr().err
    assert said.splitlines()[-1] == f"stopped: {state.NOTHING}" and "Traceback" not in said
    assert Run(GA, *argv, first=told(signal.SIGUSR1)).wait() == state.STOPPED
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("stopped by SIGUSR1; the training state after step 3 is kept")
    assert Run(GA, *argv, "--resume", first=lambda: told_at(monkeypatch, 5)).wait() == ending.INTERRUPTED
    assert "after step 3 is kept" in capfd.readouterr().err.splitlines()[-1]
    assert Run(GA, *argv, "--resume").wait() == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def told_at(patch, step: int) -> None:
    when_steps(patch, step, lambda: os.kill(os.getpid(), signal.SIGINT))


def full_from_now_on() -> None:
    """No file may grow beyond 64 KiB: what a full disk does to all that is large."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))


@pytest.mark.parametrize("when", [3, 4])
def test_a_full_disk(train_args, tmp_path, monkeypatch, capfd, when):
    """While a state is written, or the model: one line, the last state is kept, nothing half-written."""
    argv = train_args(save_steps=2 if when == 4 else 1, lora=False)
    full = lambda: when_steps(monkeypatch, when, full_from_now_on)
    assert Run(GA, *argv, first=full).wait() == ending.NO_ROOM
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "after step 2 is kept" in last
    assert not (tmp_path / "run").exists()
    assert sorted(p.name for p in (tmp_path / ".run.partial").iterdir()) == ["log.jsonl", "state"]
    assert Run(GA, *argv, "--resume").wait() == 0
    assert Run(GA, *argv, "--save_dir", tmp_path / "whole").wait() == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_masks_that_are_killed_or_have_no_room(nano, tiny, tmp_path, capfd):
    argv = [
        "--model_id", tiny["llava"], "--data_split_dir", nano / "MLLMMU-Bench", "--forget_ratio", RATIO,
        "--save_dir", tmp_path / "masks",
    ]  # fmt: skip
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, ending.INTERRUPTED)):
        assert Run(MASKS, *argv).stop(number, after=1.0) in (code, 0)
    little = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, resource.RLIM_INFINITY))
    assert Run(MASKS, *argv, first=little).wait() == ending.NO_ROOM
    assert "cannot be written" in capfd.readouterr().err.splitlines()[-1]
    assert Run(MASKS, *argv).wait() == 0
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["masks"]


# ---------------------------------------------------------------- masks, evaluations' readers
def contents(folder) -> dict[str, bytes]:
    """{name: bytes} of the files in it, but for locks that nobody holds."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def hurt(draw, script: str, argv, length: float) -> int:
    """Its exit code, killed, interrupted or without room at a random moment."""
    moment = draw.uniform(0.05, 0.95) * length
    how = draw.choice(["kill", "interrupt", "no room"])
    if how == "no room":
        size = int(draw.uniform(1 << 12, 1 << 15))  # what is tried before anything loads is smaller
        return Run(script, *argv, first=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))).wait()
    return Run(script, *argv).stop(signal.SIGKILL if how == "kill" else signal.SIGINT, after=moment)


TABLES = {"csv": "t.csv", "latex": "t.tex", "markdown": "t.md"}
HURT = (0, -signal.SIGKILL, -signal.SIGINT, ending.INTERRUPTED, ending.NO_ROOM)


@pytest.mark.parametrize("script", [MASKS, "data_process/CLEAR_gen_mask.py"])
def test_masks_at_random_moments(script, nano, tiny, tmp_path, capsys):
    """The earlier masks, whole, or the new ones; and the next start is none the worse."""
    data = nano / ("CLEAR" if "CLEAR" in script else "MLLMMU-Bench")
    argv = [
        "--model_id", tiny["llava"], "--data_split_dir", data, "--save_dir", tmp_path / "masks",
        "--forget_ratio", 10, "--batch_size", 32,
    ]  # fmt: skip
    begun = time.monotonic()
    assert Run(script, *argv).wait() == 0
    length, whole = time.monotonic() - begun, set(contents(tmp_path))
    draw = random.Random(f"{SEED}/{script}")
    with capsys.disabled():
        print(f"\n{script}: FAULTS_SEED={SEED}", end=" ")
    for _ in range(4):
        code = hurt(draw, script, argv, length)
        assert code in HURT, code
        folders.recover(tmp_path / "masks")  # as whoever reads them does
        found = contents(tmp_path / "masks")
        assert {f"masks/{name}" for name in found} == whole
        for name, content in found.items():
            assert not name.endswith(".json") or json.loads(content)
    assert Run(script, *argv).wait() == 0
    assert set(contents(tmp_path)) == whole, "nothing beside them"


@pytest.mark.parametrize("script", ["eval/table.py", "eval/report.py"])
def test_tables_and_pages_at_random_moments(script, evaluations, tmp_path, capsys):  # noqa: F811
    """Under each name the earlier file or the new one, to the byte; both are the same."""
    rows = [evaluations / "MLLMU-Bench" / name for name in ("vanilla", "GA")]
    files = {"eval/report.py": {"save_path": "page.html"}}.get(script, TABLES)
    argv = [*rows, *(word for flag, name in files.items() for word in (f"--{flag}", tmp_path / name))]
    begun = time.monotonic()
    assert Run(script, *argv).wait() == 0
    length, whole = time.monotonic() - begun, contents(tmp_path)
    assert set(whole) == set(files.values())
    draw = random.Random(f"{SEED}/{script}")
    with capsys.disabled():
        print(f"\n{script}: FAULTS_SEED={SEED}", end=" ")
    for moment in range(5):
        if moment == 2:  # from now on nothing is there before
            for name in files.values():
                (tmp_path / name).unlink(missing_ok=True)
        code = hurt(draw, script, argv, length)
        assert code in HURT, code
        found = {name: data for name, data in contents(tmp_path).items() if not name.startswith(".")}
        assert found.items() <= whole.items()
    assert Run(script, *argv).wait() == 0
    assert contents(tmp_path) == whole, "nothing beside them"


# ---------------------------------------------------------------- how a command ends
def test_ctrl_c_while_a_script_imports():
    command = [sys.executable, "-c", "from utils import cli; raise KeyboardInterrupt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == ending.INTERRUPTED and done.stderr == "stopped: no result was written\n"


STREAMS = "import os, sys; {}; from utils import cli; cli.parser('x'); {}"


def test_streams_that_are_closed():
    """Standard input and output that are not there; a reader that has left: no words, 141."""
    run = lambda before, after, **more: subprocess.run(
        [sys.executable, "-c", STREAMS.format(before, after)], cwd=ROOT, text=True, check=False, **more
    )
    closed = "sys.stdin = sys.stdout = sys.stderr = None"
    assert run(closed, "print(sys.stdin.isatty(), sys.stdout.isatty())").returncode == 0
    reads, writes = os.pipe()
    os.close(reads)
    done = run("pass", "print('x')", stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert done.returncode == ending.NOBODY_READS and done.stderr == ""
    done = run("pass", "raise BrokenPipeError", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1 and "Traceback" in done.stderr, "another pipe"


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("why", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ["stopped: no result was written"]),
        (OutOfMemoryError("CUDA out of memory."), 4, ["--batch_size", "--gradient_checkpointing True"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, ["--moments 8bit"]),
        (OSError(28, "No space left on device", "x.csv"), 5, ["x.csv cannot be written: No space left"]),
        (RuntimeError("basic_ios::clear: iostream error"), 5, ["the result cannot be written: not all was"]),
        (ValueError("a fault of ours"), 1, ["Traceback", "a fault of ours"]),
    ],
    ids=["interrupt", "gpu", "cpu", "disk", "disk, by torch", "other"],
)
def test_how_a_command_ends(why, code, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    p = cli.parser("x")
    flags.add_train_args(p)
    cli.parse(p, ["--save_dir", "x"])

    def main():
        raise why

    assert code_of(main) == code
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert code == 1 or len(said.splitlines()) == 1
