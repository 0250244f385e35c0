"""MedMCQA: the hub's parquet for training, `dev.json` of the original release for the test.

Reproduced faults: the index of the right option starts at 0 in one and at 1 in the other; explanations are null or empty; texts have
HTML entities.
"""

import html
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.phantom.scene.clinic import fact
from data_prep.phantom.scene.world import MODALITIES, Scene
from data_prep.phantom.writers.folder import scenes

SIZES = {"train": 400, "test": 60}  # questions
TEXTS = ("id", "question", "opa", "opb", "opc", "opd", "choice_type", "exp", "subject_name", "topic_name")
SCHEMA = pa.schema([*((name, pa.string()) for name in TEXTS), ("cop", pa.int64())])


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    rows = {split: _rows(seed, split, number) for split, number in num.items()}
    (out / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows["train"], SCHEMA), out / "data" / "train-00000-of-00001.parquet")
    lines = [json.dumps({**row, "cop": row["cop"] + 1}) for row in rows["test"]]
    (out / "dev.json").write_text("".join(f"{line}\n" for line in lines))


def _rows(seed: int, split: str, number: int) -> list[dict]:
    return [_row(f"{split}-{n}", n, scene, rng) for n, (scene, rng) in enumerate(scenes(seed, "medmcqa", split, number, tuple(MODALITIES)))]


def _row(key: str, number: int, scene: Scene, rng: np.random.Generator) -> dict:
    (question, answer, options), rule = fact(scene, rng)
    written = html.escape(question)
    return {
        "id": key,
        "question": written.replace(" ", "&nbsp;", 1) if number % 5 == 0 else written,
        **dict(zip(("opa", "opb", "opc", "opd"), options, strict=True)),
        "cop": options.index(answer),
        "choice_type": "single",
        "exp": (rule, None, "")[number % 3],
        "subject_name": MODALITIES[scene.modality].display_name,
        "topic_name": scene.organ if number % 4 else None,
    }
