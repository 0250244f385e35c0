"""Quilt-1M: frames of histopathology videos (and other images) with captions.

`quilt_1M_lookup.csv` has `caption, image_path, subset, split, not_histology, ...`; images are files in `quilt_1m/`. An image
may have several captions. Rows that the dataset marks as not histology are filtered.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import clean_text, image_file
from data_prep.readers.rows import FilteredRow, InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.sources import Source
from src.data.record import Record


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        for number, row in enumerate(table_rows(path, entry, required=["caption", "image_path"])):
            yield row if isinstance(row, InvalidRow) else _make_record(raw, split, entry, row, number)


@row_errors_as_invalid
def _make_record(raw: Path, split: str, entry: Source, row: dict, number: int) -> Row:
    name = clean_text(row["image_path"])
    key = f"{number:07d}-{Path(name).stem}"
    if clean_text(row.get("not_histology")) in ("1", "1.0", "True"):
        return FilteredRow(key, "not histology")
    image = image_file(raw, f"quilt_1m/{name}", key)
    if isinstance(image, InvalidRow):
        return image
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=[image],
        caption=clean_text(row["caption"]),
        type="caption",
        group=name.partition("_image_")[0],  # <video>_image_<frame>.jpg; otherwise the whole name
        meta={"subset": clean_text(row["subset"])} if row.get("subset") else {},
    )
