"""Samples and tables: what every benchmark reader is made of.

Tables are read with pyarrow (parquet, as the hub serves them) or `datasets` (`save_to_disk` folders).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.pictures import Picture

if TYPE_CHECKING:
    from utils.cli import Problems

IGNORE = -100  # label of a token that does not count, as in torch's cross-entropy


@dataclass(frozen=True)
class Sample:
    """One question with its answer; `picture` is None for a text-only question. `id` is e.g.
    "forget_5/010/3"."""

    id: str
    picture: Picture | None
    question: str
    answer: str


def repeat_text(samples: list[Sample], times: str) -> list[Sample]:
    """The samples, those without a picture "once" or "twice" (the second time at the end)."""
    return samples + [s for s in samples if s.picture is None and times == "twice"]


@dataclass(frozen=True)
class Question:
    """One evaluation item. `truth` is the letter for classification, else the text; `options` maps letters to
    texts."""

    id: str
    person: str
    split: str
    task: str  # classification | cloze | generation
    modality: str  # image | text
    question: str
    truth: str
    options: dict[str, str] | None = None
    picture: Picture | None = None
    picture_ref: dict[str, Any] | None = None  # {"table", "ID", "view"}: where a report finds the portrait


# ---------------------------------------------------------------- tables
def parquet_files(folder: Path) -> list[Path]:
    """The table's parquet shards in order: `train-*.parquet`, else every parquet file."""
    return sorted(folder.glob("train-*.parquet")) or sorted(folder.glob("*.parquet"))


def is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def is_table(folder: Path) -> bool:
    return folder.is_dir() and bool(parquet_files(folder) or is_saved_dataset(folder))


def columns_of(folder: Path) -> list[str]:
    """Column names, from the file headers alone."""
    import pyarrow.parquet as pq

    if is_saved_dataset(folder):
        from datasets import load_from_disk

        return load_from_disk(str(folder)).column_names
    return pq.read_schema(parquet_files(folder)[0]).names


def read_rows(folder: Path, columns: Iterable[str], ids: set[str] | None = None) -> list[dict[str, Any]]:
    """Rows as plain dicts: pictures as {"bytes", "path"}, lists as lists. With `ids`, only rows whose ID is
    among them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = list(columns)
    wanted = None if ids is None else pa.array(sorted(ids), pa.string())  # typed: there may be none
    if is_saved_dataset(folder):
        from datasets import load_from_disk

        table = load_from_disk(str(folder)).select_columns(columns).with_format("arrow")[:]
        table = table if ids is None else table.filter(pc.is_in(table["ID"], wanted))
    else:
        keep = None if ids is None else pc.field("ID").isin(wanted)
        table = pa.concat_tables(
            [pq.read_table(f, columns=columns, filters=keep) for f in parquet_files(folder)],
            promote_options="default",
        )
    return table.to_pylist()


def picture_from(cell: dict[str, Any] | bytes | None, source: str) -> Picture | None:
    """The picture in an image cell; None for a null cell."""
    if isinstance(cell, dict):
        if cell.get("bytes") is None and cell.get("path") and Path(cell["path"]).is_file():
            cell = Path(cell["path"]).read_bytes()  # `datasets` may keep a path instead of the bytes
        else:
            cell = cell.get("bytes")
    return None if cell is None else Picture(cell, source)


# ---------------------------------------------------------------- checks and fingerprints
def drop_bad_pictures(items: list, flag: str, skip: bool, problems: Problems) -> list:
    """The samples or questions whose pictures can be read.

    Unreadable ones are a problem that names the rows, or, with `skip`, are left out and counted on the
    screen.
    """
    pictures = {id(item.picture): item.picture for item in items if item.picture is not None}
    with ThreadPoolExecutor() as pool:
        found = dict(zip(pictures, pool.map(Picture.problem, pictures.values())))
    bad = {key: why for key, why in found.items() if why}
    if not bad:
        return items
    where = [f"{pictures[key].source}: {why}" for key, why in bad.items()]
    if not skip:
        for line in where[:5]:
            problems.add(f"{flag}: {line} (--skip_bad_rows True leaves such rows out)")
        if len(where) > 5:
            problems.add(f"{flag}: and {len(where) - 5} more unreadable images")
        return items
    print(
        f"skipped {len(bad)} rows with unreadable images: "
        + "; ".join(where[:5])
        + ("; …" if len(where) > 5 else "")
    )
    return [item for item in items if id(item.picture) not in bad]


def fingerprint(items: Iterable[Sample | Question]) -> str:
    """16 hex digits that change whenever a question, an answer, a picture or the order changes."""
    digest, pictures = hashlib.sha256(), {}
    for item in items:
        answer = item.answer if isinstance(item, Sample) else repr((item.truth, item.options))
        digest.update(f"{item.id}\0{item.question}\0{answer}\0".encode())
        if item.picture is not None:
            key = id(item.picture)
            if key not in pictures:
                pictures[key] = hashlib.sha256(item.picture.data).digest()
            digest.update(pictures[key])
    return digest.hexdigest()[:16]
