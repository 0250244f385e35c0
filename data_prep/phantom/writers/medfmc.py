"""Shared by the writers of the three sets of MedFMC: `MedFMC_train/<set>` with images, the csv of the challenge and the lists of the code
repository, and images without labels in `MedFMC_val/<set>`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

LISTS = {"train": "train_20.txt", "val": "val_20.txt", "test": "test_WithLabel.txt"}
HIDDEN = 4  # images without labels


class Item(NamedTuple):
    split: str
    name: str
    study: str
    labels: list[int]  # 0 or 1
    pixels: np.ndarray


def write_set(
    out: Path, name: str, items: Sequence[Item], *, columns: tuple[str, ...], separator: str, between: tuple[str, ...] = ()
) -> None:
    """`columns` is the header of the csv, `separator` separates the labels of a list, `between` are columns between study and labels."""
    root, hidden = out / "MedFMC_train" / name, out / "MedFMC_val" / name
    for folder in (root, hidden):
        (folder / "images").mkdir(parents=True)
    lists: dict[str, list[str]] = {file: [] for file in (*LISTS.values(), "trainval.txt", "test_WithoutLabel.txt")}
    rows = [",".join(columns)]
    for number, item in enumerate(items):
        secret = item.split == "test" and number >= len(items) - HIDDEN
        Image.fromarray(item.pixels).save((hidden if secret else root) / "images" / item.name)
        line = f"{item.name} {separator.join(map(str, item.labels))}"
        if secret:
            lists["test_WithoutLabel.txt"].append(item.name)
            continue
        lists[LISTS[item.split]].append(line)
        if item.split != "test":
            lists["trainval.txt"].append(line)
            rows.append(",".join([item.name, item.study, *between, *map(str, item.labels)]))
    for file, lines in lists.items():
        (root / file).write_text("\n".join(lines) + "\n")
    (root / f"{name}_train.csv").write_text("\n".join(rows) + "\n")
