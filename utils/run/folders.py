"""Where a run writes: tried before anything loads, held by one run at a time, and whole at every moment.

While a run works, everything lies in a hidden neighbour, `.<name>.partial`; when it is whole the folder is
renamed. A kill at any moment leaves the earlier folder or the new one, and `recover` gives it its name. Where
the given name is a symbolic link, all this is done where it points to.
"""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.run.ending import fail
from utils.run.jsonl import parse

if TYPE_CHECKING:
    from utils.run.ending import Problems

WHOLE = "run.json"  # written last: a folder that holds it is whole
STATE = "state"  # a training's state, in its partial folder, until the model has its name
ABOVE = 4  # folders above a result that are looked at
Inputs = Iterable[tuple[str, str | Path | None]]  # (flag, what it names)


def partial_folder(save_dir: str | Path) -> Path:
    return _beside(save_dir, "partial")


def lock_file(save_dir: str | Path) -> Path:
    return _beside(save_dir, "lock")


def _beside(save_dir: str | Path, what: str) -> Path:
    folder = Path(save_dir).resolve()
    return folder.parent / f".{folder.name}.{what}"  # also of /, which has no name


# ---------------------------------------------------------------- before anything loads
def check_save_dir(
    save_dir: str | Path | None, problems: Problems, inputs: Inputs = (), trains: bool = False
) -> None:
    """Add a problem unless the folder can be written, is free, empty, or holds an earlier run of this script,
    and neither holds what the run reads nor lies in it.

    trains: a training's state may be kept for it, which others would delete.
    """
    if not save_dir:
        return
    folder = Path(save_dir)
    if folder.name in ("", ".."):
        problems.add(f"--save_dir: {save_dir} is no new folder; give one a name")
        return
    folder = folder.resolve()
    for flag, given in inputs:
        there = Path(given).resolve() if given and Path(given).exists() else None
        if there == folder:
            problems.add(f"--save_dir: {save_dir} is the same folder as {flag}")
        elif there and there.is_relative_to(folder):
            problems.add(f"--save_dir: {save_dir} holds {given} ({flag}), which would be lost with it")
        elif there and folder.is_relative_to(there):
            problems.add(f"--save_dir: {save_dir} lies in {given} ({flag}); choose a folder outside")
        elif there and (linked := _links_into(there, folder)):
            problems.add(f"--save_dir: {save_dir} holds {linked}, a link in {given} ({flag}) points there")
        else:
            continue
        return
    if why := why_not_a_place(folder) or why_not_written(folder):
        problems.add(f"--save_dir: {save_dir} {why}")
        return
    if is_held(lock_file(folder)):
        problems.add(f"--save_dir: another run writes {save_dir} now; wait for it, or stop it")
        return
    recover(folder)
    if not trains and found(partial_folder(folder), f"{STATE}*"):
        problems.add(f"--save_dir: a training's state is kept for {save_dir}; choose another folder")
    elif why := why_not_ours(folder):
        problems.add(f"--save_dir: {save_dir} {why}")


def found(folder: Path, pattern: str) -> list[Path]:
    """What matches there, by name. What another process takes away meanwhile is passed over, where
    Path.glob raises FileNotFoundError."""
    return sorted(folder / name for name in glob.glob(pattern, root_dir=folder))


def found_below(folder: Path, pattern: str) -> list[Path]:
    """Files of such names at any depth, hidden ones, too; links to folders are not followed. As `found`."""
    walk = os.walk(folder)
    return sorted(Path(place, f) for place, _, files in walk for f in fnmatch.filter(files, pattern))


