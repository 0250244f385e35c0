"""ROCO's radiology part as on the hub: parquet tables of image, id and caption.

Reproduced faults: captions begin with a space and end with a line break; MedICaT and ROCOv2 share some of its figures.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.phantom.scene.wording import caption
from data_prep.phantom.scene.world import RADIOLOGY, Scene
from data_prep.phantom.writers.folder import render_jpeg, scenes
from data_prep.phantom.writers.hub_table import IMAGE, write_table

SIZES = {"train": 500, "val": 30, "test": 30}  # figures
COLUMNS = {"image": IMAGE, "image_id": pa.string(), "caption": pa.string()}
SHARED = 20  # every SHARED-th figure of the other dataset is one of ROCO


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    number = 0
    for split, size in num.items():
        rows = []
        for scene, rng in scenes(seed, "roco", split, size, tuple(RADIOLOGY)):
            jpeg, number = render_jpeg(scene, rng), number + 1
            rows.append({"image": {"bytes": jpeg, "path": None}, "image_id": f"ROCO_{number:05d}", "caption": f" {caption(scene, rng)}\n"})
        write_table(out, split, rows, columns=COLUMNS)


def scenes_shared(seed: int, dataset: str, split: str, number: int, modalities) -> Iterator[tuple[Scene, np.random.Generator]]:
    """The scenes of another dataset. Every 20th is a training figure of ROCO with the same image and text."""
    ours = scenes(seed, "roco", "train", number, tuple(RADIOLOGY))
    for n, theirs in enumerate(scenes(seed, dataset, split, number, modalities)):
        shared = next(ours)
        yield shared if n % SHARED == SHARED - 1 else theirs
