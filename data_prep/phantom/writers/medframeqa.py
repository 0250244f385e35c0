"""MedFrameQA as on the hub: a parquet table with options as a list and the columns `image_1` to `image_5`, the last of them often null.

Reproduced faults: six options, several questions per video, an empty column before the last image, a letter without its option, and two
equal options.
"""

from pathlib import Path

import pyarrow as pa

from data_prep.phantom.scene.choices import ORGANS
from data_prep.phantom.writers.exam import Exam, exams
from data_prep.phantom.writers.hub_table import IMAGE, write_table

SIZES = {"test": 80}  # questions
TEXTS = ("question_id", "video_id", "question", "correct_answer", "modality", "system", "organ", "reasoning_chain")
COLUMNS = dict.fromkeys(TEXTS, pa.string()) | {"options": pa.list_(pa.string())} | {f"image_{n}": IMAGE for n in range(1, 6)}


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    made = exams(seed, "medframeqa", num["test"], most=4, reference="image {}")
    write_table(out, "test", [_row(n, exam) for n, exam in enumerate(made)], columns=COLUMNS)


def _row(n: int, exam: Exam) -> dict:
    extra = [organ for organ in ORGANS if organ not in exam.options]
    options = exam.options + (extra[: 6 - len(exam.options)] if n % 2 else [])
    images: list[bytes | None] = [*exam.images, exam.images[-1]]  # the original has at least two
    if n == 1:
        images.insert(0, None)
    if n == 3:
        options[1] = options[0]
    row = {"question_id": f"q_{n:04d}", "video_id": f"video{n // 2}", "question": exam.question, "options": options}
    row |= {"correct_answer": "Z" if n == 2 else exam.letter, "modality": exam.scene.modality, "system": f"{exam.scene.organ} system"}
    row |= {"organ": exam.scene.organ, "reasoning_chain": f"The image shows {exam.scene.finding}."}
    return row | {f"image_{k + 1}": images[k] and {"bytes": images[k], "path": None} for k in range(min(5, len(images)))}
