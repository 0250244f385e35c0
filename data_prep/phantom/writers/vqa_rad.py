"""VQA-RAD as on the hub: parquet tables of image struct, question and answer, one row per question.

Reproduced faults: the splits share images, with different questions, and every second shared image is encoded
again; some texts end in a tab.
"""

from pathlib import Path

import simplejpeg

from data_prep.phantom.writers.folder import render_jpeg, scenes
from data_prep.phantom.writers.hub_table import write_table
from data_prep.phantom.writers.pathvqa import COLUMNS, sample_questions

SIZES = {"train": 150, "test": 40}  # images
TECHNIQUES = ("xray", "ct", "mri")  # the original has no other
SHARED = 4  # every SHARED-th test image is a training image


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    rows: dict[str, list[dict]] = {"train": [], "test": []}
    shared = min(num["test"] // SHARED, num["train"])
    for split, number in (("train", num["train"]), ("test", num["test"] - shared)):
        for item, (scene, rng) in enumerate(scenes(seed, "vqa_rad", split, number, TECHNIQUES)):
            jpeg = render_jpeg(scene, rng)
            for n, (_, question, answer) in enumerate(sample_questions(scene, rng)):
                side = "test" if n == 0 and split == "train" and item < shared else split
                image = {"bytes": _encode_again(jpeg) if side != split and item % 2 else jpeg, "path": None}
                rows[side].append({"image": image, "question": question, "answer": answer + "\t" * (item % 20 == 19)})
    for split, rows_of_split in rows.items():
        write_table(out, split, rows_of_split, columns=COLUMNS)


def _encode_again(jpeg: bytes) -> bytes:
    return simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(jpeg), quality=75)
