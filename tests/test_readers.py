"""Each reader on a few rows in the true raw layout, with the faults that the dataset is known for."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import sources
from data_prep.json_stream import items
from data_prep.readers import READERS
from data_prep.rows import Bad, Filtered
from data_prep.zip_members import ZipMembers
from src.data.record import SPLITS, Record
from src.errors import UserError
from tests.conftest import jpeg

RNG = np.random.default_rng(0)
PICTURES = [jpeg(RNG, height=16, width=16) for _ in range(4)]


def read(source: str, raw: Path, split: str = "train") -> list:
    entry = sources.load()[source]
    return list(READERS[entry.reader](raw, split, entry))


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def put_lines(path: Path, *lines: dict | str) -> None:
    put(path, "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines))


def put_parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def put_zip(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


def reasons(rows: list) -> list[tuple[str, str]]:
    return [(row.key, row.reason) for row in rows if isinstance(row, Bad | Filtered)]


def image(n: int) -> dict:
    return {"bytes": PICTURES[n], "path": None}


def test_pathvqa(tmp_path):
    rows = [
        {"image": image(0), "question": "what is present?", "answer": "necrosis"},
        {"image": image(0), "question": "is it large?", "answer": "yes"},
        {"image": image(1), "question": "where are the cells?", "answer": None},
    ]
    put_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:2])
    put_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[2:])
    put_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", rows[:1])
    first, second, third = read("pathvqa", tmp_path)
    assert (first.key, first.images, first.turns) == ("train-000000", [PICTURES[0]], [("what is present?", "necrosis")])
    assert (first.type, second.type) == ("finding", "presence")
    assert first.group == second.group != third.group
    assert third.turns == [("where are the cells?", "")]
    assert [row.split for row in read("pathvqa", tmp_path, "val")] == ["val"]
    assert read("pathvqa", tmp_path, "test") == []


def test_parquet_faults_are_one_sentence(tmp_path):
    put_parquet(tmp_path / "data" / "train-0.parquet", [{"image": image(0), "qestion": "q", "answer": "a"}])
    with pytest.raises(UserError, match="has no column 'question', which is to be the question; did you mean 'qestion'"):
        read("pathvqa", tmp_path)
    whole = tmp_path / "data" / "train-0.parquet"
    whole.write_bytes(whole.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train-0\.parquet of pathvqa cannot be read as parquet .*; fetch it again"):
        read("pathvqa", tmp_path)


def test_vqa_med_2019(tmp_path):
    folder = tmp_path / "ImageClef-2019-VQA-Med-Training"
    asked = ["synpic1|what modality is shown?|ct", "synpic1|what is wrong?|cyst", "synpic2|what plane is it?|axial", "synpic3|broken line"]
    put(folder / "All_QA_Pairs_train.txt", "\n".join(asked) + "\n")
    put(folder / "QAPairsByCategory" / "C1_Modality_train.txt", asked[0] + "\n")
    put(folder / "QAPairsByCategory" / "C4_Abnormality_train.txt", asked[1] + "\n")
    put(folder / "Train_images" / "synpic1.jpg", PICTURES[0])
    modality, finding, *bad = read("vqa_med_2019", tmp_path)
    assert (modality.type, modality.answer, modality.group) == ("modality", "ct", "synpic1")
    assert (finding.type, finding.meta) == ("finding", {"category": "abnormality"})
    assert reasons(bad) == [
        ("train-00003-synpic2", "image missing: ImageClef-2019-VQA-Med-Training/Train_images/synpic2.jpg"),
        ("train-00004", "not image|question|answer: 'synpic3|broken line'"),
    ]
    put(tmp_path / "VQAMed2019Test" / "VQAMed2019_Test_Questions_w_Ref_Answers.txt", "s9|abnormality|is this normal?|no#abnormal\r\n")
    put(tmp_path / "VQAMed2019Test" / "VQAMed2019_Test_Images" / "s9.jpg", PICTURES[1])
    (test,) = read("vqa_med_2019", tmp_path, "test")
    assert (test.references, test.answer, test.type) == (["no", "abnormal"], "no", "presence")


def test_pmc_oa(tmp_path):
    folder = "caption_T060_filtered_top4_sep_v0_subfigures"
    put_zip(tmp_path / "images.zip", {f"{folder}/PMC1_Fig3_4.jpg": PICTURES[0], "../../escape.jpg": PICTURES[1]})
    lines = [{"image": "PMC1_Fig3_4.jpg", "caption": " A. A scan "}, {"image": "PMC1_Fig3_4.jpg", "caption": "B"}]
    lines += [{"image": "PMC9_Fig1_1.jpg", "caption": "gone"}, '{"image": "PMC1_F', {"image": "../../escape.jpg", "caption": "out"}]
    put_lines(tmp_path / "pmc_oa.jsonl", *lines)
    one, other, *bad = read("pmc_oa", tmp_path)
    assert (one.caption, one.group, one.type, one.images) == ("A. A scan", "PMC1", "caption", [PICTURES[0]])
    assert (one.key, other.key) == ("PMC1_Fig3_4-0000001", "PMC1_Fig3_4-0000002")
    assert [reason.partition(":")[0] for _, reason in reasons(bad)] == ["image missing", "not valid JSON", "image missing"]
    assert not list(tmp_path.parent.glob("escape*"))


def pubmedqa(tmp_path: Path, cut: int | None = None) -> Path:
    rows = {str(n): {"QUESTION": f"Is it {n}?", "CONTEXTS": ["One.", "Two."], "final_decision": "yes"} for n in range(4)}
    put(tmp_path / "data" / "ori_pqal.json", json.dumps(rows)[:cut])
    put(tmp_path / "data" / "test_ground_truth.json", '{"1": "yes", "3": "yes"}')
    return tmp_path


def test_pubmedqa(tmp_path):
    assert [row.key for row in read("pubmedqa", pubmedqa(tmp_path))] == ["0", "2"]
    test = read("pubmedqa", tmp_path, "test")
    assert [row.key for row in test] == ["1", "3"]
    assert test[0].turns == [("One. Two.\nIs it 1?", "yes")]
    put(tmp_path / "data" / "ori_pqaa.json", json.dumps({"8": {"QUESTION": "q", "final_decision": "yes"}}))
    assert reasons(read("pubmedqa", tmp_path)) == [("8", "no CONTEXTS")]
    (tmp_path / "data" / "test_ground_truth.json").unlink()
    with pytest.raises(UserError, match="which names the test questions"):
        read("pubmedqa", tmp_path)


def test_a_json_file_cut_in_the_middle(tmp_path):
    with pytest.raises(UserError, match=r"ori_pqal\.json is not complete, valid JSON: it ends in the middle; fetch it again"):
        read("pubmedqa", pubmedqa(tmp_path, cut=150))


def test_jsonl(tmp_path):
    put(tmp_path / "a.png", PICTURES[0])
    put(tmp_path / "sub" / "b.png", PICTURES[1])
    lines = [
        {"id": "one", "image": "a.png", "question": "How many?", "answer": 3, "scanner": "X"},
        {"image": ["a.png", "sub/b.png"], "caption": "two views", "group": "patient 1", "licence": "CC0"},
        {"question": "A or B?", "answer": "A", "choices": ["A", "B"], "type": "choice", "references": ["A", "a"]},
        {"id": "far", "image": "../secret.png", "question": "q", "answer": "a"},
        {"id": "gone", "image": "no.png", "question": "q", "answer": "a"},
        {"id": "odd", "question": "q", "answer": "a", "type": "modalty"},
        "[1, 2]",
    ]
    put_lines(tmp_path / "test.jsonl", *lines)
    one, two, three, *bad = read("jsonl", tmp_path, "test")
    assert (one.key, one.turns, one.type, one.group, one.meta) == ("one", [("How many?", "3")], "count", "a.png", {"scanner": "X"})
    assert (two.images, two.caption, two.type, two.group, two.licence) == (PICTURES[:2], "two views", "caption", "patient 1", "CC0")
    assert (three.key, three.images, three.choices, three.references, three.type) == ("test-3", [], ["A", "B"], ["A", "a"], "choice")
    assert reasons(bad) == [
        ("far", "image path is not inside the raw folder: '../secret.png'"),
        ("gone", "image missing: no.png"),
        ("odd", "unknown type: 'modalty'; did you mean 'modality'?"),
        ("test-7", "not a JSON object: line 7 of test.jsonl"),
    ]


def test_a_line_in_latin_1_harms_no_other(tmp_path):
    good = json.dumps({"question": "q", "answer": "a"}).encode()
    put(tmp_path / "train.jsonl", b"\n".join([good, '{"question": "Sjögren?", "answer": "a"}'.encode("latin-1"), good]))
    rows = read("jsonl", tmp_path)
    assert [type(row) for row in rows] == [Record, Bad, Record]
    assert rows[1].reason == "not UTF-8: line 2 of train.jsonl, byte 16"


def test_own_data_needs_no_entry(tmp_path):
    put_lines(tmp_path / "scans" / "test.jsonl", {"question": "q", "answer": "a"})
    put_parquet(tmp_path / "table" / "train.parquet", [{"image": image(0), "question": "q", "answer": "a"}])
    for name, reader in (("scans", "jsonl"), ("table", "hf_parquet")):
        entry = sources.find(name, tmp_path)
        assert (entry.name, entry.reader) == (name, reader)
        rows = [row for split in SPLITS for row in READERS[reader](tmp_path / name, split, entry)]
        assert [row.source for row in rows] == [name]


def test_unknown_sources_are_told_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"source 'pathvaq' is not in sources\.yaml.*did you mean 'pathvqa'"):
        sources.find("pathvaq", tmp_path)
    with pytest.raises(UserError, match="letters, digits"):
        sources.find("../../etc", tmp_path)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_json_is_streamed_whatever_the_chunk(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("data_prep.json_stream.CHUNK", chunk)
    value = {"a": [1, {"b": ']}\\"'}], "number": 123, "text": "é\n", "nothing": None, "empty": {}}
    put(tmp_path / "object.json", json.dumps(value, indent=2))
    assert dict(items(tmp_path / "object.json")) == value
    put(tmp_path / "array.json", json.dumps(list(value.values())) + "\n")
    assert [one for _, one in items(tmp_path / "array.json")] == list(value.values())
    for text in ("{}", "[]"):
        put(tmp_path / "empty.json", text)
        assert list(items(tmp_path / "empty.json")) == []
    for text in ("", "{", '{"a": 1', '{"a" 1}', "[1, 2", "3"):
        put(tmp_path / "broken.json", text)
        with pytest.raises(UserError, match=r"broken\.json is not complete, valid JSON"):
            list(items(tmp_path / "broken.json"))


def test_zip_members_are_those_of_zipfile(tmp_path):
    path = tmp_path / "images.zip"
    members = {f"folder/{n}.jpg": RNG.bytes(int(RNG.integers(0, 3000))) for n in range(50)} | {"ü.txt": b"a" * 5000}
    with zipfile.ZipFile(path, "w") as file:
        for n, (name, content) in enumerate(members.items()):
            file.writestr(name, content, compress_type=zipfile.ZIP_DEFLATED if n % 2 else zipfile.ZIP_STORED)
    with ZipMembers(path) as found:
        assert len(found) == len(members)
        assert {name: found.read(name, "key") for name in members} == members
        assert found.read("folder/50.jpg", "key") == Bad("key", "image missing: folder/50.jpg is not in images.zip")


def test_a_zip_with_64_bit_records(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    members = {f"{n}": bytes([n]) * 200 for n in range(5)}
    put_zip(tmp_path / "large.zip", members)
    with ZipMembers(tmp_path / "large.zip") as found:
        assert {name: found.read(name, "") for name in members} == members


def test_a_truncated_or_damaged_zip(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.jpg", b"x" * 1000)
    put(tmp_path / "images.zip", out.getvalue()[:-40])
    with pytest.raises(UserError, match=r"images\.zip is not a complete zip file; fetch it again"):
        ZipMembers(tmp_path / "images.zip")
    put(tmp_path / "images.zip", out.getvalue().replace(b"xxxx", b"xxyx", 1))
    with ZipMembers(tmp_path / "images.zip") as found:
        assert found.read("a.jpg", "key") == Bad("key", "zip member damaged: a.jpg")
    with pytest.raises(UserError, match=r"none\.zip is missing"):
        ZipMembers(tmp_path / "none.zip")


def test_every_entry_has_its_reader_and_states_where_its_numbers_come_from():
    for name, entry in sources.load().items():
        assert entry.reader in READERS, name
        assert entry.licence.name, name
        assert not entry.expected or entry.counts.get("from"), f"{name}: counts without from"
        assert entry.revision.get("value", "unverified") == "unverified" or entry.revision.get("from"), f"{name}: a revision without from"
        assert {entry.licence.redistribute, entry.licence.non_commercial, entry.gated} <= {"yes", "no", "unverified"}, name


def test_a_misspelt_entry_is_one_sentence(tmp_path):
    put(tmp_path / "sources.yaml", "x:\n  reader: jsonl\n  licens: {}\n  files: {train: a}\n")
    with pytest.raises(UserError, match=r"sources\.yaml: x has an unknown key 'licens'; did you mean 'licence'"):
        sources.load(tmp_path / "sources.yaml")
    put(tmp_path / "sources.yaml", "x:\n  reader: jsonl\n  files: {training: a}\n")
    with pytest.raises(UserError, match="unknown split 'training'; did you mean 'train'"):
        sources.load(tmp_path / "sources.yaml")


def test_columns_of_a_caption_table(tmp_path):
    entry = replace(
        sources.load()["hf_parquet"], name="roco", columns={"image": "image", "caption": "text", "id": "number", "group": "pmc"}
    )
    put_parquet(tmp_path / "train.parquet", [{"image": image(0), "text": " a caption", "number": 7, "pmc": "PMC1"}])
    (row,) = READERS["hf_parquet"](tmp_path, "train", entry)
    assert (row.key, row.caption, row.type, row.group, row.turns) == ("7", "a caption", "caption", "PMC1", [])
