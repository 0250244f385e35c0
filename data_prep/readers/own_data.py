"""Own data: one table per split with a question and its answer, a caption or a conversation per row, and images.

A table is JSON lines, a JSON array, CSV, TSV, parquet, or Arrow as saved by `datasets`. Keys of a row: `image` or `images` (a path relative
to the folder or to its folder `images`, a data URI, `{bytes, path}` as written by `datasets`, or a list of these), `question` and
`answer`, or `caption`, or a conversation (`data_prep/readers/chat.py`), and the optional `id` (default: split and row number), `choices`,
`type` (another value than a question type is stored in `meta`), `group` (default: the first image), `references` and `licence`. Other
keys are stored in `meta`.
"""

import base64
import binascii
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from data_prep.readers.chat import CONVERSATIONS, Chat, parse_chat
from data_prep.readers.hash_set import HashSet
from data_prep.readers.json_stream import MAX_ITEM
from data_prep.readers.raw_files import all_images, group_of, image_file, json_lines
from data_prep.readers.rows import InvalidRow, Note, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.sources import Source
from src.classification.layouts import list_images
from src.data.record import QUESTION_TYPES, SPLITS, Record, question_type
from src.runtime.errors import UserError

RECORD_KEYS = (
    *("id", "image", "images", "question", "answer", "caption", *CONVERSATIONS),
    *("choices", "type", "group", "references", "licence"),
)
TYPE_NOTE = "type is not a question type, stored in meta as type_column"
CHECKED_ROWS = 100  # rows of a table among which one must have the keys of a record


def read(raw: Path, split: str, entry: Source) -> Iterator[Row | Note]:
    ids, previous = HashSet(), 0
    for path in entry.tables(raw, split):
        folders = [folder for folder in dict.fromkeys((path.parent, raw, path.parent / "images", raw / "images")) if folder.is_dir()]
        number = 0
        for number, fields in _table_rows(path, entry):
            if isinstance(fields, InvalidRow):
                yield fields
                continue
            notes: list[str] = []
            yield (row := _make_record(raw, split, entry, f"{split}-{previous + number}", fields, folders, ids, notes))
            if isinstance(row, Record):
                yield from map(Note, notes)
        previous += number


def check_tables(raw: Path, entry: Source) -> None:
    """Raises `UserError` for a table without any row, among its first ones, that has the keys of a record."""
    for path in (path for split in SPLITS for path in entry.tables(raw, split)):
        missing = ""
        for _, fields in islice(_table_rows(path, entry), CHECKED_ROWS):
            if isinstance(fields, InvalidRow):
                continue
            reason = _missing_key(fields)
            if not reason:
                break
            missing = missing or reason
        else:
            if missing:
                expected = f"question and answer, or caption, or {' or '.join(CONVERSATIONS)}"
                folders = ", ".join(unread_folders(raw, entry)[:5])
                advice = f"; or move the table out of {raw}, to read its folders {folders} as classes" if folders else ""
                raise UserError(f"{path}: {missing.replace(':', ';', 1)}; name the keys {expected}{advice}")


def unread_folders(raw: Path, entry: Source) -> list[str]:
    """The folders with images beside the tables that none of the first rows of a table names, such as folders of classes."""
    folders = [path.name for path in sorted(raw.glob("[!.]*/")) if path.name not in ("images", "data")]
    paths = [path for split in SPLITS for path in entry.tables(raw, split)] if folders else []
    rows = (fields for path in paths for _, fields in islice(_table_rows(path, entry), CHECKED_ROWS) if isinstance(fields, dict))
    for text in (json.dumps(fields, ensure_ascii=False, default=lambda _: "") for fields in rows):
        folders = [name for name in folders if f'"{name}/' not in text and f"/{name}/" not in text]
    return [name for name in folders if list_images(raw / name)]


def _table_rows(path: Path, entry: Source) -> Iterator[tuple[int, dict | InvalidRow]]:
    """(number from 1, row) of a table of any format; the number is the line in a file of JSON lines."""
    if path.suffix == ".jsonl" or (path.suffix == ".json" and _has_json_lines(path)):
        return json_lines(path)
    return enumerate(table_rows(path, entry, required=[], every_column=True), start=1)


def _has_json_lines(path: Path) -> bool:
    """Whether a .json file holds an object per line, instead of one array, or one object whose values are the rows."""
    with path.open("rb") as file:
        if not file.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return False
        file.seek(0)
        try:
            first = json.loads(file.readline(MAX_ITEM))
        except ValueError:  # the object continues on the next line
            return False
    return not all(isinstance(value, dict) for value in first.values())


def _missing_key(fields: dict) -> str:
    """The first key that a row needs and lacks, with the keys found; empty if it has them all."""
    if "messages" in fields or "conversations" in fields or fields.get("caption"):
        return ""
    missing = next((name for name in ("question", "answer") if name not in fields), "")
    return missing and f"no key {missing}: found {', '.join(map(str, fields))[:200]}"


