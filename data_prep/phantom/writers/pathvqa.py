"""PathVQA as the hub holds it: parquet tables of image struct, question and answer, one row per question.

Warts of the original: some pictures are CMYK JPEGs, some rows stand twice, sizes differ.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.phantom import draw
from data_prep.phantom.wording import questions
from data_prep.phantom.world import OPTICAL, Scene, pick
from data_prep.phantom.writers.folder import photograph, scenes

SIZES = {"train": 1600, "val": 100, "test": 98}  # images
FILES = {"train": ("train", 2), "val": ("validation", 1), "test": ("test", 1)}  # name, parts
FEATURES = {
    "image": {"_type": "Image"},
    "question": {"dtype": "string", "_type": "Value"},
    "answer": {"dtype": "string", "_type": "Value"},
}
SCHEMA = pa.schema(
    [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("question", pa.string()), ("answer", pa.string())],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    (out / "data").mkdir()
    for split, (name, parts) in FILES.items():
        rows = [row for scene, rng in scenes(seed, "pathvqa", split, num[split], tuple(OPTICAL)) for row in image_rows(scene, rng)]
        for part in range(parts):
            some = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
            pq.write_table(
                pa.Table.from_pylist(some, SCHEMA), out / "data" / f"{name}-{part:05d}-of-{parts:05d}.parquet", row_group_size=100
            )


def image_rows(scene: Scene, rng: np.random.Generator) -> list[dict]:
    image = cmyk(scene, rng) if rng.random() < 0.05 else photograph(scene, rng)
    rows = [{"image": {"bytes": image, "path": None}, "question": question, "answer": answer} for _, question, answer in asked(scene, rng)]
    return rows + rows[-1:] if rng.random() < 0.02 else rows


def asked(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """All questions on what is found, one or two of the yes/no questions, and one of those that the technique alone answers."""
    known = questions(scene, rng)
    general = [one for one in known if one[0] in ("modality", "organ", "plane", "specimen")]
    presence = [one for one in known if one[0] == "presence"]
    found = [one for one in known if one not in general and one not in presence]
    return [*found, *presence[: int(rng.integers(1, 3))], pick(rng, general)]


def cmyk(scene: Scene, rng: np.random.Generator) -> bytes:
    out = io.BytesIO()
    Image.fromarray(draw.render(scene, rng)).convert("CMYK").save(out, "JPEG", quality=90)
    return out.getvalue()
