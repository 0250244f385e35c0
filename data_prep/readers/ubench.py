"""u-Bench: microscopy pictures with closed questions, as Arrow files that `datasets` saved.

A row has `image {bytes, path}`, `license` and `questions {modality, stain, ...: {question, options, answer, ...} or null}`.
The questions of a picture are the turns of one record, without the options, of which the last is always 'none of the above'.
It is a benchmark with a test split only; as the reference mix trains on it, its pictures are the training split here.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.raw_files import clean
from data_prep.rows import Bad, Row, one_row
from data_prep.sources import Source
from data_prep.tables import table_rows
from src.data.record import Record


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        for row in table_rows(path, entry, need=["image_id", "image", "questions"], want=["license", "dataset"]):
            yield row if isinstance(row, Bad) else _record(split, entry, row)


@one_row
def _record(split: str, entry: Source, row: dict) -> Row:
    key = clean(row["image_id"])
    image = (row["image"] or {}).get("bytes")
    if not image:
        return Bad(key, "image missing")
    asked = [one for _, one in sorted((row["questions"] or {}).items()) if one and one.get("answer")]
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=[image],
        turns=[(clean(one.get("question")), clean(one["answer"])) for one in asked],
        group=key,
        licence=clean(row.get("license")),
        meta={"dataset": clean(row["dataset"])} if row.get("dataset") else {},
    )
