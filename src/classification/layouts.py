"""Classification sets as they come, one function per raw layout: folder -> `Example`s. Nothing is unpacked or decoded here.

`npz` (MedMNIST), `folder` (one folder per class), `csv` (a table beside the images), `sicap` (SICAPv2's spreadsheets).
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
from typing import NamedTuple

import numpy as np

from src.data.record import SPLITS
from src.runtime.errors import UserError, suggest

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MASK = re.compile(r"_mask(_\d+)?$")  # a segmentation beside its image, as BUSI has them
SPLIT_FOLDERS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("val", "valid", "validation"), "val")
SPLIT_FOLDERS |= dict.fromkeys(("test", "testing"), "test")


@dataclass
class ClassificationConfig:
    """The keys of `conf/benchmark/<name>.yaml` of a classification set, where each has its meaning as a comment."""

    layout: str
    path: str = ""
    classes: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    group: str = ""


class Example(NamedTuple):
    """One labelled image. `split` is empty where the set gives none; `group` is the patient or slide, else the key."""

    key: str
    split: str
    label: str
    group: str
    image: Path | np.ndarray  # encoded file, or uint8 pixels (H, W) or (H, W, 3)


def npz_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """MedMNIST (Yang et al., Scientific Data 2023): `{train,val,test}_{images,labels}`, labels (N, 1) of class numbers."""
    path = folder / config.path
    for split in SPLITS:
        images, labels = npz_array(path, f"{split}_images"), npz_array(path, f"{split}_labels")
        if labels.ndim == 2 and labels.shape[1] > 1:
            raise UserError(f"{path}: {split}_labels gives {labels.shape[1]} labels per image; sets with one label per image can be read")
        if len(images) != len(labels):
            raise UserError(f"{path}: {len(images)} {split}_images but {len(labels)} {split}_labels")
        for n, number in enumerate(labels.reshape(-1).tolist()):
            name = config.classes[number] if number < len(config.classes) else f"class number {number}"
            yield Example(f"{split}-{n:06d}", split, name, f"{split}-{n:06d}", images[n])


def npz_array(path: Path, name: str) -> np.ndarray:
    """One array of an npz file; mapped, not read, where the file is not compressed. Pickles are refused."""
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
            shape, fortran, kind = header(file)
            if kind.hasobject:
                raise ValueError("it holds Python objects")
            mapped = np.memmap(path, kind, "r", file.tell(), shape, "F" if fortran else "C") if all(shape) else np.zeros(shape, kind)
            return np.asarray(mapped)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; fetch it or give another raw=") from None
    except KeyError:
        raise UserError(f"{path} holds no array '{name}'; expected {{train,val,test}}_{{images,labels}}") from None
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as npz ({str(error).splitlines()[0]}); fetch it again") from None


def folder_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """`<class>/*.png`, or `{train,val,test}/<class>/*.png` (also training, valid, validation, testing, in any case).

    `config.group` is a regular expression on the file name: its match, or first bracket, is the group. Masks, hidden files and whatever
    is no image (Thumbs.db) are passed over; images in a folder beside those of splits raise `UserError`.
    """
    root = folder / config.path
    _there(root)
    tops = sorted(path for path in root.iterdir() if path.is_dir())
    splits = {path: SPLIT_FOLDERS[path.name.lower()] for path in tops if path.name.lower() in SPLIT_FOLDERS}
    for other in tops if splits else ():
        if other not in splits and images_below(other):
            known = ", ".join(sorted(path.name for path in splits))
            raise UserError(f"{root} holds '{other.name}', which is no split, beside {known}; allowed are folders of classes, or of splits")
    for top in splits or {root: ""}:
        for kind in sorted(path for path in top.iterdir() if path.is_dir()):
            for path in images_below(kind):
                key = path.relative_to(root).as_posix()
                yield Example(key, splits.get(top, ""), kind.name, _group(config.group, path.stem) or key, path)


def table_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """A CSV with a row per image. `config.columns` names its columns `image` (a path beside the table, or a file name anywhere
    below it, with or without suffix), `label`, and optionally `split` and `group`."""
    path = folder / (config.path or "labels.csv")
    _there(path)
    columns = config.columns or {name: name for name in ("image", "label", "split", "group")}
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); fetch it again") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    for name, column in columns.items():
        if column not in (rows.fieldnames or []) and (config.columns or name in ("image", "label")):
            there = suggest(column, rows.fieldnames or [], these="it has")
            raise UserError(f"{path} has no column '{column}', which is to be the {name}{there}")
    find = image_finder(path.parent)
    for row in rows:
        image, label, split, group = ((row.get(columns.get(name, "")) or "").strip() for name in ("image", "label", "split", "group"))
        if split and split.lower() not in SPLIT_FOLDERS:
            raise UserError(f"{path}: split of {image} is '{split}'; allowed: train, val, test")
        yield Example(image, SPLIT_FOLDERS.get(split.lower(), ""), label, group or image, find(image, origin=path))


def sicap_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """SICAPv2 (Silva-Rodriguez et al. 2020): patient folds as spreadsheets of 0/1 columns NC, G3, G4, G5.

    Train and val are the first validation fold, which splits `partition/Test/Train.xlsx` by patient; a patch belongs to the
    class with the highest value (as Quilt-1M's evaluation reads it). `wsi_labels.xlsx` tells the patient of a slide.
    """
    root = folder / config.path
    find = image_finder(root / "images")
    slides = read_sheet(root / "wsi_labels.xlsx", ("slide_id", "patient_id")) if (root / "wsi_labels.xlsx").exists() else []
    patients = {str(row["slide_id"]): f"patient {row['patient_id']}" for row in slides}
    for split, name in (("train", "Validation/Val1/Train"), ("val", "Validation/Val1/Test"), ("test", "Test/Test")):
        path = root / "partition" / f"{name}.xlsx"
        for row in read_sheet(path, ("image_name", *config.classes)):
            image, values = str(row["image_name"]), [float(row[kind] or 0) for kind in config.classes]
            slide = image.partition("_Block_")[0]
            yield Example(image, split, config.classes[int(np.argmax(values))], patients.get(slide, slide), find(image, origin=path))


def read_sheet(path: Path, columns: tuple[str, ...]) -> list[dict]:
    """The rows of the first sheet of an xlsx file, by column name."""
    from openpyxl import load_workbook

    _there(path)
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as xlsx ({error}); fetch it again") from None
    rows = book.worksheets[0].iter_rows(values_only=True)
    names = [str(name) for name in next(rows, ())]
    for column in columns:
        if column not in names:
            raise UserError(f"{path} has no column '{column}'{suggest(column, names, these='it has')}")
    found = [dict(zip(names, row, strict=False)) for row in rows if row and row[names.index(columns[0])] is not None]
    book.close()
    return found


LAYOUTS: dict[str, Callable[[Path, ClassificationConfig], Iterator[Example]]] = {
    "npz": npz_layout,
    "folder": folder_layout,
    "csv": table_layout,
    "sicap": sicap_layout,
}


def image_finder(root: Path) -> Callable[..., Path]:
    """Looks image files up by their path below `root`, or by their bare name (also without suffix), which may stand in any one folder."""
    exact: dict[str, Path] = {}
    bare: dict[str, list[Path]] = {}
    for path in images_below(root):
        exact[path.relative_to(root).as_posix()] = path
        for name in (path.name, path.stem):
            bare.setdefault(name, []).append(path)

    def find(name: str, *, origin: Path) -> Path:
        places = [exact[name]] if name in exact else bare.get(name, [])
        if not places:
            there = suggest(name, list(bare)[:200], these="it holds")
            raise UserError(f"{origin} names the image '{name}', which is not below {root}{there}")
        if len(places) > 1:
            a, b = (path.relative_to(root) for path in places[:2])
            raise UserError(f"{origin} names the image '{name}', which may be {a} or {b}; write its path below {root}")
        return places[0]

    return find


def images_below(folder: Path) -> list[Path]:
    _there(folder)
    found = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES and not name.startswith(".") and not MASK.search(stem):
                found.append(Path(place, name))
    return found


def _group(pattern: str, stem: str) -> str:
    found = re.search(pattern, stem) if pattern else None
    return (found[1] if found.groups() else found[0]) if found else ""


def _there(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist; fetch it, or give another raw=")
