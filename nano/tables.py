"""Parquet tables as the hub serves them, for the nano benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
