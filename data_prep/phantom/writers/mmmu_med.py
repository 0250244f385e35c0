"""MMMU as on the hub: a folder per subject with parquet tables of `image_1` to `image_7` and options as the text of a Python list.

Reproduced faults: image tokens in questions and options, open questions with the options `[]`, several accepted answers as the text of a
list, a token without its image, a letter without its option, and two equal options.
"""

from pathlib import Path

import pyarrow as pa

from data_prep.phantom.writers.exam import Exam, exams
from data_prep.phantom.writers.hub_table import IMAGE, write_table

SIZES = {"test": 80}  # questions
SUBJECTS = ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health")
TEXTS = ("id", "question", "options", "explanation", "img_type", "answer", "topic_difficulty", "question_type", "subfield")
COLUMNS = dict.fromkeys(TEXTS, pa.string()) | {f"image_{n}": IMAGE for n in range(1, 8)}
LIMIT = 3  # images per question


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    rows: dict[str, list[dict]] = {subject: [] for subject in SUBJECTS}
    for n, exam in enumerate(exams(seed, "mmmu_med", num["test"], most=LIMIT, reference="<image {}>")):
        subject = SUBJECTS[n % len(SUBJECTS)]
        rows[subject].append(_row(f"validation_{subject}_{len(rows[subject]) + 1}", exam, n))
    for subject, questions in rows.items():
        (out / subject).mkdir()
        write_table(out / subject, "val", questions, columns=COLUMNS, folder=".")


def _row(key: str, exam: Exam, n: int) -> dict:
    options, answer = [*exam.options], exam.letter
    if n % 8 == 5:
        options, answer = [], exam.answer if n % 16 == 5 else str([exam.answer, f"the {exam.answer}"])
    elif n % 8 == 6:  # which image? the options are images
        options = [f"<image {k + 1}>" for k in range(len(exam.images))] + ["none of them"]
        answer = "ABCD"[len(options) - 1]
    elif n == 1:
        answer = "G"
    elif n == 2:
        options = [options[0]] * len(options)
    kind = "open" if not options else "multiple-choice"
    question = exam.question if n != 3 else f"{exam.question} Compare <image 7>."
    if n % 8 == 6:
        question = "Which image shows nothing of the human body?"
    about = {"id": key, "question": question, "options": str(options), "explanation": "", "answer": answer, "question_type": kind}
    about |= {"img_type": str([exam.scene.modality]), "topic_difficulty": ("Easy", "Medium", "Hard")[n % 3], "subfield": exam.scene.organ}
    images = {f"image_{k}": {"bytes": image, "path": None} for k, image in enumerate(exam.images, start=1)}
    return about | {name: images.get(name) for name in COLUMNS if name.startswith("image_")}
