"""What a run says of itself: the `run.json` beside its results; and files written whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils import cli
from utils.data import fingerprint
from utils.run import machine
from utils.run.jsonl import parse

PACKAGES = ("torch", "transformers", "accelerate", "peft", "pillow", "numpy")


def git_commit() -> str | None:
    """The commit of this suite, with "+" when files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    git = lambda *words: subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    if shutil.which("git") is None or git("rev-parse", "--git-dir").returncode:
        return None
    head = git("rev-parse", "HEAD").stdout.strip()
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no").stdout.strip() else "")


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def read_json(path: Path) -> Any:
    """Raises OSError and ValueError."""
    return parse(path.read_text(encoding="utf-8"))


def manifest(args, data: dict[str, list], accelerator) -> dict[str, Any]:
    """The beginning of a run.json: every flag, versions, commit, device, and a fingerprint of each data
    set."""
    return {
        "script": Path(sys.argv[0]).name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": cli.settings(args),
        "seed": args.seed,
        "git_commit": git_commit(),
        "versions": versions(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "data": {
            name: {"samples": len(items), "fingerprint": fingerprint(items)} for name, items in data.items()
        },
    }


def cost(started: float) -> dict[str, Any]:
    """Wall time since `started` (time.monotonic) and peak memory of this process, for the end of a
    run.json."""
    import torch

    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": machine.peak_memory(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")  # two may write it at once
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
