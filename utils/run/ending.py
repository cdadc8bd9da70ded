"""How a command ends: exit codes, and the one line that says why. docs/running.md has the table of codes."""

from __future__ import annotations

import multiprocessing
import sys
from typing import NoReturn

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
