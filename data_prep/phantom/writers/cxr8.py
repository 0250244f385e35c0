"""NIH ChestX-ray14: PNG files of patients and their follow-ups in unpacked archives, a table whose header has brackets with commas, and
two lists of names.

Reproduced faults: some images are RGBA, the header has more columns than names, and a patient has several images.
"""

from pathlib import Path

from PIL import Image

from data_prep.phantom.writers.unseen import MULTILABEL_LOOKS, draw_classes, multilabel_scenes
from src.classification.published_layouts import NIH_LABELS

SIZES = {"train": 600, "test": 240}  # images; the original has 86,524 / 25,596 of 30,805 patients
WEIGHTS = [6, 3, 6, 8, 3, 3, 2, 3, 3, 2, 2, 2, 3, 1]  # imbalance as in the original
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],"
HEADER += "OriginalImagePixelSpacing[x,y],"


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    lines, patient, visit, total = [HEADER], 0, 0, 0
    for split, number in num.items():
        names: list[str] = []
        for labels, scene, rng in multilabel_scenes(seed, "cxr8", split, number, "xray", WEIGHTS):
            again = bool(names) and visit < 3 and rng.random() < 0.4
            patient, visit = (patient, visit + 1) if again else (patient + 1, 0)
            names.append(f"{patient:08d}_{visit:03d}.png")
            image = Image.fromarray(draw_classes([MULTILABEL_LOOKS[k] for k in labels], scene, rng, sides=(128, 160))[..., 0])
            folder = out / f"images_{1 + total // 300:03d}" / "images"
            folder.mkdir(parents=True, exist_ok=True)
            (image.convert("RGBA") if total % 9 == 0 else image).save(folder / names[-1])
            findings = "|".join(NIH_LABELS[k] for k in labels) or "No Finding"
            lines.append(f"{names[-1]},{findings},{visit},{patient},{20 + patient % 70},M,PA,2682,2749,0.143,0.143,")
            total += 1
        (out / LISTS[split]).write_text("\n".join(names))
    (out / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
