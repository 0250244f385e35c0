"""Any dataset of the hub that is one table with image, question and answer columns (PathVQA, VQA-RAD, ROCO, ...).

The columns are named in `sources.yaml`: `image` (bytes, `{bytes, path}` as `datasets` writes it, or a list of those),
`question` and `answer` or `caption`, and optional `id`, `type`, `group`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.raw_files import group_of, image_file
from data_prep.rows import Bad, Row
from data_prep.sources import Source
from src.data.record import Record, question_type
from src.errors import UserError, nearest

BATCH = 32


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    number = 0
    for path in entry.tables(raw, split):
        try:
            with pq.ParquetFile(path) as table:
                columns = _columns(path, table.schema_arrow.names, entry)
                for batch in table.iter_batches(BATCH, columns=sorted(set(columns.values()))):
                    for row in batch.to_pylist():
                        yield _record(raw, split, entry, {name: row[column] for name, column in columns.items()}, f"{split}-{number:06d}")
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path.name} of {entry.name} cannot be read as parquet ({str(error).splitlines()[0]}); fetch it again"
            ) from None


def _columns(path: Path, found: list[str], entry: Source) -> dict[str, str]:
    for name, column in entry.columns.items():
        if column not in found:
            raise UserError(f"{path.name} of {entry.name} has no column '{column}', which is to be the {name}{nearest(column, found)}")
    return entry.columns


def _record(raw: Path, split: str, entry: Source, row: dict[str, Any], default_key: str) -> Row:
    key = _text(row.get("id")) or default_key
    images = [_bytes(raw, image, key) for image in _list(row.get("image"))]
    for image in images:
        if isinstance(image, Bad):
            return image
    question, answer, caption = (_text(row.get(name)) for name in ("question", "answer", "caption"))
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=images,
        turns=[] if "caption" in row else [(question, answer)],
        caption=caption,
        type="caption" if "caption" in row else _text(row.get("type")) or question_type(question, answer),
        group=_text(row.get("group")) or (group_of(images[0]) if images else key),
    )


def _bytes(raw: Path, image: Any, key: str) -> bytes | Bad:
    """`{bytes, path}`: the bytes win, the path is a file beside the table."""
    if isinstance(image, bytes):
        return image
    return image.get("bytes") or image_file(raw, image.get("path") or "", key)


def _list(image: Any) -> list:
    return image if isinstance(image, list) else [] if image is None else [image]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
