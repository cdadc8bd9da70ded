"""Tables: written as the hub serves them, and read for the text in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.reading.tables import from_json
from utils.run.ending import first_line

if TYPE_CHECKING:
    import pyarrow as pa


def image_type() -> pa.DataType:
    """Of an image cell: {"bytes", "path"}."""
    import pyarrow as pa

    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def feature(kind: pa.DataType) -> Any:
    """The `datasets` feature of an arrow type, as in the hub's files, so that pictures get decoded."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return {"_type": "Image"} if names == ["bytes", "path"] else {f.name: feature(f.type) for f in kind}
    if pa.types.is_list(kind):
        return {"feature": feature(kind.value_type), "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}


def write(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema, shards: int = 1) -> None:
    """Write `rows` as folder/train-0000k-of-0000n.parquet; keys that are not in the schema are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = {"info": {"features": {field.name: feature(field.type) for field in schema}}}
    schema = schema.with_metadata({"huggingface": json.dumps(info)})
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(shards):
        part = rows[k * len(rows) // shards : (k + 1) * len(rows) // shards]
        columns = [pa.array([row[field.name] for row in part], type=field.type) for field in schema]
        pq.write_table(pa.table(columns, schema=schema), folder / f"train-{k:05d}-of-{shards:05d}.parquet")


# ---------------------------------------------------------------- their text
def tables(paths: Iterable[Path]) -> list[Path]:
    """The .parquet and .arrow files named by or in `paths`, sorted. FileNotFoundError if a path has none."""
    files: list[Path] = []
    for path in paths:
        found = (
            [path]
            if path.is_file()
            else sorted(f for f in path.rglob("*") if f.suffix in (".parquet", ".arrow"))
        )
        if not found:
            raise FileNotFoundError(
                f"--text {path}: no such table, or a folder without .parquet or .arrow files"
            )
        files += found
    return files


def strings(value: Any) -> Iterator[str]:
    """Every piece of text in a table cell, also in lists, structs and JSON strings. Bytes are skipped."""
    if isinstance(value, str):
        inside = from_json(value) if value[:1] in ("{", "[") else value
        if isinstance(inside, str):  # or text that merely starts with a bracket
            yield value.encode(errors="ignore").decode()  # half characters, as JSON can hold them
        else:
            yield from strings(inside)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def read_texts(paths: Iterable[Path]) -> list[str]:
    """All text of the given tables. Only text columns are read, so gigabytes of pictures cost nothing.

    Raises ValueError, naming the file, for one that is broken, and FileNotFoundError as `tables`.
    """
    found: list[str] = []
    for path in tables(paths):
        try:
            found += _texts(path)
        except (ValueError, OSError) as why:  # pyarrow's ArrowInvalid is a ValueError
            raise ValueError(f"--text: cannot read {path}: {first_line(why)}") from why
    return found


def _texts(path: Path) -> list[str]:
    """The text of one file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".arrow":
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        table = table.select(
            [
                f.name
                for f in table.schema
                if not pa.types.is_struct(f.type) or f.type.get_field_index("bytes") < 0
            ]
        )
    else:
        file = pq.ParquetFile(path)
        leaves = [file.schema.column(k) for k in range(len(file.schema))]
        # "image.path" and "images.list.element.path" are file names, not text
        text = [c.path for c in leaves if c.logical_type.type == "STRING" and not c.path.endswith(".path")]
        table = file.read(columns=text)
    return [text for column in table.columns for cell in column.to_pylist() for text in strings(cell)]
