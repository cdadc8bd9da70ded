"""Portraits of the people that questions are about, from the tables of a benchmark, as small pictures."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.tables import BadCell, columns_of, identity, is_saved_dataset, is_table, parquet_files

if TYPE_CHECKING:
    import pyarrow as pa

THUMBNAIL = 192  # pixels; shown at up to 96, so sharp on a phone too


class Portrait(NamedTuple):
    """Where a portrait lies: a table of the benchmark, a row, by ID or else by number, and which of the row's
    pictures."""

    table: str
    ID: str | None = None
    view: int = 0
    row: int | None = None


def portraits(folder: Path | None, wanted: Collection[Portrait]) -> dict[Portrait, str]:
    """Small WebP data URIs of the wanted portraits that can be read from the tables `folder`/<table>.

    Rows are read in small batches and only the wanted ones are decoded, so memory stays at a few pictures.
    """
    by_table = defaultdict(list)
    for picture in wanted:
        by_table[picture.table].append(picture)
    found = {}
    for table, pictures in by_table.items():
        rows = defaultdict(list)
        for picture in pictures:
            rows[picture.row if picture.ID is None else picture.ID].append(picture)
        by_number, start = pictures[0].ID is None, 0
        for batch in _batches(folder / table) if folder else []:
            names = batch.schema.names
            if not by_number and "ID" not in names:
                break
            keys = range(start, start + len(batch)) if by_number else _people(batch)
            start += len(batch)
            cells = batch.column("image" if "image" in names else "images")
            for i, key in enumerate(keys):
                for picture in rows.get(key, ()):
                    cell = cells[i].as_py()
                    views = cell if isinstance(cell, list) else [cell]
                    view = views[picture.view] if picture.view < len(views) else None
                    if view and view["bytes"] and (uri := _thumbnail(view["bytes"])):
                        found[picture] = uri
    return found


def _people(batch: pa.RecordBatch | pa.Table) -> list[str | None]:
    """The IDs of rows, as the readers of the benchmarks have them."""
    found = []
    for cell in batch.column("ID").to_pylist():
        try:
            found.append(identity(cell, "ID"))
        except BadCell:
            found.append(None)
    return found


def _batches(table: Path) -> Iterator[pa.RecordBatch | pa.Table]:
    """The columns ID, image and images of a table in its order, few rows at a time; none without pictures."""
    import pyarrow.parquet as pq

    if not is_table(table):
        return
    columns = [name for name in columns_of(table) if name in ("ID", "image", "images")]
    if not {"image", "images"} & set(columns):
        return
    if is_saved_dataset(table):
        from datasets import load_from_disk

        yield from load_from_disk(str(table)).select_columns(columns).with_format("arrow").iter(16)
        return
    for file in parquet_files(table):
        yield from pq.ParquetFile(file).iter_batches(batch_size=16, columns=columns)


def _thumbnail(data: bytes) -> str | None:
    """A picture file as a small WebP data URI; None if it is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))  # JPEG only: decodes at a fraction of the size
            small = image.convert("RGB")
    except (UnidentifiedImageError, OSError):  # OSError: cut off in the middle
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=72)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
