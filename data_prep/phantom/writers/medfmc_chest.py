"""MedFMC ChestDR: chest X-rays with up to 19 labels, one image per patient; labels in a list are separated by commas. Names of training
images are hashes or DICOM identifiers, those of test images only hashes."""

from pathlib import Path

import xxhash
from omegaconf import OmegaConf

from data_prep.phantom.writers.medfmc import HIDDEN, Item, write_set
from data_prep.phantom.writers.unseen import MULTILABEL_LOOKS, draw_classes, multilabel_scenes
from src.runtime.paths import CONF

SIZES = {"train": 500, "val": 180, "test": 360}  # images; the lists of the original have 783 / 196 / 1,161
WEIGHTS = [7, 4, 5, 6, 5, 3, 3, 4, 4, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1]  # imbalance as in the original


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    classes = OmegaConf.load(CONF / "benchmark" / "medfmc_chest.yaml").classes
    items = []
    for split, number in num.items():
        number += HIDDEN if split == "test" else 0
        for n, (labels, scene, rng) in enumerate(multilabel_scenes(seed, "medfmc_chest", split, number, "xray", WEIGHTS)):
            name = f"5E{xxhash.xxh3_64_hexdigest(f'{split} {n}'.encode())[:12].upper()}"
            if n % 5 == 0 and split != "test":
                name = f"DX.1.2.392.200046.100.2.1.{69131194618 + n}.{split}.1.1.1"
            pixels = draw_classes([MULTILABEL_LOOKS[k] for k in labels], scene, rng, sides=(128, 160))[..., 0]
            items.append(Item(split, f"{name}.png", name, [int(k in labels) for k in range(len(classes))], pixels))
    write_set(out, "chest", items, columns=("img_id", "study_id", *classes), separator=",")
