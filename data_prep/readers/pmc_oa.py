"""PMC-OA: `pmc_oa.jsonl` with one figure part and caption per line, and its images in `images.zip`."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import json_lines
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.zip_members import ZipMembers
from data_prep.sources import Source
from src.data.record import Record

FOLDER = "caption_T060_filtered_top4_sep_v0_subfigures"


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        with ZipMembers(raw / "images.zip") as images:
            for number, fields in json_lines(path):
                yield fields if isinstance(fields, InvalidRow) else _make_record(split, entry, fields, number, images)


@row_errors_as_invalid
def _make_record(split: str, entry: Source, fields: dict, number: int, images: ZipMembers) -> Row:
    name, caption = str(fields.get("image") or ""), str(fields.get("caption") or "").strip()
    key = f"{Path(name).stem}-{number:07d}"  # a figure part may have several captions
    image = images.read(f"{FOLDER}/{name}", key)
    if isinstance(image, InvalidRow):
        return image
    return Record(key=key, source=entry.name, split=split, images=[image], caption=caption, type="caption", group=name.split("_")[0])
