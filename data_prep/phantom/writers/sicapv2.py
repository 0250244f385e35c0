"""SICAPv2: prostate patches as JPEG with a mask each, patient folds in spreadsheets; the grade is a texture with fused glands, which
no text of the mix names."""

from pathlib import Path

import numpy as np
from openpyxl import Workbook
from PIL import Image

from data_prep.phantom.writers.unseen import Look, draw_class, labelled_scenes

SIZES = {"train": 640, "val": 160, "test": 240}  # patches
SLIDE = 20  # patches of one slide; two slides are one patient
LOOKS = {"NC": Look("", grain=0), "G3": Look("crescent", 3, grain=0), "G4": Look("", grain=2), "G5": Look("crescent", 3, grain=2)}
SHEETS = {"train": "Validation/Val1/Train", "val": "Validation/Val1/Test", "test": "Test/Test"}
HEADER = ("image_name", "NC", "G3", "G4", "G5", "G4C")


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    root = out / "SICAPv2"
    for name in ("images", "masks", "partition/Test", "partition/Validation/Val1"):
        (root / name).mkdir(parents=True)
    slides: list[tuple] = []
    rows: dict[str, list[tuple]] = {}
    for place, (split, number) in enumerate(num.items()):
        rows[split] = []
        for n, (label, scene, rng) in enumerate(labelled_scenes(seed, "sicapv2", split, number, "histology", [4, 4, 8, 2])):
            slide = f"{15 + place}B000{1000 + n // SLIDE}"
            if n % SLIDE == 0:
                slides.append((slide, place * 1000 + n // SLIDE // 2))
            name = f"{slide}_Block_Region_1_{n % SLIDE}_0_xini_{n * 256}_yini_{n * 128}.jpg"
            pixels = Image.fromarray(draw_class(list(LOOKS.values())[label], scene, rng, sides=(128,)))
            pixels.resize((256, 256)).save(root / "images" / name, quality=88)
            Image.fromarray(np.full((256, 256), label, np.uint8)).save(root / "masks" / name.replace(".jpg", ".png"))
            rows[split].append((name, *(int(label == k) for k in range(4)), 0))
        sheet(root / "partition" / f"{SHEETS[split]}.xlsx", HEADER, rows[split])
    sheet(root / "partition/Test/Train.xlsx", HEADER, rows["train"] + rows["val"])
    sheet(root / "wsi_labels.xlsx", ("slide_id", "patient_id"), slides)


def sheet(path: Path, header: tuple, rows: list[tuple]) -> None:
    book = Workbook(write_only=True)
    page = book.create_sheet()
    for row in (header, *rows):
        page.append(row)
    book.save(path)
