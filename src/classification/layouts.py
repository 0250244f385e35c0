"""General raw layouts of classification sets: one function per layout lists the examples of a folder, without decoding images.

`npz` (MedMNIST), `folder` (one folder per class), `csv` (a table next to the images). `published_layouts.py` has those of single sets.
"""

import csv
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.data.record import SPLITS
from src.runtime.errors import UserError, suggest

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MASK = re.compile(r"_mask(_\d+)?$")  # segmentation masks in the folder of their images, as in BUSI
SPLIT_FOLDERS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("val", "valid", "validation"), "val")
SPLIT_FOLDERS |= dict.fromkeys(("test", "testing"), "test")


@dataclass
class ClassificationConfig:
    """Keys of a classification set in `conf/benchmark/<name>.yaml`, whose comments explain them."""

    layout: str
    path: str = ""
    classes: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    group: str = ""
    multilabel: bool = False
    duplicates: str = ""  # phash
    splits: str = "official"  # official, disjoint or generated
    split_note: str = ""  # how official splits were completed or changed, for tables
    train: str = ""  # layout: external; the set of the train and validation split
    test: str = ""  # layout: external; the set of the test split
    labels: dict[str, list[str]] = field(default_factory=dict)  # layout: external; class -> labels of `test` that mean it


class Example(NamedTuple):
    """One labelled image. `split` is empty if the set has no splits; `group` is the patient or slide, or the key if that is unknown.

    `label` is the class, or in a multi-label set the tuple of the positive classes, which may be empty.
    """

    key: str
    split: str
    label: str | tuple[str, ...]
    group: str
    image: Path | np.ndarray  # encoded file, or uint8 pixels (H, W) or (H, W, 3)


def npz_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """MedMNIST (Yang et al., Scientific Data 2023): `{train,val,test}_{images,labels}`.

    Labels are class numbers (N, 1), or 0/1 per class (N, L) in a multi-label set (ChestMNIST).
    """
    path = folder / config.path
    for split in SPLITS:
        images, labels = npz_array(path, f"{split}_images"), npz_array(path, f"{split}_labels")
        if labels.ndim == 2 and labels.shape[1] > 1 and not config.multilabel:
            raise UserError(f"{path}: {split}_labels has {labels.shape[1]} labels per image; set multilabel: true in its file")
        if config.multilabel and (labels.ndim != 2 or labels.shape[1] != len(config.classes) or not np.isin(labels, (0, 1)).all()):
            expected = f"0/1 of shape (N, {len(config.classes)}), one column per class of its file"
            raise UserError(f"{path}: {split}_labels of shape {labels.shape} must be {expected}; correct the classes, or download it again")
        if len(images) != len(labels):
            raise UserError(f"{path}: {len(images)} {split}_images but {len(labels)} {split}_labels; download it again")
        for n, row in enumerate(labels.reshape(len(labels), -1).tolist()):
            label: str | tuple[str, ...]
            if config.multilabel:
                label = tuple(name for name, positive in zip(config.classes, row, strict=True) if positive)
            else:
                label = config.classes[row[0]] if row[0] < len(config.classes) else f"class number {row[0]}"
            yield Example(f"{split}-{n:06d}", split, label, f"{split}-{n:06d}", images[n])


