"""Portraits of the people that questions are about, from the tables of a benchmark, as small pictures."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from utils.reading.pictures import UNREADABLE, rgb
from utils.reading.tables import BadCell, columns_of, identity, is_table, picture_bytes, read_rows

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

    Only the wanted rows are decoded, few at a time. A table that cannot be read has none.
    """
    by_table = defaultdict(list)
    for picture in wanted:
        by_table[picture.table].append(picture)
    found = {}
    for table, pictures in by_table.items() if folder else ():
        if is_table(folder / table):
            with suppress(ValueError, OSError):
                found |= dict(_of_table(folder / table, pictures))
    return found


def _of_table(table: Path, wanted: list[Portrait]) -> Iterator[tuple[Portrait, str]]:
    """(portrait, data URI). Raises ValueError or OSError where the table is not whole."""
    columns = columns_of(table)
    column = next((name for name in ("image", "images") if name in columns), None)
    if column is None:
        return
    rows = defaultdict(list)
    people = _people(table) if "ID" in columns else {}
    for picture in wanted:
        number = picture.row if picture.ID is None else people.get(picture.ID)
        if number is not None:
            rows[number].append(picture)
    for number, cells in read_rows(table, [column], set(rows)):
        views = cells[column] if isinstance(cells[column], list) else [cells[column]]
        for picture in rows[number]:
            with suppress(BadCell):
                view = views[picture.view] if picture.view < len(views) else None
                if uri := _thumbnail(picture_bytes(view, table)):
                    yield picture, uri


def _people(table: Path) -> dict[str, int]:
    """{ID: row number}, as the readers of the benchmarks have them."""
    found = {}
    for number, cells in read_rows(table, ["ID"]):
        with suppress(BadCell):
            found.setdefault(identity(cells["ID"], "ID"), number)
    return found


def _thumbnail(data: bytes) -> str | None:
    """A picture file as a small WebP data URI; None if it is no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))  # JPEG only: decodes at a fraction of the size
            small = rgb(image)
    except (*UNREADABLE, Image.DecompressionBombError):
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=72)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
