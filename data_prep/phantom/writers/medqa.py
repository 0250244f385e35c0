"""MedQA (USMLE, 4 options) as in its archive: JSON lines with the options by letter."""

import json
from pathlib import Path

from data_prep.phantom.scene.clinic import exam
from data_prep.phantom.scene.world import MODALITIES
from data_prep.phantom.writers.folder import scenes

SIZES = {"train": 400, "val": 40, "test": 60}  # questions
FILES = {"train": "phrases_no_exclude_train.jsonl", "val": "phrases_no_exclude_dev.jsonl", "test": "phrases_no_exclude_test.jsonl"}


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    for split, name in FILES.items():
        lines = []
        for n, (scene, rng) in enumerate(scenes(seed, "medqa", split, num[split], tuple(MODALITIES))):
            question, answer, options = exam(scene, rng)
            row = {"question": question, "answer": answer, "options": dict(zip("ABCD", options, strict=True))}
            row |= {"meta_info": ("step1", "step2&3")[n % 2], "answer_idx": "ABCD"[options.index(answer)]}
            lines.append(json.dumps({**row, "metamap_phrases": question.rstrip(".?").split(". ")}))
        (out / name).write_text("".join(f"{line}\n" for line in lines))
