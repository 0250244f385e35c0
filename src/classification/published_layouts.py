"""Raw layouts of single published classification sets, and the registry of all layouts.

`sicap` (the spreadsheets of SICAPv2), `cxr8` (the tables of NIH ChestX-ray14), `medfmc` (the lists or tables of MedFMC).
"""

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xxhash

from src.classification.layouts import (
    ClassificationConfig,
    Example,
    complete_rows,
    folder_layout,
    image_finder,
    list_images,
    match_group,
    npz_layout,
    read_text,
    require,
    table_layout,
)
from src.runtime.errors import UserError, suggest

NIH_LABELS: tuple[str, ...] = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax")
NIH_LABELS += ("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")
NIH_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
MEDFMC_LISTS = {"train_20.txt": "train", "val_20.txt": "val", "test_WithLabel.txt": "test"}
MEDFMC_ALTERNATIVE = {"trainval.txt": "", "test_WithLabel.txt": "test"}


def sicap_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """SICAPv2 (Silva-Rodriguez et al. 2020): patient folds as spreadsheets of 0/1 columns NC, G3, G4, G5.

    Train and val are the first validation fold, which splits `partition/Test/Train.xlsx` by patient. The class of a patch is the column
    with the highest value, as in the evaluation of Quilt-1M. `wsi_labels.xlsx` maps slides to patients.
    """
    root = folder / config.path
    find = image_finder(root / "images")
    slides = read_sheet(root / "wsi_labels.xlsx", ("slide_id", "patient_id")) if (root / "wsi_labels.xlsx").exists() else []
    patients = {str(row["slide_id"]): f"patient {row['patient_id']}" for row in slides}
    for split, fold in (("train", "Validation/Val1/Train"), ("val", "Validation/Val1/Test"), ("test", "Test/Test")):
        path = root / "partition" / f"{fold}.xlsx"
        for row in read_sheet(path, ("image_name", *config.classes)):
            image = str(row["image_name"])
            try:
                values = [float(row.get(name) or 0) for name in config.classes]
            except (TypeError, ValueError):
                raise UserError(f"{path}: {image} has a value that is not a number; download it again") from None
            slide = image.partition("_Block_")[0]
            yield Example(image, split, config.classes[int(np.argmax(values))], patients.get(slide, slide), find(image, table=path))


def read_sheet(path: Path, columns: tuple[str, ...]) -> list[dict]:
    """The rows of the first sheet of an xlsx file, by column name."""
    from openpyxl import load_workbook

    require(path)
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        rows = list(book.worksheets[0].iter_rows(values_only=True))
        book.close()
    except Exception as error:  # openpyxl raises many types of errors on damaged files
        reason = error if isinstance(error, (OSError, zipfile.BadZipFile)) else "it is damaged"
        raise UserError(f"{path}: cannot be read as xlsx ({reason}); download it again") from None
    names = [str(name) for name in rows[0]] if rows else []
    require_columns(path, columns, names)
    return [dict(zip(names, row, strict=False)) for row in rows[1:] if row and row[names.index(columns[0])] is not None]


def cxr8_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """NIH ChestX-ray14 (Wang et al., CVPR 2017): `Data_Entry_2017*.csv`, two official lists, and PNG files in any folder.

    Labels are the findings of an image that are in `config.classes`, a part of the fourteen; none for `No Finding`. The test split is
    `test_list.txt`. The validation split is a fixed eighth of the patients of `train_val_list.txt`, since there is no official one.
    """
    root = folder / config.path
    table = next(iter(sorted(root.glob("Data_Entry_2017*.csv"))), root / "Data_Entry_2017_v2020.csv")
    split_of: dict[str, str] = {}
    for split, name in (("", "train_val_list.txt"), ("test", "test_list.txt")):
        split_of |= dict.fromkeys(read_text(root / name).split(), split)
    rows = list(read_columns(table, NIH_COLUMNS))
    images = {path.name: path for path in list_images(root)}
    missing = [name for name, *_ in rows if name not in images]
    if missing:
        raise UserError(
            f"{table}: {len(missing):,} of {len(rows):,} images are not below {root}, such as {missing[0]}; unpack all archives"
        )
    for name, text, patient in rows:
        if name not in split_of:
            raise UserError(f"{table}: {name} is neither in train_val_list.txt nor in test_list.txt; download all three again")
        names = set(text.split("|")) - {"No Finding"}
        for label in sorted(names.difference(NIH_LABELS)):
            raise UserError(f"{table}: {name} has the label '{label}'{suggest(label, NIH_LABELS)}")
        labels = tuple(label for label in config.classes if label in names)
        yield Example(name, split_of[name] or _train_or_val(patient), labels, f"patient {patient}", images[name])


