"""Each reader on a few rows in the original raw layout, with the known faults of the dataset."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from data_prep import sources
from data_prep.build.chunking import record_fault
from data_prep.readers import OPTIONS, READERS
from data_prep.readers.json_stream import iter_items
from data_prep.readers.rows import FilteredRow, InvalidRow
from data_prep.readers.zip_members import ZipMembers
from src.data.record import SPLITS, Record
from src.runtime.cli import CONF
from src.runtime.errors import UserError
from tests.fixtures import jpeg

RNG = np.random.default_rng(0)
IMAGES = [jpeg(RNG, height=16, width=16) for _ in range(4)]


def read(source: str, raw: Path, split: str = "train") -> list:
    entry = sources.load_sources()[source]
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
    return [(row.key, row.reason) for row in rows if isinstance(row, InvalidRow | FilteredRow)]


def image(n: int) -> dict:
    return {"bytes": IMAGES[n], "path": None}


def test_pathvqa_reads_questions_from_parquet(tmp_path):
    rows = [
        {"image": image(0), "question": "what is present?", "answer": "necrosis"},
        {"image": image(0), "question": "is it large?", "answer": "yes"},
        {"image": image(1), "question": "where are the cells?", "answer": None},
    ]
    put_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:2])
    put_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[2:])
    put_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", rows[:1])
    first, second, third = read("pathvqa", tmp_path)
    assert (first.key, first.images, first.turns) == ("train-000000", [IMAGES[0]], [("what is present?", "necrosis")])
    assert (first.type, second.type) == ("finding", "presence")
    assert first.group == second.group != third.group
    assert third.turns == [("where are the cells?", "")]
    assert [row.split for row in read("pathvqa", tmp_path, "val")] == ["val"]
    assert read("pathvqa", tmp_path, "test") == []


def test_parquet_errors_name_the_file_and_column(tmp_path):
    put_parquet(tmp_path / "data" / "train-0.parquet", [{"image": image(0), "qestion": "q", "answer": "a"}])
    with pytest.raises(UserError, match="no column 'question'; did you mean 'qestion'"):
        read("pathvqa", tmp_path)
    put_parquet(tmp_path / "data" / "train-0.parquet", [{"image": image(0), "caption": "c", "answer": "a"}])
    with pytest.raises(UserError, match=r"no column 'question'; columns: answer, caption, image$"):
        read("pathvqa", tmp_path)
    path = tmp_path / "data" / "train-0.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train-0\.parquet of pathvqa: cannot be read as parquet .*; download it again"):
        read("pathvqa", tmp_path)


def test_vqa_med_2019_reads_categories_and_references(tmp_path):
    folder = tmp_path / "ImageClef-2019-VQA-Med-Training"
    lines = ["synpic1|what modality is shown?|ct", "synpic1|what is wrong?|cyst", "synpic2|what plane is it?|axial", "synpic3|broken line"]
    put(folder / "All_QA_Pairs_train.txt", "\n".join(lines) + "\n")
    put(folder / "QAPairsByCategory" / "C1_Modality_train.txt", lines[0] + "\n")
    put(folder / "QAPairsByCategory" / "C4_Abnormality_train.txt", lines[1] + "\n")
    put(folder / "Train_images" / "synpic1.jpg", IMAGES[0])
    modality, finding, *bad = read("vqa_med_2019", tmp_path)
    assert (modality.type, modality.answer, modality.group) == ("modality", "ct", "synpic1")
    assert (finding.type, finding.meta) == ("finding", {"category": "abnormality"})
    assert reasons(bad) == [
        ("train-00003-synpic2", "image missing: ImageClef-2019-VQA-Med-Training/Train_images/synpic2.jpg"),
        ("train-00004", "not image|question|answer: 'synpic3|broken line'"),
    ]
    put(tmp_path / "VQAMed2019Test" / "VQAMed2019_Test_Questions_w_Ref_Answers.txt", "s9|abnormality|is this normal?|no#abnormal\r\n")
    put(tmp_path / "VQAMed2019Test" / "VQAMed2019_Test_Images" / "s9.jpg", IMAGES[1])
    (test,) = read("vqa_med_2019", tmp_path, "test")
    assert (test.references, test.answer, test.type) == (["no", "abnormal"], "no", "presence")


def test_pmc_oa_reads_images_from_the_zip(tmp_path):
    folder = "caption_T060_filtered_top4_sep_v0_subfigures"
    put_zip(tmp_path / "images.zip", {f"{folder}/PMC1_Fig3_4.jpg": IMAGES[0], "../../escape.jpg": IMAGES[1]})
    lines = [{"image": "PMC1_Fig3_4.jpg", "caption": " A. A scan "}, {"image": "PMC1_Fig3_4.jpg", "caption": "B"}]
    lines += [
        {"image": "PMC9_Fig1_1.jpg", "caption": "missing image"},
        '{"image": "PMC1_F',
        {"image": "../../escape.jpg", "caption": "out"},
    ]
    put_lines(tmp_path / "pmc_oa.jsonl", *lines)
    one, other, *bad = read("pmc_oa", tmp_path)
    assert (one.caption, one.group, one.type, one.images) == ("A. A scan", "PMC1", "caption", [IMAGES[0]])
    assert (one.key, other.key) == ("PMC1_Fig3_4-0000001", "PMC1_Fig3_4-0000002")
    assert [reason.partition(":")[0] for _, reason in reasons(bad)] == ["image missing", "not valid JSON", "image missing"]
    assert not list(tmp_path.parent.glob("escape*"))


def write_pubmedqa(tmp_path: Path, length: int | None = None) -> Path:
    """Writes `ori_pqal.json`, truncated to `length` characters, and the test ids."""
    rows = {str(n): {"QUESTION": f"Is it {n}?", "CONTEXTS": ["One.", "Two."], "final_decision": "yes"} for n in range(4)}
    put(tmp_path / "data" / "ori_pqal.json", json.dumps(rows)[:length])
    put(tmp_path / "data" / "test_ground_truth.json", '{"1": "yes", "3": "yes"}')
    return tmp_path


def test_pubmedqa_splits_by_test_ids(tmp_path):
    assert [row.key for row in read("pubmedqa", write_pubmedqa(tmp_path))] == ["0", "2"]
    test = read("pubmedqa", tmp_path, "test")
    assert [row.key for row in test] == ["1", "3"]
    assert test[0].turns == [("One. Two.\nIs it 1?", "yes")]
    artificial = {"pubid": 9, "question": "Is it?", "context": {"contexts": ["One."], "labels": ["L"]}, "final_decision": "no"}
    put_parquet(tmp_path / "pqa_artificial" / "train-00000-of-00001.parquet", [artificial])
    last = read("pubmedqa", tmp_path)[-1]
    assert (last.key, last.turns) == ("9", [("One.\nIs it?", "no")])
    put_parquet(tmp_path / "pqa_artificial" / "train-00000-of-00001.parquet", [artificial | {"context": "One."}])
    assert reasons(read("pubmedqa", tmp_path)) == [("9", "no CONTEXTS")]
    (tmp_path / "pqa_artificial" / "train-00000-of-00001.parquet").unlink()
    put(tmp_path / "data" / "ori_pqaa.json", json.dumps({"8": {"QUESTION": "q", "final_decision": "yes"}}))
    assert reasons(read("pubmedqa", tmp_path)) == [("8", "no CONTEXTS")]
    (tmp_path / "data" / "test_ground_truth.json").unlink()
    with pytest.raises(UserError, match=r"test_ground_truth\.json is missing, which names the test questions; download it again"):
        read("pubmedqa", tmp_path)


def test_truncated_json_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"ori_pqal\.json: not complete, valid JSON: the file ends too early; download it again"):
        read("pubmedqa", write_pubmedqa(tmp_path, length=150))


@pytest.mark.slow
def test_jsonl_reads_all_keys_and_rejects_faults(tmp_path):
    put(tmp_path / "a.png", IMAGES[0])
    put(tmp_path / "sub" / "b.png", IMAGES[1])
    lines = [
        {"id": "one", "image": "a.png", "question": "How many?", "answer": 3, "scanner": "X"},
        {"image": ["a.png", "sub/b.png"], "caption": "two views", "group": "patient 1", "licence": "CC0"},
        {"question": "A or B?", "answer": "A", "choices": ["A", "B"], "type": "choice", "references": ["A", "a"]},
        {"id": "far", "image": "../secret.png", "question": "q", "answer": "a"},
        {"id": "gone", "image": "no.png", "question": "q", "answer": "a"},
        "[1, 2]",
    ]
    put_lines(tmp_path / "test.jsonl", *lines)
    one, two, three, *bad = read("jsonl", tmp_path, "test")
    assert (one.key, one.turns, one.type, one.group, one.meta) == ("one", [("How many?", "3")], "count", "a.png", {"scanner": "X"})
    assert (two.images, two.caption, two.type, two.group, two.licence) == (IMAGES[:2], "two views", "caption", "patient 1", "CC0")
    assert (three.key, three.images, three.choices, three.references, three.type) == ("test-3", [], ["A", "B"], ["A", "a"], "choice")
    assert reasons(bad) == [
        ("far", "image path is not inside the raw folder: '../secret.png'"),
        ("gone", "image missing: no.png"),
        ("test-6", "not a JSON object: line 6 of test.jsonl"),
    ]


def test_latin_1_line_is_rejected_alone(tmp_path):
    good = json.dumps({"question": "q", "answer": "a"}).encode()
    put(tmp_path / "train.jsonl", b"\n".join([good, '{"question": "Sjögren?", "answer": "a"}'.encode("latin-1"), good]))
    rows = read("jsonl", tmp_path)
    assert [type(row) for row in rows] == [Record, InvalidRow, Record]
    assert rows[1].reason == "not UTF-8: line 2 of train.jsonl, byte 16"


def test_own_data_needs_no_entry_in_sources_yaml(tmp_path):
    put_lines(tmp_path / "scans" / "test.jsonl", {"question": "q", "answer": "a"})
    put_parquet(tmp_path / "table" / "train.parquet", [{"image": image(0), "question": "q", "answer": "a"}])
    for name, reader in (("scans", "jsonl"), ("table", "jsonl")):
        entry = sources.find_source(name, tmp_path)
        assert (entry.name, entry.reader) == (name, reader)
        rows = [row for split in SPLITS for row in READERS[reader](tmp_path / name, split, entry)]
        assert [row.source for row in rows] == [name]


def test_unknown_source_suggests_the_closest(tmp_path):
    with pytest.raises(UserError, match=r"source 'pathvaq' is not in sources\.yaml.* does not exist; did you mean 'pathvqa'"):
        sources.find_source("pathvaq", tmp_path)
    with pytest.raises(UserError, match="letters, digits"):
        sources.find_source("../../etc", tmp_path)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_json_stream_does_not_depend_on_the_chunk_size(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("data_prep.readers.json_stream.CHUNK", chunk)
    value = {"a": [1, {"b": ']}\\"'}], "number": 123, "text": "é\n", "nothing": None, "empty": {}}
    put(tmp_path / "object.json", json.dumps(value, indent=2))
    assert dict(iter_items(tmp_path / "object.json")) == value
    put(tmp_path / "array.json", json.dumps(list(value.values())) + "\n")
    assert [item for _, item in iter_items(tmp_path / "array.json")] == list(value.values())
    for text in ("{}", "[]"):
        put(tmp_path / "empty.json", text)
        assert list(iter_items(tmp_path / "empty.json")) == []
    for text in ("", "{", '{"a": 1', '{"a" 1}', "[1, 2", "3"):
        put(tmp_path / "broken.json", text)
        with pytest.raises(UserError, match=r"broken\.json: not complete, valid JSON"):
            list(iter_items(tmp_path / "broken.json"))


def test_zip_members_match_zipfile(tmp_path):
    path = tmp_path / "images.zip"
    members = {f"folder/{n}.jpg": RNG.bytes(int(RNG.integers(0, 3000))) for n in range(50)} | {"ü.txt": b"a" * 5000}
    with zipfile.ZipFile(path, "w") as file:
        for n, (name, content) in enumerate(members.items()):
            file.writestr(name, content, compress_type=zipfile.ZIP_DEFLATED if n % 2 else zipfile.ZIP_STORED)
    with ZipMembers(path) as archive:
        assert len(archive) == len(members)
        assert {name: archive.read(name, "key") for name in members} == members
        assert archive.read("folder/50.jpg", "key") == InvalidRow("key", "image missing: folder/50.jpg is not in images.zip")


def test_zip64_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    members = {f"{n}": bytes([n]) * 200 for n in range(5)}
    put_zip(tmp_path / "large.zip", members)
    with ZipMembers(tmp_path / "large.zip") as archive:
        assert {name: archive.read(name, "") for name in members} == members


def test_truncated_or_damaged_zip_is_rejected(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.jpg", b"x" * 1000)
    put(tmp_path / "images.zip", out.getvalue()[:-40])
    with pytest.raises(UserError, match=r"images\.zip: not a complete zip file; download it again"):
        ZipMembers(tmp_path / "images.zip")
    put(tmp_path / "images.zip", out.getvalue().replace(b"xxxx", b"xxyx", 1))
    with ZipMembers(tmp_path / "images.zip") as archive:
        assert archive.read("a.jpg", "key") == InvalidRow("key", "zip member damaged: a.jpg")
    with pytest.raises(UserError, match=r"none\.zip: missing; download it again"):
        ZipMembers(tmp_path / "none.zip")


def test_quilt_1m_filters_rows_without_histology(tmp_path):
    put(tmp_path / "quilt_1m" / "abc_image_1.jpg", IMAGES[0])
    rows = ["a gland,abc_image_1.jpg,quilt,0.0", "'mitoses, many',abc_image_1.jpg,quilt,".replace("'", '"')]
    rows += ["a person,abc_image_2.jpg,quilt,1.0", "gone,abc_image_3.jpg,quilt,0.0"]
    put(tmp_path / "quilt_1M_lookup.csv", "caption,image_path,subset,not_histology\n" + "\n".join(rows) + "\n")
    one, other, *rest = read("quilt_1m", tmp_path)
    assert (one.key, one.caption, one.group, one.images) == ("0000000-abc_image_1", "a gland", "abc", [IMAGES[0]])
    assert other.caption == "mitoses, many"
    assert reasons(rest) == [("0000002-abc_image_2", "not histology"), ("0000003-abc_image_3", "image missing: quilt_1m/abc_image_3.jpg")]
    assert isinstance(rest[0], FilteredRow)


def test_medicat_reads_captions_and_licences(tmp_path):
    put(tmp_path / "release" / "figures" / "f00d_2-Figure1-1.png", IMAGES[0])
    figure = {"pdf_hash": "f00d", "fig_uri": "2-Figure1-1.png", "s2_caption": "Figure 1: a scan", "radiology": True}
    licensed = {**figure, "s2_caption": "", "s2orc_caption": "a scan", "oa_info": {"oa": {"license": "CC BY"}}}
    path = tmp_path / "release" / "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
    put_lines(path, figure, licensed, {**figure, "fig_uri": "none.png"}, '{"pdf_hash":')
    one, other, *bad = read("medicat", tmp_path)
    assert (one.key, one.caption, one.group, one.licence) == ("f00d_2-Figure1-1", "Figure 1: a scan", "f00d", "")
    assert (other.caption, other.licence) == ("a scan", "CC BY")
    assert [reason.partition(":")[0] for _, reason in reasons(bad)] == ["image missing", "not valid JSON"]


def test_medmcqa_options_start_at_0_on_the_hub_and_at_1_in_the_release(tmp_path):
    row = {"id": "x", "question": "Which &lt; 5?", "opa": "1", "opb": "7", "opc": "8", "opd": "9", "cop": 0, "exp": None}
    put_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [row, {**row, "id": "y", "cop": -1}, {**row, "id": "z", "opc": ""}])
    put_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [row])
    put_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{**row, "cop": -1}])
    good, *bad = read("medmcqa", tmp_path)
    assert (good.turns, good.choices, good.type) == ([("Which < 5?", "1")], ["1", "7", "8", "9"], "choice")
    assert reasons(bad) == [("y", "no such option: cop=-1"), ("z", "empty option")]
    assert [row.split for row in read("medmcqa", tmp_path, "test")] == ["test"]
    (tmp_path / "data" / "train-00000-of-00001.parquet").unlink()
    put_lines(tmp_path / "train.json", {**row, "cop": 4}, {**row, "cop": 0})
    last, bad = read("medmcqa", tmp_path)
    assert last.answer == "9"
    assert bad.reason == "no such option: cop=0"


def test_pmc_vqa_reads_choices_without_letters(tmp_path):
    put_zip(tmp_path / "images.zip", {"images/PMC1_F1.jpg": IMAGES[0]})
    header = "Figure_path,Question,Anwser,Choice A,Choice B,Choice C,Choice D,Answer_label"
    rows = [
        "PMC1_F1.jpg,What uptake?,x, A:Diffuse, B:Focal, C: None,D:A: both,B",
        "PMC1_F1.jpg,What?,x,A:a,B:b,C:c,D:d,E",
        "PMC2_F1.jpg,?,x,A:a,B:b,C:c,D:d,A",
    ]
    put(tmp_path / "train.csv", "\n".join([header, *rows]) + "\n")
    good, *bad = read("pmc_vqa", tmp_path)
    assert (good.turns, good.choices) == ([("What uptake?", "Focal")], ["Diffuse", "Focal", "None", "A: both"])
    assert (good.group, good.images, good.type) == ("PMC1_F1", [IMAGES[0]], "choice")
    assert [reason for _, reason in reasons(bad)] == ["no such option: Answer_label='E'", "image missing: PMC2_F1.jpg is not in images.zip"]


def test_medqa_reads_choices(tmp_path):
    row = {"question": "A patient ...?", "answer": "Iron", "options": {"A": "Zinc", "B": "Iron"}, "answer_idx": "B", "meta_info": "step1"}
    put_lines(tmp_path / "phrases_no_exclude_train.jsonl", row, {**row, "answer_idx": "C"})
    good, bad = read("medqa", tmp_path)
    assert (good.turns, good.choices, good.meta) == ([("A patient ...?", "Iron")], ["Zinc", "Iron"], {"step": "step1"})
    assert bad.reason == "no such option: answer_idx='C'"
    put_lines(tmp_path / "data_clean/questions/US/4_options/phrases_no_exclude_test.jsonl", row)
    assert len(read("medqa", tmp_path, "test")) == 1


def test_iu_xray_orders_views_and_cleans_reports(tmp_path):
    for n in range(3):
        put(tmp_path / "images" / "images_normalized" / f"1_{n}.png", IMAGES[n])
    put(
        tmp_path / "indiana_projections.csv",
        "uid,filename,projection\n1,1_0.png,Lateral\n1,1_1.png,Frontal\n2,1_2.png,Frontal\n4,no.png,Frontal\n",
    )
    reports = ["1,The heart is XXXX normal.,XXXX. No finding.", "2,,", "3,fine,fine", "4,fine,fine"]
    put(tmp_path / "indiana_reports.csv", "uid,findings,impression\n" + "\n".join(reports) + "\n")
    one, empty, *bad = read("iu_xray", tmp_path)
    assert one.images == [IMAGES[1], IMAGES[0]]
    assert one.caption == "The heart is normal. . No finding."
    assert record_fault(empty) == "neither question nor caption"
    assert [reason for _, reason in reasons(bad)] == [
        "image missing: indiana_projections.csv has no view of this report",
        "image missing: images/images_normalized/no.png",
    ]
    (tmp_path / "indiana_projections.csv").unlink()
    with pytest.raises(UserError, match=r"indiana_projections\.csv is missing, which names the images of each report; download it again"):
        read("iu_xray", tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_slake_filters_chinese_rows(tmp_path, zipped):
    row = {"img_name": "xmlab1/source.jpg", "question": "Where is it?", "answer": "Left", "q_lang": "en", "content_type": "Position"}
    rows = [
        row,
        {**row, "question": "\u5728\u54ea\u91cc", "q_lang": "zh"},
        {**row, "img_name": "xmlab2/source.jpg"},
        {**row, "content_type": "KG"},
    ]
    put(tmp_path / "validate.json", json.dumps(rows, ensure_ascii=False))
    if zipped:
        put_zip(tmp_path / "imgs.zip", {"imgs/xmlab1/source.jpg": IMAGES[0], "imgs/xmlab1/mask.png": b""})
    else:
        put(tmp_path / "imgs" / "xmlab1" / "source.jpg", IMAGES[0])
    good, chinese, missing, knowledge = read("slake", tmp_path, "val")
    assert (good.turns, good.type, good.group, good.images) == ([("Where is it?", "Left")], "location", "xmlab1", [IMAGES[0]])
    assert chinese == FilteredRow("val-1", "language")
    assert missing.reason.startswith("image missing: imgs/xmlab2/source.jpg")
    assert knowledge.type == "location"  # by its wording


def test_ubench_reads_arrow_files(tmp_path):
    question = {"question": "Which stain?", "options": ["H&E", "none of the above"], "answer": "H&E", "answer_idx": 0}
    rows = [
        {"image_id": "a", "image": image(0), "license": "CC0", "dataset": "d", "questions": {"stain": question, "domain": None}},
        {
            "image_id": "b",
            "image": {"bytes": None, "path": None},
            "license": "",
            "dataset": "d",
            "questions": {"stain": question, "domain": None},
        },
    ]
    path = tmp_path / "perception" / "0.1.0" / "ubench-test-00000-of-00001.arrow"
    path.parent.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    good, bad = read("ubench", tmp_path)
    assert (good.turns, good.licence, good.images, good.meta) == ([("Which stain?", "H&E")], "CC0", [IMAGES[0]], {"dataset": "d"})
    assert bad == InvalidRow("b", "image missing")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"cannot be read as arrow .*; download it again"):
        read("ubench", tmp_path)


def test_pubmedvision_reads_images_from_several_archives(tmp_path):
    put_zip(tmp_path / "images_0.zip", {"images/pmc_1_0.jpg": IMAGES[0]})
    put_zip(tmp_path / "images_1.zip", {"anywhere/pmc_1_1.jpg": IMAGES[1]})
    conversation = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two."}, {"from": "human", "value": "Where?"}]
    rows = [
        {"id": "A_1", "image": ["images/pmc_1_0.jpg", "images/pmc_1_1.jpg"], "conversations": conversation, "modality": "CT"},
        {"id": "A_2", "image": ["images/pmc_9_0.jpg"], "conversations": conversation},
    ]
    put(tmp_path / "PubMedVision_Alignment_VQA.json", json.dumps(rows))
    good, bad = read("pubmedvision", tmp_path)
    assert (good.images, good.turns, good.group, good.type) == (IMAGES[:2], [("How many?", "Two.")], "pmc_1", "count")
    assert bad == InvalidRow("A_2", "image missing: pmc_9_0.jpg is in none of the 2 archives")
    for archive in tmp_path.glob("*.zip"):
        archive.unlink()
    with pytest.raises(UserError, match=r"images_0\.zip and the other archives are missing; download them again"):
        read("pubmedvision", tmp_path)


def test_text_only_tables_have_no_images(tmp_path):
    put_parquet(tmp_path / "data" / "train-0.parquet", [{"instruction": "i", "input": "I can&#39;t sleep", "output": "Rest."}])
    (row,) = read("healthcaremagic", tmp_path)
    assert (row.turns, row.images, row.type) == ([("I can't sleep", "Rest.")], [], "text")
    cards = [{"instruction": "i", "input": "What?", "output": "This."}, {"instruction": "i", "input": "What?", "output": ""}, 3]
    put(tmp_path / "medical_meadow_wikidoc_medical_flashcards.json", json.dumps(cards))
    good, empty, bad = read("medical_flashcards", tmp_path)
    assert (good.turns, record_fault(empty)) == ([("What?", "This.")], "empty answer")
    assert bad.reason == "not a JSON object: item 2 of medical_meadow_wikidoc_medical_flashcards.json"


def test_roco_captions_are_stripped(tmp_path):
    put_parquet(tmp_path / "data" / "train-0.parquet", [{"image": image(0), "image_id": "ROCO_1", "caption": " A scan.\n", "cui": ["C1"]}])
    for source in ("roco", "rocov2"):
        (row,) = read(source, tmp_path)
        assert (row.key, row.caption, row.type) == ("ROCO_1", "A scan.", "caption")


def test_latin_1_csv_line_is_rejected_alone(tmp_path):
    put(tmp_path / "quilt_1m" / "a.jpg", IMAGES[0])
    put(tmp_path / "quilt_1M_lookup.csv", b"caption,image_path\nfine,a.jpg\nSj\xf6gren,a.jpg\nfine too,a.jpg\n")
    assert [record_fault(row) for row in read("quilt_1m", tmp_path)] == ["", "text is not valid Unicode", ""]


def test_flat_zip_members_are_found_by_their_last_name_part(tmp_path):
    put_zip(tmp_path / "a.zip", {"deep/er/1.jpg": b"1", "2.jpg": b"2"})
    with ZipMembers(tmp_path / "a.zip", flat=True) as archive:
        assert (archive.read("1.jpg", ""), archive.read("2.jpg", "")) == (b"1", b"2")
        assert archive.read("deep/er/1.jpg", "").reason.startswith("image missing")


def test_classification_dataset_becomes_questions_with_choices(tmp_path):
    raw = tmp_path / "breastmnist"
    raw.mkdir()
    arrays = {f"{split}_images": RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8) for split in SPLITS}
    np.savez(raw / "breastmnist_224.npz", **arrays, **{f"{split}_labels": np.array([[0], [1], [0], [1]], np.uint8) for split in SPLITS})
    rows = read("breastmnist", raw, "test")
    assert [row.answer for row in rows] == ["malignant", "normal, benign"] * 2
    assert rows[0].choices == ["malignant", "normal, benign"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(rows[2].images[0]))), arrays["test_images"][2])


def test_every_reader_has_an_entry():
    entries = sources.load_sources()
    assert {entry.reader for entry in entries.values()} == set(READERS)
    for entry in entries.values():
        assert set(entry.columns) <= {"image", "question", "answer", "caption", "id", "type", "group", "licence"}
        assert not entry.columns or entry.reader == "hf_parquet"
        assert entry.reader in (entry.name, "hf_parquet", "classification")
    assert set(OPTIONS) <= set(READERS)


PAPER = ["pathvqa", "mimic_cxr", "iu_xray", "vqa_rad", "roco", "omnimedvqa", "ubench"]  # the fourteen names of the paper
PAPER += ["slake", "pmc_oa", "pmc_vqa", "vqa_med_2019", "medqa", "medmcqa", "pubmedqa"]


@pytest.mark.parametrize(
    ("mix", "exceptions", "total"),
    [
        ("full", {}, 2_665_908),
        ("open", {}, 2_265_126),
        ("small", {"pubmedqa": 500}, 39_658),  # PQA-L without its 500 test questions
        ("broad", {"pubmedqa": 211_269, "iu_xray": 7_470}, 3_343_055),  # PQA-A only, images; see the comments of the mix
    ],
)
def test_shares_of_a_mix_are_the_counts_of_its_sources(mix, exceptions, total):
    entries = sources.load_sources()
    text = (CONF / "mix" / f"{mix}.yaml").read_text()
    shares = yaml.safe_load(text)["shares"]
    exceptions = {"slake": 4_919} | exceptions  # English only; the entry counts all languages
    assert {name: exceptions.get(name, entries[name].expected["train"]) for name in shares} == shares
    assert sum(shares.values()) == total
    assert f"{total:,}" in text


def test_full_mix_has_the_names_of_the_paper():
    assert sorted(yaml.safe_load((CONF / "mix" / "full.yaml").read_text())["shares"]) == sorted(PAPER)


def test_open_mix_is_what_may_be_had_and_passed_on():
    """The rule of conf/mix/open.yaml, applied to every source of a mix of conf/mix."""
    mixes = [yaml.safe_load((CONF / "mix" / f"{mix}.yaml").read_text())["shares"] for mix in ("full", "broad", "open")]
    entries = sources.load_sources()
    restricted = {
        name
        for name, entry in entries.items()
        if "yes" in (entry.licence.credentialed, entry.gated, entry.licence.non_commercial) or entry.licence.redistribute != "yes"
    }
    assert set(mixes[-1]) == {name for mix in mixes for name in mix} - restricted
    assert {"mimic_cxr", "iu_xray", "omnimedvqa", "roco", "pathvqa", "quilt_1m", "medicat"} <= restricted


def test_every_entry_states_the_sources_of_its_numbers():
    for name, entry in sources.load_sources().items():
        assert entry.reader in READERS, name
        assert entry.licence.name, name
        assert not entry.expected or entry.counts.get("from"), f"{name}: counts has no from"
        assert entry.revision.get("value", "unverified") == "unverified" or entry.revision.get("from"), f"{name}: revision has no from"
        assert {entry.licence.redistribute, entry.licence.non_commercial, entry.gated} <= {"yes", "no", "unverified"}, name


def test_misspelt_entry_is_an_error(tmp_path):
    put(tmp_path / "sources.yaml", "x:\n  reader: jsonl\n  licens: {}\n  files: {train: a}\n")
    with pytest.raises(UserError, match=r"sources\.yaml: x has an unknown key 'licens'; did you mean 'licence'"):
        sources.load_sources(tmp_path / "sources.yaml")
    put(tmp_path / "sources.yaml", "x:\n  reader: jsonl\n  files: {train: a}\n  counts: {tain: 1}\n")
    with pytest.raises(UserError, match=r"x\.counts has an unknown split 'tain'; did you mean 'train'"):
        sources.load_sources(tmp_path / "sources.yaml")
    put(tmp_path / "sources.yaml", "x:\n  reader: jsonl\n  files: {training: a}\n")
    with pytest.raises(UserError, match="unknown split 'training'; did you mean 'train'"):
        sources.load_sources(tmp_path / "sources.yaml")


def test_caption_table_uses_the_columns_of_its_entry(tmp_path):
    entry = replace(
        sources.load_sources()["pathvqa"],
        files={"train": ["train.parquet"]},
        columns={"image": "image", "caption": "text", "id": "number", "group": "pmc"},
    )
    put_parquet(tmp_path / "train.parquet", [{"image": image(0), "text": " a caption", "number": 7, "pmc": "PMC1"}])
    (row,) = READERS["hf_parquet"](tmp_path, "train", entry)
    assert (row.key, row.caption, row.type, row.group, row.turns) == ("7", "a caption", "caption", "PMC1", [])
