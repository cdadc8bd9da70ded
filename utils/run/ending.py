"""How a command ends: exit codes, and the one line that says why. docs/running.md has the table of codes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import select
import sys
from pathlib import Path
from typing import NoReturn

from utils.run.screen import main_process

ROOT = Path(__file__).resolve().parents[2]

# beside 0 (whole) and 1 (the last line says what is missing)
WRONG_INPUT, DIVERGED, NO_MEMORY, NO_ROOM, INTERRUPTED, NOBODY_READS = 2, 3, 4, 5, 130, 141


class Problems:
    """Collects what is wrong with the input; `stop()` prints it all, one line each, and ends with exit code
    2."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)

    def stop(self) -> None:
        """Exit with code 2 if anything was added."""
        if self.lines:
            _end(self.lines, WRONG_INPUT)


def fail(line: str, code: int = WRONG_INPUT) -> NoReturn:
    """End the run with this line."""
    _end([line], code)


def _end(lines: list[str], code: int) -> NoReturn:
    """Print the lines and exit. The SystemExit holds them, too: a worker's process leaves it to the one that
    asked to print them."""
    if multiprocessing.parent_process() is None:
        for line in lines:
            print(f"error: {line}", file=sys.stderr)
    end = SystemExit("\n".join(lines))
    end.code = code
    raise end


def first_line(why: Exception) -> str:
    """What an exception of transformers says, in one line."""
    return next(filter(None, map(str.strip, str(why).splitlines())), type(why).__name__)


def last_words(args, kind, why, trace) -> None:
    """How a command ends that nothing caught (sys.excepthook): one line for what comes from outside, and what
    was noted about it (add_note)."""
    notes = getattr(why, "__notes__", [])
    if isinstance(why, ModuleNotFoundError):
        requirements = ROOT / "requirements.txt"
        go_elsewhere(f"has no {why.name}", f"python -m pip install -r {requirements}")
    elif isinstance(why, KeyboardInterrupt):
        if main_process():
            print(f"stopped: {'; '.join(notes) or 'no result was written'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    elif isinstance(why, BrokenPipeError) and _nobody_reads():
        sys.exit(NOBODY_READS)
    elif is_memory(why):
        words = (str(why).splitlines() or [kind.__name__])[0]
        fail("; ".join([f"out of memory ({words})", *_memory_hints(args), *notes]), NO_MEMORY)
    elif reason := _why_no_room(why):
        where = getattr(why, "filename", None) or "the result"
        fail("; ".join([f"{where} cannot be written: {reason}", *notes]), NO_ROOM)
    else:
        sys.__excepthook__(kind, why, trace)


def go_elsewhere(lacks: str, fix: str) -> NoReturn:
    """Start the command again in the environment that demo.sh and test.sh have made; without one, a line that
    says what this Python lacks."""
    own = ROOT / ".venv"
    if (own / "bin" / "python").is_file() and os.environ.get("VIRTUAL_ENV") != str(own):
        python = str(own / "bin" / "python")
        print(f"note: {sys.executable} {lacks}; going on with {python}", file=sys.stderr, flush=True)
        os.environ["VIRTUAL_ENV"] = str(own)  # once only
        os.execv(python, [python, *sys.argv])
    fail(f"{sys.executable} {lacks}: {fix}")


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that its reader has left (`| head`); what is still to be written is
    dropped then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def is_memory(why: BaseException) -> bool:
    """Torch's own kind on a GPU; on the CPU it is a RuntimeError."""
    named = type(why).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in str(why)
    return named or isinstance(why, MemoryError)


def _memory_hints(args) -> list[str]:
    """What needs less memory, of what the command has and does not do yet."""
    hints = {
        "batch_size": ("try a smaller --batch_size", 1),
        "gradient_accumulation_steps": ("with --gradient_accumulation_steps the step stays the same", None),
        "batch_tokens": ("fewer --batch_tokens", None),
        "gradient_checkpointing": ("--gradient_checkpointing True", True),
        "moments": ("--moments 8bit", "8bit"),
        "lora": ("--lora True", True),
        "blocks": ("more --blocks", None),
    }
    has = getattr(args, "defaults", {})
    return [words for name, (words, done) in hints.items() if name in has and getattr(args, name) != done]


def _why_no_room(why: BaseException) -> str | None:
    """Disk full, quota, file too large, read-only: as Python, safetensors or torch say it."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    for code in codes:
        if getattr(why, "errno", None) == code or f"(os error {code})" in str(why):
            return os.strerror(code)
    by_torch = "inline_container" in str(why) or "PytorchStreamWriter" in str(why)  # gives no reason
    cut = (by_torch and "unexpected pos" in str(why)) or "basic_ios::clear: iostream error" in str(why)
    return "not all was written, as on a full disk" if cut else None
