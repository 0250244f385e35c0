"""u-Bench as on the hub: Arrow files of its test split, as `datasets` saves them.

Reproduced faults: a licence per image, questions that an image does not have are null, the last option of each is
'none of the above' and never right.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.phantom.scene.choices import choice_questions
from data_prep.phantom.scene.world import Scene
from data_prep.phantom.writers.folder import render_jpeg, scenes

SIZES = {"train": 300}  # images, all of the original's test split
MICROSCOPY = ("histology", "fluorescence", "smear")
KINDS = {"modality": "modality", "specimen": "stain", "organ": "subdomain", "finding": "classification", "count": "count"}
LICENCES = ("CC BY 4.0", "CC0 1.0", "CC BY-SA 4.0", "CC BY-NC 4.0")
PARTS = 2

QUESTION = pa.struct([("question", pa.string()), ("options", pa.list_(pa.string())), ("answer", pa.string()), ("answer_idx", pa.int64())])
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label_name", pa.string()),
        ("dataset", pa.string()),
        ("license", pa.string()),
        ("questions", pa.struct([(name, QUESTION) for name in KINDS.values()])),
    ]
)


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    folder = out / "perception" / "0.1.0"
    folder.mkdir(parents=True)
    rows = [_row(n, scene, rng) for n, (scene, rng) in enumerate(scenes(seed, "ubench", "train", num["train"], MICROSCOPY))]
    for part in range(PARTS):
        some = pa.Table.from_pylist(rows[part * len(rows) // PARTS : (part + 1) * len(rows) // PARTS], SCHEMA)
        name = f"ubench-test-{part:05d}-of-{PARTS:05d}.arrow"
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
            writer.write_table(some, max_chunksize=100)


def _row(number: int, scene: Scene, rng: np.random.Generator) -> dict:
    image = {"bytes": render_jpeg(scene, rng), "path": f"{number:05d}.jpg"}
    questions = {}
    for kind, question, answer, options in choice_questions(scene, rng):
        if kind in KINDS:
            question_fields = {"question": question, "options": [*options, "none of the above"], "answer": answer}
            questions[KINDS[kind]] = {**question_fields, "answer_idx": options.index(answer)}
    return {
        "image_id": f"ubench-{number:05d}",
        "image": image,
        "label_name": scene.finding,
        "dataset": f"phantom {scene.modality}",
        "license": LICENCES[number % len(LICENCES)],
        "questions": questions,
    }
