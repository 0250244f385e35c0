"""The user's own data: `{train,val,test}.jsonl`, one object per line, image files beside them.

Keys of a line: `image` (path relative to the folder, a list of paths, or absent), `question` and `answer` or `caption`,
and optional `id` (default: split and line number), `choices`, `type`, `group` (default: the first image), `references`,
`licence`. Anything else is kept in `meta`.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import all_images, image_file, json_lines
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.sources import Source
from src.data.record import QUESTION_TYPES, Record, question_type
from src.runtime.errors import suggest

KNOWN = ("id", "image", "question", "answer", "caption", "choices", "type", "group", "references", "licence")


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        for number, fields in json_lines(path):
            yield fields if isinstance(fields, InvalidRow) else _record(raw, split, entry, fields, f"{split}-{number}")


@row_errors_as_invalid
def _record(raw: Path, split: str, entry: Source, fields: dict, default_key: str) -> Row:
    key = _text(fields.get("id")) or default_key
    names = _list(fields.get("image"))
    if fields.get("image") and not names:
        return InvalidRow(key, f"image is neither a path nor a list of paths: {str(fields['image'])[:80]}")
    images = all_images(image_file(raw, name, key) for name in names)
    if isinstance(images, InvalidRow):
        return images
    question, answer, caption = (_text(fields.get(name)) for name in ("question", "answer", "caption"))
    kind = _text(fields.get("type")) or ("caption" if caption else question_type(question, answer))
    if kind not in QUESTION_TYPES:
        return InvalidRow(key, f"unknown type: {kind!r}{suggest(kind, QUESTION_TYPES)}")
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=images,
        turns=[] if caption else [(question, answer)],
        caption=caption,
        choices=_list(fields.get("choices")),
        references=_list(fields.get("references")),
        type=kind,
        group=_text(fields.get("group")) or (names[0] if names else key),
        licence=_text(fields.get("licence")),
        meta={name: value for name, value in fields.items() if name not in KNOWN},
    )


def _text(value: object) -> str:
    """A number is text that lost its quotes; null and containers are no text."""
    return str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def _list(value: object) -> list[str]:
    return [_text(one) for one in value] if isinstance(value, list) else [_text(value)] if _text(value) else []
