"""The reader of exam benchmarks: MMMU, MedXpertQA-MM and MedFrameQA in their layouts, and their phantoms."""

import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep.build.source import BuildConfig
from data_prep.phantom.writers import EXAMS
from data_prep.readers.exam import REPEATED_NOTE
from data_prep.readers.rows import InvalidRow, Note
from data_prep.shards import build_all
from src.data.record import Record
from src.data.shards import Shards
from tests.test_readers import IMAGES, image, put, put_lines, put_parquet, put_zip, read


def mmmu(**changes) -> dict:
    row = {"id": "validation_Pharmacy_1", "question": "Compare <image 1> and <image 2>.", "options": "['a', \"b's\"]", "answer": "B"}
    row |= {"image_1": image(0), "image_2": image(1), "image_3": None, "img_type": "['CT', 'MRI']", "topic_difficulty": "Easy"}
    return row | changes


def read_mmmu(raw: Path, *rows: dict) -> list:
    put_parquet(raw / "Pharmacy/validation-00000-of-00001.parquet", list(rows))
    return read("mmmu_med", raw, "test")


def test_mmmu_row_becomes_a_record_with_all_images(tmp_path):
    (record,) = read_mmmu(tmp_path, mmmu())
    assert record.images == IMAGES[:2]
    assert record.turns == [("Compare <image 1> and <image 2>.", "b's")]
    assert (record.choices, record.type, record.references) == (["a", "b's"], "choice", [])
    assert record.meta == {"subject": "Pharmacy", "modality": "CT, MRI", "difficulty": "Easy"}


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [("60 mg", [], "60 mg"), ("['60', '60 mg']", ["60", "60 mg"], "60"), ("[unclear", [], "[unclear")],
)
def test_mmmu_open_question_has_no_options(tmp_path, answer, references, expected):
    (record,) = read_mmmu(tmp_path, mmmu(options="[]", answer=answer, question="How large is the dose?"))
    assert (record.choices, record.references, record.answer, record.type) == ([], references, expected, "size")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": "C"}, "no such option: answer='C', options A, B"),
        ({"answer": "a"}, "no such option: answer='a', options A, B"),  # the text of an option is not its letter
        ({"answer": "?"}, "no such option: answer='?', options A, B"),  # the test split, whose answers are not public
        ({"options": "['a', 'a']"}, "equal options: ['a', 'a']"),
        ({"options": "['a', '']"}, "empty option"),
        ({"options": "['a', 'b'"}, "options unreadable: \"['a', 'b'\""),
        ({"options": "['a', '<image 3>']"}, "image token without image: <image 3> of 2 images"),
        ({"question": "See <image 0>."}, "image token without image: <image 0> of 2 images"),
        ({"image_1": None}, "image missing: an empty column before the last image"),
        ({"image_1": None, "image_2": None, "question": "None?"}, "image missing: the row has no image"),
    ],
)
def test_damaged_exam_question_is_quarantined_alone(tmp_path, changes, reason):
    first, bad, last = read_mmmu(tmp_path, mmmu(), mmmu(**changes), mmmu())
    assert bad == InvalidRow("validation_Pharmacy_1", reason)
    assert first == last


def test_medxpertqa_reads_options_by_letter_and_drops_those_in_the_question(tmp_path):
    put_zip(tmp_path / "images.zip", {"images/MM-1-a.jpeg": IMAGES[0], "images/MM-1-b.jpeg": IMAGES[1]})
    row = {"id": "MM-1", "question": "Which artery?\nAnswer Choices: (A) C (B) D", "options": {"B": "D", "A": "C"}, "label": "A"}
    row |= {"images": ["MM-1-b.jpeg", "MM-1-a.jpeg"], "medical_task": "Diagnosis", "question_type": "Reasoning"}
    wrong = {"id": "MM-2", "options": {"A": "C", "C": "D"}, "label": "B"}
    put_lines(tmp_path / "MM/test.jsonl", row, row | wrong, row | {"id": "MM-3", "images": ["gone.jpeg"]})
    record, note, *bad = read("medxpertqa_mm", tmp_path, "test")
    assert (record.images, record.turns, record.choices) == ([IMAGES[1], IMAGES[0]], [("Which artery?", "C")], ["C", "D"])
    assert record.meta == {"medical_task": "Diagnosis", "question_type": "Reasoning"}
    assert note == Note(REPEATED_NOTE)
    assert [row.reason for row in bad] == ["no such option: answer='B', options A, C", "image missing: gone.jpeg is not in images.zip"]


def test_medxpertqa_reads_unpacked_images(tmp_path):
    put(tmp_path / "images/a.jpeg", IMAGES[2])
    put_lines(tmp_path / "MM/test.jsonl", {"question": "Why?", "options": {"A": "x", "B": "y"}, "label": "B", "images": ["a.jpeg"]})
    (record,) = read("medxpertqa_mm", tmp_path, "test")
    assert (record.key, record.images, record.answer) == ("MM-test-00000", [IMAGES[2]], "y")


def test_medframeqa_reads_the_frames_of_a_video_as_one_group(tmp_path):
    row = {"question_id": "q1", "video_id": "v", "question": "What changes?", "options": list("abcdef"), "correct_answer": "F"}
    row |= {f"image_{n}": image(n) if n < 4 else None for n in range(1, 6)} | {"modality": "CT", "image_url": ["x"]}
    put_parquet(tmp_path / "data/test-00000-of-00001.parquet", [row, row | {"question_id": "q2", "options": list("fedcba")}])
    first, second = read("medframeqa", tmp_path, "test")
    assert (len(first.images), first.answer, first.choices, first.meta) == (3, "f", list("abcdef"), {"modality": "CT"})
    assert (second.answer, second.group, first.group) == ("a", "v", "v")


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("mmmu_med", {"no such option": 1, "equal options": 1, "image token without image": 1}),
        ("medxpertqa_mm", {"no such option": 1, "equal options": 1, "image missing": 1}),
        ("medframeqa", {"no such option": 1, "equal options": 1, "image missing": 1}),
        ("omnimedvqa_open", {"no such option": 1, "equal options": 1}),
    ],
)
@pytest.mark.slow
def test_exam_phantom_has_every_fault_of_the_original(tmp_path, name, reasons):
    (tmp_path / "raw" / name).mkdir(parents=True)
    EXAMS[name].write(tmp_path / "raw" / name, seed=0, num=dict.fromkeys(EXAMS[name].SIZES, 60))
    manifest = build_all(BuildConfig(sources=[name], raw=tmp_path / "raw", out=tmp_path / "shards", workers=1))[name]
    shards = Shards(tmp_path / "shards" / name)
    lines = [json.loads(line) for line in (shards.folder / "quarantine.jsonl").read_text().splitlines()]
    assert Counter(line["reason"].partition(":")[0] for line in lines) == reasons
    records: list[Record] = [shards.text(row) for row in shards.rows("test")]
    assert len(records) == len(shards)
    assert all(record.answer in record.choices for record in records if record.choices)
    assert not any("Answer Choices" in record.question for record in records)
    if name == "mmmu_med":
        assert {bool(record.choices) for record in records} == {True, False}
        assert any(record.references for record in records)
        assert any("<image 1>" in record.choices for record in records)
    if name == "omnimedvqa_open":
        assert manifest["filtered"] == {"restricted sub-set 'AIDA' of 3 questions": 1}
    else:
        assert max(shards.column("num_images")) > 2
