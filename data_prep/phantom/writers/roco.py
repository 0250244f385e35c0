"""ROCO's radiology part as the hub holds it: parquet tables of picture, id and caption.

Reproduced faults: captions begin with a blank and end with a line break; MedICaT and ROCOv2 have some of its figures too.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.phantom.scene.wording import caption
from data_prep.phantom.scene.world import RADIOLOGY, Scene
from data_prep.phantom.writers.folder import photograph, scenes
from data_prep.phantom.writers.hub_table import IMAGE, write_table

SIZES = {"train": 500, "val": 30, "test": 30}  # figures
COLUMNS = {"image": IMAGE, "image_id": pa.string(), "caption": pa.string()}
SHARED = 20  # every 20th figure of the other dataset is one of these


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    number = 0
    for split, size in num.items():
        rows = []
        for scene, rng in scenes(seed, "roco", split, size, tuple(RADIOLOGY)):
            picture, number = photograph(scene, rng), number + 1
            rows.append(
                {"image": {"bytes": picture, "path": None}, "image_id": f"ROCO_{number:05d}", "caption": f" {caption(scene, rng)}\n"}
            )
        write_table(out, split, rows, columns=COLUMNS)


def scenes_shared(seed: int, dataset: str, split: str, number: int, modalities) -> Iterator[tuple[Scene, np.random.Generator]]:
    """The scenes of another dataset, of which every 20th is a training figure of ROCO, drawn and worded alike."""
    ours = scenes(seed, "roco", "train", number, tuple(RADIOLOGY))
    for n, theirs in enumerate(scenes(seed, dataset, split, number, modalities)):
        shared = next(ours)
        yield shared if n % SHARED == SHARED - 1 else theirs
