"""Classification sets: labelled images in three splits without a common group, read from any layout."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import xxhash
from omegaconf import DictConfig, OmegaConf
from PIL import Image, UnidentifiedImageError
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

from src.classification.layouts import LAYOUTS, ClassificationConfig, Example
from src.classification.names import FOLDER, dataset_folder
from src.data.image_conversion import to_rgb
from src.data.image_transform import decode_image, resize_to_square
from src.data.record import SPLITS
from src.runtime.errors import UserError, suggest
from src.runtime.schema import to_typed

READER_VERSION = b"2"  # changes when images are read differently, so that stored results are computed again
CHECKSUMS = "md5sums.txt"  # output of `md5sum`; its files are verified before the set is read


@dataclass
class ClassificationDataset:
    """`labels_N` are indices into `classes`. `generated_split` is true if the set has no splits and `assign_splits` created them."""

    name: str
    classes: list[str]
    examples: list[Example]
    labels_N: np.ndarray
    generated_split: bool
    fingerprint: str

    def rows(self, split: str) -> np.ndarray:
        return np.array([n for n, example in enumerate(self.examples) if example.split == split])

    def groups(self, rows: np.ndarray) -> list[str]:
        return [self.examples[n].group for n in rows]

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images per split and class."""
        return {split: {name: int((self.labels_N[self.rows(split)] == k).sum()) for k, name in enumerate(self.classes)} for split in SPLITS}


def read_dataset(name: str, *, raw: str | Path) -> ClassificationDataset:
    """Reads the set in `raw/<name>` as described by `conf/benchmark/<name>.yaml`.

    Without that file, a `labels.csv` or one folder per class is expected. A set without splits is split 60/20/20, stratified by class,
    with each group in one split. Raises `UserError` for an unknown label, an empty class, a group in two given splits and a wrong checksum.
    """
    folder, path = dataset_folder(name, raw), FOLDER / f"{name}.yaml"
    default = ClassificationConfig("csv" if (folder / "labels.csv").exists() else "folder")
    config = to_typed(ClassificationConfig, DictConfig(OmegaConf.load(path))) if path.exists() else default
    if config.layout not in LAYOUTS:
        raise UserError(f"benchmark '{name}': layout={config.layout!r}{suggest(config.layout, LAYOUTS)}")
    _verify_checksums(folder)
    examples = list(LAYOUTS[config.layout](folder, config))
    return build_dataset(name, examples, classes=list(config.classes), array_file=folder / config.path)


def build_dataset(name: str, examples: list[Example], *, classes: list[str], array_file: Path | None = None) -> ClassificationDataset:
    """Validates the examples and splits those without a split. `array_file` is the file of their arrays, for the fingerprint."""
    if not examples:
        raise UserError(f"benchmark '{name}': no image found; check its folder and layout")
    labels = {example.label for example in examples}
    classes = classes or sorted(labels)
    for example in examples:
        if example.label not in classes:
            raise UserError(f"benchmark '{name}': {example.key} has the label '{example.label}'{suggest(example.label, classes)}")
    if len(labels) < 2:
        raise UserError(f"benchmark '{name}': there is only one class ('{examples[0].label}'); give at least two")
    labels_N = np.array([classes.index(example.label) for example in examples])
    generated_split = not all(example.split for example in examples)
    if generated_split:
        examples = assign_splits(examples, labels_N)
    data = ClassificationDataset(name, classes, examples, labels_N, generated_split, dataset_fingerprint(examples, array_file))
    _check_splits(data)
    return data


def assign_splits(examples: list[Example], labels_N: np.ndarray) -> list[Example]:
    """Assigns examples without a split to one: five folds, stratified by label, with whole groups; one is test, one is val."""
    unassigned_N = np.array([n for n, example in enumerate(examples) if not example.split])
    groups = [examples[n].group for n in unassigned_N]
    ungrouped = len(set(groups)) == len(groups)
    splitter = (StratifiedKFold if ungrouped else StratifiedGroupKFold)(5, shuffle=True, random_state=0)
    try:
        folds = [fold for _, fold in splitter.split(unassigned_N, labels_N[unassigned_N], None if ungrouped else groups)]
    except ValueError as error:
        raise UserError(f"cannot split {len(unassigned_N)} images of {len(set(groups))} groups into fifths: {error}") from None
    assigned = dict.fromkeys(unassigned_N[folds[0]].tolist(), "test") | dict.fromkeys(unassigned_N[folds[1]].tolist(), "val")
    return [example if example.split else example._replace(split=assigned.get(n, "train")) for n, example in enumerate(examples)]


def dataset_fingerprint(examples: Iterable[Example], array_file: Path | None = None) -> str:
    """Hash of keys, splits, labels, groups, and of the size and time of the image files. Images are not read."""
    state = xxhash.xxh3_128(READER_VERSION)
    for example in examples:
        state.update("\t".join(example[:4]).encode())
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
    for split, counts in data.counts().items():
        empty = [name for name, count in counts.items() if not count]
        if empty:
            raise UserError(
                f"benchmark '{data.name}': the {split} split has no image of {', '.join(map(repr, empty[:3]))}; correct the splits"
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


def _verify_checksums(folder: Path) -> None:
    if not (folder / CHECKSUMS).exists():
        return
    for line in (folder / CHECKSUMS).read_text().splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name.strip()
        if not path.is_file():
            raise UserError(f"{folder / CHECKSUMS}: {name.strip()} does not exist; download it again")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != expected.strip():
            raise UserError(f"{path}: the MD5 is {digest}, but {CHECKSUMS} has {expected.strip()}; download it again")
