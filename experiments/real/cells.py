"""Writes the cells of BCCD, or of another Pascal VOC set, as a classification set for `src.transfer`.

    python -m experiments.real.cells voc=BCCD out=data/raw/bccd_cells

Each box becomes an image; its label is the name of the box, its split that of the photograph, and its group the photograph.
"""

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from src.data.record import SPLITS
from src.runtime.arguments import parse_arguments
from src.runtime.atomic_file import write_atomically
from src.runtime.errors import UserError, report_user_errors

SIDES = ("xmin", "ymin", "xmax", "ymax")
MIN_SIDE = 8  # pixels; boxes cut off by the edge can be empty


@dataclass
class CellsConfig:
    """Writes the boxes of a Pascal VOC set as images with a labels.csv.

    python -m experiments.real.cells voc=BCCD out=data/raw/bccd_cells

    voc  folder with JPEGImages, Annotations and ImageSets/Main
    out  folder of the images and of labels.csv
    """

    voc: Path
    out: Path


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(CellsConfig, args)
    rows = write_cells(config.voc, config.out)
    print(f"{config.out}/labels.csv: {len(rows):,} images of {len({row[3] for row in rows}):,} photographs")


def write_cells(voc: Path, out: Path) -> list[tuple[str, str, str, str]]:
    """Writes PNG files and labels.csv; returns its rows (image, label, split, group). Boxes with a side below `MIN_SIDE` are left out."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for split in SPLITS:
        names = voc / "ImageSets/Main" / f"{split}.txt"
        if not names.is_file():
            raise UserError(f"{names} does not exist; voc= must be the folder that holds ImageSets, JPEGImages and Annotations")
        for name in names.read_text().split():
            boxes = ElementTree.parse(voc / "Annotations" / f"{name}.xml").iter("object")
            with Image.open(voc / "JPEGImages" / f"{name}.jpg") as photo:
                for number, box in enumerate(boxes):
                    left, top, right, bottom = (int(float(box.findtext(f"bndbox/{side}", "0"))) for side in SIDES)
                    if min(right - left, bottom - top) >= MIN_SIDE:
                        photo.crop((left, top, right, bottom)).save(out / f"{name}_{number}.png")
                        rows.append((f"{name}_{number}.png", box.findtext("name", ""), split, name))
    lines = [("image", "label", "split", "group"), *rows]
    write_atomically(out / "labels.csv", "".join(f"{','.join(line)}\n" for line in lines))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
