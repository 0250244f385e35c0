"""A classification set: labelled images in three splits that share no group, whatever layout they came in."""

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
from src.data.image_conversion import to_rgb
from src.data.image_transform import decode_jpeg, resize_to_square
from src.data.record import SPLITS
from src.runtime import paths
from src.runtime.errors import UserError, suggest
from src.runtime.schema import to_typed

FOLDER = paths.CONF / "benchmark"
READING = b"2"  # version of how images are read: results of another one are computed again
SUMS = "md5sums.txt"  # lines of `md5sum`; what stands in it is checked before anything is read


@dataclass
class ClassificationDataset:
    """`labels_N` are positions in `classes`; `made` tells that the splits are ours, because the set gives none."""

    name: str
    classes: list[str]
    examples: list[Example]
    labels_N: np.ndarray
    made: bool
    fingerprint: str

    def rows(self, split: str) -> np.ndarray:
        return np.array([n for n, example in enumerate(self.examples) if example.split == split])

    def groups(self, rows: np.ndarray) -> list[str]:
        return [self.examples[n].group for n in rows]

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class."""
        return {split: {name: int((self.labels_N[self.rows(split)] == k).sum()) for k, name in enumerate(self.classes)} for split in SPLITS}


def read_dataset(name: str, *, raw: str | Path) -> ClassificationDataset:
    """`conf/benchmark/<name>.yaml` on `raw/<name>`. A folder of images or a labels.csv of one's own needs no yaml.

    Sets without splits get 60/20/20, stratified, no group on two sides. Wrong labels, empty classes, a group on both sides of a
    given split and a wrong checksum are `UserError`s.
    """
    folder, path = Path(raw) / name, FOLDER / f"{name}.yaml"
    if not folder.is_dir():
        known = {path.stem for path in FOLDER.glob("*.yaml") if "layout" in OmegaConf.load(path)} | {p.name for p in Path(raw).glob("*/")}
        raise UserError(f"benchmark '{name}' needs the folder {folder}, which does not exist{suggest(name, known - {name})}")
    own = ClassificationConfig("csv" if (folder / "labels.csv").exists() else "folder")
    config = to_typed(ClassificationConfig, DictConfig(OmegaConf.load(path))) if path.exists() else own
    if config.layout not in LAYOUTS:
        raise UserError(f"benchmark '{name}': layout={config.layout!r}{suggest(config.layout, LAYOUTS)}")
    _verify(folder)
    found = list(LAYOUTS[config.layout](folder, config))
    return build_dataset(name, found, classes=list(config.classes), origin=folder / config.path)


def build_dataset(name: str, found: list[Example], *, classes: list[str], origin: Path | None = None) -> ClassificationDataset:
    """Checks the examples and splits those that come without a split; `origin` is the file that holds their arrays."""
    if not found:
        raise UserError(f"benchmark '{name}' holds no image")
    labels = {example.label for example in found}
    classes = classes or sorted(labels)
    for example in found:
        if example.label not in classes:
            raise UserError(f"benchmark '{name}': {example.key} has the label '{example.label}'{suggest(example.label, classes)}")
    if len(labels) < 2:
        raise UserError(f"benchmark '{name}' has one class only ('{found[0].label}'); at least two are needed")
    labels_N = np.array([classes.index(example.label) for example in found])
    made = not all(example.split for example in found)
    if made:
        found = assign_splits(found, labels_N)
    data = ClassificationDataset(name, classes, found, labels_N, made, dataset_fingerprint(found, origin))
    _check(data)
    return data


def assign_splits(found: list[Example], labels_N: np.ndarray) -> list[Example]:
    """Examples without a split get one: fifths stratified by label, whole groups, one for test and one for val."""
    open_N = np.array([n for n, example in enumerate(found) if not example.split])
    groups = [found[n].group for n in open_N]
    alone = len(set(groups)) == len(groups)
    kind = (StratifiedKFold if alone else StratifiedGroupKFold)(5, shuffle=True, random_state=0)
    try:
        folds = [part for _, part in kind.split(open_N, labels_N[open_N], None if alone else groups)]
    except ValueError as error:
        raise UserError(f"cannot split {len(open_N)} images of {len(set(groups))} groups into fifths: {error}") from None
    chosen = dict.fromkeys(open_N[folds[0]].tolist(), "test") | dict.fromkeys(open_N[folds[1]].tolist(), "val")
    return [example if example.split else example._replace(split=chosen.get(n, "train")) for n, example in enumerate(found)]


def dataset_fingerprint(found: Iterable[Example], origin: Path | None = None) -> str:
    """Of keys, splits, labels, groups and of the images by size and time of their files: no image is read."""
    state = xxhash.xxh3_128(READING)
    for example in found:
        state.update("\t".join(example[:4]).encode())
        if isinstance(example.image, Path):
            state.update(_stamp(example.image))
    if origin and origin.is_file():
        state.update(_stamp(origin))
    return state.hexdigest()


def _stamp(path: Path) -> bytes:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}\n".encode()


def image_batches(data: ClassificationDataset, rows: np.ndarray, *, size: int, batch: int, threads: int) -> Iterator[Tensor]:
    """uint8 x_N3HW of `rows`, in order, decoded ahead by threads; files that cannot be read are named together in one error."""
    blocks = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    broken: list[str] = []

    def load(block: np.ndarray) -> Tensor:
        out_N3HW = np.zeros((len(block), 3, size, size), np.uint8)
        for k, n in enumerate(block):
            try:
                out_N3HW[k] = image_to_pixels(data.examples[n].image, size=size)
            except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
                broken.append(data.examples[n].key)
        return torch.from_numpy(out_N3HW)

    with ThreadPoolExecutor(threads) as pool:
        todo = iter(blocks)
        ahead: list[Future] = [pool.submit(load, block) for block in islice(todo, threads + 1)]
        while ahead:
            yield ahead.pop(0).result()
            ahead += [pool.submit(load, block) for block in islice(todo, 1)]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise UserError(f"benchmark '{data.name}': cannot read {', '.join(sorted(broken)[:3])}{more} as images; repair or remove them")


def image_to_pixels(image: Path | np.ndarray, *, size: int) -> np.ndarray:
    """An encoded file or an array of pixels -> uint8 (3, size, size), read and squashed as in training."""
    if isinstance(image, Path):
        return decode_jpeg(image.read_bytes(), size=size)
    return resize_to_square(to_rgb(Image.fromarray(image)), size)


def _check(data: ClassificationDataset) -> None:
    for split, counts in data.counts().items():
        empty = [name for name, count in counts.items() if not count]
        if empty:
            raise UserError(f"benchmark '{data.name}': its {split} split has no image of {', '.join(repr(name) for name in empty[:3])}")
    sides: dict[str, str] = {}
    for example in data.examples:
        if sides.setdefault(example.group, example.split) != example.split:
            raise UserError(
                f"benchmark '{data.name}': group '{example.group}' stands in both {sides[example.group]} and {example.split}; "
                "a patient or slide must be on one side of the split"
            )
    repeated = [key for key, count in Counter(example.key for example in data.examples).items() if count > 1]
    if repeated:
        raise UserError(f"benchmark '{data.name}': the image '{repeated[0]}' is listed more than once")


def _verify(folder: Path) -> None:
    if not (folder / SUMS).exists():
        return
    for line in (folder / SUMS).read_text().splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name.strip()
        if not path.is_file():
            raise UserError(f"{folder / SUMS} lists {name.strip()}, which does not exist; fetch it again")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != expected.strip():
            raise UserError(f"{path} has the MD5 {found}, but {SUMS} says {expected.strip()}; fetch it again")
