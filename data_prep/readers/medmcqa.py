"""MedMCQA: entrance exam questions with four options.

The hub's parquet counts the right option `cop` from 0, the original release (`train.json`, `dev.json`: JSON lines) from 1.
The labels of its test set are not public, so the validation set is the test split here, as in the literature.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import clean_text, json_lines
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.sources import Source
from src.data.record import Record

OPTIONS = ["opa", "opb", "opc", "opd"]


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        original = path.suffix == ".json"
        rows = (row for _, row in json_lines(path)) if original else table_rows(path, entry, need=["id", "question", "cop", *OPTIONS])
        for row in rows:
            yield row if isinstance(row, InvalidRow) else _record(split, entry, row, first=1 if original else 0)


@row_errors_as_invalid
def _record(split: str, entry: Source, row: dict, *, first: int) -> Row:
    key, choices = clean_text(row.get("id")), [clean_text(row.get(option)) for option in OPTIONS]
    right = row.get("cop")
    if not isinstance(right, int) or not first <= right < first + len(choices):
        return InvalidRow(key, f"no such option: cop={right!r}")
    if not all(choices):
        return InvalidRow(key, "empty option")
    return Record(
        key=key,
        source=entry.name,
        split=split,
        turns=[(clean_text(row.get("question")), choices[right - first])],
        choices=choices,
        type="choice",
        group=key,
        meta={"subject": clean_text(row["subject_name"])} if row.get("subject_name") else {},
    )
