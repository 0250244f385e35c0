"""Any classification set of `conf/benchmark`, as questions whose answer is the class: for the data card, and for those who want to
train on one. Transfer reads the raw files itself, and mixes leave out what stands in a test split."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.readers.rows import Row
from data_prep.sources import Source
from src.data.record import Record

QUESTION = "what does the image show?"


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    from src.classification import dataset  # brings torch along, which only this needs

    data = dataset.read_dataset(raw.name, raw=raw.parent)
    for row in data.rows(split):
        example = data.examples[row]
        yield Record(
            key=f"{split}-{row:06d}",
            source=entry.name,
            split=split,
            images=[_encoded(example.image)],
            turns=[(QUESTION, example.label)],
            choices=list(data.classes),
            type="finding",
            group=example.group,
            meta={"name": example.key},
        )


def _encoded(image: Path | np.ndarray) -> bytes:
    if isinstance(image, Path):
        return image.read_bytes()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
