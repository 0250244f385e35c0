"""SLAKE as on the hub: `{train,validate,test}.json` and `imgs.zip`, each image in a folder of its own.

Reproduced faults: each question exists in English and in Chinese, and the Chinese ones have another split, so that
images of the test split occur in training; answers begin with a capital; questions that name two answers are CLOSED too.
"""

import json
import zipfile
from pathlib import Path

from data_prep.phantom.scene.wording import sentence
from data_prep.phantom.scene.world import Scene
from data_prep.phantom.writers.folder import render_jpeg, scenes
from data_prep.phantom.writers.pathvqa import sample_questions

SIZES = {"train": 400, "val": 30, "test": 30}  # images
FILES = {"train": "train.json", "val": "validation.json", "test": "test.json"}
TECHNIQUES = {"xray": "X-Ray", "ct": "CT", "mri": "MRI"}  # the original has no other
CONTENT = {"modality": "Modality", "plane": "Plane", "organ": "Organ", "finding": "Abnormality", "presence": "Abnormality"}
CONTENT |= {"side": "Position", "size": "Size", "count": "Quantity"}
# 'What is the technique of this image?', 'Is anything abnormal in the image?'; yes, no: in the wording of the original
CHINESE = {
    "technique": "\u8fd9\u5f20\u56fe\u7247\u7684\u6210\u50cf\u65b9\u5f0f\u662f\u4ec0\u4e48?",
    "abnormal": "\u56fe\u7247\u91cc\u662f\u5426\u5b58\u5728\u5f02\u5e38?",
    True: "\u662f",
    False: "\u5426",
}


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    english: dict[str, list[dict]] = {split: [] for split in FILES}
    chinese: dict[str, list[dict]] = {split: [] for split in FILES}
    number = 0
    with zipfile.ZipFile(out / "imgs.zip", "w", zipfile.ZIP_STORED) as archive:
        for split in FILES:
            for scene, rng in scenes(seed, "slake", split, num[split], tuple(TECHNIQUES)):
                archive.writestr(zipfile.ZipInfo(f"imgs/xmlab{number}/source.jpg"), render_jpeg(scene, rng))
                english[split] += [_row(number, scene, *one) for one in sample_questions(scene, rng)]
                chinese["test" if number % 7 == 0 else "train"] += _chinese(number, scene)
                number += 1
    for split, name in FILES.items():
        rows = [{**row, "qid": qid} for qid, row in enumerate(english[split] + chinese[split])]
        (out / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _row(number: int, scene: Scene, kind: str, question: str, answer: str, language: str = "en") -> dict:
    answer_text = TECHNIQUES[scene.modality] if kind == "modality" else sentence(answer)
    return {
        "img_id": number,
        "img_name": f"xmlab{number}/source.jpg",
        "question": sentence(question),
        "answer": answer_text,
        "q_lang": language,
        "location": scene.organ.capitalize(),
        "modality": TECHNIQUES[scene.modality],
        "answer_type": "CLOSED" if kind == "presence" or " left or right" in question else "OPEN",
        "base_type": "vqa",
        "content_type": CONTENT[kind],
        "triple": ["vhead", "_", "_"],
    }


def _chinese(number: int, scene: Scene) -> list[dict]:
    answer_text = (("modality", CHINESE["technique"], ""), ("presence", CHINESE["abnormal"], CHINESE[not scene.normal]))
    return [_row(number, scene, *one, "zh") for one in answer_text]
