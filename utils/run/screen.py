"""What is said on the screen while a command works, so that it is never silent for long, and what is not."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import sys
import warnings


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


def any_screen() -> None:
    """Print a question mark for what the screen's encoding lacks (α under LANG=C), instead of ending the
    run."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who has started the command
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (until the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # standard error never fails: it escapes by itself; a file or a pipe, too, gets each line at once
        sys.stdout.reconfigure(errors="replace", line_buffering=True)


def quiet() -> None:
    """Keep the libraries' own notices (deprecations, tied weights in a state) off the screen; errors stay.

    Python's and the libraries' own settings (-W, TRANSFORMERS_VERBOSITY) go before.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(transformers|torch|accelerate|peft|huggingface_hub)\b")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
