"""MedFMC Endo: endoscopies with four labels, the patient in the file name. train_20 and val_20 share patients, no test
image has a tumor, and the csv has one column more than those of the other sets."""

from pathlib import Path

from data_prep.phantom.writers.medfmc import HIDDEN, Item, write_set
from data_prep.phantom.writers.unseen import MULTILABEL_LOOKS, draw_classes, multilabel_scenes

SIZES = {"train": 300, "val": 80, "test": 240}  # images; the lists of the original have 743 / 186 / 881
CLASSES = ("ulcer", "erosion", "polyp", "tumor")
PATIENTS = 12  # of train and val, and as many of test


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    items: list[Item] = []
    for split, number in num.items():
        number += HIDDEN if split == "test" else 0
        for labels, scene, rng in multilabel_scenes(seed, "medfmc_endo", split, number, "dermoscopy", [4, 4, 2, 2]):
            seen = labels if split != "test" else [k for k in labels if CLASSES[k] != "tumor"]
            patient = int(rng.integers(PATIENTS)) + PATIENTS * (split == "test")
            study = f"13333_2021.{1 + patient // 3:02d}_{patient % 3:04d}"
            pixels = draw_classes([MULTILABEL_LOOKS[k] for k in seen], scene, rng, sides=(128, 160))
            items.append(Item(split, f"{study}_{54971718 + len(items)}.png", study, [int(k in seen) for k in range(len(CLASSES))], pixels))
    write_set(out, "endo", items, columns=("img_id", "study_id", "place", *CLASSES), separator=" ", between=("stomach",))
