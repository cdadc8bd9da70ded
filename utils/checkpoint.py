"""What a run leaves on disk: a whole Hugging Face checkpoint with `run.json` and `log.jsonl`, or nothing
under that name.

While a run works, everything lies in a hidden neighbour, `.<name>.partial`; when it is whole the folder is
renamed. The training state that --save_steps keeps lies there too.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils import cli
from utils.cli import Problems
from utils.data import fingerprint

PACKAGES = ("torch", "transformers", "accelerate", "peft", "pillow", "numpy")


def partial_folder(save_dir: str | Path) -> Path:
    save_dir = Path(save_dir)
    return save_dir.with_name(f".{save_dir.name}.partial")


def check_save_dir(
    save_dir: str | None, problems: Problems, inputs: dict[str, str | None], resume: bool = False
) -> None:
    """Add a problem unless `save_dir` is free, empty, or holds an earlier run of ours that may be replaced.

    inputs: {flag: folder} that the run reads and must not overwrite.
    """
    if not save_dir:
        return
    folder = Path(save_dir)
    if folder.name in ("", ".."):
        problems.add(f"--save_dir: {save_dir} is no new folder; give one a name")
        return
    for flag, given in inputs.items():
        if given and Path(given).exists() and folder.resolve() == Path(given).resolve():
            problems.add(f"--save_dir: {save_dir} is the same folder as {flag}")
            return
    if folder.is_file() or any(p.is_file() for p in folder.parents):
        problems.add(f"--save_dir: {save_dir} is or lies under a file")
    elif folder.is_dir() and any(folder.iterdir()) and not (folder / "run.json").is_file():
        problems.add(
            f"--save_dir: {save_dir} exists and is not ours (it holds no run.json); choose another folder"
        )
    if resume and not (partial_folder(folder) / "state" / "progress.json").is_file():
        problems.add(
            f"--resume: no kept state for {save_dir}; start without --resume and with --save_steps N"
        )


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
    return json.loads(path.read_text(encoding="utf-8"))


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
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # ru_maxrss is in KiB
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def publish(partial: Path, save_dir: str | Path) -> None:
    """Give the finished folder its final name; an earlier run of that name goes only now."""
    save_dir = Path(save_dir)
    if save_dir.exists():
        old = save_dir.with_name(f".{save_dir.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        save_dir.rename(old)
        partial.rename(save_dir)
        shutil.rmtree(old)
    else:
        partial.rename(save_dir)


def try_lock(handle: int, shared: bool = False, wait: bool = False) -> bool:
    """Take an open file until it is closed or the process ends; False where another process has it.

    shared: together with others who share it. wait: until it is free.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    return True


@contextmanager
def exclusive(lock: Path, doing: str, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock file, which exists only meanwhile. Raises SystemExit where another process holds it.

    The system releases it when the process ends, however it ends. doing: for the message. shared, wait: as
    for try_lock().
    """
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            free = try_lock(handle, shared, wait)
        except OSError as why:  # file systems without locks
            print(
                f"note: {lock.parent} cannot be locked ({why.strerror}): start nothing else that writes there"
            )
            break
        if not free:
            os.close(handle)
            raise SystemExit(f"error: {doing} already (it holds {lock}); wait for it, or stop it")
        # the one who held it before may have removed the file between our opening and our locking it
        if lock.exists() and lock.stat().st_ino == os.fstat(handle).st_ino:
            break
        os.close(handle)
    try:
        yield
    finally:
        if not shared or try_lock(handle):  # the last of those who share it
            lock.unlink(missing_ok=True)
        os.close(handle)
