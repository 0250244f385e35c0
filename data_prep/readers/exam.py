"""Exam questions with options and several images: MMMU (parquet), MedXpertQA-MM (JSON lines), MedFrameQA (parquet).

`columns` in `sources.yaml`:
  question, choices   options are a list, an object by letter, or the text of a Python list; without options the question is open
  answer              the letter of an option; of an open question the answer, or the text of a Python list of accepted answers
  image               `image_*` for the columns image_1, image_2, ..., else a column with file names in `images.zip` or the folder `images`
  id, group           optional
  any other name      stored in `meta` under this name; `<folder>` stands for the name of the folder of the table
`<image 2>` in a question or an option means the second image. It stays in the text, because the prompt has all images first.
"""

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.readers.raw_files import all_images, clean_text, group_of, image_file
from data_prep.readers.rows import InvalidRow, Note, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.readers.zip_members import ZipMembers
from data_prep.sources import Source
from src.data.record import Record, question_type

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TOKEN = re.compile(r"<image (\d+)>")
REPEATED_OPTIONS = re.compile(r"\s*Answer Choices:\s*\(A\).*", re.DOTALL)  # MedXpertQA ends its questions with the options
REPEATED_NOTE = "options removed from the question, where the prompt would show them twice and in the original order"
NO_META = ("id", "group", "question", "choices", "answer", "image")
FOLDER = "<folder>"
ReadImage = Callable[[str, str], bytes | InvalidRow]


def read(raw: Path, split: str, entry: Source) -> Iterator[Row | Note]:
    archive = raw / "images.zip"
    with ZipMembers(archive, flat=True) if archive.exists() else nullcontext() as members:
        read_image = members.read if members else partial(image_file, raw / "images")
        for path in entry.tables(raw, split):
            required = [entry.columns[name] for name in ("question", "choices", "answer")]
            for number, row in enumerate(table_rows(path, entry, required=required, every_column=True)):
                if isinstance(row, InvalidRow):
                    yield row
                    continue
                question = clean_text(row[entry.columns["question"]])
                fields = {name: path.parent.name if column == FOLDER else row.get(column) for name, column in entry.columns.items()}
                fields |= {"question": REPEATED_OPTIONS.sub("", question), "image": _images(row, entry.columns["image"])}
                record = _make_record(split, entry, fields, f"{path.parent.name}-{split}-{number:05d}", read_image)
                yield record
                if isinstance(record, Record) and record.question != question:
                    yield Note(REPEATED_NOTE)


def _images(row: dict[str, Any], column: str) -> list:
    """The values of the numbered columns up to the last that is not null, or the list in a single column."""
    if "*" not in column:
        return row.get(column) or []
    names = sorted((name for name in row if re.fullmatch(column.replace("*", r"\d+"), name)), key=lambda name: int(name.rpartition("_")[2]))
    values = [row[name] for name in names]
    while values and values[-1] is None:
        values.pop()
    return values


@row_errors_as_invalid
def _make_record(split: str, entry: Source, fields: dict[str, Any], default_key: str, read_image: ReadImage) -> Row:
    key = clean_text(fields.get("id")) or default_key
    question, answer = clean_text(fields["question"]), clean_text(fields["answer"])
    options = _options(fields["choices"])
    if options is None:
        return InvalidRow(key, f"options unreadable: {fields['choices']!r}"[:200])
    choices = list(options.values())
    if reason := _wrong_options(options, answer):
        return InvalidRow(key, reason)
    tokens = TOKEN.findall("\n".join([question, *choices]))
    if missing := [token for token in tokens if not 1 <= int(token) <= len(fields["image"])]:
        return InvalidRow(key, f"image token without image: <image {missing[0]}> of {len(fields['image'])} images")
    images = all_images(_image_bytes(image, key, read_image) for image in fields["image"])
    if isinstance(images, InvalidRow):
        return images
    if not images:
        return InvalidRow(key, "image missing: the row has no image")
    references = [] if choices else [text for value in _list(answer) or [] if (text := clean_text(value))]
    answer = options[answer] if choices else references[0] if references else answer
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=images,
        turns=[(question, answer)],
        choices=choices,
        references=references,
        type="choice" if choices else question_type(question, answer),
        group=clean_text(fields.get("group")) or group_of(images[0]),
        meta={name: text for name, value in fields.items() if name not in NO_META and (text := _meta(value))},
    )


def _options(value: Any) -> dict[str, str] | None:
    """Letter -> option, in the order of the letters; empty without options. None for text that is no list."""
    if isinstance(value, dict):  # parquet has null for the letters that another question uses
        return {letter: clean_text(value[letter]) for letter in sorted(value) if value[letter] is not None}
    values = _list(value) if isinstance(value, str) and value.strip() else value or []
    return None if values is None else dict(zip(LETTERS, map(clean_text, values), strict=False))


def _list(text: str) -> list | None:
    """The list that a Python literal denotes; None for any other text."""
    try:
        value = ast.literal_eval(text.strip()) if text.strip().startswith("[") else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, list) else None


def _wrong_options(options: dict[str, str], letter: str) -> str:
    """Why a question with options cannot be used; empty if it can, or if it has none."""
    choices = list(options.values())
    if options and letter not in options:
        return f"no such option: answer={letter[:80]!r}, options {', '.join(options)}"
    if not all(choices):
        return "empty option"
    if len(set(choices)) < len(choices):
        return f"equal options: {choices}"[:200]
    return ""


def _image_bytes(image: Any, key: str, read_image: ReadImage) -> bytes | InvalidRow:
    if image is None:
        return InvalidRow(key, "image missing: an empty column before the last image")
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or ""
    return image if isinstance(image, bytes) else read_image(image, key)


def _meta(value: Any) -> str:
    """A field as text. MMMU states the kinds of images as the text of a Python list."""
    return ", ".join(map(clean_text, _list(value) or [value])) if isinstance(value, str) else clean_text(value)
