"""What is said on the screen while a command works, so that it is never silent for long."""

from __future__ import annotations

import multiprocessing
import os


def main_process() -> bool:
    """Whether this process speaks and writes for all that `accelerate launch` has started."""
    return os.environ.get("RANK", "0") == "0"


def step(doing: str) -> None:
    """Say what is done next, once for all processes; it is seen at once."""
    if main_process() and multiprocessing.parent_process() is None:
        print(f"{doing} ...", flush=True)


def size(n: float) -> str:
    """A number of bytes, for people."""
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"
