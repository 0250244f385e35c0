"""SLAKE: `{train,validate,test}.json` (JSON arrays) and images `imgs/xmlab<n>/source.jpg`, in `imgs.zip` or unpacked.

English only: the Chinese questions have another split, in which 142 test images are in the training set.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from data_prep.readers.json_stream import iter_items
from data_prep.readers.raw_files import clean_text, image_file
from data_prep.readers.rows import FilteredRow, InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.zip_members import ZipMembers
from data_prep.sources import Source
from src.data.record import Record, question_type

TYPES = {
    "Modality": "modality",
    "Plane": "plane",
    "Organ": "organ",
    "Position": "location",
    "Abnormality": "finding",
    "Size": "size",
    "Quantity": "count",
}


# `dataset` is the sub-set: the X-rays come from ChestX-ray8, for example (data_prep/overlaps.yaml).
META = {"answer_type": "answer_type", "content_type": "content_type", "dataset": "modality"}


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        archive = path.parent / "imgs.zip"
        with ZipMembers(archive) if archive.exists() else nullcontext() as members:
            read_image = members.read if members else partial(image_file, path.parent)
            for position, fields in iter_items(path):
                yield _make_record(split, entry, fields, f"{split}-{position}", read_image)


@row_errors_as_invalid
def _make_record(split: str, entry: Source, fields: dict, key: str, read_image: Callable[[str, str], bytes | InvalidRow]) -> Row:
    if not isinstance(fields, dict):
        return InvalidRow(key, "not a JSON object")
    if fields.get("q_lang") != "en":
        return FilteredRow(key, "language")
    question, answer, name = (clean_text(fields.get(field)) for field in ("question", "answer", "img_name"))
    image = read_image(f"imgs/{name}", key)
    if isinstance(image, InvalidRow):
        return image
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=[image],
        turns=[(question, answer)],
        type=TYPES.get(fields.get("content_type", "")) or question_type(question, answer),
        group=name.partition("/")[0],
        meta={name: fields[key] for name, key in META.items() if fields.get(key)},
    )
