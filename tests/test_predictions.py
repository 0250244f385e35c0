"""Predictions files of other systems: what is read, and the message for each error."""

import json

import pytest

from src.evaluation.foreign_predictions import read_foreign_predictions
from src.runtime.errors import UserError

LINE = {"id": "q1", "question": "what is shown?", "references": ["lung"], "prediction": "the lung"}


def write_jsonl(path, *rows) -> object:
    file = path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_csv(path, text: str) -> object:
    file = path / "answers.csv"
    file.write_text(text, newline="")
    return file


def test_all_known_fields_are_read(tmp_path):
    line = {**LINE, "source": "pathvqa", "image": "i1", "type": "organ", "choices": ["lung", "liver"], "closed": False, "cut": True}
    assert read_foreign_predictions(write_jsonl(tmp_path, {**line, "confidence": 0.4}), benchmark=None) == [line]


@pytest.mark.parametrize("field", [{"references": "lung"}, {"references": ["lung"]}, {"reference": "lung"}])
def test_references_may_be_one_string_or_a_list(tmp_path, field):
    row = {name: value for name, value in LINE.items() if name != "references"}
    assert read_foreign_predictions(write_jsonl(tmp_path, {**row, **field}), benchmark=None)[0]["references"] == ["lung"]


def test_csv_is_read_like_write_jsonl(tmp_path):
    text = 'id,question,reference,prediction,image,type\r\n1,"what, then?","[""a"", ""b""]","two\nlines",i1,\r\n2,why?,lung,,,organ\r\n'
    first, second = read_foreign_predictions(write_csv(tmp_path, text), benchmark=None)
    assert first == {"id": "1", "question": "what, then?", "references": ["a", "b"], "prediction": "two\nlines", "image": "i1"}
    assert second == {"id": "2", "question": "why?", "references": ["lung"], "prediction": "", "type": "organ"}


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b"])
def test_only_a_line_feed_ends_a_line(tmp_path, separator):
    row = {**LINE, "prediction": f"a{separator}b"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    (tmp_path / "a.csv").write_text(f"id,question,reference,prediction\nq1,what?,lung,a{separator}b\n", newline="")
    for name in ("a.jsonl", "a.csv"):
        assert read_foreign_predictions(tmp_path / name, benchmark=None)[0]["prediction"] == f"a{separator}b"


def test_byte_order_mark_is_ignored(tmp_path):
    file = tmp_path / "answers.csv"
    file.write_bytes("id,question,reference,prediction\n1,q,lung,lung\n".encode("utf-8-sig"))
    assert read_foreign_predictions(file, benchmark=None)[0]["id"] == "1"


def test_alternatives_are_split_only_for_vqa_med_2019(tmp_path):
    file = write_jsonl(tmp_path, {**LINE, "references": "oligodendroglioma # (multi-cystic) mass"})
    assert read_foreign_predictions(file, benchmark="vqa_med_2019")[0]["references"] == ["oligodendroglioma", "(multi-cystic) mass"]
    assert read_foreign_predictions(file, benchmark="pathvqa")[0]["references"] == ["oligodendroglioma # (multi-cystic) mass"]


def test_numbers_become_text(tmp_path):
    (item,) = read_foreign_predictions(write_jsonl(tmp_path, {**LINE, "id": 7, "references": [2, 2.5], "prediction": 2}), benchmark=None)
    assert (item["id"], item["references"], item["prediction"]) == ("7", ["2", "2.5"], "2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": float("nan")}, "line 2: prediction is NaN"),
        ({"references": [float("nan")]}, "line 2: references is NaN"),
        ({"prediction": "nan"}, "line 2: prediction is NaN"),
        ({"prediction": None}, "line 2: prediction is null; give text or a number"),
        ({"prediction": True}, "line 2: prediction is true"),
        ({"prediction": ["lung"]}, "line 2: prediction is a list"),
        ({"references": []}, "line 2: 'references' is empty"),
        ({"references": " "}, "line 2: 'references' is empty"),
        ({"reference": "lung"}, "line 2: 'reference' and 'references' are both present"),
        ({"prediction": float("inf")}, "line 2: prediction is NaN"),
        ({"choices": "ct, mri"}, "line 2: choices is text; give a list"),
        ({"choices": 5}, "line 2: choices is 5; give a list"),
        ({"id": " "}, "line 2: id is empty"),
        ({"id": "q1"}, r"1 ids occur more than once \(first: 'q1'\)"),
    ],
)
def test_invalid_value_is_reported_in_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        read_foreign_predictions(write_jsonl(tmp_path, LINE, {**LINE, "id": "q2", **change}), benchmark=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"reference": []}, "'reference' is empty"),
        ({"reference": {}}, "reference is an object"),
        ({"reference": "a", "predicton": "a"}, "'prediction' is missing, found id, question, reference, predicton;"),
    ],
)
def test_errors_name_the_column_of_the_file(tmp_path, row, message):
    row = {"id": "q1", "question": "q", **({} if "predicton" in row else {"prediction": "a"}), **row}
    with pytest.raises(UserError, match=message):
        read_foreign_predictions(write_jsonl(tmp_path, row), benchmark=None)


def test_missing_field_is_reported_with_the_present_fields(tmp_path):
    row = {("predicton" if name == "prediction" else name): value for name, value in LINE.items()}
    with pytest.raises(UserError, match="line 1: 'prediction' is missing, found id, question, references, predicton"):
        read_foreign_predictions(write_jsonl(tmp_path, row), benchmark=None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "the file is empty; write a line per question"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.csv", b"id,question,references,prediction\n", "is empty"),
        ("a.jsonl", b'{"id": 1,\n', "line 1: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: found a list; write an object"),
        ("a.jsonl", '{"id": "Hodgkin\u00e9"}'.encode("latin-1"), "not UTF-8 .byte 15"),
        ("a.csv", b"id,question,references,prediction\n1,q,lung\n", "line 2: the number of cells differs from the 4 columns of the header"),
        (
            "a.csv",
            b"id,question,references,prediction\n1,q,lung,a,b\n",
            "line 2: the number of cells differs from the 4 columns of the header",
        ),
        ("a.csv", b'id,question,references,prediction\n1,"q,lung,a\n', "not CSV"),
        ("a.csv", b"id,question,references,prediction,prediction\n1,q,lung,a,b\n", "the column 'prediction' occurs more than once"),
        ("a.json", b"{}", "unknown file type '.json'; did you mean '.jsonl'"),
    ],
)
def test_invalid_file_is_reported_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_foreign_predictions(tmp_path / name, benchmark=None)
    assert "\n" not in str(error.value)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_foreign_predictions(tmp_path / "a.csv", benchmark=None)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["q1", "q3"], r"2 questions; 1 ids are missing \(first: 'q3'\) and 1 are extra \(first: 'q2'\)"),
        (["q1"], r"1 questions; 1 are extra \(first: 'q2'\)"),
        (["q1", "q2", "q3"], r"3 questions; 1 ids are missing \(first: 'q3'\)"),
    ],
)
def test_ids_must_be_those_of_the_benchmark(tmp_path, ids, message):
    file = write_jsonl(tmp_path, LINE, {**LINE, "id": "q2"})
    with pytest.raises(UserError, match=message):
        read_foreign_predictions(file, benchmark="pathvqa", ids=ids)
    assert len(read_foreign_predictions(file, benchmark="pathvqa", ids=["q2", "q1"])) == 2
