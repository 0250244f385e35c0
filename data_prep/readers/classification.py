"""Any classification dataset of `conf/benchmark`, and any folder of classes, as questions whose answer is the class.

Used for the data card and for training on such a dataset. Encoder transfer reads the raw files itself, with the same splits.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.readers.rows import Row
from data_prep.sources import Source
from src.data.record import Record

QUESTION = "what does the image show?"
OPTIONS: dict[str, tuple[str, ...]] = {"question": ()}


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    from src.classification.dataset import label_names  # these import torch, which the other readers do not need
    from src.classification.reader import read_dataset

    data = read_dataset(raw.name, raw=raw.parent)
    for row in data.rows(split):
        example = data.examples[row]
        yield Record(
            key=f"{split}-{row:06d}",
            source=entry.name,
            split=split,
            images=[_encode(example.image)],
            turns=[(entry.options.get("question", QUESTION), ", ".join(label_names(example)) or "none of these")],
            choices=list(data.classes) if isinstance(example.label, str) else [],
            type="finding",
            group=example.group,
            meta={"name": example.key},
        )


def _encode(image: Path | np.ndarray) -> bytes:
    """The bytes of an image file, or an array as PNG."""
    if isinstance(image, Path):
        return image.read_bytes()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
