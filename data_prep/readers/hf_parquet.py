"""Any dataset that is one table with image, question and answer columns (PathVQA, VQA-RAD, ROCO, HealthCareMagic, ...).

The columns are named in `sources.yaml`: `image` (bytes, `{bytes, path}` as `datasets` writes it, or a list of those; none in
a text-only set), `question` and `answer`, or `caption`, and optional `id`, `type`, `group`, `licence`. Files are parquet, as
the hub has it (`data/train-00000-of-00004.parquet`), or one of the other formats of `data_prep/readers/tables.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers.raw_files import all_images, clean_text, group_of, image_file
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.sources import Source
from src.data.record import Record, question_type


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    number = 0
    for path in entry.tables(raw, split):
        for row in table_rows(path, entry, need=list(entry.columns.values())):
            key = f"{split}-{number:06d}"
            yield row if isinstance(row, InvalidRow) else _record(raw, split, entry, {n: row[c] for n, c in entry.columns.items()}, key)
            number += 1


@row_errors_as_invalid
def _record(raw: Path, split: str, entry: Source, row: dict[str, Any], default_key: str) -> Row:
    key = clean_text(row.get("id")) or default_key
    images = all_images(_bytes(raw, image, key) for image in _list(row.get("image")))
    if isinstance(images, InvalidRow):
        return images
    if "image" in row and not images:
        return InvalidRow(key, "image missing: there is none in the row")
    question, answer, caption = (clean_text(row.get(name)) for name in ("question", "answer", "caption"))
    derived = "caption" if "caption" in row else question_type(question, answer) if "image" in row else "text"
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=images,
        turns=[] if "caption" in row else [(question, answer)],
        caption=caption,
        type=clean_text(row.get("type")) or derived,
        group=clean_text(row.get("group")) or (group_of(images[0]) if images else key),
        licence=clean_text(row.get("licence")),
    )


def _bytes(raw: Path, image: Any, key: str) -> bytes | InvalidRow:
    """`{bytes, path}`: the bytes win, the path is a file beside the table."""
    if isinstance(image, bytes):
        return image
    return image.get("bytes") or image_file(raw, image.get("path") or "", key)


def _list(image: Any) -> list:
    return image if isinstance(image, list) else [] if image is None else [image]
