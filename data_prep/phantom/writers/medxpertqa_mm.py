"""MedXpertQA MM as on the hub: `MM/test.jsonl` with options by letter, and `images.zip`.

Reproduced faults: the question repeats its options, several images per question, an image that the archive lacks, a letter without its
option, and two equal options.
"""

import json
import zipfile
from pathlib import Path

from data_prep.phantom.writers.exam import Exam, exams

SIZES = {"test": 80}  # questions
TASKS, TYPES = ("Diagnosis", "Treatment", "Basic Medicine"), ("Reasoning", "Understanding")
LETTERS = "ABCDE"
NONE = "None of the above"


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    lines = []
    with zipfile.ZipFile(out / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for n, exam in enumerate(exams(seed, "medxpertqa_mm", num["test"], most=4, reference="Figure {}")):
            names = [f"MM-{n}-{letter}.jpeg" for letter in "abcd"[: len(exam.images)]]
            for name, image in zip(names, exam.images, strict=True):
                if n != 3:
                    archive.writestr(zipfile.ZipInfo(f"images/{name}"), image)
            lines.append(json.dumps(_row(n, exam, names)) + "\n")
    (out / "MM").mkdir()
    (out / "MM" / "test.jsonl").write_text("".join(lines))


def _row(n: int, exam: Exam, names: list[str]) -> dict:
    options = dict(zip(LETTERS, [*exam.options, NONE], strict=False))
    if n == 2:
        options["A"] = options["B"]
    repeated = " ".join(f"({letter}) {text}" for letter, text in options.items())
    row = {"id": f"MM-{n}", "question": f"{exam.question} Answer Choices: {repeated}", "options": options}
    row |= {"label": "H" if n == 1 else exam.letter, "images": names, "medical_task": TASKS[n % 3]}
    return row | {"body_system": exam.scene.organ.capitalize(), "question_type": TYPES[n % 2]}
