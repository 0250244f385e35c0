"""Own data: `{train,val,test}.jsonl` with one object per line, and image files in the same folder.

Keys of a line: `image` (a path relative to the folder, a list of paths, or absent), `question` and `answer`, or `caption`,
and the optional `id` (default: split and line number), `choices`, `type`, `group` (default: the first image), `references`
and `licence`. Other keys are stored in `meta`.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import all_images, image_file, json_lines
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.sources import Source
from src.data.record import QUESTION_TYPES, Record, question_type
from src.runtime.errors import suggest

RECORD_KEYS = ("id", "image", "question", "answer", "caption", "choices", "type", "group", "references", "licence")


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        for number, fields in json_lines(path):
            yield fields if isinstance(fields, InvalidRow) else _make_record(raw, split, entry, fields, f"{split}-{number}")


@row_errors_as_invalid
def _make_record(raw: Path, split: str, entry: Source, fields: dict, default_key: str) -> Row:
    key = _as_text(fields.get("id")) or default_key
    names = _as_list(fields.get("image"))
    if fields.get("image") and not names:
        return InvalidRow(key, f"image is neither a path nor a list of paths: {str(fields['image'])[:80]}")
    images = all_images(image_file(raw, name, key) for name in names)
    if isinstance(images, InvalidRow):
        return images
    question, answer, caption = (_as_text(fields.get(name)) for name in ("question", "answer", "caption"))
    type_ = _as_text(fields.get("type")) or ("caption" if caption else question_type(question, answer))
    if type_ not in QUESTION_TYPES:
        return InvalidRow(key, f"unknown type: {type_!r}{suggest(type_, QUESTION_TYPES)}")
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=images,
        turns=[] if caption else [(question, answer)],
        caption=caption,
        choices=_as_list(fields.get("choices")),
        references=_as_list(fields.get("references")),
        type=type_,
        group=_as_text(fields.get("group")) or (names[0] if names else key),
        licence=_as_text(fields.get("licence")),
        meta={name: value for name, value in fields.items() if name not in RECORD_KEYS},
    )


def _as_text(value: object) -> str:
    """A string or number as text; empty for other types."""
    return str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def _as_list(value: object) -> list[str]:
    return [_as_text(item) for item in value] if isinstance(value, list) else [_as_text(value)] if _as_text(value) else []
