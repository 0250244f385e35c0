"""PAD-UFES-20: photographs of skin lesions as PNG in three folders, `metadata.csv` beside them; patients have several lesions and
lesions several photographs, of very different sizes."""

import csv
from pathlib import Path

from PIL import Image

from data_prep.phantom.scene.world import item_rng
from data_prep.phantom.writers.unseen import Look, draw_class, labelled_scenes

SIZES = {"train": 300}  # lesions; the original has 1,641 of 1,373 patients in 2,298 photographs, without splits
LOOKS = {
    "ACK": Look("star", 2),
    "BCC": Look("ring"),
    "MEL": Look("spiculated"),
    "NEV": Look("disc"),
    "SCC": Look("crescent", 2),
    "SEK": Look("specks", 2),
}
WEIGHTS = [7, 8, 2, 4, 4, 4]  # imbalance as in the original
COLUMNS = ("patient_id", "lesion_id", "smoke", "age", "region", "diagnostic", "img_id", "biopsed")


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    rows = []
    names = list(LOOKS)
    for number, (label, scene, _) in enumerate(labelled_scenes(seed, "pad_ufes_20", "train", num["train"], "dermoscopy", WEIGHTS)):
        patient = f"PAT_{8 + number * 4 // 5}"  # every fifth lesion is the second one of its patient
        for shot in range(1 + number % 2):
            rng = item_rng(seed, "pad_ufes_20", f"photograph {shot}", number)
            image = Image.fromarray(draw_class(LOOKS[names[label]], scene, rng, sides=(128, 160)))
            scale = (0.5, 1.0, 1.5, 4.0)[int(rng.integers(4))]
            if number % 150 == 2:  # one or two images have the size of the largest originals; more would take minutes
                scale = 2000 / max(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)))
            name = f"{patient}_{100 + number}_{7 * number % 900 + shot}.png"
            folder = out / "images" / f"imgs_part_{1 + number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            (image.convert("RGBA") if number % 9 == 0 else image).save(folder / name, compress_level=1)
            rows.append((patient, 100 + number, "", 40 + number % 50, "ARM", names[label], name, label in (1, 2, 4)))
    with (out / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
