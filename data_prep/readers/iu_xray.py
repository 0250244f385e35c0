"""IU X-Ray (Open-i, as CSV): chest X-ray reports with their views, frontal views first.

Files: `indiana_reports.csv` (`uid, findings, impression, ...`), `indiana_projections.csv` (`uid, filename, projection`) and
`images/images_normalized/<filename>`. De-identified words appear as XXXX and are removed with the spaces before them.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import all_images, clean_text, image_file
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.sources import Source
from src.data.record import Record
from src.runtime.errors import UserError

FOLDER = "images/images_normalized"


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        views = _views(raw / "indiana_projections.csv", entry)
        for row in table_rows(path, entry, required=["uid", "findings", "impression"]):
            yield row if isinstance(row, InvalidRow) else _make_record(raw, split, entry, row, views)


def _views(path: Path, entry: Source) -> dict[str, list[str]]:
    """uid -> file names, frontal views first."""
    if not path.exists():
        raise UserError(f"source '{entry.name}': {path} is missing, which names the images of each report; download it again")
    views = defaultdict(list)
    for row in table_rows(path, entry, required=["uid", "filename", "projection"]):
        if not isinstance(row, InvalidRow):
            views[clean_text(row["uid"])].append((clean_text(row["projection"]) != "Frontal", clean_text(row["filename"])))
    return {uid: [name for _, name in sorted(names)] for uid, names in views.items()}


@row_errors_as_invalid
def _make_record(raw: Path, split: str, entry: Source, row: dict, views: dict[str, list[str]]) -> Row:
    uid = clean_text(row["uid"])
    if uid not in views:
        return InvalidRow(uid, "image missing: indiana_projections.csv has no view of this report")
    images = all_images(image_file(raw, f"{FOLDER}/{name}", uid) for name in views[uid])
    if isinstance(images, InvalidRow):
        return images
    parts = (re.sub(r"\s*\bX{4,}\b", "", clean_text(row[name])).strip() for name in ("findings", "impression"))
    caption = " ".join(part for part in parts if part)
    return Record(key=uid, source=entry.name, split=split, images=images, caption=caption, type="caption", group=uid)