def why_not_a_place(folder: Path) -> str | None:
    """Why no result belongs there: in a benchmark's folder, where readers would find it, or in the cache that
    models of the hub lie in."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser().resolve()
    if folder.resolve().is_relative_to(cache):
        return f"lies in {cache}, the cache of the Hugging Face hub; choose a folder outside"
    for above in folder.resolve().parents[:ABOVE]:
        tables = {file.parent for file in found(above, "*/train-*.parquet")}
        if len(tables) > 1 or found(above, "train-*.parquet"):
            return f"lies in {above}, a benchmark's folder; choose a folder outside"
    return None


def _links_into(there: Path, folder: Path) -> Path | None:
    """What a link in the folder `there` (a model's weights, a table) points to in `folder`."""
    links = (path.resolve() for path in there.iterdir() if path.is_symlink()) if there.is_dir() else ()
    return next((path for path in links if path.is_relative_to(folder)), None)


def why_not_ours(folder: Path, whole: str = WHOLE) -> str | None:
    """Why the folder may not be replaced; None where it is free, empty, or an earlier result of this
    command."""
    if folder.exists() and not folder.is_dir():  # a device, too
        return "is a file"
    if is_mount(folder):
        return "is a mount point, which cannot be replaced; name a folder in it"
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not (folder / whole).is_file():
        return f"exists and is not ours (it holds no {whole}); choose another folder"
    if whole == WHOLE:
        try:
            script = parse((folder / whole).read_text(encoding="utf-8"))["script"]
        except (ValueError, KeyError, TypeError, OSError):
            return f"holds a {whole} that cannot be read; choose another folder"
        if script != Path(sys.argv[0]).name:
            return f"holds a run of {script}; choose another folder, or remove it"
    if inner := [p.parent for p in found_below(folder, WHOLE) if p.parent != folder]:
        return f"holds other runs, such as {inner[0]}, which would be lost with it; choose another folder"
    if held := [lock for lock in found_below(folder, ".*.lock") if is_held(lock)]:
        return f"is in use: another process writes {held[0].parent}; wait for it, or stop it"
    return None


def is_mount(folder: Path) -> bool:
    """Also of a folder of the same file system (a bind mount)."""
    mounts = Path("/proc/self/mountinfo")
    lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines() if mounts.is_file() else []
    return os.path.ismount(folder) or str(folder) in {line.split()[4] for line in lines}


def why_not_written(path: Path) -> str | None:
    """Why nothing can be written where `path` will lie; None where that was tried and worked. Nothing
    stays."""
    if any(p.is_file() for p in path.parents):
        return "lies under a file"
    new = [p for p in path.parents if not p.exists()]  # the innermost first
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        _persist(lambda: probe.mkdir(parents=True, exist_ok=True))
        (probe / "x").write_bytes(bytes(4096))
    except OSError as why:
        return f"cannot be written: {why.strerror}"
    finally:
        shutil.rmtree(probe, ignore_errors=True)
        for p in new:
            with suppress(OSError):  # another run's by now
                p.rmdir()
    return None


def _persist(act: Callable[[], Any]) -> Any:
    """What `act` returns: a neighbour may take away the new, empty folder that it relies on."""
    for _ in range(5):
        with suppress(FileNotFoundError):
            return act()
    return act()


def check_writable(folder: str | Path, flag: str, problems: Problems) -> None:
    """Add a problem unless files can be written in the folder, which need not be there yet."""
    where = Path(folder).resolve()
    if why := "is a file" if where.exists() and not where.is_dir() else why_not_written(where / "x"):
        problems.add(f"{flag}: {folder} {why}")


def check_file(path: str | Path | None, flag: str, problems: Problems, *suffixes: str) -> None:
    """Add a problem unless the file can be written; one that is there is replaced if it has one of the
    suffixes."""
    if not path:
        return
    file = Path(path).resolve()
    if file.is_dir():
        problems.add(f"{flag}: {path} is a folder; give a file such as name{suffixes[0]}")
    elif file.exists() and file.suffix not in suffixes:
        problems.add(f"{flag}: {path} exists and is no {' or '.join(suffixes)} file; choose another name")
    elif why := why_not_written(file):
        problems.add(f"{flag}: {path} {why}")


def free_bytes(folder: Path) -> int:
    """Free on the disk that the folder lies or will lie on."""
    folder = folder.resolve()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


# ---------------------------------------------------------------- one name, always whole
def publish(partial: Path, save_dir: str | Path) -> None:
    """Give the finished folder its final name; an earlier folder of that name goes only now."""
    folder, old = Path(save_dir).resolve(), _beside(save_dir, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    partial.rename(folder)
    _tidy(folder)


@contextmanager
def fresh(save_dir: str | Path) -> Iterator[Path]:
    """For `with`: an empty folder, which gets its final name where all went well. Nobody else writes it
    meanwhile."""
    partial = partial_folder(save_dir)
    with alone(save_dir):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        publish(partial, save_dir)


def recover(save_dir: str | Path, partial: Path | None = None, whole: str = WHOLE) -> bool:
    """Finish a publishing in whose midst a kill came: whether a whole folder got its name only now.

    Nothing is done while another process works there, or recovers it.
    """
    folder, old = Path(save_dir).resolve(), _beside(save_dir, "old")
    partial = partial or partial_folder(save_dir)
    if not ((partial / whole).is_file() or old.exists() or (folder / STATE).exists()):
        return False
    with ExitStack() as lock:
        try:
            lock.enter_context(holding(lock_file(save_dir)))
        except (Held, OSError):
            return False
        finished = (partial / whole).is_file()  # others may have done it meanwhile
        if finished:
            publish(partial, folder)
        elif not folder.exists() and old.exists():
            old.rename(folder)
        _tidy(folder)
    return finished


def _tidy(folder: Path) -> None:
    """Remove what nobody needs once the folder is whole."""
    for rest in (folder / STATE, _beside(folder, "old")):
        shutil.rmtree(rest, ignore_errors=True)


# ---------------------------------------------------------------- one run at a time
_held: set[int] = set()  # handles of the locks of this process


def _let_go() -> None:
    """A forked process that prepares batches must not hold on to the lock after this one was killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


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


def _lock_soon(handle: int, seconds: float, shared: bool = False) -> bool:
    """As try_lock; whoever only asks whether a lock is held has it for a moment, which is waited for."""
    until = time.monotonic() + seconds
    while not try_lock(handle, shared):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock file, by `exclusive`."""
    try:
        handle = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock_soon(handle, 0.1)
    except OSError:  # file systems without locks
        return False
    finally:
        os.close(handle)


def written_above(folder: Path) -> Path | None:
    """The folder above that a run writes now, and would replace with all that is in it."""
    return next((p for p in folder.resolve().parents[:ABOVE] if is_held(lock_file(p))), None)


def alone(save_dir: str | Path):
    """For `with`: nobody else writes the folder meanwhile. Raises SystemExit where somebody does."""
    return exclusive(lock_file(save_dir), f"another run writes {save_dir}")


@contextmanager
def exclusive(lock: Path, doing: str, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """`holding`. Raises SystemExit where another process holds the lock. doing: for the message."""
    with ExitStack() as held:
        try:
            held.enter_context(holding(lock, shared, wait))
        except Held:
            fail(f"{doing} already (it holds {lock}); wait for it, or stop it")
        yield


class Held(Exception):
    """Another process holds the lock."""


@contextmanager
def holding(lock: Path, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock file, which exists only meanwhile. Raises Held where another process holds it.

    The system releases it when the process ends, however it ends. shared: together with others who share it.
    wait: until it is free.
    """
    handle, locked = _taken(lock, shared, wait)
    _held.add(handle)
    try:
        yield
    finally:
        if not shared or not locked or try_lock(handle):  # the last of those who share it
            lock.unlink(missing_ok=True)
        _held.discard(handle)
        os.close(handle)


def _taken(lock: Path, shared: bool, wait: bool) -> tuple[int, bool]:
    """The open lock file, and whether it could be locked; some file systems have no locks."""

    def opened() -> int:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)

    while True:
        handle = _persist(opened)
        try:
            free = try_lock(handle, shared, wait) if wait else _lock_soon(handle, 1.0, shared)
        except OSError as why:
            print(
                f"note: {lock.parent} cannot be locked ({why.strerror}): start nothing else that writes there"
            )
            return handle, False
        if not free:
            os.close(handle)
            raise Held
        try:  # who held it before may have removed the file between our opening and our locking it
            if os.stat(lock).st_ino == os.fstat(handle).st_ino:
                return handle, True
        except FileNotFoundError:
            pass
        os.close(handle)
