"""Any dataset that is a table with image, question and answer columns (PathVQA, VQA-RAD, ROCO, HealthCareMagic, ...).

`sources.yaml` names the columns: `image` (bytes, `{bytes, path}` as written by `datasets`, or a list of those; absent in a
text-only dataset), `question` and `answer`, or `caption`, and the optional `id`, `type`, `group` and `licence`. Files are
parquet files as on the hub (`data/train-00000-of-00004.parquet`) or have another format of `data_prep/readers/tables.py`.
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
        for row in table_rows(path, entry, required=list(entry.columns.values())):
            key = f"{split}-{number:06d}"
            yield (
                row
                if isinstance(row, InvalidRow)
                else _make_record(raw, split, entry, {name: row[column] for name, column in entry.columns.items()}, key)
            )
            number += 1


@row_errors_as_invalid
def _make_record(raw: Path, split: str, entry: Source, row: dict[str, Any], default_key: str) -> Row:
    key = clean_text(row.get("id")) or default_key
    images = all_images(_image_bytes(raw, image, key) for image in _as_list(row.get("image")))
    if isinstance(images, InvalidRow):
        return images
    if "image" in row and not images:
        return InvalidRow(key, "image missing: the row has no image")
    question, answer, caption = (clean_text(row.get(name)) for name in ("question", "answer", "caption"))
    default_type = "caption" if "caption" in row else question_type(question, answer) if "image" in row else "text"
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=images,
        turns=[] if "caption" in row else [(question, answer)],
        caption=caption,
        type=clean_text(row.get("type")) or default_type,
        group=clean_text(row.get("group")) or (group_of(images[0]) if images else key),
        licence=clean_text(row.get("licence")),
    )


def _image_bytes(raw: Path, image: Any, key: str) -> bytes | InvalidRow:
    """The bytes of an image. In `{bytes, path}`, bytes take precedence; the path is relative to the raw folder."""
    if isinstance(image, bytes):
        return image
    return image.get("bytes") or image_file(raw, image.get("path") or "", key)


def _as_list(image: Any) -> list:
    return image if isinstance(image, list) else [] if image is None else [image]
