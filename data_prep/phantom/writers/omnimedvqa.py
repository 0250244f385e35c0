"""OmniMedVQA as on the hub: `OmniMedVQA.zip` with a table per sub-set and their images.

Reproduced faults: questions with two, three or four options and no keys for the others, two equal options, an answer that equals no
option, one record with `modality` instead of `modality_type`, typing errors in the modalities, spaces and other unusual characters in
file names, several questions per image, and a restricted table without its images.
"""

import json
import zipfile
from pathlib import Path

import numpy as np

from data_prep.phantom.scene.choices import choice_questions
from data_prep.phantom.scene.wording import presence
from data_prep.phantom.scene.world import Scene, pick
from data_prep.phantom.writers.folder import render_jpeg, scenes

SIZES = {"train": 300}  # images
# Sub-set -> techniques, share of the images, pattern of the file names. RadImageNet has 64% of the original's questions.
SUBSETS = {
    "RadImageNet": (("ct", "mri", "ultrasound"), 0.58, "CT/abd/normal/abd-normal{:06d}.png"),
    "OCT & X-Ray 2017": (("xray",), 0.08, "NORMAL-{:07d}-0001.jpeg"),
    "Diabetic Retinopathy": (("fundus",), 0.08, "{:d}_left.png"),
    "CRC100k": (("histology",), 0.08, "ADI-TCGA-{:05d}.tif"),
    "ISIC2018": (("dermoscopy",), 0.08, "ISIC_{:07d}.jpg"),
    "Chest CT Scan": (("ct",), 0.06, "test/000{:d} (5).png"),
    "NLM- Malaria Data": (("smear",), 0.04, "C{:d}P4thinF_IMG cell.png"),
}
RESTRICTED = "AIDA"
TYPES = {
    "modality": "Modality Recognition",
    "organ": "Anatomy Identification",
    "finding": "Disease Diagnosis",
    "presence": "Disease Diagnosis",
    "look": "Lesion Grading",
}
MODALITIES = {
    "ct": "CT(Computed Tomography)",
    "mri": "MR (Mag-netic Resonance Imaging)",
    "ultrasound": "ultrasound",
    "xray": "X-Ray",
    "fundus": "Fundus Photography",
    "histology": "Microscopy Images",
    "smear": "Microscopy Images",
    "dermoscopy": "Dermoscopy",
}
ROOT = "OmniMedVQA"


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    with zipfile.ZipFile(out / f"{ROOT}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (techniques, share, pattern) in SUBSETS.items():
            rows: list[dict] = []
            count = max(2, round(share * num["train"]))
            for n, (scene, rng) in enumerate(scenes(seed, f"omnimedvqa {name}", "train", count, techniques)):
                path = f"Images/{name}/{pattern.format(n)}"
                archive.writestr(zipfile.ZipInfo(f"{ROOT}/{path}"), render_jpeg(scene, rng))
                rows += [row | {"image_path": path} for row in _rows(name, len(rows), scene, rng)]
            if name == "Chest CT Scan":
                rows[1]["modality"] = rows[1].pop("modality_type")
                rows[2]["gt_answer"] += " (none of these)"
            if name == "RadImageNet":
                rows[3]["option_A"] = rows[3]["option_B"] = rows[3]["gt_answer"]
            _write_table(archive, "Open", name, rows)
        (scene, rng), *_ = scenes(seed, f"omnimedvqa {RESTRICTED}", "train", 1, ("histology",))
        rows = [row | {"image_path": f"Images/{RESTRICTED}/a.png"} for row in _rows(RESTRICTED, 0, scene, rng)]
        _write_table(archive, "Restricted", RESTRICTED, rows)


def _write_table(archive: zipfile.ZipFile, access: str, name: str, rows: list[dict]) -> None:
    archive.writestr(zipfile.ZipInfo(f"{ROOT}/QA_information/{access}-access/{name}.json"), json.dumps(rows, indent=4))


def _rows(name: str, first: int, scene: Scene, rng: np.random.Generator) -> list[dict]:
    """Two questions with options, and one with the answer yes or no."""
    with_options = [one for one in choice_questions(scene, rng) if one[0] in TYPES]
    chosen = [with_options[n] for n in rng.permutation(len(with_options))[:2]]
    rows: list[dict] = []
    for kind, question, answer, options in [*chosen, (*presence(scene, rng), ["yes", "no"])]:
        while len(options) > 2 and rng.random() < 0.3:
            wrong = pick(rng, [option for option in options if option != answer])
            options = [option for option in options if option != wrong]
        rows.append(
            {
                "dataset": name,
                "question_id": f"{name.replace(' ', '_')}_{first + len(rows):04d}",
                "question_type": TYPES[kind],
                "question": question,
                "gt_answer": answer,
                **{f"option_{'ABCD'[n]}": option for n, option in enumerate(options)},
                "modality_type": MODALITIES[scene.modality],
            }
        )
    return rows
