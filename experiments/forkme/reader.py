"""My dataset: what its files look like, in one or two lines.

This example: `{train,test}.jsonl` with `id`, `file`, `question`, `answer` and `patient`, and the images next to them.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import clean_text, image_file, json_lines
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.sources import Source
from src.data.record import Record, question_type


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    """Yields the rows of one split, in file order. `raw` is the folder of the dataset."""
    for path in entry.tables(raw, split):  # the files that `files:` of the entry names
        for number, fields in json_lines(path):
            yield fields if isinstance(fields, InvalidRow) else _make_record(raw, split, entry, fields, f"{split}-{number}")


@row_errors_as_invalid  # a missing field sets this row aside with the reason; the build goes on
def _make_record(raw: Path, split: str, entry: Source, fields: dict, key: str) -> Row:
    image = image_file(raw, fields["file"], key)  # encoded bytes; the build decodes and checks them
    if isinstance(image, InvalidRow):
        return image
    question, answer = clean_text(fields["question"]), clean_text(fields["answer"])
    return Record(
        key=key,  # unique and stable: without dots and slashes
        source=entry.name,
        split=split,
        images=[image],
        turns=[(question, answer)],  # or caption="..."
        type=question_type(question, answer),  # one of QUESTION_TYPES; map the categories of the dataset if it has some
        group=str(fields["patient"]),  # records of one group never get into two splits, and are one cluster in the statistics
    )
