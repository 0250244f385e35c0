"""Quilt-1M: frames of histopathology videos (and other pictures) with captions.

`quilt_1M_lookup.csv` has `caption, image_path, subset, split, not_histology, ...`; pictures are files in `quilt_1m/`. One
picture may have several captions. Rows that the dataset itself marks as no histology are filtered.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.raw_files import clean, image_file
from data_prep.rows import Bad, Filtered, Row, one_row
from data_prep.sources import Source
from data_prep.tables import table_rows
from src.data.record import Record


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        for number, row in enumerate(table_rows(path, entry, need=["caption", "image_path"])):
            yield row if isinstance(row, Bad) else _record(raw, split, entry, row, number)


@one_row
def _record(raw: Path, split: str, entry: Source, row: dict, number: int) -> Row:
    name = clean(row["image_path"])
    key = f"{number:07d}-{Path(name).stem}"
    if clean(row.get("not_histology")) in ("1", "1.0", "True"):
        return Filtered(key, "not histology")
    image = image_file(raw, f"quilt_1m/{name}", key)
    if isinstance(image, Bad):
        return image
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=[image],
        caption=clean(row["caption"]),
        type="caption",
        group=name.partition("_image_")[0],  # <video>_image_<frame>.jpg; else the picture itself
        meta={"subset": clean(row["subset"])} if row.get("subset") else {},
    )
