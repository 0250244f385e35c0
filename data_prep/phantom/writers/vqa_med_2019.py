"""VQA-Med-2019 as unpacked from its archives: three folders of images and pipe-separated questions by category.

Reproduced faults: `#` separates accepted answers in the test references only; all other types of question have the category
`abnormality`; an image of each split is missing.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.phantom.scene.wording import alternatives
from data_prep.phantom.scene.world import RADIOLOGY, Scene
from data_prep.phantom.writers.folder import render_jpeg, scenes
from data_prep.phantom.writers.pathvqa import sample_questions

SIZES = {"train": 1200, "val": 80, "test": 66}  # images
CATEGORIES = ("modality", "plane", "organ", "abnormality")


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    for split, folder, name in (("train", "ImageClef-2019-VQA-Med-Training", "Train"), ("val", "ImageClef-2019-VQA-Med-Validation", "Val")):
        items = list(_questions(out / folder / f"{name}_images", seed, split, num[split]))
        lines = [(kind, f"{image}|{question}|{answer}") for image, _, kind, question, answer in items]
        _write(out / folder / f"All_QA_Pairs_{split}.txt", [line for _, line in lines])
        _write(out / folder / f"{split}_ImageIDs.txt", list(dict.fromkeys(item[0] for item in items)))
        for number, category in enumerate(CATEGORIES, 1):
            path = out / folder / "QAPairsByCategory" / f"C{number}_{category.capitalize()}_{split}.txt"
            _write(path, [line for kind, line in lines if _category(kind) == category])
    items = list(_questions(out / "VQAMed2019Test" / "VQAMed2019_Test_Images", seed, "test", num["test"]))
    _write(out / "VQAMed2019Test" / "VQAMed2019_Test_Questions.txt", [f"{image}|{question}" for image, _, _, question, _ in items])
    references = [
        f"{image}|{_category(kind)}|{question}|{'#'.join([answer, *alternatives(scene, kind)])}"
        for image, scene, kind, question, answer in items
    ]
    _write(out / "VQAMed2019Test" / "VQAMed2019_Test_Questions_w_Ref_Answers.txt", references)


def _questions(images: Path, seed: int, split: str, number: int) -> Iterator[tuple[str, Scene, str, str, str]]:
    """(image id, scene, type, question, answer). Writes the images, except the last one."""
    images.mkdir(parents=True)
    for n, (scene, rng) in enumerate(scenes(seed, "vqa_med_2019", split, number, tuple(RADIOLOGY))):
        name, jpeg = f"synpic{split}{n:05d}", render_jpeg(scene, rng)
        if n < number - 1 or number < 20:
            (images / f"{name}.jpg").write_bytes(jpeg)
        for kind, question, answer in sample_questions(scene, rng):
            yield name, scene, kind, question, answer


def _category(kind: str) -> str:
    return kind if kind in CATEGORIES else "abnormality"


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