@row_errors_as_invalid
def _make_record(
    raw: Path, split: str, entry: Source, default_key: str, fields: dict, folders: list[Path], ids: HashSet, notes: list[str]
) -> Row:
    key = _as_text(fields.get("id")) or default_key
    if missing := _missing_key(fields):
        return InvalidRow(key, missing)
    sources = _as_list(fields.get("image") or fields.get("images"))
    chat: Chat | None = None
    if fields.get("messages") is not None or fields.get("conversations") is not None:
        parsed = parse_chat(fields, sources, key)
        if isinstance(parsed, InvalidRow):
            return parsed
        chat = parsed
        sources, notes[:] = chat.images, chat.notes
        if not ids.add(xxhash.xxh3_64_intdigest(key.encode(errors="surrogateescape"))):
            key = f"{key}-{default_key}"  # LLaVA-Instruct uses the id of the image for several conversations
            notes.append("repeated id")
    meta = {name: value for name, value in fields.items() if name not in RECORD_KEYS and _is_meta(value)}
    column = meta.pop("system", None)
    if chat and chat.system:
        meta["system"] = chat.system
    elif column is not None:
        meta["system_column"] = column  # prompts use `system` as the system turn; without a conversation it is something else
    images = all_images(_read_image(source, raw, folders, key) for source in sources)
    if isinstance(images, InvalidRow):
        return images
    turns, caption = _texts(fields, chat)
    type_ = _as_text(fields.get("type")).lower()
    if type_ not in QUESTION_TYPES:
        if _is_meta(fields.get("type")):
            meta["type_column"] = fields["type"]
            notes.append(TYPE_NOTE)
        type_ = "caption" if caption else question_type(*turns[-1])
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=images,
        turns=turns,
        caption=caption,
        choices=_texts_of(fields.get("choices")),
        references=_texts_of(fields.get("references")),
        type=type_,
        group=_as_text(fields.get("group")) or (_group(sources[0], images[0]) if images else key),
        licence=_as_text(fields.get("licence")),
        meta=meta,
    )


def _texts(fields: dict, chat: Chat | None) -> tuple[list[tuple[str, str]], str]:
    """(turns, caption) of a row. One answer to an empty question beside an image is a caption."""
    if chat:
        captioned = len(chat.turns) == 1 and chat.images and not chat.turns[0][0]
        return ([], chat.turns[0][1]) if captioned else (chat.turns, "")
    if caption := _as_text(fields.get("caption")):
        return [], caption
    return [(_as_text(fields.get("question")), _as_text(fields.get("answer")))], ""


def _read_image(source: Any, raw: Path, folders: list[Path], key: str) -> bytes | InvalidRow:
    """The bytes of an image that is a path, a data URI, bytes or `{bytes, path}`. Nothing outside `raw` is read."""
    if isinstance(source, dict):
        encoded = source.get("bytes")
        source = encoded if isinstance(encoded, bytes) else source.get("path") or source.get("url")
    if isinstance(source, bytes):
        return source
    name = _as_text(source)
    if not name:
        return InvalidRow(key, f"image is neither a path, a data URI nor bytes: {str(source)[:80]}")
    if name.startswith("data:"):
        return _decode_data_uri(name, key)
    if name.startswith(("http://", "https://")):
        return InvalidRow(key, f"image is an address: {name[:200]}; download it and give its path")
    if name.startswith("/") and Path(name).is_relative_to(raw.absolute()):
        name = str(Path(name).relative_to(raw.absolute()))
    folder = folders[0]
    if len(folders) > 1:
        folder = next((each for each in folders if os.path.exists(os.path.join(each, name))), folder)
    return image_file(folder, name, key)


def _decode_data_uri(uri: str, key: str) -> bytes | InvalidRow:
    header, _, data = uri.partition(",")
    if not header.startswith("data:image/") or not header.endswith(";base64"):
        return InvalidRow(key, f"data URI is not an image in base64: {header[:80]}")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        return InvalidRow(key, f"data URI cannot be decoded: {error}")


def _group(source: Any, image: bytes) -> str:
    """The path of an image, or for bytes and data URIs, whose names may not be unique, a hash of the image."""
    path = source.get("path") if isinstance(source, dict) and not source.get("bytes") else source
    name = _as_text(path)
    return group_of(image) if not name or name.startswith("data:") else name


def _is_meta(value: Any) -> bool:
    """Whether a value is stored: not an empty cell of a table, and not the bytes of a further image."""
    binary = isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))
    return value is not None and value != "" and not binary


def _as_text(value: object) -> str:
    """A string or number as text, true and false as yes and no; empty for other types."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value in (None, "", b"") else [value]


def _texts_of(value: object) -> list[str]:
    return [_as_text(item) for item in value] if isinstance(value, list) else [_as_text(value)] if _as_text(value) else []
