"""BUSI: breast ultrasound, one folder per class, with spaces and brackets in the names, and masks next to the images.

Reproduced faults: some images have two masks; some occur twice, the second time slightly smaller under another number, and a few of
these in another class.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.phantom.writers.unseen import Look, draw_class, labelled_scenes

SIZES = {"train": 300}  # images before copies; the original has 780, without splits
LOOKS = {"benign": Look("disc"), "malignant": Look("spiculated"), "normal": Look()}
COPIED, MOVED = 15, 60  # every COPIED-th image occurs twice, every MOVED-th image with another class


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    root, classes = out / "Dataset_BUSI_with_GT", list(LOOKS)
    numbers = dict.fromkeys(classes, 0)

    def save(name: str, image: Image.Image, masks: int) -> None:
        numbers[name] += 1
        stem = root / name / f"{name} ({numbers[name]})"
        stem.parent.mkdir(parents=True, exist_ok=True)
        image.save(f"{stem}.png")
        for number in range(masks):
            Image.fromarray(np.zeros((image.height, image.width), np.uint8)).save(f"{stem}_mask{f'_{number}' if number else ''}.png")

    for n, (label, scene, rng) in enumerate(labelled_scenes(seed, "busi", "train", num["train"], "ultrasound", [4, 2, 1])):
        image = Image.fromarray(draw_class(LOOKS[classes[label]], scene, rng, sides=(128, 160, 192)))
        save(classes[label], image, masks=2 if n % 20 == 0 else 1)
        if n % COPIED == 0:
            other = classes[1 - label] if n % MOVED == 0 and label < 2 else classes[label]
            save(other, image.resize((image.width * 9 // 10, image.height * 9 // 10)), masks=1)
