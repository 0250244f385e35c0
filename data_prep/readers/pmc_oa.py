"""PMC-OA: `pmc_oa.jsonl` with one figure part and caption per line, the pictures inside `images.zip` beside it."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.raw_files import json_lines
from data_prep.rows import Bad, Row, one_row
from data_prep.sources import Source
from data_prep.zip_members import ZipMembers
from src.data.record import Record

FOLDER = "caption_T060_filtered_top4_sep_v0_subfigures"


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        with ZipMembers(raw / "images.zip") as pictures:
            for number, fields in json_lines(path):
                yield fields if isinstance(fields, Bad) else _record(split, entry, fields, number, pictures)


@one_row
def _record(split: str, entry: Source, fields: dict, number: int, pictures: ZipMembers) -> Row:
    name, caption = str(fields.get("image") or ""), str(fields.get("caption") or "").strip()
    key = f"{Path(name).stem}-{number:07d}"  # a figure part may come with several captions
    image = pictures.read(f"{FOLDER}/{name}", key)
    if isinstance(image, Bad):
        return image
    return Record(key=key, source=entry.name, split=split, images=[image], caption=caption, type="caption", group=name.split("_")[0])
