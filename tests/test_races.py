"""Several processes at once: what one does between another's look and its step. Threads stand for processes,
since a lock belongs to the open file, not to the process."""

import errno
import fcntl
import json
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eval.results.read import read_results
from nano import warm
from utils import checkpoint
from utils.loop import engines, state
from utils.run import folders
from utils.run.ending import Problems

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["MLLMU_GA.py"])


def at_once(number: int, act) -> list:
    """What act(k) returns for k < number, all started at the same moment. Raises what one raises."""
    ready = threading.Barrier(number)

    def wait_and_act(k: int):
        ready.wait()
        return act(k)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(wait_and_act, range(number)))


def finished(partial: Path) -> None:
    """What a kill leaves between the last file and the folder's name."""
    partial.mkdir(parents=True)
    (partial / "run.json").write_text('{"script": "MLLMU_GA.py"}')


# ---------------------------------------------------------------- folders
def test_several_that_recover_lose_nothing(tmp_path, monkeypatch):
    publish = folders.publish

    def slowly(partial, save_dir):
        time.sleep(0.05)
        publish(partial, save_dir)

    monkeypatch.setattr(folders, "publish", slowly)
    run = tmp_path / "run"
    finished(folders.partial_folder(run))
    told = at_once(4, lambda k: folders.recover(run))
    assert sum(told) == 1 and (run / "run.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_nothing_is_recovered_of_what_is_being_written(tmp_path):
    run = tmp_path / "run"
    with folders.fresh(run) as folder:
        (folder / "run.json").write_text("{}")
        assert not folders.recover(run) and not run.exists()
    assert (run / "run.json").is_file()


def test_what_fails_gets_no_name(tmp_path):
    with pytest.raises(OSError, match="full"), folders.fresh(tmp_path / "run"):
        raise OSError("full")
    assert not (tmp_path / "run").exists()


def test_a_lock_that_comes_and_goes(tmp_path):
    """Each lock file is made and removed by whoever has it, while others open it."""
    lock, inside = tmp_path / "new" / ".lock", []

    def work(k: int):
        for _ in range(100):
            with folders.exclusive(lock, "a test", wait=True):
                inside.append(k)
                assert inside == [k]
                inside.remove(k)

    at_once(4, work)
    assert not lock.exists()


def test_who_asks_does_not_refuse_another(tmp_path):
    lock, over = tmp_path / ".lock", threading.Event()

    def work(k: int):
        if k:  # asks all the time
            while not over.is_set():
                folders.is_held(lock)
            return
        try:
            for _ in range(30):
                with folders.exclusive(lock, "a test"):
                    pass
        finally:
            over.set()

    at_once(3, work)


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_system_without_locks(shared, tmp_path, monkeypatch, capsys):
    def flock(handle, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with folders.exclusive(tmp_path / ".lock", "a test", shared=shared):
        pass
    assert "cannot be locked" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_neighbours_try_the_same_new_folder(tmp_path):
    for _ in range(50):
        found = at_once(4, lambda k: folders.why_not_written(tmp_path / "new" / "deep" / str(k)))
        assert found == [None] * 4
        shutil.rmtree(
            tmp_path / "new", ignore_errors=True
        )  # of two that both found it there, none removes it


def test_two_writers_of_one_file(tmp_path):
    file = tmp_path / "x.json"

    def work(k: int):
        for number in range(100):
            checkpoint.write_json(file, {"by": k, "numbers": [number] * 500 * (k + 1)})
            content = json.loads(file.read_text())
            assert len(set(content["numbers"])) == 1

    at_once(4, work)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_result_that_is_just_replaced_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_results(tmp_path / "zero_shot" / "forget05" / "results.json")


# ---------------------------------------------------------------- training
class Accelerator:
    is_main_process, num_processes = True, 1

    print = staticmethod(print)


def start(save_dir: Path, **flags) -> state.State:
    class Args:
        save_steps, resume, restart = None, False, False

    args = Args()
    args.save_dir, args.problems = str(save_dir), Problems()
    vars(args).update(flags)
    return state.State(args, Accelerator(), {})


def test_a_run_that_came_while_another_loaded_is_not_lost(tmp_path, capsys):
    kept = folders.partial_folder(tmp_path / "run") / folders.STATE
    kept.mkdir(parents=True)
    record = {name: kind() for name, kind in state.FIELDS.items() if name != "halted"} | {"halted": None}
    (kept / state.PROGRESS).write_text(json.dumps(record))
    with pytest.raises(SystemExit) as end, start(tmp_path / "run").alone():
        pass
    assert end.value.code == 2 and "go on with --resume True" in capsys.readouterr().err
    with start(tmp_path / "run", restart=True).alone():
        pass
    with start(tmp_path / "run", resume=True).alone():
        pass
    shutil.rmtree(kept)
    with pytest.raises(SystemExit) as end, start(tmp_path / "run", resume=True).alone():
        pass
    assert end.value.code == 2 and "is gone" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"script": "MLLMU_NPO.py"}')
    with pytest.raises(SystemExit) as end, start(tmp_path / "run").alone():
        pass
    assert end.value.code == 2 and "holds a run of MLLMU_NPO.py" in capsys.readouterr().err


def test_the_others_wait_longer_than_a_model_takes_to_write():
    assert engines.accelerator().init_handler.timeout.total_seconds() >= 3600


# ---------------------------------------------------------------- warm processes
STUBBORN = """
import signal, sys, time
from pathlib import Path

def parse_args():
    return sys.argv[1:]

def main(argv):
    if argv[0] == "fails":
        while not Path(argv[1]).exists():
            time.sleep(0.01)
        raise SystemExit(2)
    signal.signal(signal.SIGTERM, lambda *_: None)  # as a training that keeps its state first
    Path(argv[1]).touch()
    time.sleep(2)
"""


def test_a_step_that_fails_ends_all_others(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "PATIENCE", 3)
    script, began = tmp_path / "stubborn.py", tmp_path / "began"
    script.write_text(STUBBORN)
    steps = [warm.step(name, [script, name, began], tmp_path / name) for name in ("stays", "fails")]

    def late(*_):
        raise TimeoutError("the processes are never given up")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    try:
        with (
            pytest.raises(SystemExit, match="error: fails: exit code 2"),
            warm.Crew(2, tmp_path / "logs", warm=False) as crew,
        ):
            crew.run(steps)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not [p for p in crew.pool._processes or {} if Path(f"/proc/{p}").exists()]
