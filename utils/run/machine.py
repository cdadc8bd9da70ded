"""What this process may use of the machine."""

from __future__ import annotations

import os
import resource
import sys


def cores() -> int:
    """On Linux by this process's affinity, which Slurm and containers set; elsewhere all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def peak_memory() -> int:
    """The most that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # elsewhere in KiB
