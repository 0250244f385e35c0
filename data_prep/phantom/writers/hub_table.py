"""Parquet files as on the hub: `data/<split>-00000-of-00002.parquet`, with images as a struct of bytes and path."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NAMES = {"train": "train", "val": "validation", "test": "test"}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = {"dtype": "string", "_type": "Value"}
FEATURES = {IMAGE: {"_type": "Image"}, pa.string(): TEXT, pa.list_(pa.string()): [TEXT]}  # as `datasets` writes them


def write_table(out: Path, split: str, rows: list[dict[str, Any]], *, columns: dict[str, pa.DataType], parts: int = 1) -> None:
    """Writes `rows` with `columns` (name -> type) into `parts` files. The schema marks the image columns for `datasets`."""
    features = {name: FEATURES[kind] for name, kind in columns.items()}
    schema = pa.schema(list(columns.items()), metadata={"huggingface": json.dumps({"info": {"features": features}})})
    (out / "data").mkdir(exist_ok=True)
    for part in range(parts):
        some = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
        path = out / "data" / f"{NAMES[split]}-{part:05d}-of-{parts:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(some, schema), path, row_group_size=100)
