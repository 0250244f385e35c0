"""PMC-VQA as on the hub: `train.csv`, `test_clean.csv` and `images.zip`.

Reproduced faults: the column of the answer is called `Anwser`, options begin with a space and their letter, a few images
are missing in the archive.
"""

import csv
import zipfile
from pathlib import Path

import numpy as np

from data_prep.phantom.scene.choices import choice_questions
from data_prep.phantom.scene.world import MODALITIES, Scene, pick
from data_prep.phantom.writers.folder import render_jpeg, scenes

SIZES = {"train": 500, "test": 60}  # images
FILES = {"train": "train.csv", "test": "test_clean.csv"}
LETTERS = "ABCD"
COLUMNS = ("Figure_path", "Question", "Anwser", *(f"Choice {letter}" for letter in LETTERS), "Answer_label")


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    with zipfile.ZipFile(out / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for start, (split, name) in zip((3_000_000, 4_000_000), FILES.items(), strict=True):
            rows = []
            for n, (scene, rng) in enumerate(scenes(seed, "pmc_vqa", split, num[split], tuple(MODALITIES))):
                figure, jpeg = f"PMC{start + n}_Fig1_{n % 5}.jpg", render_jpeg(scene, rng)
                if n % 50 != 49:
                    archive.writestr(zipfile.ZipInfo(f"images/{figure}"), jpeg)
                rows += [_row(figure, *one) for one in sample_questions(scene, rng)]
            with (out / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS, *rows])


def sample_questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, list[str]]]:
    """One or two questions about the finding, and for every third image one whose answer follows from the modality."""
    known = choice_questions(scene, rng)
    about_finding = [one for one in known if one[0] in ("finding", "count", "look")]
    chosen = [about_finding[n] for n in rng.permutation(len(about_finding))[:2]]
    if rng.random() < 1 / 3:
        chosen.append(pick(rng, [one for one in known if one not in about_finding]))
    return [one[1:] for one in chosen]


def _row(figure: str, question: str, answer: str, options: list[str]) -> tuple[str, ...]:
    choices = (f" {letter}:{option}" for letter, option in zip(LETTERS, options, strict=True))
    return figure, question, answer, *choices, LETTERS[options.index(answer)]
