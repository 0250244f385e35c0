"""Quilt-1M as provided after its request form: `quilt_1M_lookup.csv`, one row per caption, and images in `quilt_1m/`.

Reproduced faults: several captions per image, frames that show no histology, a few images that are missing.
"""

import csv
from pathlib import Path

from data_prep.phantom.scene.wording import caption
from data_prep.phantom.scene.world import sample_scene
from data_prep.phantom.writers.folder import render_jpeg, scenes

SIZES = {"train": 600}  # images
FRAMES = 5  # of one video
COLUMNS = (
    "caption",
    "image_path",
    "subset",
    "split",
    "pathology",
    "roi_text",
    "noisy_text",
    "corrected_text",
    "med_umls_ids",
    "single_wsi",
    "not_histology",
)


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    (out / "quilt_1m").mkdir()
    with (out / "quilt_1M_lookup.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        for n, (scene, rng) in enumerate(scenes(seed, "quilt_1m", "train", num["train"], ("histology",))):
            name = f"phantom{n // FRAMES:05d}_image_{rng.bytes(8).hex()}.jpg"
            other = n % 100 == 99
            jpeg = render_jpeg(sample_scene(rng, modalities=["dermoscopy"]) if other else scene, rng)
            if n % 60 != 31:
                (out / "quilt_1m" / name).write_bytes(jpeg)
            row = {"image_path": name, "subset": "quilt", "split": "train", "pathology": f"['{scene.organ}']", "single_wsi": n % 2}
            for text in [caption(scene, rng) for _ in range(1 + n % 3 // 2)]:
                table.writerow(row | {"caption": text, "noisy_text": text.lower(), "corrected_text": text, "not_histology": int(other)})
