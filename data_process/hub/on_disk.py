"""A published table as it lies on disk: what its headers say, and its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_process.hub.tables import FT_DATA, IMAGE, TOFU, Table, kind
from utils.data import is_saved_dataset, parquet_files, picture_from, read_rows

SHARD = re.compile(r"train-(\d{5})-of-(\d{5})\.parquet")
POINTER = b"version https://git-lfs"  # of a file that git cloned without its content
SHOWN = 3  # examples per mistake


@dataclass
class Found:
    """A table on disk beside its published twin."""

    published: Table
    folder: Path
    training: bool = False  # a training split of MLLMU-Bench, as opposed to the evaluation table of that name
    rows: int = 0
    megabytes: float = 0.0
    columns: dict[str, str] = field(default_factory=dict)  # {name: type} of the first readable file
    mistakes: list[str] = field(default_factory=list)  # "what; fix"
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.folder.parent.resolve().name}/{self.folder.name}"

    @property
    def as_published(self) -> bool | None:
        """Whether the number of rows is the published one; None where that is not known."""
        return self.published.has_published_rows(self.rows)

    def has(self, *columns: str) -> bool:
        """Whether its rows can be read with these columns."""
        return not self.mistakes and set(columns) <= set(self.columns)

    @property
    def verdict(self) -> str:
        if self.mistakes:
            return "WRONG"
        if self.as_published is None:
            return "whole (rows not published)"
        about = "about " if self.published.rounded else ""
        return "as published" if self.as_published else f"differs (published: {about}{self.published.rows:,})"


def inspect(published: Table, folder: Path, training: bool = False) -> Found:
    """Read headers only: shards, rows, columns and types."""
    found = Found(published, folder, training)
    if is_saved_dataset(folder):
        from datasets import load_from_disk

        table = load_from_disk(str(folder))
        found.rows, schemas = len(table), [table.features.arrow_schema]
        found.megabytes = sum(f.stat().st_size for f in folder.glob("*.arrow")) / 1e6
    else:
        schemas = list(_parquet(found))
    for schema in schemas:
        columns = {of.name: kind(of.type) for of in schema}
        found.columns = found.columns or columns
        if columns != found.columns:
            found.mistakes.append("its files have different columns; delete the folder and download it again")
            return found
    if schemas:
        _columns(found)
    return found


def _parquet(found: Found) -> Iterator[Any]:
    """Arrow schemas of the readable files; rows, megabytes and mistakes go to `found`."""
    import pyarrow.parquet as pq

    again = "delete it and download it again"
    files = parquet_files(found.folder)
    if not files:
        found.mistakes.append("an empty folder, without train-*.parquet; download it again")
    for file in files:
        found.megabytes += file.stat().st_size / 1e6
        with open(file, "rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                found.mistakes.append(f"{file.name} is a pointer of git-lfs; run `git lfs pull`, or {again}")
                continue
        try:
            header = pq.ParquetFile(file)
        except (ValueError, OSError) as why:  # pyarrow's ArrowInvalid is a ValueError
            found.mistakes.append(f"{file.name} is no whole parquet file ({_first(why)}); {again}")
            continue
        found.rows += header.metadata.num_rows
        yield header.schema_arrow
    shards = [SHARD.fullmatch(file.name) for file in files]
    if files and not all(shards):
        found.notes.append(
            f"file names are not the published ones: {', '.join(f.name for f in files[:SHOWN])}"
        )
        return
    sizes = {int(shard[2]) for shard in shards}
    if len(sizes) > 1:
        found.mistakes.append(
            "files of two downloads (…-of-… differ); delete the folder and download it again"
        )
    elif sizes and len(files) < (of := sizes.pop()):
        here = {int(shard[1]) for shard in shards}
        missing = [f"train-{k:05d}-of-{of:05d}.parquet" for k in range(of) if k not in here]
        found.mistakes.append(f"{', '.join(missing)} missing; run data_process/download.py again")


def _columns(found: Found) -> None:
    wanted = found.published.columns
    missing = [name for name in wanted if name not in found.columns]
    if missing:
        has = ", ".join(found.columns)
        found.mistakes.append(
            f"no column {', '.join(missing)} (it has {has}); is it another table? Download again"
        )
    for name, of in wanted.items():
        here = found.columns.get(name, of)
        if here == "binary" and of == IMAGE:
            found.notes.append(f"{name} holds bare bytes, published: {of}; the readers take both")
        elif here != of:
            found.mistakes.append(
                f"column {name} is {_short(here)}, published: {_short(of)}; keep the types (an ID is"
                " text such as 001) or download again"
            )
    more = [name for name in found.columns if name not in wanted and not (found.training and name == "ID")]
    if more:
        found.notes.append(f"further columns, not read: {', '.join(more)}")


def _short(of: str, width: int = 60) -> str:
    return of if len(of) <= width else of[: width - 1] + "…"


def _first(why: BaseException) -> str:
    return next(iter(str(why).splitlines()), "") or type(why).__name__


# ---------------------------------------------------------------- pictures
def check_images(found: Found) -> int:
    """Decode every picture; mistakes go to `found`. Returns how many pictures were read."""
    column = "images" if "images" in found.columns else "image"
    if not found.has(column):
        return 0
    may_be_empty = found.published.columns in (TOFU, FT_DATA)  # rows that are text only
    bad, seen = [], 0
    with ThreadPoolExecutor() as pool:
        for first, cells in _batches(found.folder, column):
            pictures = []
            for k, cell in enumerate(cells, start=first):
                views = cell if isinstance(cell, list) else [cell]
                if not views:
                    bad.append(f"row {k}: no images")
                for view in views:
                    picture = picture_from(view, f"row {k}")
                    if picture is not None:
                        pictures.append(picture)
                    elif not may_be_empty:
                        bad.append(f"row {k}: the image is empty")
            seen += len(pictures)
            problems = pool.map(lambda picture: (picture.source, picture.problem()), pictures)
            bad += [f"{where}: {why}" for where, why in problems if why]
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        found.mistakes.append(
            f"{'; '.join(bad[:SHOWN])}{more}: download it again, or give the scripts --skip_bad_rows True"
        )
    return seen


def _batches(folder: Path, column: str, size: int = 64) -> Iterator[tuple[int, list[Any]]]:
    """(number of the first row, cells) without holding the table."""
    import pyarrow.parquet as pq

    if is_saved_dataset(folder):
        yield 0, [row[column] for row in read_rows(folder, [column])]
        return
    first = 0
    for file in parquet_files(folder):
        for batch in pq.ParquetFile(file).iter_batches(size, columns=[column]):
            yield first, batch.column(0).to_pylist()
            first += batch.num_rows
