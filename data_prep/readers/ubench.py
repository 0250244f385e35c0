"""u-Bench: microscopy images with closed questions, as Arrow files saved by `datasets`.

A row has `image {bytes, path}`, `license` and `questions {modality, stain, ...: {question, options, answer, ...} or null}`.
The questions of an image are the turns of one record, without the options, the last of which is always 'none of the above'.
It is a benchmark with a test split only. Because the reference mix trains on it, its images are the training split here.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import clean_text
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.sources import Source
from src.data.record import Record


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        for row in table_rows(path, entry, required=["image_id", "image", "questions"], optional=["license", "dataset"]):
            yield row if isinstance(row, InvalidRow) else _make_record(split, entry, row)


@row_errors_as_invalid
def _make_record(split: str, entry: Source, row: dict) -> Row:
    key = clean_text(row["image_id"])
    image = (row["image"] or {}).get("bytes")
    if not image:
        return InvalidRow(key, "image missing")
    questions = [question for _, question in sorted((row["questions"] or {}).items()) if question and question.get("answer")]
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=[image],
        turns=[(clean_text(question.get("question")), clean_text(question["answer"])) for question in questions],
        group=key,
        licence=clean_text(row.get("license")),
        meta={"dataset": clean_text(row["dataset"])} if row.get("dataset") else {},
    )
