"""NIH malaria cells: one red cell per PNG on black, 40 to 390 pixels, two class folders with a Thumbs.db in each, the patient in
the file name."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.phantom.draw import adjust_exposure
from data_prep.phantom.draw.canvas import blend, canvas
from data_prep.phantom.draw.marks import finding_mask
from data_prep.phantom.scene.world import item_rng

SIZES = {"train": 1000}  # cells; the original has 13,779 per class, without splits
CELLS = 12  # of one patient
CLASSES = ("Parasitized", "Uninfected")


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    for name in CLASSES:
        (out / "cell_images" / name).mkdir(parents=True)
        (out / "cell_images" / name / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    for n in range(num["train"]):
        rng = item_rng(seed, "malaria", "train", n)
        label, patient = n % 2, n // CELLS
        image = Image.fromarray(cell(rng, infected=label == 0))
        side = int(rng.integers(40, 161)) if n % 50 else 390
        name = f"C{33 + patient}P{1 + patient}thinF_IMG_20150619_{114756 + patient}a_cell_{n}.png"
        image.resize((side, max(40, int(side * rng.uniform(0.85, 1.15))))).save(out / "cell_images" / CLASSES[label] / name)


def cell(rng: np.random.Generator, *, infected: bool) -> np.ndarray:
    """(96, 96, 3) uint8. Both classes have platelets in the colour of the parasite; only the parasite is a ring."""
    c = canvas(96, 96)
    rgb_HW3 = np.zeros((96, 96, 3), np.float32)
    body = c.soft(c.ellipse(0, 0, rng.uniform(0.75, 0.92), rng.uniform(0.75, 0.92), rng.uniform(0, 3)) + 0.03 * c.noise(rng, 5), 0.03)
    blend(rgb_HW3, (0.86, 0.62 + rng.uniform(-0.05, 0.05), 0.58), body)
    rgb_HW3 += (0.02 * c.noise(rng, 8) * body)[..., None]
    marks = [("disc", 0.13)] * int(rng.integers(0, 3)) + ([("ring", 0.26)] if infected else [("disc", 0.22)] * int(rng.integers(0, 2)))
    for shape, radius in marks:
        turn, far = rng.uniform(0, 6.3), rng.uniform(0, 0.5)
        mask_HW, _ = finding_mask(rng, c, shape, [(far * np.cos(turn), far * np.sin(turn))], radius)
        blend(rgb_HW3, (0.45, 0.22, 0.50), 0.75 * mask_HW)
    return adjust_exposure(rgb_HW3, rng, grey=False)
