"""OmniMedVQA: questions with two to four options on images of 73 datasets, in `OmniMedVQA.zip` or unpacked.

`QA_information/{Open,Restricted}-access/<sub-set>.json` are arrays of `{dataset, question_id, question_type, question, gt_answer,
image_path, option_A, option_B, ...}`. An option that a question does not have is an absent key, and `gt_answer` is the text of the right
option. The images of the restricted sub-sets come from their owners; a restricted table without any image is skipped and counted.
It is a benchmark with one split. Because the reference mix trains on it, all of it is the training split of `omnimedvqa`. The source
`omnimedvqa_open` reads the same files as a test split, without the restricted tables (option `access`: all or open).
"""

import re
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from data_prep.readers.json_stream import iter_stream
from data_prep.readers.raw_files import clean_text, image_file
from data_prep.readers.rows import FilteredRow, InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.zip_members import ZipMembers
from data_prep.sources import Source
from src.data.record import Record, question_type
from src.runtime.errors import UserError

TABLE = re.compile(r"(?P<root>(?:[^/]+/)?)QA_information/(?P<access>Open|Restricted)-access/(?P<subset>[^/]+)\.json")
IMAGE_FOLDER = re.compile(r"(?:[^/]+/)?Images/[^/]+/")
TYPES = {
    "Anatomy Identification": "organ",
    "Disease Diagnosis": "finding",
    "Lesion Grading": "finding",
    "Modality Recognition": "modality",
    "Other Biological Attributes": "other",
}


OPTIONS: dict[str, tuple[str, ...]] = {"access": ("all", "open")}


class Folder:
    """The unpacked files, with the methods of `ZipMembers`."""

    def __init__(self, raw: Path):
        self.raw = raw

    def names(self) -> Iterator[str]:
        for pattern in ("QA_information/*-access/*.json", "Images/*/*"):
            yield from (path.relative_to(self.raw).as_posix() for root in ("", "*/") for path in self.raw.glob(root + pattern))

    def open(self, name: str) -> BufferedIOBase:
        return (self.raw / name).open("rb")

    def read(self, name: str, key: str) -> bytes | InvalidRow:
        return image_file(self.raw, name, key)


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    paths = entry.tables(raw, split)
    if any(path.suffix == ".json" for path in paths):
        yield from _read_tables(Folder(raw), split, entry)
    elif paths:
        with ZipMembers(paths[0]) as members:
            yield from _read_tables(members, split, entry)


def _read_tables(files: Folder | ZipMembers, split: str, entry: Source) -> Iterator[Row]:
    """The rows of all tables, open access first, then one `InvalidRow` for each folder of images that no table names."""
    tables, folders = {}, set()
    for name in files.names():
        if table := TABLE.fullmatch(name):
            tables[name] = table
        elif folder := IMAGE_FOLDER.match(name):
            folders.add(folder[0])
    open_only = entry.options.get("access") == "open"
    for name, table in sorted(tables.items()):
        root, subset = table["root"], table["subset"]
        try:
            if table["access"] == "Restricted" and (open_only or not _has_images(files, name, root)):
                with files.open(name) as file:
                    of_images = [_image_folder(root, fields) for _, fields in iter_stream(file, name)]
                folders.difference_update(of_images)
                without = "" if open_only else " without images"
                yield FilteredRow(subset, f"restricted sub-set '{subset}' of {len(of_images):,} questions{without}")
                continue
            with files.open(name) as file:
                for position, fields in iter_stream(file, name):
                    folders.discard(_image_folder(root, fields))
                    yield _make_record(split, entry, fields, f"{subset}-{position}", subset, root, files)
        except UserError as error:  # a damaged table ends here, and the others follow
            yield InvalidRow(f"{subset}.json", f"table damaged: {error}")
    for folder_name in sorted(folders):
        yield InvalidRow(folder_name, f"table missing: no readable table names an image in {folder_name}")


def _has_images(files: Folder | ZipMembers, name: str, root: str) -> bool:
    """Whether any image of a table is there."""
    with files.open(name) as file:
        return any(not isinstance(files.read(root + _image_path(fields), ""), InvalidRow) for _, fields in iter_stream(file, name))


def _image_path(fields: object) -> str:
    return str(fields.get("image_path") or "") if isinstance(fields, dict) else ""


def _image_folder(root: str, fields: object) -> str:
    return f"{root}{'/'.join(_image_path(fields).split('/')[:2])}/"


@row_errors_as_invalid
def _make_record(split: str, entry: Source, fields: dict, default_key: str, subset: str, root: str, files: Folder | ZipMembers) -> Row:
    if not isinstance(fields, dict):
        return InvalidRow(default_key, "not a JSON object")
    key = clean_text(fields.get("question_id")) or default_key
    question, answer, path = clean_text(fields.get("question")), clean_text(fields.get("gt_answer")), _image_path(fields)
    choices = [option for letter in "ABCD" if (option := clean_text(fields.get(f"option_{letter}")))]
    if answer not in choices:
        return InvalidRow(key, f"no such option: gt_answer={answer[:80]!r}")
    if len(set(choices)) < len(choices):
        return InvalidRow(key, f"equal options: {choices}"[:200])
    image = files.read(root + path, key) if path else InvalidRow(key, "image missing: the row names no image")
    if isinstance(image, InvalidRow):
        return image
    modality = clean_text(fields.get("modality_type") or fields.get("modality"))  # one record of 'Chest CT Scan' has the second key
    kind = clean_text(fields.get("question_type"))
    meta = {"dataset": clean_text(fields.get("dataset")) or subset, "modality": modality, "question_type": kind}
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=[image],
        turns=[(question, answer)],
        choices=choices,
        type=TYPES.get(kind) or question_type(question, answer),
        group=path,
        meta={name: value for name, value in meta.items() if value},
    )
