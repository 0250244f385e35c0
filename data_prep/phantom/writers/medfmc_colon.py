"""MedFMC ColonPath: patches of slides with or without a tumor. File names have spaces, and lists share slides."""

from pathlib import Path

from data_prep.phantom.writers.medfmc import HIDDEN, Item, write_set
from data_prep.phantom.writers.unseen import Look, draw_class, labelled_scenes

SIZES = {"train": 300, "val": 120, "test": 240}  # patches; the lists of the original have 1,677 / 681 / 3,296
SLIDE = 12  # patches of one slide
LOOKS = [Look("disc", 2), Look("crescent", 2)]  # without and with a tumor


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    items, start = [], 0
    for split, number in num.items():
        number += HIDDEN if split == "test" else 0
        for n, (label, scene, rng) in enumerate(labelled_scenes(seed, "medfmc_colon", split, number, "histology", [3, 2])):
            slide = start + n // SLIDE
            study = f"2019-{10327 + slide}-1-1-1_2019-05-28 17_{slide:02d}_39" if slide % 4 else f"2019-06-11 00_{slide:02d}_36"
            name = f"{study}-lv1-{47692 + n}-11609-5464-5695p{n:04d}.png"
            items.append(Item(split, name, study, [label], draw_class(LOOKS[label], scene, rng, sides=(128,))))
        start += (number - 1) // SLIDE  # the last slide of a list is also the first of the next one
    write_set(out, "colon", items, columns=("img_id", "study_id", "tumor"), separator=" ")
