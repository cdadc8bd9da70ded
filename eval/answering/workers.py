"""Workers that answer batches of requests: one process per GPU, or this process where there is one.

A worker takes the next batch when it has answered its last, so that all finish together, however long
replies turn out to be and however fast each GPU is. Nothing is written here: who asked keeps the answers.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from utils import checkpoint, cli, families, models
from utils.run import machine, screen

if TYPE_CHECKING:
    from eval.answering.plan import Request


@dataclass(frozen=True)
class Setup:
    """What a worker loads. change: model -> model, what becomes of it then."""

    evaluated_model: str
    original_model: str | None
    dtype: str
    attn: str
    max_new_tokens: int
    change: Callable | None = None

    def start(self, device: str, threads: int | None = None) -> Worker:
        return Worker(self, device, threads)


@dataclass(frozen=True)
class Answered:
    """A batch's answers, and what they cost: seconds since the worker's last batch, its peaks of memory."""

    worker: int
    batch: int
    answers: list[str | list[float]]
    cost: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """Why a worker has ended itself, and its exit code (utils/run/ending.py)."""

    line: str
    code: int


def pick_devices(gpus: Sequence[int]) -> list[str]:
    """One device per worker. Without a GPU as many CPU workers as GPUs were asked for, up to one per core.

    Raises SystemExit for a GPU that is not there.
    """
    import torch

    there = torch.cuda.device_count()
    if not there:
        return ["cpu"] * min(len(gpus), machine.cores())
    missing = [gpu for gpu in gpus if gpu >= there]
    if missing:
        cli.fail(f"--gpus: there is no GPU {missing[0]}; this process sees {there}, from 0")
    return [f"cuda:{gpu}" for gpu in gpus]


class OnDevice:
    """What works on a device, and what each batch costs there."""

    def __init__(self, device: str, threads: int | None = None):
        self.started = time.monotonic()
        import torch

        if device == "cpu":
            torch.set_num_threads(threads or torch.get_num_threads())
            keep_memory()
        else:
            torch.cuda.set_device(device)
        self.device = device

    def cost(self, questions: int) -> dict[str, Any]:
        """Since the last batch; loading is part of the first."""
        cost = {"questions": questions, "device": self.device, **checkpoint.cost(self.started)}
        self.started = time.monotonic()
        return cost


class Worker(OnDevice):
    """A loaded model on its device."""

    def __init__(self, setup: Setup, device: str, threads: int | None = None):
        super().__init__(device, threads)
        from eval.answering.generate import Answerer

        processor = models.load_processor(setup.evaluated_model, setup.original_model)
        model = models.load_model(setup.evaluated_model, setup.dtype, setup.attn, processor)
        model = (setup.change(model) if setup.change else model).to(device)
        self.answerer = Answerer(model, processor, families.family_of(model), setup.max_new_tokens)

    def answer(self, requests: list[Request]) -> tuple[list, dict[str, Any]]:
        return self.answerer.answer(requests), self.cost(len(requests))


def keep_memory() -> None:
    """On a CPU: large pages, and freed memory stays with the process, instead of being mapped and cleared
    anew for every activation (a tenth of the time, where it was tried). Without effect outside glibc."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it first wants a large tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its highest
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def answer_batches(
    setup: Setup, devices: Sequence[str], batches: Mapping[int, list[Request]]
) -> Iterator[Answered]:
    """The batches' answers as they come, by one worker per device."""
    if len(devices) > 1:
        cores = machine.cores() // len(devices)
        asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # one per level, as OpenMP has it
        threads = min(int(asked), cores) if asked.isdecimal() else cores
        yield from answer_in_processes(setup, devices[: len(batches)], batches, max(1, threads))
    else:
        worker = setup.start(devices[0])
        for number, requests in batches.items():
            yield Answered(0, number, *worker.answer(requests))


# ---------------------------------------------------------------- several processes
def answer_in_processes(
    setup: Setup, devices: Sequence[str], batches: Mapping[int, list[Request]], threads: int
) -> Iterator[Answered]:
    """The same by one process per device, CPU workers with so many threads each."""
    context = multiprocessing.get_context("spawn")  # a forked process could not use its GPU
    queue = iter(batches.items())
    processes, pipes = [], {}
    try:
        for number, device in enumerate(devices):
            pipe, far_end = context.Pipe()
            process = context.Process(
                target=_worker_process,
                args=(far_end, setup, device, threads),
                name=f"worker {number}",
                daemon=True,
            )
            with _no_ctrl_c():
                process.start()
            far_end.close()
            processes.append(process)
            pipes[pipe] = number
        while pipes:
            for pipe in wait(list(pipes)):
                answered = _received(pipe, pipes[pipe], processes)
                if answered is not None:
                    yield answered
                following = next(queue, None)
                with suppress(BrokenPipeError):  # it died since: `_received` will say so
                    pipe.send(following)
                if following is None:
                    del pipes[pipe]
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """A process that is started now never hears of Ctrl-C, not even while it is still importing: that is for
    the process that asks, which ends this one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _received(pipe: Connection, number: int, processes: list) -> Answered | None:
    """A batch's answers, or None from a worker that has loaded its model."""
    try:
        message = pipe.recv()
    except (EOFError, ConnectionResetError):
        processes[number].join()
        code = processes[number].exitcode
        cli.fail(
            f"worker {number} died (exit code {code}; -9: killed, perhaps for want of memory);"
            " nothing is lost: run the same command again",
            code=1,
        )
    if isinstance(message, Ended):
        cli.fail(f"{message.line} (worker {number})", message.code)
    return message and Answered(number, *message)


def _worker_process(pipe: Connection, setup: Setup, device: str, threads: int) -> None:
    """A worker's process: batches in, answers out, until there is nothing more or nobody who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where a server of forkserver started this process
    screen.any_screen()
    screen.quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker = setup.start(device, threads)
        pipe.send(None)
        while (task := pipe.recv()) is not None:
            number, requests = task
            pipe.send((number, *worker.answer(requests)))
    except SystemExit as why:
        pipe.send(Ended(str(why), why.code))
    except (EOFError, BrokenPipeError):
        sys.exit(1)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
