"""What the benchmark readers share: finding tables, requiring columns, and telling all that is wrong at once.

A benchmark is a subclass with its title, ratios and folders, and with the methods that the scripts call:
training samples from `finetune()`, `reference()`, `forget()`, `retain()` and `text_knowledge()`, evaluation
questions from `questions(split, seed)`. What is to be known about its splits is said in SPLITS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import Problems
from utils.data import Picture, Sample, columns_of, drop_bad_pictures, is_table, picture_from, read_rows

FLAG = "--data_split_dir"
NANO = "nano.json"  # marks the folder of a nano benchmark


@dataclass(frozen=True)
class Split:
    """A set of evaluation questions. `forgets`: about the people to forget, so that the questions about
    pictures should fail."""

    name: str
    forgets: bool = False
    about: str = ""

    @property
    def title(self) -> str:
        return self.about or self.name.replace("_", " ")


FORGET, RETAIN = Split("forget", forgets=True), Split("retain")


def is_nano(name: str) -> bool:
    """Whether a benchmark's `name`, as results.json has it, is that of a nano benchmark."""
    return name.startswith("nano ")


class Bench:
    """The tables found from one folder.

    Every reading method adds what is wrong to `problems` (folder, column, row) and goes on, so that all
    mistakes are known before `problems.stop()`. `notes` says which table stood in where the first choice was
    missing.
    """

    TITLE: str
    MASK_SCRIPT: str  # the script that makes masks from it
    RATIOS: tuple[int, ...]  # percent
    FOLDERS: tuple[str, ...]  # names that its folders have, looked for in and beside the given one
    SPLITS: tuple[Split, ...]
    forget_table: str
    retain_table: str

    def __init__(self, folder: str, forget_ratio: int, problems: Problems, skip_bad_rows: bool = False):
        self.given, self.problems, self.skip = Path(folder), problems, skip_bad_rows
        self.notes: list[str] = []
        self.forget_table, self.retain_table = self.split_tables(forget_ratio)
        given = self.given if self.given.name not in ("", "..") else self.given.resolve()  # "." has a parent
        root = given.parent if is_table(given) else given
        inside = [root, *(root / name for name in self.FOLDERS)]
        self.roots = [*inside, *(root.parent / name for name in self.FOLDERS)]
        if not self.given.is_dir():
            problems.add(f"{FLAG}: no such folder: {self.given}")
        elif not any(p.is_dir() and any(is_table(t) for t in p.iterdir()) for p in inside):
            problems.add(
                f"{FLAG}: no tables in {self.given} (expected e.g. {self.forget_table}/train-*.parquet)"
            )
        if forget_ratio not in self.RATIOS:
            *most, last = self.RATIOS
            ratios = f"{', '.join(map(str, most))} and {last}"
            problems.add(f"--forget_ratio: {self.TITLE} has forget ratios {ratios}, not {forget_ratio}")
        self.usable = not problems.lines
        nano = any((folder / NANO).is_file() for folder in self.roots)
        self.name = f"nano {self.TITLE}" if nano else self.TITLE  # is_nano() tells them apart

    def split_tables(self, forget_ratio: int) -> tuple[str, str]:
        """Names of the forget and the retain table."""
        raise NotImplementedError

    @classmethod
    def split_names(cls) -> list[str]:
        return [split.name for split in cls.SPLITS]

    @staticmethod
    def published_totals(split: str, task: str, forget_ratio: int, shot: str) -> list[int]:
        """How many questions the published benchmark may have there; none where that is not known."""
        raise NotImplementedError

    def describe(self, samples: list[Sample]) -> str:
        """How many of what, for the screen."""
        people = len({s.id.split("/")[1] for s in samples})
        text_only = sum(s.picture is None for s in samples)
        return f"{len(samples)} questions of {people} people, {text_only} of them text-only"

    # ------------------------------------------------------------ tables
    def _columns(self, table: Path) -> list[str]:
        """Column names; a problem, and none, for a table that cannot be read (half a download, say)."""
        try:
            return columns_of(table)
        except (ValueError, OSError) as why:  # pyarrow's ArrowInvalid is a ValueError
            self.problems.add(f"{FLAG}: cannot read table {table}: {str(why).splitlines()[0]}")
            return []

    def _find(self, name: str, columns: list[str]) -> Path | None:
        """The first table of that name that has the columns."""
        for root in self.roots if self.usable else []:
            if is_table(root / name) and set(columns) <= set(self._columns(root / name)):
                return root / name
        return None

    def _require(self, name: str, columns: list[str]) -> bool:
        """True if `_find` finds it; else a problem that says which table is missing, or lacks which column,
        and who has it."""
        if not self.usable:
            return False
        if self._find(name, columns):
            return True
        here = [root / name for root in self.roots if is_table(root / name)]
        if not here:
            self.problems.add(f"{FLAG}: no table {name} in {self.given} nor beside it")
            return False
        have = self._columns(here[0])
        if not have:
            return False
        missing = [c for c in columns if c not in have]
        tables = sorted({t for root in self.roots if root.is_dir() for t in root.iterdir() if is_table(t)})
        others = [f"{t.parent.name}/{t.name}" for t in tables if set(missing) <= set(self._columns(t))]
        hint = f"; found in {', '.join(dict.fromkeys(others))}" if others else "; no table here has it"
        self.problems.add(
            f"{FLAG}: table {here[0]} has no column {', '.join(missing)} (it has {', '.join(have)}){hint}"
        )
        return False

    def _rows(
        self, name: str, columns: list[str], ids: set[str] | None = None
    ) -> Iterator[tuple[dict[str, Any], str]]:
        """(row, "table row k (ID …)") of a required table; the ID where the columns hold one."""
        if self._require(name, columns):
            for k, row in enumerate(read_rows(self._find(name, columns), columns, ids)):
                yield row, f"{name} row {k}" + (f" (ID {row['ID']})" if "ID" in row else "")

    # ------------------------------------------------------------ cells
    def _picture(self, cell, where: str) -> Picture | None:
        picture = picture_from(cell, where)
        if picture is None:
            self._bad_row(f"{where}: the image is empty")
        return picture

    def _text(self, text: str | None, column: str, where: str) -> bool:
        if isinstance(text, str) and text.strip():
            return True
        self._bad_row(f"{where}: an empty text in {column}")
        return False

    def _bad_row(self, line: str) -> None:
        if self.skip:
            self._note(f"skipped {line}")
        else:
            self.problems.add(f"{FLAG}: {line} (--skip_bad_rows True leaves such rows out)")

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def _finish(self, items: list, table: str) -> list:
        """Check the pictures; an empty table is a problem unless something worse is already known."""
        items = drop_bad_pictures(items, FLAG, self.skip, self.problems)
        if not items and not self.problems.lines:
            self.problems.add(f"{FLAG}: {table} gives no questions at all")
        return items
