"""IU X-Ray as CSV tables of reports and of views, and PNG images: a frontal and a lateral view of each patient.

Reproduced faults: names and numbers in a report are XXXX, some reports have no findings, a few have no text or no
image at all, some patients have one view only.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.phantom import draw
from data_prep.phantom.scene.wording import caption, noun, sentence
from data_prep.phantom.scene.world import Scene
from data_prep.phantom.writers.folder import scenes

SIZES = {"train": 250}  # reports
FOLDER = "images/images_normalized"
REPORT = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
VIEW = ("uid", "filename", "projection")


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    (out / FOLDER).mkdir(parents=True)
    reports, views = [], []
    for n, (scene, rng) in enumerate(scenes(seed, "iu_xray", "train", num["train"], ("xray",))):
        uid = n + 1
        planes = () if n % 120 == 119 else ("lateral", "frontal") if n % 10 else ("frontal",)
        for place, plane in enumerate(planes):
            name = f"{uid}_IM-{uid:04d}-{place + 1}001.dcm.png"
            pixels = draw.render(replace(scene, plane=plane), rng)[..., 0]
            Image.fromarray(pixels).save(out / FOLDER / name, compress_level=1)
            views.append(dict(zip(VIEW, (uid, name, plane.capitalize()), strict=True)))
        reports.append(dict(zip(REPORT, (uid, *_report(scene, rng, n)), strict=True)))
    for name, columns, rows in (("reports", REPORT, reports), ("projections", VIEW, views)):
        with (out / f"indiana_{name}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)


def _report(scene: Scene, rng: np.random.Generator, n: int) -> tuple[str, ...]:
    """The columns of a report after the uid."""
    finding = "normal" if scene.normal else scene.finding
    findings = f"{caption(replace(scene, plane='frontal'), rng)} The XXXX bones are intact."
    impression = "No acute abnormality." if scene.normal else f"{sentence(noun(scene))} on the {scene.side}."
    if n % 100 == 99:
        findings = impression = ""
    return finding, finding, "Xray Chest PA and Lateral", "XXXX-year-old with cough", "", "" if n % 8 == 5 else findings, impression
