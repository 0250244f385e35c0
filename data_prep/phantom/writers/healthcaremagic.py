"""HealthCareMagic-100k as on the hub: a parquet table of instruction, input (a patient's letter) and output (an answer).

Reproduced faults: letters have typing errors, answers are signed by 'Chat Doctor'.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.phantom.scene.clinic import letter, with_typos
from data_prep.phantom.scene.world import MODALITIES
from data_prep.phantom.writers.folder import scenes

SIZES = {"train": 300}  # letters
INSTRUCTION = "If you are a doctor, please answer the medical questions based on the patient's description."


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    rows = []
    for scene, rng in scenes(seed, "healthcaremagic", "train", num["train"], tuple(MODALITIES)):
        message, answer = letter(scene, rng)
        rows.append({"instruction": INSTRUCTION, "input": with_typos(message, rng), "output": answer})
    (out / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), out / "data" / "train-00000-of-00001.parquet")
