"""What the benchmark readers share: finding tables, requiring columns, and telling all that is wrong at once.

A benchmark is a subclass with its title, ratios and folders, and with the methods that the scripts call:
training samples from `finetune()`, `reference()`, `forget()`, `retain()` and `text_knowledge()`, evaluation
questions from `questions(split, seed)`. What is to be known about its splits is said in SPLITS.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utils.data import Sample, drop_bad_pictures
from utils.reading.tables import BadCell, Row, columns_of, is_table, read_rows, same_person
from utils.run.ending import Problems, first_line
from utils.run.screen import step

FLAG = "--data_split_dir"
NANO = "nano.json"  # marks the folder of a nano benchmark
SHOWN = 3  # people named in a line
BAD_ROWS = 20  # of one table that are named, each in its line


@dataclass(frozen=True)
class Split:
    """A set of evaluation questions. `forgets`: about the people to forget, so that the questions about
    pictures should fail. `table`: which nano benchmarks alone have; without it there is no such split."""

    name: str
    forgets: bool = False
    about: str = ""
    table: str = ""

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
    missing. People are known by PERSON, a column of the tables; whoever must be in two tables, or in one of
    them only, is looked for by it.
    """

    TITLE: str
    PERSON: str  # the column that says whom a row is about
    MASK_SCRIPT: str  # the script that makes masks from it
    RATIOS: tuple[int, ...]  # percent
    FOLDERS: tuple[str, ...]  # names that its folders have, looked for in and beside the given one
    TABLES = ".*"  # a pattern of its tables' names, by which another benchmark's folder is known
    SPLITS: tuple[Split, ...]
    forget_table: str
    retain_table: str

    def __init__(self, folder: str, forget_ratio: int, problems: Problems, skip_bad_rows: bool = False):
        self.given, self.problems, self.skip = Path(folder), problems, skip_bad_rows
        self.notes: list[str] = []
        self._said: set[Path] = set()  # tables whose reading was told
        self._bad_rows: Counter[str] = Counter()  # by table
        self._known_columns: dict[Path, list[str]] = {}
        self._known_people: dict[Path, dict[int, str]] = {}
        self.forget_table, self.retain_table = self.split_tables(forget_ratio)
        given = self.given if self.given.name not in ("", "..") else self.given.resolve()  # "." has a parent
        root = given.parent if is_table(given) else given
        inside = [root, *(root / name for name in self.FOLDERS)]
        self.roots = [*inside, *(root.parent / name for name in self.FOLDERS)]
        if not self.given.is_dir():
            problems.add(f"{FLAG}: no such folder: {self.given}")
        else:
            here = [t.name for p in inside if p.is_dir() for t in p.iterdir() if is_table(t)]
            own = is_table(given) or any(re.fullmatch(self.TABLES, name) for name in here)
            if not own:  # those of a neighbour would be read instead
                what = f"no tables of {self.TITLE}, but {named(here)}," if here else "no tables"
                problems.add(
                    f"{FLAG}: {what} in {self.given} (expected e.g. {self.forget_table}/train-*.parquet)"
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

    def own_splits(self) -> list[str]:
        """Names of the SPLITS that this copy of the benchmark has."""
        return [split.name for split in self.SPLITS if not split.table or self._find(split.table, [])]

    @staticmethod
    def published_totals(split: str, task: str, forget_ratio: int, shot: str) -> list[int]:
        """How many questions the published benchmark may have there; none where that is not known."""
        raise NotImplementedError

    def describe(self, samples: list[Sample]) -> str:
        """How many of what, for the screen."""
        people = len({s.person for s in samples})
        text_only = sum(s.picture is None for s in samples)
        return f"{len(samples)} questions of {people} people, {text_only} of them text-only"

    def read_everything(self) -> None:
        """Read all that any script reads, for what is found wrong on the way."""
        for read in (self.finetune, self.reference, self.forget, self.retain, self.text_knowledge):
            read()
        for split in self.own_splits():
            self.questions(split, seed=0)

    # ------------------------------------------------------------ tables
    def _columns(self, table: Path) -> list[str]:
        """Column names; a problem, and none, for a table that cannot be read (half a download, say)."""
        if table not in self._known_columns:
            try:
                self._known_columns[table] = columns_of(table)
            except (ValueError, OSError) as why:  # pyarrow's ArrowInvalid is a ValueError
                self._broken(table, why)
                self._known_columns[table] = []
        return self._known_columns[table]

    def _broken(self, table: Path, why: Exception) -> None:
        self.problems.add(f"{FLAG}: cannot read table {table}: {first_line(why)}")

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

    def _rows(self, name: str, columns: list[str], people: set[str] | None = None) -> Iterator[Row]:
        """The rows of a required table, with `people` those about them. See `_read`."""
        if self._require(name, columns):
            yield from self._read(self._find(name, columns), columns, people)

    def _read(self, table: Path, columns: list[str], people: set[str] | None = None) -> Iterator[Row]:
        """The rows of a table. Where ID is among the columns, a row without one is a bad row."""
        if table not in self._said:
            self._said.add(table)
            step(f"reading {table}")
        known = self._people_of(table) if "ID" in columns else {}
        keep = None if people is None else {k for k, person in known.items() if person in people}
        try:
            for k, cells in read_rows(table, columns, keep):
                if "ID" not in columns or k in known:
                    yield Row(table, k, cells, known.get(k, ""))
        except (ValueError, OSError) as why:
            self._broken(table, why)

    # ------------------------------------------------------------ people
    def _people_of(self, table: Path) -> dict[int, str]:
        """{row number: person} of a table that has the column PERSON."""
        if table not in self._known_people:
            found = self._known_people[table] = {}
            try:
                for k, cells in read_rows(table, [self.PERSON]):
                    row = Row(table, k, cells)
                    with self._row(row):
                        found[k] = self._person(row)
            except (ValueError, OSError) as why:
                self._broken(table, why)
        return self._known_people[table]

    def _person(self, row: Row) -> str:
        """Whom a row is about. Raises BadCell."""
        return row.identity(self.PERSON)

    def _people(self, name: str) -> set[str]:
        """Who is in the table of that name. Tables of the same name, for training and for evaluation, must
        be about the same people."""
        found = {root / name: set() for root in self.roots if is_table(root / name)}
        for table in found if self.usable else []:
            if self.PERSON in self._columns(table):
                found[table] = set(self._people_of(table).values())
        found = {table: people for table, people in found.items() if people}
        first = next(iter(found.values()), set())
        for table, people in found.items():
            if people != first:
                one, other = (f"{t.parent.name}/{name}" for t in (next(iter(found)), table))
                self.problems.add(
                    f"{FLAG}: {one} and {other} are about different people:"
                    f" only one has the {self.PERSON} {named(first ^ people)}"
                )
        return first

    def forget_people(self) -> set[str]:
        """The people to forget."""
        return self._people(self.forget_table) if self._require(self.forget_table, [self.PERSON]) else set()

    def to_retain(self, args) -> list[Sample]:
        """What retain steps train on: the pictures of the people to retain, of whom --retain_fraction are
        given, and by --retain_text the text questions."""
        return self.retain(args.retain_fraction) + (self.text_knowledge() if args.retain_text else [])

    def _given(self, samples: list[Sample], percent: float) -> list[Sample]:
        """Those of the samples of the retain set that a method is shown."""
        given = given_people({s.person for s in samples}, percent)
        return [s for s in samples if s.person in given]

    def _apart(self, people: Collection[str], table: str) -> None:
        """A problem if somebody of a table that must hold no one to forget is to be forgotten, be it by an ID
        written in another way."""
        if not self._find(self.forget_table, [self.PERSON]):
            return
        forget = {same_person(person): person for person in self.forget_people()}
        both = [(forget[same_person(p)], p) for p in people if same_person(p) in forget]
        if both:
            shown = [one if one == other else f"{one} ({other} in {table})" for one, other in both]
            self.problems.add(
                f"{FLAG}: {self.forget_table} and {table} share the {self.PERSON} {named(shown)}"
            )

    def _within(self, people: Collection[str], of: str, everybody: Collection[str], table: str) -> None:
        """A problem if the table lacks anybody of another one."""
        if missing := set(people) - set(everybody):
            holds = f"which holds {named(set(everybody))}" if everybody else "which holds nobody"
            self.problems.add(f"{FLAG}: {self.PERSON} {named(missing)} of {of} not found in {table}, {holds}")

    # ------------------------------------------------------------ rows
    @contextmanager
    def _row(self, row: Row) -> Iterator[None]:
        """Around what reads a row: what is wrong with it is a problem, or leaves it out (--skip_bad_rows)."""
        try:
            yield
        except BadCell as why:
            self._bad_row(row, str(why))

    def _bad_row(self, row: Row, why: str) -> None:
        name = row.table.name
        self._bad_rows[name] += 1
        if self._bad_rows[name] > BAD_ROWS:
            return
        if self.skip:
            self._note(f"skipped {row.where}: {why}")
        else:
            self.problems.add(f"{FLAG}: {row.where}: {why} (--skip_bad_rows True leaves such rows out)")

    def _once(self, row: Row, seen: dict[str, int]) -> None:
        """Raises BadCell for a person whom `seen` has a row of, of a table with one row for each."""
        first = seen.setdefault(row.person, row.number)
        if first != row.number:
            raise BadCell(f"the same ID as row {first}")

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def _finish(self, items: list, table: str) -> list:
        """Check the pictures; an empty table is a problem unless something worse is already known."""
        for name, count in self._bad_rows.items():
            if count > BAD_ROWS:
                line = f"and {count - BAD_ROWS} more such lines about {name}"
                self._note(f"skipped {line}") if self.skip else self.problems.add(f"{FLAG}: {line}")
        self._bad_rows.clear()
        items = drop_bad_pictures(items, FLAG, self.skip, self.problems)
        twice = [key for key, times in Counter(item.id for item in items).items() if times > 1]
        if twice:  # answers are kept by id: one question would not be asked, or counted twice
            self.problems.add(f"{FLAG}: {table} gives {named(twice)} twice")
        if not items and not self.problems.lines:
            self.problems.add(f"{FLAG}: {table} gives no questions at all")
        return items


def given_people(people: Collection[str], percent: float) -> set[str]:
    """The people to retain whom a method is shown at --retain_fraction, rounded up: the same ones in every
    command, and all of them at a larger percentage as well."""
    ordered = sorted(people, key=lambda person: hashlib.sha256(person.encode()).digest())
    return set(ordered[: math.ceil(len(ordered) * percent / 100)])


def named(people: Collection[str]) -> str:
    """Some of them by name, and how many more."""
    more = f" and {len(people) - SHOWN} more" if len(people) > SHOWN else ""
    return ", ".join(sorted(people)[:SHOWN]) + more
