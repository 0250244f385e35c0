"""MedQA (USMLE, 4 options): JSON lines `{question, answer, options: {A: ...}, answer_idx, meta_info}`.

Files are `phrases_no_exclude_{train,dev,test}.jsonl`, in the raw folder or, as in the release, in
`data_clean/questions/US/4_options/`.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import clean_text, json_lines
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.sources import Source
from src.data.record import Record


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        for number, fields in json_lines(path):
            yield fields if isinstance(fields, InvalidRow) else _make_record(split, entry, fields, f"{split}-{number:05d}")


@row_errors_as_invalid
def _make_record(split: str, entry: Source, fields: dict, key: str) -> Row:
    options = fields.get("options")
    if not isinstance(options, dict) or fields.get("answer_idx") not in options:
        return InvalidRow(key, f"no such option: answer_idx={fields.get('answer_idx')!r}")
    return Record(
        key=key,
        source=entry.name,
        split=split,
        turns=[(clean_text(fields.get("question")), clean_text(options[fields["answer_idx"]]))],
        choices=[clean_text(options[letter]) for letter in sorted(options)],
        type="choice",
        group=key,
        meta={"step": clean_text(fields["meta_info"])} if fields.get("meta_info") else {},
    )
