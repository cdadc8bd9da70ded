"""A training's state on disk: kept now and then and when the run is told to stop, and found by --resume.

It lies in the run's partial folder (utils/run/folders.py) until the finished model has its name. A new state
is whole, which its progress.json says, before the old one goes; whatever a kill leaves of that is settled on
resuming.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import checkpoint, cli
from utils.data import Sample, fingerprint
from utils.reading import model_files, weightless
from utils.run import ending, folders
from utils.run.screen import size

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

STOPPED = 75  # exit code of a run that was told to stop and has kept its state: "try again later"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EVERY = 15 * 60  # seconds between two states without --save_steps: a run of minutes keeps none
SHARE = 0.05  # of the time, at most, goes into writing them
PROGRESS = "progress.json"  # written last
FIELDS = {  # of it
    "step": int, "arguments": dict, "processes": int, "data": dict, "inputs": dict, "schedule": dict,
    "losses": dict, "halted": dict | None,
}  # fmt: skip
NOTHING = "nothing of this run was saved under its final name"
CUTS = ("batch_size", "gradient_accumulation_steps")  # how a global batch is cut: with the processes
# may change on resuming
FREE = ("resume", "restart", "config", "push_to_hub", "save_steps", "num_workers", "report_to", *CUTS)


def _places(partial: Path) -> tuple[Path, Path, Path]:
    state = partial / folders.STATE
    return state, state.with_name("state.part"), state.with_name("state.old")


def find(save_dir: str | Path) -> Path | None:
    """The newest whole state kept for `save_dir`."""
    state, part, old = _places(folders.partial_folder(save_dir))
    return next((place for place in (part, state, old) if (place / PROGRESS).is_file()), None)


def progress(place: Path) -> dict[str, Any]:
    """What a kept state says of its run. Raises ValueError, naming the file, where it is none of ours."""
    file = place / PROGRESS
    try:
        content = dict(checkpoint.read_json(file))
        wrong = [name for name, kind in FIELDS.items() if not isinstance(content[name], kind)]
        if wrong:
            raise TypeError(f"of another kind: {', '.join(wrong)}")
    except (OSError, ValueError, TypeError, KeyError) as why:
        raise ValueError(f"{file} is no record of a training ({why!r:.80})") from why
    return content


def kept(save_dir: str | Path) -> str | None:
    """What is kept, for the screen."""
    place = find(save_dir)
    if place is None:
        return None
    try:
        step = progress(place)["step"]
    except ValueError as why:
        return f"a training state is kept that cannot be gone on with: {why}"
    return f"the training state after step {step} is kept in {place}; go on with --resume True"


# ---------------------------------------------------------------- before anything loads
def check_start(args) -> None:
    """--resume needs a state, of the same run; without it none is thrown away but by --restart."""
    place = find(args.save_dir)
    if args.resume and args.restart:
        args.problems.add("--restart: begins anew; not together with --resume True")
    elif args.resume and place is None:
        args.problems.add(
            f"--resume: no kept state for {args.save_dir}; start without --resume (one is kept every 15"
            " minutes, every --save_steps N, and on SIGTERM)"
        )
    elif args.resume and not args.problems.lines:  # a flag that cannot be read stands at its default
        try:
            _check_same_run(args, progress(place))
        except (ValueError, KeyError, TypeError) as why:
            args.problems.add(f"--resume: {why}; begin anew with --restart True")
    elif place and not args.resume and not args.restart:
        args.problems.add(f"--save_dir: {kept(args.save_dir)}, or delete it with --restart True")


def _check_same_run(args, before: dict[str, Any]) -> None:
    """The same arguments, steps of as many samples."""
    now = cli.settings(args)
    for name, value in before["arguments"].items():
        if name not in FREE and now.get(name) != value:
            args.problems.add(
                f"--{name}: the kept run had {value}, not {now.get(name)}; --resume goes on with it"
            )
    sizes = []
    for settings, processes in (
        (before["arguments"], before["processes"]),
        (now, int(os.environ.get("WORLD_SIZE", "1"))),
    ):
        batch, forwards = (settings[name] for name in CUTS)
        sizes.append((batch * forwards * processes, f"{batch} × {forwards} × {processes}"))
    if sizes[0][0] != sizes[1][0]:
        args.problems.add(
            f"--batch_size: the kept run's steps are of {sizes[0][0]} samples (--batch_size ×"
            f" --gradient_accumulation_steps × processes: {sizes[0][1]}), these of {sizes[1][0]}"
            f" ({sizes[1][1]}); keep the product"
        )


def inputs(args) -> dict[str, str]:
    """{flag: fingerprint} of the models and the mask that lie here: under the same name may lie another."""
    from utils.masks import model_fingerprint

    found = {flag: model_files.local_folder(name) for flag, name in args.models.items() if name}
    prints = {flag: model_fingerprint(folder) for flag, folder in found.items() if folder}
    return prints | ({"--grad_mask_path": args.mask.fingerprint()} if args.mask else {})


def check_data(args, data: dict[str, list[Sample]]) -> None:
    """Stop unless the models, the mask and the data, of which utils.planning.fitting may have left some out,
    are those of the kept run."""
    place = find(args.save_dir)
    if place is None:
        cli.fail(f"--resume: the state kept for {args.save_dir} is gone")
    before, now = progress(place), inputs(args)
    for flag, was in before["inputs"].items():
        if now.get(flag) != was:
            args.problems.add(
                f"{flag}: what lies there is not what the kept run began with; put that back, or begin anew"
                " with --restart True"
            )
    for name, entry in before["data"].items():
        if name in data and fingerprint(data[name]) != entry["fingerprint"]:
            args.problems.add(f"--resume: the {name} data are not those of the kept run, or in another order")
    args.problems.stop()


# ---------------------------------------------------------------- while it runs
class State:
    """When and how the state of one run is kept. about: what every state says of the run."""

    def __init__(self, args, accelerator: Accelerator, about: dict[str, Any]):
        self.args, self.accelerator, self.about = args, accelerator, about
        self.partial = folders.partial_folder(args.save_dir)
        self.every = args.save_steps
        self.told: signal.Signals | None = None  # to stop, this process
        self.stop = False  # all processes
        self.last, self.cost = time.monotonic(), 0.0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else writes this save_dir; signals to stop are noted, for `wanted`, instead of obeyed."""
        before = {number: signal.signal(number, self._tell) for number in SIGNALS}
        try:
            if self.accelerator.is_main_process:
                with folders.alone(self.args.save_dir):
                    self._check_still()
                    yield
            else:
                yield
        except SystemExit:
            if self.stop:
                told = self.told.name if self.told else "a signal to another process"
                self.accelerator.print(f"stopped by {told}; {kept(self.args.save_dir)}", file=sys.stderr)
            raise
        except (Exception, KeyboardInterrupt) as why:
            if self.accelerator.is_main_process:
                self._drop_halves()
            why.add_note(kept(self.args.save_dir) or NOTHING)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _check_still(self) -> None:
        """What check_start and folders.check_save_dir saw holds: another run may have come and gone while
        this one loaded its model. Raises SystemExit."""
        where = self.args.save_dir
        if self.args.resume:
            if find(where) is None:
                cli.fail(f"--resume: the state kept for {where} is gone; another run has gone on with it")
        elif find(where) and not self.args.restart:
            cli.fail(f"--save_dir: another run was there meanwhile; {kept(where)}")
        if why := folders.why_not_ours(Path(where).resolve()):
            cli.fail(f"--save_dir: {where} {why}")

    def _tell(self, number: int, _) -> None:
        self.told = signal.Signals(number)

    def wanted(self, number: int) -> bool:
        """Whether the state is to be kept after step `number`; all processes agree on it."""
        if self.every is None:
            due = time.monotonic() - self.last > max(EVERY, self.cost / SHARE)
        else:
            due = self.every > 0 and number % self.every == 0
        self.stop = self.told is not None
        if self.accelerator.num_processes > 1:
            import torch

            votes = torch.tensor([due, self.stop], dtype=torch.float32, device=self.accelerator.device)
            due, self.stop = (self.accelerator.reduce(votes, "sum") > 0).tolist()
        return due or self.stop

    def check_room(self, weights: Iterable[torch.Tensor], saved_as: torch.dtype) -> None:
        """Before the first step, ask whether the disk has room: for the model, and for two states, one of
        them being written. Raises SystemExit for what was asked for and has no room."""
        weights = list(weights)
        model = sum(w.numel() for w in weights) * saved_as.itemsize
        moments = 8 * sum(w.numel() for w in weights if w.requires_grad)  # two in fp32, at most
        one = sum(w.numel() * w.itemsize for w in weights) + moments
        there = sum(f.stat().st_size for f in self.partial.rglob("*") if f.is_file())
        free = _of_main(folders.free_bytes(self.partial) + there)  # all decide alike
        says = f"; the disk of {self.args.save_dir} has {size(free)} free"
        if model > free:
            cli.fail(f"--save_dir: the model needs {size(model)}{says}")
        if max(2 * one, one + model) > free and self.every != 0:
            needs = f"a training state needs {size(one)}, twice while it is written{says}"
            if self.every:
                cli.fail(f"--save_steps: {needs}; --save_steps 0 keeps none")
            self.accelerator.print(f"note: {needs}: none is kept on the way")
            self.every = 0

    def keep(self, step: int, content: dict[str, Any]) -> None:
        """Keep model, optimizer, random states, and the content. Raises SystemExit(STOPPED) where `wanted`
        was told to stop."""
        begun, acc = time.monotonic(), self.accelerator
        _, part, _ = _places(self.partial)
        if acc.is_main_process:
            _remove(part)
        acc.wait_for_everyone()
        try:
            acc.save_state(str(part))
        except BaseException:
            if acc.is_main_process:
                _remove(part)  # of no use, and on a full disk in the way
            raise
        acc.wait_for_everyone()  # each process has written its random states
        if acc.is_main_process:
            checkpoint.write_json(part / PROGRESS, {"step": step, **content, **self.about})
            _settle(self.partial)
        acc.wait_for_everyone()
        self.last = time.monotonic()
        self.cost = self.last - begun
        if self.stop:
            raise SystemExit(STOPPED)

    def begin(self) -> dict[str, Any] | None:
        """An empty partial folder; or, with --resume, the kept state is loaded and what else it says
        returned."""
        acc, before = self.accelerator, None
        if acc.is_main_process:
            if self.args.resume:
                _settle(self.partial)
            else:
                for place in _places(self.partial):
                    _remove(place)
                shutil.rmtree(self.partial, ignore_errors=True)
                self.partial.mkdir()
        acc.wait_for_everyone()
        if self.args.resume:
            state, *_ = _places(self.partial)
            before = progress(state)
            try:
                _check_pickles(state)
                acc.load_state(str(state))
                self._check_random(state, before["processes"])
                if acc.is_main_process:
                    self._cut_back(before["step"])
            except (*weightless.refusals(), EOFError, pickle.UnpicklingError) as why:
                if ending.is_memory(why):
                    raise
                cli.fail(
                    f"--resume: what {state} holds cannot be read ({ending.first_line(why)}); begin anew with"
                    " --restart True"
                )
            acc.wait_for_everyone()
            self.accelerator.print(f"resumed after step {before['step']}")
        return before

    def _check_random(self, state: Path, processes: int) -> None:
        """Raises where this process's random states were not taken, of which accelerate says nothing. One
        that the kept run did not have draws anew."""
        import torch
        from accelerate.utils.other import load

        rank = self.accelerator.process_index
        if rank >= processes:
            return
        file = state / f"random_states_{rank}.pkl"
        if not torch.equal(load(file)["torch_manual_seed"], torch.get_rng_state()):
            raise ValueError(f"the random states of {file.name} were not taken")

    def _cut_back(self, step: int) -> None:
        """Take what lies in the partial folder back to where it was after the step."""
        self._drop_halves()
        log = self.partial / "log.jsonl"
        lines = log.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        if not kept:
            raise ValueError(f"{log} holds none of the steps")
        checkpoint.write_whole(log, b"".join(kept))

    def _drop_halves(self) -> None:
        """Remove the files of a model that was not saved to the end."""
        for rest in self.partial.glob("*"):
            if rest.is_file() and rest.name != "log.jsonl":
                rest.unlink()


def _of_main(value: int) -> int:
    """What the first process found."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def _check_pickles(state: Path) -> None:
    """Raises pickle.UnpicklingError for a file that would run code: accelerate reads those of custom objects
    with weights_only=False."""
    from accelerate.utils.other import load

    for file in folders.found(state, "*.pkl"):
        load(file, map_location="cpu")  # only what it holds safe


def _settle(partial: Path) -> None:
    """A whole new state takes the old one's place; at every moment `find` finds one of them."""
    state, part, old = _places(partial)
    if (part / PROGRESS).is_file():
        if state.exists():
            _remove(old)
            state.rename(old)
        part.rename(state)
    elif not state.exists() and (old / PROGRESS).is_file():
        old.rename(state)
    _remove(part)
    _remove(old)


def _remove(place: Path) -> None:
    """Not whole any more from the first moment on."""
    (place / PROGRESS).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
