"""PathVQA as on the hub: parquet tables of image struct, question and answer, one row per question.

Reproduced faults: some images are CMYK JPEGs, some rows occur twice, sizes differ.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from data_prep.phantom import draw
from data_prep.phantom.scene.wording import questions
from data_prep.phantom.scene.world import OPTICAL, Scene, pick
from data_prep.phantom.writers.folder import render_jpeg, scenes
from data_prep.phantom.writers.hub_table import IMAGE, write_table

SIZES = {"train": 1600, "val": 100, "test": 98}  # images
PARTS = {"train": 2, "val": 1, "test": 1}  # files
COLUMNS = {"image": IMAGE, "question": pa.string(), "answer": pa.string()}


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    for split, number in num.items():
        rows = [row for scene, rng in scenes(seed, "pathvqa", split, number, tuple(OPTICAL)) for row in image_rows(scene, rng)]
        write_table(out, split, rows, columns=COLUMNS, parts=PARTS[split])


def image_rows(scene: Scene, rng: np.random.Generator) -> list[dict]:
    image = cmyk(scene, rng) if rng.random() < 0.05 else render_jpeg(scene, rng)
    sampled = sample_questions(scene, rng)
    rows = [{"image": {"bytes": image, "path": None}, "question": question, "answer": answer} for _, question, answer in sampled]
    return rows + rows[-1:] if rng.random() < 0.02 else rows


def sample_questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """All questions about the finding, one or two yes/no questions, and one question whose answer follows from the modality."""
    known = questions(scene, rng)
    general = [one for one in known if one[0] in ("modality", "organ", "plane", "specimen")]
    presence = [one for one in known if one[0] == "presence"]
    about_finding = [one for one in known if one not in general and one not in presence]
    return [*about_finding, *presence[: int(rng.integers(1, 3))], pick(rng, general)]


def cmyk(scene: Scene, rng: np.random.Generator) -> bytes:
    out = io.BytesIO()
    Image.fromarray(draw.render(scene, rng)).convert("CMYK").save(out, "JPEG", quality=90)
    return out.getvalue()