def npz_array(path: Path, name: str) -> np.ndarray:
    """One array of an npz file, memory-mapped if the file is not compressed. Python objects (pickles) raise `UserError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                with archive.open(member) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
        with path.open("rb") as file:
            file.seek(member.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(file)
            if dtype.hasobject:
                raise ValueError("it contains Python objects")
            mapped = np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C") if all(shape) else np.zeros(shape, dtype)
            return np.asarray(mapped)
    except FileNotFoundError:
        raise UserError(f"{path}: the file does not exist; download it or give another raw=") from None
    except KeyError:
        raise UserError(f"{path}: no array '{name}'; expected {{train,val,test}}_{{images,labels}}") from None
    except MemoryError:  # also of a damaged header
        raise UserError(f"{path}: {name} does not fit into memory, or the file is damaged; free memory, or download it again") from None
    except Exception as error:  # zipfile, zlib and numpy raise many types of errors on damaged files
        plain = isinstance(error, (zipfile.BadZipFile, ValueError, OSError)) and str(error)
        reason = str(error).splitlines()[0] if plain else "it is damaged"
        raise UserError(f"{path}: cannot be read as npz ({reason}); download it again") from None


def folder_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """`<class>/*.png`, or `{train,val,test}/<class>/*.png` (also training, valid, validation, testing, in any case).

    `config.group` is a regular expression for the file name; its match, or its first group, is the group of the image. Masks, hidden
    files and other file types are ignored. Images in a further folder next to split folders raise `UserError`.
    """
    root = folder / config.path
    require(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    splits = {path: SPLIT_FOLDERS[path.name.lower()] for path in folders if path.name.lower() in SPLIT_FOLDERS}
    for other in folders if splits else ():
        if other not in splits and list_images(other):
            known = ", ".join(sorted(path.name for path in splits))
            raise UserError(f"{root}: '{other.name}' is not a split, unlike {known}; use either class folders or split folders")
    for split_folder in splits or {root: ""}:
        for class_folder in sorted(path for path in split_folder.iterdir() if path.is_dir()):
            for path in list_images(class_folder):
                key = path.relative_to(root).as_posix()
                group = match_group(config.group, path.stem) or key
                yield Example(key, splits.get(split_folder, ""), class_folder.name, group, path)


def table_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """A CSV file with one row per image.

    `config.columns` maps `image`, `label` and optionally `split` and `group` to columns. `image` is a path relative to the table, or the
    name of a file in any folder below it, with or without suffix.
    """
    path = folder / (config.path or "labels.csv")
    columns = config.columns or {name: name for name in ("image", "label", "split", "group")}
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for name, column in columns.items():
        if column not in (rows.fieldnames or []) and (config.columns or name in ("image", "label")):
            columns_text = suggest(column, rows.fieldnames or [], these="its columns are")
            raise UserError(f"{path}: no column '{column}' for the {name}{columns_text}")
    find = image_finder(path.parent)
    for row in complete_rows(path, rows):
        image, label, split, group = ((row.get(columns.get(name, "")) or "").strip() for name in ("image", "label", "split", "group"))
        if split and split.lower() not in SPLIT_FOLDERS:
            raise UserError(f"{path}: the split of {image} is '{split}'; allowed: train, val, test")
        yield Example(image, SPLIT_FOLDERS.get(split.lower(), ""), label, group or image, find(image, table=path))


def read_text(path: Path) -> str:
    """The text of a file. Raises `UserError` if it cannot be read or is not UTF-8."""
    require(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); download it again") from None


def complete_rows(path: Path, rows: Iterator[Any]) -> Iterator[Any]:
    """The rows of a CSV reader. Raises `UserError` where the file is damaged."""
    try:
        yield from rows
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as csv ({error}); download it again") from None


def image_finder(*roots: Path) -> Callable[..., Path]:
    """A function that finds an image by its path relative to a root, or by a unique file name, with or without suffix."""
    by_path: dict[str, Path] = {}
    by_name: dict[str, list[Path]] = {}
    for root in roots:
        for path in list_images(root):
            by_path[path.relative_to(root).as_posix()] = path
            for name in (path.name, path.stem):
                by_name.setdefault(name, []).append(path)

    def find(name: str, *, table: Path) -> Path:
        matches = [by_path[name]] if name in by_path else by_name.get(name, [])
        if not matches:
            raise UserError(f"{table}: the image '{name}' is not below {roots[0]}{suggest(name, list(by_name)[:200], these='it contains')}")
        if len(matches) > 1:
            first, second = (os.path.relpath(path, roots[0]) for path in matches[:2])
            raise UserError(f"{table}: the image '{name}' may be {first} or {second}; write its path relative to {roots[0]}")
        return matches[0]

    return find


def list_images(folder: Path) -> list[Path]:
    """All image files below `folder`, sorted, without hidden files and masks."""
    require(folder)
    paths = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES and not name.startswith(".") and not MASK.search(stem):
                paths.append(Path(parent, name))
    return paths


def match_group(pattern: str, stem: str) -> str:
    match = re.search(pattern, stem) if pattern else None
    return (match[1] if match.groups() else match[0]) if match else ""


def require(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist; download it or give another raw=")
