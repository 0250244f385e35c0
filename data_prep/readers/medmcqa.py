"""MedMCQA: entrance exam questions with four options.

The parquet files on the hub number the correct option `cop` from 0, the original release (`train.json`, `dev.json`: JSON
lines) from 1. The labels of the test set are not public, so the validation set is the test split here, as in the literature.
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
        is_original = path.suffix == ".json"
        rows = (
            (row for _, row in json_lines(path)) if is_original else table_rows(path, entry, required=["id", "question", "cop", *OPTIONS])
        )
        for row in rows:
            yield row if isinstance(row, InvalidRow) else _make_record(split, entry, row, first=1 if is_original else 0)


@row_errors_as_invalid
def _make_record(split: str, entry: Source, row: dict, *, first: int) -> Row:
    key, choices = clean_text(row.get("id")), [clean_text(row.get(name)) for name in OPTIONS]
    option = row.get("cop")
    if not isinstance(option, int) or not first <= option < first + len(choices):
        return InvalidRow(key, f"no such option: cop={option!r}")
    if not all(choices):
        return InvalidRow(key, "empty option")
    return Record(
        key=key,
        source=entry.name,
        split=split,
        turns=[(clean_text(row.get("question")), choices[option - first])],
        choices=choices,
        type="choice",
        group=key,
        meta={"subject": clean_text(row["subject_name"])} if row.get("subject_name") else {},
    )
