"""ROCOv2 as on the hub: parquet tables of image, id, caption and concepts.

Reproduced fault: some figures of ROCO occur here too, under another id.
"""

from pathlib import Path

import pyarrow as pa

from data_prep.phantom.scene.wording import caption
from data_prep.phantom.scene.world import RADIOLOGY
from data_prep.phantom.writers.folder import render_jpeg
from data_prep.phantom.writers.hub_table import IMAGE, write_table
from data_prep.phantom.writers.roco import scenes_shared

SIZES = {"train": 300, "val": 30, "test": 30}  # figures
COLUMNS = {"image": IMAGE, "image_id": pa.string(), "caption": pa.string(), "cui": pa.list_(pa.string())}
CUIS = {"xray": "C1306645", "ct": "C0040405", "mri": "C0024485", "ultrasound": "C0041618"}


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    for split, size in num.items():
        rows = []
        for n, (scene, rng) in enumerate(scenes_shared(seed, "rocov2", split, size, tuple(RADIOLOGY)), start=1):
            jpeg = {"bytes": render_jpeg(scene, rng), "path": None}
            name = f"ROCOv2_2023_{split.replace('val', 'valid')}_{n:06d}"
            rows.append({"image": jpeg, "image_id": name, "caption": caption(scene, rng), "cui": [CUIS[scene.modality]]})
        write_table(out, split, rows, columns=COLUMNS)