def medfmc_layout(folder: Path, config: ClassificationConfig) -> Iterator[Example]:
    """One set of MedFMC (Wang et al., Scientific Data 2023), in `<path>` or `*/<path>`, such as `MedFMC_train/colon`.

    The lists of the code repository (openmedlab/MedFM) have official splits: `train_20.txt`, `val_20.txt` and `test_WithLabel.txt`, or
    `trainval.txt`, of which a fixed eighth of the groups is the validation split. Without them, `<path>_train.csv` of the challenge is
    read, which has no splits. `config.group` is a regular expression for the file name; without a match, the group is the study of the
    csv, or the image.
    """
    places = [folder / config.path, *sorted(folder.glob(f"*/{config.path}"))]
    places = [place for place in places if place.is_dir()]
    if not places:
        raise UserError(f"{folder}: neither {config.path} nor */{config.path} is a folder; unpack MedFMC there or give another raw=")
    files = {path.name: path for place in places for path in (*place.glob("*.txt"), *place.glob("*.csv"))}
    lists = next((names for names in (MEDFMC_LISTS, MEDFMC_ALTERNATIVE) if names.keys() <= files.keys()), None)
    table = files.get(f"{config.path}_train.csv")
    if lists is None and table is None:
        expected = f"{', '.join(MEDFMC_LISTS)}, nor {' and '.join(MEDFMC_ALTERNATIVE)}, nor {config.path}_train.csv"
        raise UserError(f"{places[0]}: neither {expected}; copy the lists of openmedlab/MedFM (data_backup) there")
    find = image_finder(*places)
    positive = config.classes if config.multilabel else config.classes[1:]
    rows: Iterator[tuple[Path, str, str, str, list[str]]]
    if lists:
        rows = ((files[name], split, *row) for name, split in lists.items() for row in _read_medfmc_list(files[name], len(positive)))
    else:
        assert table is not None
        columns = ("img_id", "study_id", *positive)
        rows = ((table, "", name, study, values) for name, study, *values in read_columns(table, columns))
    for path, split, name, study, values in rows:
        flags = [_is_positive(value, name=name, path=path) for value in values]
        label = tuple(np.compress(flags, positive).tolist()) if config.multilabel else config.classes[int(flags[0])]
        group = match_group(config.group, name) or study or name
        yield Example(name, split or (_train_or_val(group) if lists else ""), label, group, find(name, table=path))


def _read_medfmc_list(path: Path, num_labels: int) -> Iterator[tuple[str, str, list[str]]]:
    """(name, no study, labels). Names may contain blanks, so a line is read from the right; labels are separated by blanks or commas."""
    pattern = re.compile(rf"(.+?)\s+([01](?:[ ,][01]){{{num_labels - 1}}})")
    for line in read_text(path).splitlines():
        if not line.strip():
            continue
        match = pattern.fullmatch(line.strip())
        if not match:
            raise UserError(f"{path}: '{line}' does not end with {num_labels} labels 0 or 1; download it again, or correct the classes")
        yield match[1], "", re.split("[ ,]", match[2])


def _is_positive(value: str, *, name: str, path: Path) -> bool:
    if value not in ("0", "1", "0.0", "1.0"):
        raise UserError(f"{path}: {name} has the label value '{value}'; allowed: 0, 1")
    return value.startswith("1")


def _train_or_val(group: str) -> str:
    """A fixed eighth of all groups is `val`."""
    return "train" if xxhash.xxh3_64_intdigest(group.encode()) % 8 else "val"


def read_columns(path: Path, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """The values of `columns` in each row of a CSV file. Other columns are ignored, whatever is in their names."""
    rows = complete_rows(path, csv.reader(io.StringIO(read_text(path), newline="")))
    names = [name.strip() for name in next(rows, [])]
    require_columns(path, columns, names)
    places = [names.index(column) for column in columns]
    for number, row in enumerate(rows, 2):
        if row:
            if len(row) <= max(places):
                raise UserError(f"{path}: line {number} has {len(row)} columns; download it again")
            yield [row[place].strip() for place in places]


def require_columns(path: Path, columns: tuple[str, ...], names: list[str]) -> None:
    for column in columns:
        if column not in names:
            raise UserError(f"{path}: no column '{column}'{suggest(column, names, these='its columns are')}")


LAYOUTS: dict[str, Callable[[Path, ClassificationConfig], Iterator[Example]]] = {
    "npz": npz_layout,
    "folder": folder_layout,
    "csv": table_layout,
    "sicap": sicap_layout,
    "cxr8": cxr8_layout,
    "medfmc": medfmc_layout,
}
