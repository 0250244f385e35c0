"""Classification sets: labelled images in three splits without a common group, read from any layout."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import xxhash
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from src.classification.layouts import Example
from src.classification.splits import assign_splits, hold_out_val, to_indicator
from src.data.image_conversion import to_rgb
from src.data.image_transform import decode_image, resize_to_square
from src.data.record import SPLITS
from src.runtime.errors import UserError, suggest

READER_VERSION = b"2"  # changes when images are read differently, so that stored results are computed again


@dataclass
class ClassificationDataset:
    """`labels` are indices into `classes` (N,), or 0/1 per class (N, K) in a multi-label set.

    `generated_split` is true if the set has no splits and `assign_splits` created them. `split_note` says where the splits come from.
    `external` is the name and the fingerprint of the set that the test split was taken from, if that is another one.
    """

    name: str
    classes: list[str]
    examples: list[Example]
    labels: np.ndarray
    generated_split: bool
    fingerprint: str
    split_note: str = "given"
    external: tuple[str, str] | None = None

    @property
    def test_set(self) -> tuple[str, str]:
        """Name and fingerprint of the set whose test split this is, as the audit knows it."""
        return self.external or (self.name, self.fingerprint)

    @property
    def multilabel(self) -> bool:
        return self.labels.ndim == 2

    def rows(self, split: str) -> np.ndarray:
        return np.array([n for n, example in enumerate(self.examples) if example.split == split], int)

    def groups(self, rows: np.ndarray) -> list[str]:
        return [self.examples[n].group for n in rows]

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images per split and class. An image of a multi-label set counts once for each of its labels."""
        positive_NK = to_indicator(self.labels, len(self.classes))
        return {split: dict(zip(self.classes, positive_NK[self.rows(split)].sum(0).tolist(), strict=True)) for split in SPLITS}

    def absent_classes(self) -> dict[str, list[str]]:
        """The classes without an image in a split; empty for a split that has all classes."""
        return {split: [name for name, count in counts.items() if not count] for split, counts in self.counts().items()}


def build_dataset(name: str, examples: list[Example], *, classes: list[str], array_file: Path | None = None) -> ClassificationDataset:
    """Validates the examples and splits those without a split. `array_file` is the file of their arrays, for the fingerprint.

    The set is multi-label if the labels are tuples.
    """
    if not examples:
        raise UserError(f"benchmark '{name}': no image found; check its folder and layout")
    multilabel = isinstance(examples[0].label, tuple)
    names = {label for example in examples for label in label_names(example)}
    if unknown := sorted(names - set(classes)) if classes else []:
        key = next(example.key for example in examples if unknown[0] in label_names(example))
        raise UserError(f"benchmark '{name}': {key} has the label '{unknown[0]}'{suggest(unknown[0], classes)}")
    if not names:
        raise UserError(f"benchmark '{name}': no image has a label; give at least two classes")
    if len(names) < 2:
        only = f"there is only one class ('{next(iter(names))}')"
        raise UserError(f"benchmark '{name}': {only} in {len(examples):,} images; give at least two, as one folder per class")
    classes = classes or sorted(names)
    number = {label: k for k, label in enumerate(classes)}
    labels = np.zeros((len(examples), len(classes)), np.uint8) if multilabel else np.zeros(len(examples), int)
    for n, example in enumerate(examples):
        numbers = [number[label] for label in label_names(example)]
        if multilabel:
            labels[n, numbers] = 1
        else:
            labels[n] = numbers[0]
    generated_split = not all(example.split for example in examples)
    note = "given"
    if generated_split:
        note = "ours, 60/20/20 by group"
        examples = assign_splits(examples, labels)
    elif not any(example.split == "val" for example in examples):
        note = "test is given, val is ours"
        examples = hold_out_val(examples, labels)
    data = ClassificationDataset(name, classes, examples, labels, generated_split, dataset_fingerprint(examples, array_file), note)
    _check_splits(data)
    return data


def label_names(example: Example) -> tuple[str, ...]:
    return (example.label,) if isinstance(example.label, str) else example.label


def dataset_fingerprint(examples: Iterable[Example], array_file: Path | None = None) -> str:
    """Hash of keys, splits, labels, groups, and of the size and time of the image files. Images are not read."""
    state = xxhash.xxh3_128(READER_VERSION)
    for example in examples:
        state.update("\t".join((example.key, example.split, "|".join(label_names(example)), example.group)).encode())
        if isinstance(example.image, Path):
            state.update(_size_and_time(example.image))
    if array_file and array_file.is_file():
        state.update(_size_and_time(array_file))
    return state.hexdigest()


def _size_and_time(path: Path) -> bytes:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}\n".encode()


def image_batches(data: ClassificationDataset, rows: np.ndarray, *, size: int, batch: int, threads: int) -> Iterator[Tensor]:
    """uint8 x_N3HW of `rows`, in order, prefetched by threads. One `UserError` at the end names all unreadable files."""
    blocks = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    unreadable: list[str] = []

    def load(block: np.ndarray) -> Tensor:
        out_N3HW = np.zeros((len(block), 3, size, size), np.uint8)
        for k, n in enumerate(block):
            try:
                out_N3HW[k] = image_to_pixels(data.examples[n].image, size=size)
            except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
                unreadable.append(data.examples[n].key)
        return torch.from_numpy(out_N3HW)

    with ThreadPoolExecutor(threads) as pool:
        remaining = iter(blocks)
        futures: list[Future] = [pool.submit(load, block) for block in islice(remaining, threads + 1)]
        while futures:
            yield futures.pop(0).result()
            futures += [pool.submit(load, block) for block in islice(remaining, 1)]
    if unreadable:
        more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        raise UserError(f"benchmark '{data.name}': cannot read {', '.join(sorted(unreadable)[:3])}{more} as images; repair or remove them")


def image_to_pixels(image: Path | np.ndarray, *, size: int) -> np.ndarray:
    """An encoded file or a pixel array as uint8 (3, size, size), decoded and resized (without keeping the aspect ratio) as in training."""
    if isinstance(image, Path):
        return decode_image(image.read_bytes(), size=size)
    return resize_to_square(to_rgb(Image.fromarray(image)), size)


def _check_splits(data: ClassificationDataset) -> None:
    for split, absent in data.absent_classes().items():
        allowed = len(data.classes) - 1 if data.multilabel and split != "train" else 0
        if len(absent) > allowed:
            raise UserError(
                f"benchmark '{data.name}': the {split} split has no image of {', '.join(map(repr, absent[:3]))}; correct the splits"
            )
    split_of: dict[str, str] = {}
    for example in data.examples:
        if split_of.setdefault(example.group, example.split) != example.split:
            raise UserError(
                f"benchmark '{data.name}': group '{example.group}' is in both {split_of[example.group]} and {example.split}; "
                "move each patient or slide into one split"
            )
    repeated = [key for key, count in Counter(example.key for example in data.examples).items() if count > 1]
    if repeated:
        raise UserError(f"benchmark '{data.name}': the image '{repeated[0]}' is listed more than once; keep one row")
