"""Tables on disk: their files, their rows, and what a cell means.

Tables are parquet files, as the hub serves them, or `save_to_disk` folders. A cell of another type than the
published one is read where it can mean one thing only (a number in the place of its text, JSON text in the
place of a list, a path in the place of a picture). Everything else raises BadCell, whose words follow those
of `Row.where`.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from utils.reading.pictures import Picture
from utils.run.ending import first_line

if TYPE_CHECKING:
    import pyarrow as pa

SHARD = re.compile(r"train-(\d{5})-of-(\d{5})\.parquet")
ROWS = 256  # read at a time, so that a table's pictures are never in memory twice
NO_TEXT = {"None", "none", "nan", "NaN", "null", "NULL", "<NA>", "NaT"}  # a null that became text on its way


class BadCell(ValueError):
    """What is wrong with a cell, in words for "table row k: ..."."""


# ---------------------------------------------------------------- files
def parquet_files(folder: Path) -> list[Path]:
    """The table's parquet shards in order: `train-*.parquet`, else every parquet file."""
    return sorted(folder.glob("train-*.parquet")) or sorted(folder.glob("*.parquet"))


def is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def is_table(folder: Path) -> bool:
    return folder.is_dir() and bool(parquet_files(folder) or is_saved_dataset(folder))


def shard_problem(files: Iterable[Path]) -> str | None:
    """Why these are not all shards of one table, by their names; None for names of somebody's own."""
    files = list(files)
    shards = [SHARD.fullmatch(file.name) for file in files]
    if not any(shards):
        return None
    if odd := [file.name for file, shard in zip(files, shards) if not shard]:
        return f"{', '.join(odd)} beside files train-…-of-….parquet: a copy, whose rows would count twice?"
    sizes, here = {int(shard[2]) for shard in shards}, {int(shard[1]) for shard in shards}
    missing = [k for k in range(max(sizes, default=0)) if k not in here]
    if len(sizes) > 1:
        return "files of two downloads (…-of-… differ)"
    if missing:
        return ", ".join(f"train-{k:05d}-of-{max(sizes):05d}.parquet" for k in missing) + " missing"
    return None


def columns_of(folder: Path) -> list[str]:
    """Names of the columns, from the headers of its files alone.

    Raises ValueError or OSError for a table that is not whole.
    """
    import pyarrow.parquet as pq

    if is_saved_dataset(folder):
        return saved(folder).column_names
    files = parquet_files(folder)
    if why := shard_problem(files):
        raise ValueError(why)
    found: list[list[str]] = []
    for file in files:
        try:
            found.append(pq.read_schema(file).names)
        except (ValueError, OSError) as why:  # pyarrow's ArrowInvalid is a ValueError
            raise ValueError(f"{file.name}: {first_line(why)}") from why
    if any(set(names) != set(found[0]) for names in found):
        raise ValueError("its files have different columns")
    if twice := [name for name in dict.fromkeys(found[0]) if found[0].count(name) > 1]:
        raise ValueError(f"two columns {', '.join(twice)}")
    return found[0]


