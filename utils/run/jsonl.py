"""JSON as it is read, and files of JSON lines, only appended to, so that what a run has done outlives its
end.

Lines end at b"\\n" alone: texts may hold what str.splitlines takes for a line's end.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO


def parse(text: str | bytes) -> Any:
    """json.loads. Raises JSONDecodeError, a ValueError, also for what is nested without end."""
    try:
        return json.loads(text)
    except RecursionError as why:
        raise json.JSONDecodeError("nested without end", "", 0) from why


def read(path: Path) -> tuple[list[bytes], bytes]:
    """The whole lines, and what a stop in the middle of a line has left behind them; none without a file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    *lines, rest = content.split(b"\n")
    return lines, rest


def cut(path: Path, rest: bytes) -> None:
    """Take the rest of a line, as read() gives it, off the file."""
    if rest:
        os.truncate(path, path.stat().st_size - len(rest))


def append(file: BinaryIO, content: dict[str, Any]) -> None:
    """Write one line to a file opened with "ab"; it is there even if the process is killed afterwards."""
    file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
    file.flush()
