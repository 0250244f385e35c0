"""PMC-VQA: questions with four options on figures of articles, as CSV with the images in `images.zip`.

Columns: `Figure_path, Question, Answer` (`Anwser` in older revisions; not used), `Choice A` to `Choice D` (each starts with
its letter: ` A:Diffuse uptake`) and `Answer_label`. The test split is `test_clean.csv`, which was checked manually.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import clean_text
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.readers.zip_members import ZipMembers
from data_prep.sources import Source
from src.data.record import Record

LETTERS = "ABCD"
COLUMNS = ["Figure_path", "Question", "Answer_label", *(f"Choice {letter}" for letter in LETTERS)]


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        with ZipMembers(raw / "images.zip", flat=True) as images:
            for number, row in enumerate(table_rows(path, entry, required=COLUMNS)):
                yield row if isinstance(row, InvalidRow) else _make_record(split, entry, row, number, images)


@row_errors_as_invalid
def _make_record(split: str, entry: Source, row: dict, number: int, images: ZipMembers) -> Row:
    name, label = clean_text(row["Figure_path"]), clean_text(row["Answer_label"])
    key = f"{split}-{number:06d}-{Path(name).stem}"
    if label not in list(LETTERS):
        return InvalidRow(key, f"no such option: Answer_label={label!r}")
    image = images.read(name, key)
    if isinstance(image, InvalidRow):
        return image
    choices = [re.sub(rf"^{letter}\s*:\s*", "", clean_text(row[f"Choice {letter}"])) for letter in LETTERS]
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=[image],
        turns=[(clean_text(row["Question"]), choices[LETTERS.index(label)])],
        choices=choices,
        type="choice",
        group=Path(name).stem,
    )
