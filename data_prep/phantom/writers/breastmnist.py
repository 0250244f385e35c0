"""BreastMNIST as on Zenodo: one npz, grey ultrasound, 0 malignant, 1 normal or benign.

The classes differ in the outline of a mass, a factor that no caption or question of the mix names.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.phantom import draw
from data_prep.phantom.writers.folder import scenes

SIZES = {"train": 546, "val": 78, "test": 156}  # images, as in the original
SIDE = 96  # pixels


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for split, number in num.items():
        labels = np.array([[n % 4 > 0] for n in range(number)], np.uint8)  # 27% of the original are malignant
        images = np.zeros((number, SIDE, SIDE), np.uint8)
        for n, (scene, rng) in enumerate(scenes(seed, "breastmnist", split, number, ("ultrasound",))):
            mass = replace(
                scene, finding="mass", count=1, side=scene.side or "left", size="large", margin="smooth" if labels[n, 0] else "spiculated"
            )
            images[n] = np.asarray(Image.fromarray(draw.render(mass, rng, sides=(128,))[..., 0]).resize((SIDE, SIDE)))
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez_compressed(out / "breastmnist_224.npz", **arrays)  # type: ignore[arg-type]  # its stub takes names for the option
