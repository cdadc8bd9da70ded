"""A published table as it lies on disk, by the headers of its files: shards, rows, columns and types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_process.hub.tables import IMAGE, TASKS, TRAINING, Table, kind
from utils.reading.tables import is_saved_dataset, parquet_files, saved, shard_problem
from utils.run.ending import first_line

AGAIN = "delete it and download it again"


@dataclass
class Found:
    """A table on disk beside its published twin."""

    published: Table
    folder: Path
    rows: int = 0
    columns: dict[str, str] = field(default_factory=dict)  # {name: type}
    mistakes: list[str] = field(default_factory=list)  # "what; fix"

    @property
    def name(self) -> str:
        return f"{self.folder.parent.resolve().name}/{self.folder.name}"

    @property
    def training(self) -> bool:
        """A training split of MLLMU-Bench, as opposed to the evaluation table of that name."""
        return self.published.columns is TRAINING

    @property
    def as_published(self) -> bool | None:
        """Whether the number of rows is the published one; None where that is not known."""
        return self.published.has_published_rows(self.rows)

    @property
    def verdict(self) -> str:
        if self.mistakes:
            return "WRONG"
        if self.as_published is None:
            no_ids = self.training and "ID" not in self.columns
            return "whole, without IDs: ft_Data is used" if no_ids else "whole (rows not published)"
        about = "about " if self.published.rounded else ""
        return "as published" if self.as_published else f"differs (published: {about}{self.published.rows:,})"


def inspect(published: Table, folder: Path, training: Table | None = None) -> Found:
    """Read headers only. training: the training split of the same name, if its columns say it is that."""
    found = Found(published, folder)
    if is_saved_dataset(folder):
        try:
            table = saved(folder)
        except (ValueError, OSError) as why:
            found.mistakes.append(f"{first_line(why)}; {AGAIN}")
            return found
        found.rows, schemas = len(table), [table.features.arrow_schema]
    else:
        schemas = list(_parquet(found))
    for schema in schemas:
        columns = {of.name: kind(of.type) for of in schema}
        found.columns = found.columns or columns
        if columns != found.columns:
            found.mistakes.append(f"its files have different columns; {AGAIN}")
            return found
    if training and "metadata" in found.columns and not set(TASKS) & set(found.columns):
        found.published = training
    if schemas:
        _columns(found)
    return found


def _parquet(found: Found) -> Iterator[Any]:
    """Arrow schemas of the readable files; rows and mistakes go to `found`."""
    import pyarrow.parquet as pq

    files = parquet_files(found.folder)
    if not files:
        found.mistakes.append("an empty folder, without train-*.parquet; download it again")
    for file in files:
        try:
            header = pq.ParquetFile(file)
        except (ValueError, OSError) as why:  # pyarrow's ArrowInvalid is a ValueError
            found.mistakes.append(
                f"{file.name} is no whole parquet file ({first_line(why)}); if git cloned it, `git lfs pull`,"
                f" else {AGAIN}"
            )
            continue
        found.rows += header.metadata.num_rows
        yield header.schema_arrow
    if why := shard_problem(files):
        found.mistakes.append(f"{why}; run data_process/download.py again, or {AGAIN}")


def _columns(found: Found) -> None:
    """Every published column is there, with its type. Further ones are not read."""
    wanted = found.published.columns
    missing = [name for name in wanted if name not in found.columns]
    if missing:
        has = ", ".join(found.columns)
        found.mistakes.append(f"no column {', '.join(missing)} (it has {has}); {AGAIN}")
    for name, of in wanted.items():
        here = found.columns.get(name, of)
        if here != of and not (of == IMAGE and here == "binary"):  # the readers take bare bytes, too
            found.mistakes.append(
                f"column {name} is {here:.60}, published: {of:.60}; keep the types (an ID is text such as"
                " 001) or download again"
            )
