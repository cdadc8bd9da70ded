"""Commands of this suite in warm processes: torch is imported once per process, not once per command.

A step starts when all that it needs is there, the first of the list first; what it prints goes to its log. A
step whose result is there, and no older than what it needs, is not repeated, so what was stopped goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 20  # seconds
PERCENT = re.compile(r"(\d+)%\|")  # of a bar in a log


@dataclass(frozen=True)
class Step:
    """argv: a script and its flags. makes: a file or folder that is there when it is done. needs: what other
    steps make. seconds: about how long it takes, for the bar. then: what is left to do with the result."""

    name: str
    argv: tuple[str, ...]
    makes: Path
    needs: tuple[Path, ...] = ()
    seconds: float = 10.0
    then: Callable[[], None] | None = None

    @property
    def text(self) -> str:
        """As one types it."""
        return shlex.join(["python", *self.argv])

    def is_done(self) -> bool:
        made = self.makes.stat().st_mtime_ns if self.makes.exists() else -1
        return all(p.exists() and p.stat().st_mtime_ns <= made for p in self.needs) and made >= 0


def step(name: str, argv: Sequence, makes: Path, needs: Sequence[Path] = (), **more) -> Step:
    return Step(name, tuple(map(str, argv)), makes, tuple(needs), **more)


# ---------------------------------------------------------------- one command
def command(script: str, *argv: str) -> None:
    """What `python script argv...` does, in this process."""
    path = ROOT / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    before, sys.argv = sys.argv, [str(path), *map(str, argv)]
    sys.modules[path.stem] = module  # where dataclasses look for their module
    try:
        spec.loader.exec_module(module)
        module.main(module.parse_args())
    finally:
        sys.argv = before
        del sys.modules[path.stem]


def quietly(log: Path, argv: Sequence[str], then: Callable[[], None] | None) -> tuple[float, str | None]:
    """Run a command, its output in a file; its seconds and, where it failed, its exit code with the log's
    last line."""
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    failed, told = None, ""
    with log.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            command(*argv)
            if then:
                then()
        except SystemExit as end:
            failed, told = None if end.code in (0, None) else end.code, " ".join(map(str, end.args))
    if failed is not None:
        lines = log.read_text(errors="replace").strip().splitlines()
        failed = f"exit code {failed}: {told.replace(chr(10), '; ') or lines[-1:]} ({log})"
    return time.monotonic() - began, failed


def warm_up() -> None:
    """Import what most commands need, while a process has nothing else to do."""
    import accelerate  # noqa: F401
    from transformers import (  # noqa: F401  # noqa: F401
        AutoModelForImageTextToText,
        AutoProcessor,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )


# ---------------------------------------------------------------- all of them
class Crew:
    """Warm processes, each with one thread for arithmetic, so that the numbers are the same on any number of
    cores. warm: import torch in all of them at once; False for steps that do without."""

    def __init__(self, processes: int, logs: Path, warm: bool = True):
        os.environ["OMP_NUM_THREADS"] = "1"
        self.pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
        self.processes, self.logs, self.warm = processes, logs, warm

    def __enter__(self) -> Crew:
        self.before = signal.signal(signal.SIGTERM, _stop)
        return self

    def __exit__(self, kind, why, _) -> None:
        if isinstance(why, KeyboardInterrupt):
            why.add_note("what is finished is kept; the same command goes on")
        signal.signal(signal.SIGTERM, self.before)
        if kind:  # nobody waits for what runs
            _end(list((self.pool._processes or {}).values()))
        self.pool.shutdown(wait=True, cancel_futures=True)

    def log(self, one: Step) -> Path:
        return self.logs / f"{one.name.replace(' ', '_')}.txt"

    def run(self, steps: Sequence[Step], ended: Callable[[Step, float], None] = lambda *_: None) -> None:
        """All steps. ended(step, seconds) is called after each that ran. SystemExit where one fails."""
        from tqdm import tqdm

        waiting = [one for one in steps if not _settled(one, steps)]
        running: dict[Future, Step] = {}
        live = sys.stderr.isatty()
        total, past = sum(one.seconds for one in waiting), 0.0
        form = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}"
        for _ in waiting[: self.processes] if self.warm else ():
            self.pool.submit(warm_up)  # also those that wait for the first step's result
        with tqdm(total=total, bar_format=form, mininterval=0, disable=not waiting) as bar:
            while waiting or running:
                for one in [w for w in waiting if _can_start(w, waiting, running.values())]:
                    if len(running) == self.processes:
                        break
                    waiting.remove(one)
                    running[self.pool.submit(quietly, self.log(one), one.argv, one.then)] = one
                done, _ = wait(running, timeout=0.5 if live else 10, return_when=FIRST_COMPLETED)
                for future in done:
                    one, (seconds, failed) = running.pop(future), future.result()
                    if failed:
                        raise SystemExit(f"error: {one.name}: {failed}")
                    past += one.seconds
                    with bar.external_write_mode():
                        ended(one, seconds)
                shares = {one: self._share(one) for one in running.values()}
                bar.set_description_str(", ".join(one.name for one in shares), refresh=False)
                bar.n = min(total, past + sum(share * one.seconds for one, share in shares.items()))
                bar.refresh()

    def _share(self, one: Step) -> float:
        """How much of a running step its log says is done."""
        try:
            with self.log(one).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 600))
                found = PERCENT.findall(file.read().decode(errors="replace"))
        except OSError:
            return 0.0
        return int(found[-1]) / 100 if found else 0.0


def _end(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Told to stop, and killed where that does not end them in time: a training keeps its state first, and
    one that waits for work may wait for a lock that another took along."""
    until = time.monotonic() + PATIENCE
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()


def _stop(*_) -> None:
    """SIGTERM takes the processes along."""
    raise SystemExit(143)


def _settled(one: Step, steps: Sequence[Step]) -> bool:
    """Whether its result can stay: it is there, and whatever it needs can stay, too."""
    makers = {other.makes: other for other in steps}
    return one.is_done() and all(_settled(makers[p], steps) for p in one.needs if p in makers)


def _can_start(one: Step, waiting: Sequence[Step], running) -> bool:
    pending = {other.makes for other in [*waiting, *running]}
    return not any(need in pending for need in one.needs)