def read_rows(
    folder: Path, columns: Iterable[str], keep: set[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of all rows, or of those whose numbers are in `keep`; numbers count over all files.

    Rows are plain dicts: pictures as {"bytes", "path"}, lists as lists. A cell that Python cannot hold is a
    BadCell. Raises ValueError or OSError where a file breaks off.
    """
    import pyarrow as pa

    start = 0
    for batch in _batches(folder, list(columns)):
        numbers = range(start, start + batch.num_rows)
        start += batch.num_rows
        if keep is not None:
            numbers = [number for number in numbers if number in keep]
            batch = batch.take(pa.array([number - start + batch.num_rows for number in numbers], pa.int64()))
        names, cells = batch.schema.names, [_python(column) for column in batch.columns]
        yield from zip(numbers, (dict(zip(names, row)) for row in zip(*cells)))


def _batches(folder: Path, columns: list[str]) -> Iterator[pa.RecordBatch | pa.Table]:
    import pyarrow.parquet as pq

    if is_saved_dataset(folder):
        yield from saved(folder).select_columns(columns).with_format("arrow").iter(ROWS)
        return
    for file in parquet_files(folder):
        yield from pq.ParquetFile(file).iter_batches(ROWS, columns=columns)


def saved(folder: Path):
    """A `save_to_disk` folder. Raises ValueError or OSError where it is not whole."""
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except (
        KeyError,
        TypeError,
        RecursionError,
    ) as why:  # JSON files with other content than `datasets` writes
        raise ValueError(f"{type(why).__name__}: {why}") from why


def _python(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a time out of range: in which row?
        return [_one(cell) for cell in column]


def _one(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError) as why:
        return BadCell(f"not readable: {first_line(why)}")


# ---------------------------------------------------------------- what a cell means
def is_empty(cell: Any) -> bool:
    """Null, NaN, blank text, or an image cell without bytes and path."""
    if isinstance(cell, dict):
        return cell.keys() <= {"bytes", "path"} and all(part in (None, "", b"") for part in cell.values())
    return cell is None or cell != cell or (isinstance(cell, str) and not _visible(cell))


def text(cell: Any, column: str) -> str:
    """A text as it is; a whole number, or one with a fraction, in its digits."""
    if isinstance(cell, bytes):
        cell = _decoded(cell, column)
    if is_empty(cell):
        raise BadCell(f"an empty text in {column}")
    if isinstance(cell, str):
        if not cell.isascii():
            _require_unicode(cell, column)
        return cell
    if isinstance(cell, BadCell):
        raise BadCell(f"{column} is {cell}")
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    if isinstance(cell, float) and not cell.is_integer() and abs(cell) != float("inf"):
        return repr(cell)
    if isinstance(cell, float):
        raise BadCell(f"{column} is the number {cell}, which could be text with or without its point")
    raise BadCell(f"{column} is no text but {_kind(cell)}")


def question(cell: Any, column: str) -> str:
    """A text that is asked. "None" and its like are nulls that became text; as answers they may be meant."""
    asked = text(cell, column)
    if asked.strip() in NO_TEXT:
        raise BadCell(f"an empty text in {column} (it reads {asked.strip()!r})")
    return asked


def identity(cell: Any, column: str) -> str:
    """Who or what a row is about: text without the blanks around it, in Unicode's composed form (NFC), so
    that equal names are equal; a whole number in its digits, without zeros that it may have lost."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # whole numbers become floats where a column has nulls
    name = unicodedata.normalize("NFC", question(cell, column)).strip()
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        raise BadCell(f"{column} holds a line break or another control character: {name!r:.80}")
    return name


def texts(cell: Any, column: str) -> list[str]:
    """A list of texts, or JSON text of one."""
    cell = from_json(cell)
    if not isinstance(cell, list) or not cell or any(map(is_empty, cell)):
        raise BadCell(f"{column} is not a list of texts")
    return [text(part, column) for part in cell]


def items(cell: Any, column: str) -> list[Any]:
    """A list, or JSON text of one; its parts are for `struct`."""
    cell = from_json(cell)
    if isinstance(cell, BadCell):
        raise BadCell(f"{column} is {cell}")
    if is_empty(cell):
        raise BadCell(f"{column} is empty")
    if not isinstance(cell, list):
        raise BadCell(f"{column} is no list but {_kind(cell)}")
    return cell


def struct(cell: Any, column: str) -> dict[str, Any]:
    """A struct, or JSON text of one."""
    cell = from_json(cell)
    if not isinstance(cell, dict):
        raise BadCell(f"{column} is {'empty' if is_empty(cell) else f'no struct but {_kind(cell)}'}")
    return cell


def options(cell: Any) -> dict[str, str]:
    """{capital letter: text} of multiple choice; a list gets letters in its order. A null option is left
    out, as the published tables write a missing one."""
    cell = from_json(cell)
    if isinstance(cell, list) and all(isinstance(part, tuple) and len(part) == 2 for part in cell):
        cell = dict(cell)  # arrow's map type
    elif isinstance(cell, list):
        cell = dict(zip(ascii_uppercase, cell))
    found: dict[str, str] = {}
    for name, option in struct(cell, "Options").items():
        letter = str(name).strip().upper()
        if len(letter) != 1 or not letter.isalnum() or letter in found:
            raise BadCell(f"Options has the name {name!r}, not A, B, C and so on, each once")
        if option is not None and option == option:
            found[letter] = text(option, f"option {letter}")
    return found


def picture_bytes(cell: Any, folder: Path) -> bytes:
    """The encoded picture of an image cell: a struct of bytes and path, bytes, a path, or a list of one of
    these. Paths are looked up from here, from the table and from the folder that it lies in."""
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, dict) and cell.keys() <= {"bytes", "path"}:
        cell = cell.get("bytes") or cell.get("path")
    if is_empty(cell):
        raise BadCell("the image is empty")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise BadCell(f"the image is no picture but {_kind(cell)}")
    path = next((p for p in (Path(cell), folder / cell, folder.parent / cell) if os.path.isfile(p)), None)
    if path is None:
        raise BadCell(f"the image is a path without a file: {cell[:80]!r}")
    try:
        return path.read_bytes()
    except OSError as why:
        raise BadCell(f"the image is a path that cannot be read: {why}") from why


def same_text(one: str) -> str:
    """Equal for texts that a reader takes for the same: case, blanks and Unicode form do not count."""
    return " ".join(unicodedata.normalize("NFC", one).casefold().split())


def same_person(identity: str) -> str:
    """Equal for IDs that differ in what gets lost on the way only: zeros in front, case, blanks for "_"."""
    return same_text(identity.replace("_", " ")).lstrip("0")


def from_json(cell: Any) -> Any:
    """What JSON text says; a cell that is no text, or no JSON, as it is."""
    if isinstance(cell, str | bytes):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _decoded(cell: bytes, column: str) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError as why:
        raise BadCell(f"{column} is no text in UTF-8") from why


def _require_unicode(cell: str, column: str) -> None:
    try:
        cell.encode()
    except UnicodeEncodeError as why:  # half of a surrogate pair, out of JSON
        raise BadCell(f"{column} holds a character that is none (a surrogate)") from why


def _visible(cell: str) -> bool:
    """Whether there is anything to see; zero-width characters alone are nothing."""
    return any(character.isprintable() and not character.isspace() for character in cell)


def _kind(cell: Any) -> str:
    shown = repr(cell)
    return f"{type(cell).__name__} {shown[:60]}{'…' if len(shown) > 60 else ''}"


# ---------------------------------------------------------------- a row
@dataclass(frozen=True)
class Row:
    """One row of a table, with its cells as they lie there; the methods read them and raise BadCell."""

    table: Path
    number: int  # in the table, from 0
    cells: dict[str, Any]
    person: str = ""  # its ID, where the table has one

    @property
    def where(self) -> str:
        return f"{self.table.name} row {self.number}" + (f" (ID {self.person})" if self.person else "")

    def empty(self, column: str) -> bool:
        return is_empty(self.cells[column])

    def text(self, column: str) -> str:
        return text(self.cells[column], column)

    def question(self, column: str) -> str:
        return question(self.cells[column], column)

    def identity(self, column: str) -> str:
        return identity(self.cells[column], column)

    def texts(self, column: str) -> list[str]:
        return texts(self.cells[column], column)

    def items(self, column: str) -> list[Any]:
        return items(self.cells[column], column)

    def picture(self, column: str = "image") -> Picture:
        return Picture(picture_bytes(self.cells[column], self.table), self.where)

    def pictures(self, column: str) -> list[Any]:
        """The image cells of a list of pictures, each for `picture_of`; a picture alone is a list of one."""
        cell = self.cells[column]
        if is_empty(cell) or cell == []:
            raise BadCell("no images")
        return cell if isinstance(cell, list) else [cell]

    def picture_of(self, cell: Any, note: str) -> Picture:
        return Picture(picture_bytes(cell, self.table), self.where + note)
