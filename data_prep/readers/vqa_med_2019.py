"""VQA-Med 2019: pipe-separated questions and a folder of `<image id>.jpg` per split.

Train and val: `image|question|answer`; the category comes from the file in `QAPairsByCategory` that contains the same line.
Test: `image|category|question|answer`, with several accepted answers separated by `#`.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import image_file, lines
from data_prep.readers.rows import InvalidRow, Row
from data_prep.sources import Source
from src.data.record import Record, question_type

FOLDERS = {
    "train": "ImageClef-2019-VQA-Med-Training/Train_images",
    "val": "ImageClef-2019-VQA-Med-Validation/Val_images",
    "test": "VQAMed2019Test/VQAMed2019_Test_Images",
}


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        categories = {} if split == "test" else _categories(path.parent)
        for number, line in lines(path):
            yield line if isinstance(line, InvalidRow) else _make_record(raw, split, entry, line, f"{split}-{number:05d}", categories)


def _make_record(raw: Path, split: str, entry: Source, line: str, number: str, categories: dict[str, str]) -> Row:
    parts = line.split("|")
    if len(parts) != (4 if split == "test" else 3):
        return InvalidRow(number, f"not image|question|answer: {line[:80]!r}")
    image_id, question, answer = parts[0], parts[-2].strip(), parts[-1].strip()
    category = parts[1] if split == "test" else categories.get(line, "")
    key = f"{number}-{image_id}"
    image = image_file(raw, f"{FOLDERS[split]}/{image_id}.jpg", key)
    if isinstance(image, InvalidRow):
        return image
    references = [reference.strip() for reference in answer.split("#")] if split == "test" else []
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=[image],
        turns=[(question, references[0] if references else answer)],
        references=references,
        type=_type(category, question, answer),
        group=image_id,
        meta={"category": category} if category else {},
    )


def _type(category: str, question: str, answer: str) -> str:
    """The question type. Three of the four categories are question types; `abnormality` covers several, chosen by the wording."""
    if category in ("modality", "plane", "organ"):
        return category
    by_wording = question_type(question, answer)
    return "finding" if by_wording == "other" and category == "abnormality" else by_wording


def _categories(folder: Path) -> dict[str, str]:
    """Line -> category, from `QAPairsByCategory/C1_Modality_train.txt` and similar files."""
    categories = {}
    for path in sorted(folder.glob("QAPairsByCategory/C*_*.txt")):
        category = path.name.split("_")[1].lower()
        categories.update({line: category for _, line in lines(path) if isinstance(line, str)})
    return categories
